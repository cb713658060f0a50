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
from bench_ratios import REFINEMENT_STEPS
from bench_ratios import Case
from bench_ratios import Costs
from bench_ratios import Setting
from bench_ratios import ratio_rows
from bench_ratios import search_noise

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
STATISTICS_WEIGHT = 0.25
IMAGES_PER_CLASS = 20
MAX_BOOST = 10.0


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
FULL_DRAW = PerLayerConfig(start="inverse", residual_scale=1.0, noise_scale=1.0, num_steps=0)
SMALL_DRAW = dataclasses.replace(FULL_DRAW, residual_scale=0.5, noise_scale=0.0)
GAUSSIAN = PerLayerConfig(start="gaussian", num_steps=20, learning_rate=0.8)
CASES = (
    Case("inverse", FULL_DRAW),
    Case("inverse + 10 steps per block", dataclasses.replace(FULL_DRAW, num_steps=10)),
    Case("inverse, small draw", SMALL_DRAW),
    Case("inverse, small draw + 10 steps", dataclasses.replace(SMALL_DRAW, num_steps=10)),
    Case("gaussian, measured, 20 steps", GAUSSIAN),
    Case(
        "gaussian, affine, 50 steps (published)",
        dataclasses.replace(GAUSSIAN, num_steps=50, block_statistics="affine"),
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

    low, high = (limit.reshape(1, 1, 1, -1) for limit in limits)
    project = lambda x: jnp.clip(x, low, high)  # noqa: E731
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


def measure_costs(
    problem: Problem, cases: Sequence[Case], key: jax.Array, *, repetitions: int, clip: bool
) -> list[Costs]:
    """Median seconds per case, after a warm-up that compiles.

    The pieces are timed in turns, so that whatever else the machine does hits all of them alike.
    """
    steps = REFINEMENT_STEPS[0]
    start, setting = noise_start(problem, key), PMI_SETTING._replace(num_steps=steps)
    linear, sweeps = Case("linear", FULL_DRAW), Case("sweeps", GAUSSIAN)
    work = {
        "full": lambda: refine(problem, start, setting, clip=clip),
        "noise": lambda: noise_start(problem, key),
        "fit": problem.refit,
        **{
            case.name: functools.partial(per_layer_start, problem, case, key)
            for case in (linear, sweeps, *cases)
        },
    }
    taken = {name: [] for name in work}
    for repetition in range(repetitions + 1):
        for name, function in work.items():
            if name == "fit" and repetition > 1:
                continue  # long, and once is enough for a second column
            since = time.perf_counter()
            jax.block_until_ready(function())
            if repetition > 0:
                taken[name].append(time.perf_counter() - since)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    return [
        Costs(
            full_step=seconds["full"] / steps,
            sweep=seconds[sweeps.name] / sweeps.per_layer.num_steps,
            start=seconds[case.name],
            linear=seconds[linear.name] if case.per_layer.start == "inverse" else 0.0,
            fit=seconds["fit"] if case.per_layer.start == "inverse" else 0.0,
            noise=seconds["noise"],
        )
        for case in cases
    ]


def run_seed(
    seed: int, *, quick: bool, clip: bool, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All cases on the network of one seed: rows, and what else was measured."""
    say(f"seed {seed}: training on all classes")
    problem = train_problem(seed, epochs=1 if quick else 15)
    key_noise, key_start, key_costs = jax.random.split(jax.random.key(2000 + seed), 3)
    lengths, keep = ((20, 40), (1,)) if quick else ((80, 160, 320, 640, 1280), (3, 2, 1, 1))
    pmi = PMI_SETTING._replace(num_steps=lengths[-1]) if quick else PMI_SETTING
    cases = CASES[:2] if quick else CASES
    curves = {}
    for case in cases:
        say(f"seed {seed}: {case.name}")
        start = per_layer_start(problem, case, key_start)
        curves[case] = refine(problem, start, pmi, clip=clip)
    start = noise_start(problem, key_noise)

    def score(setting):
        say(f"seed {seed}: noise, {setting.name()}")
        return refine(problem, start, setting, clip=clip)

    goal = float(min(curve[-1] for curve in curves.values()))
    noise = search_noise(score, lengths=lengths, keep=keep, goal=goal)
    say(f"seed {seed}: timing")
    costs = measure_costs(problem, cases, key_costs, repetitions=1 if quick else 3, clip=clip)
    rows = []
    for case, cost in zip(cases, costs, strict=True):
        rows += [{"seed": seed, **row} for row in ratio_rows(case, curves[case], noise, cost)]
    num_bytes = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    details = {
        "seed": seed,
        "test_accuracy": problem.accuracy,
        "seconds": {c.name: cost._asdict() for c, cost in zip(cases, costs, strict=True)},
        "bytes": {
            "block_inverses": num_bytes(problem.inverses),
            "network": num_bytes(problem.variables),
        },
        "pmi_refinement": pmi.name(),
        "curves": {
            **{case.name: _thin(curve) for case, curve in curves.items()},
            **{f"noise, {s.name()}": _thin(curve) for s, curve in noise.items()},
        },
    }
    return rows, details


def _thin(curve):
    steps = [s for s in (1, 5, 10, 20, 40, 80, 160, 320, 640, 1280) if s <= len(curve)]
    return {str(s): float(curve[s - 1]) for s in steps}
