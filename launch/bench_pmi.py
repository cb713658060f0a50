"""PMI's claim, measured (spec test T10): does a per-layer start beat noise, its own cost included?

One network per seed is trained on all ten embedded classes. Images for the same 200 target features
are then made from noise and from per-layer starts, by the same Adam steps on the same loss
(feature MSE + 0.25 x statistics, never boosted in the score). Noise is granted a search over
learning rates, schedules, weights and run lengths, and for every loss level the best of all these
runs; PMI gets one fixed refinement of 160 steps.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.config import FullModelConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.config_file import load_config
from jaxpmi.continual.loop import task_plan
from jaxpmi.continual.start import initial_state
from jaxpmi.continual.start import open_run
from jaxpmi.data.augment import normalise
from jaxpmi.features import contrastive
from jaxpmi.inversion import objectives
from jaxpmi.inversion.block_inverse import fit_block_inverses
from jaxpmi.inversion.full_model import learning_rates
from jaxpmi.inversion.per_layer import draw_start
from jaxpmi.inversion.per_layer import invert_blocks
from jaxpmi.inversion.per_layer import propagated_block_inputs
from jaxpmi.inversion.solver import Solution
from jaxpmi.inversion.solver import minimise
from jaxpmi.inversion.targets import Targets
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import forward
from jaxpmi.types import Moments

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "mnist.py"
REFINEMENT_STEPS = (20, 40, 80, 160)  # loss levels are those PMI's refinement has reached then
STATISTICS_WEIGHT = 0.25
IMAGES_PER_CLASS = 20
MAX_BOOST = 10.0


class Setting(NamedTuple):
    """How full-model inversion is run; the score is the same for all."""

    learning_rate: float
    schedule: str  # "cosine" or "step"
    boost: bool  # double a term's weight while it exceeds its first value
    statistics_factor: float  # on the statistics' gradient, not on the score
    num_steps: int

    def name(self) -> str:
        """Short, for tables."""
        boost = ", boosted" if self.boost else ""
        heavy = f", statistics x {self.statistics_factor:g}" if self.statistics_factor != 1 else ""
        return f"{self.schedule} {self.learning_rate:g}, {self.num_steps} steps{boost}{heavy}"


class Case(NamedTuple):
    """A per-layer start."""

    name: str
    per_layer: PerLayerConfig


class Problem(NamedTuple):
    """One trained network and the features that images are wanted for."""

    model: Any
    variables: Variables
    targets: Targets
    block_inputs: tuple[Moments, ...]  # measured on real images
    inverses: tuple[Any, ...]
    image_shape: tuple[int, int, int]
    limits: tuple[jax.Array, jax.Array]  # f32[C] each, black and white
    refit: Callable[[], Any]  # fits the inverses again, to be timed
    accuracy: float  # of the network, on test images


PMI_SETTING = Setting(0.4, "cosine", True, 1.0, 160)
CASES = (
    Case("inverse, no steps per block", PerLayerConfig(start="inverse", num_steps=0)),
    Case("inverse, 10 steps per block", PerLayerConfig(start="inverse", num_steps=10)),
    Case(
        "gaussian, measured statistics, 20 steps per block",
        PerLayerConfig(start="gaussian", num_steps=20, learning_rate=0.8),
    ),
    Case(
        "gaussian, affine statistics, 50 steps per block (published)",
        PerLayerConfig(
            start="gaussian", num_steps=50, learning_rate=0.8, block_statistics="affine"
        ),
    ),
)


def train_problem(seed: int, *, epochs: int = 15, per_class: int = IMAGES_PER_CLASS) -> Problem:
    """Trains on all classes as one task, by the package's own loop, and draws CFS targets."""
    config = load_config(str(CONFIG), [])
    config = dataclasses.replace(
        config,
        seed=seed,
        data=dataclasses.replace(config.data, num_tasks=1),
        train=dataclasses.replace(config.train, epochs=epochs),
    )
    run, order = open_run(config)
    state = initial_state(run, order)
    run.stream.begin(0)
    for index, (_, phase) in enumerate(task_plan(run, 0)):
        state = state.replace(phase=jnp.asarray(index, jnp.int32), step=jnp.zeros((), jnp.int32))
        for tick in phase(run, state):
            state = tick.state
    num_classes = run.stream.num_classes
    features = contrastive.sample_features(
        state.memory.feature_models,
        state.memory.class_stats,
        jax.random.key(1000 + seed),
        num_per_class=per_class,
        num_rounds=config.contrastive.num_rounds,
        keep_rate=config.contrastive.keep_rate,
    )
    targets = Targets(
        features.reshape(num_classes * per_class, -1),
        jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), per_class),
        state.network.head,
        jnp.ones(num_classes, bool),
    )
    images = normalise(jnp.asarray(run.stream.train_images(0)), state.mean, state.std)
    labels, size = jnp.asarray(run.stream.train_labels(0)), 250
    batches = [
        (images[i : i + size], labels[i : i + size], jnp.ones(len(labels[i : i + size])))
        for i in range(0, len(labels), size)
    ]
    rank = config.inversion.per_layer.inverse_rank
    refit = functools.partial(
        fit_block_inverses, run.model, state.network.variables, batches,
        num_classes=num_classes, rank=rank,
    )  # fmt: skip
    black = -state.mean / state.std
    return Problem(
        run.model,
        state.network.variables,
        targets,
        state.memory.block_inputs,
        state.memory.inverses,
        run.stream.image_shape,
        (black, black + 1.0 / state.std),
        refit,
        float(state.accuracy[0, 0]),
    )


@functools.partial(jax.jit, static_argnames=("model", "clip"), donate_argnames="start")
def descend(
    variables, start, features, limits, rates, max_boost, extra_weight, key, *, model, clip
) -> Solution:
    """What `refine_images` does, with the schedule and the weights as data: one compile per length.

    `extra_weight` is added to the statistics' gradient only, so that the score stays comparable.
    """

    def terms(x, key):
        del key
        out = forward(model, variables, x)
        value = objectives.statistics_loss(out.moments, variables.batch_stats)
        return {
            "feature_match": objectives.feature_match(out.features, features),
            "statistics": value,
            "extra_statistics": value - jax.lax.stop_gradient(value),  # 0, with a gradient
        }

    project = lambda x: jnp.clip(x, *limits)  # noqa: E731
    weights = {"feature_match": 1.0, "statistics": STATISTICS_WEIGHT}
    return minimise(
        terms,
        project(start) if clip else start,
        key,
        weights={**weights, "extra_statistics": extra_weight},
        learning_rates=rates,
        max_boost=dict.fromkeys(weights, max_boost),
        project=project if clip else None,
    )


def refine(problem: Problem, start: jax.Array, setting: Setting, *, clip: bool) -> np.ndarray:
    """Best score so far after every step, f32[S]; entry s - 1 has cost s steps."""
    config = FullModelConfig(
        num_steps=setting.num_steps, learning_rate=setting.learning_rate, schedule=setting.schedule
    )
    solution = descend(
        problem.variables,
        jnp.array(start),  # a copy: it is donated
        problem.targets.features,
        problem.limits,
        learning_rates(config),
        MAX_BOOST if setting.boost else 1.0,
        STATISTICS_WEIGHT * (setting.statistics_factor - 1.0),
        jax.random.key(0),
        model=problem.model,
        clip=clip,
    )
    return np.minimum.accumulate(np.asarray(solution.losses))


def noise_start(problem: Problem, key: jax.Array) -> jax.Array:
    """Standard-normal images."""
    channels = problem.image_shape[-1]
    standard = Moments(jnp.zeros(channels), jnp.ones(channels))
    return draw_start(standard, problem.image_shape, key, problem.targets.features)


def per_layer_start(problem: Problem, case: Case, key: jax.Array) -> jax.Array:
    """The images that per-layer inversion ends with."""
    block_inputs = problem.block_inputs
    if case.per_layer.block_statistics != "measured":
        published = case.per_layer.block_statistics == "affine"
        block_inputs = propagated_block_inputs(
            problem.model, problem.variables, published=published
        )
    start, _ = invert_blocks(
        problem.model,
        problem.variables,
        problem.targets,
        block_inputs,
        key,
        config=case.per_layer,
        image_shape=problem.image_shape,
        inverses=problem.inverses,
    )
    return start


