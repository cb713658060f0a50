"""PMI's claim, measured: does a per-layer start save time over noise, its own cost included?

One network per seed is trained on all ten embedded classes: the main job's ResNet, or a vision
transformer. Images for the same target features are then made from noise and from per-layer starts
by full-model inversion, scored by the same loss: squared feature error + 0.25 x statistics. Every
side may take Adam, at the peak learning rate, the schedule and the constant factor on the
statistics' weight that serve it best at this length, or L-BFGS, which has none of these; the factor
steers the descent, never the score. A side's cost of a loss is that of the shortest run that *ends*
there, in steps of Adam.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.pmi_ratio import Costs
from benchmarks.pmi_ratio import Setting
from benchmarks.pmi_ratio import ratio_rows
from benchmarks.pmi_ratio import search
from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import forward
from jaxpmi.config import Config
from jaxpmi.config import FullModelConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.config.load import load_config
from jaxpmi.continual.loop import task_plan
from jaxpmi.continual.start import initial_state
from jaxpmi.continual.start import open_run
from jaxpmi.features.gaussian import sample_class_features
from jaxpmi.inversion.block_inverse import fit_block_inverses
from jaxpmi.inversion.full_model import learning_rates
from jaxpmi.inversion.full_model import network_statistics
from jaxpmi.inversion.per_layer import draw_start
from jaxpmi.inversion.per_layer import invert_blocks
from jaxpmi.inversion.per_layer import propagated_block_inputs
from jaxpmi.inversion.targets import Targets
from jaxpmi.inversion.targets import target_terms
from jaxpmi.inversion.variants import INVERSION_VARIANTS
from jaxpmi.inversion.variants import InversionVariant
from jaxpmi.memory import Memory
from jaxpmi.network import Network
from jaxpmi.optimise.minimise import minimise
from jaxpmi.types import Moments

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "mnist.py"
SEARCHED = 20  # the cases but the first inherit Adam's setting for longer runs, to save time
TIMED_STEPS = 20  # of a descent, for the seconds of one step
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

LINEAR = PerLayerConfig(start="inverse", num_steps=0)
GAUSSIAN = PerLayerConfig(start="gaussian", learning_rate=0.8, num_steps=50)
# Of a transformer: at the default weight the statistics keep its blocks from their targets.
LINEAR_LIGHT = dataclasses.replace(LINEAR, statistics_weight=0.25)

WITH_NOISE = "linear inverse + white noise"
WHOLE = dataclasses.replace(INVERSION_VARIANTS["standard"], residual_scale=1.0)
VARIANTS = {WITH_NOISE: dataclasses.replace(WHOLE, noise_scale=1.0)}  # else WHOLE


class Plan(NamedTuple):
    """How one kind of network is trained and asked."""

    training: str  # options of the command line
    images_per_class: int
    pmi_lengths: tuple[int, ...]
    noise_lengths: tuple[int, ...]
    cases: dict[str, PerLayerConfig]


PLANS = {
    "resnet_small": Plan(
        training="",
        images_per_class=20,
        pmi_lengths=(20, 40, 80, 160),
        noise_lengths=(20, 40, 80, 160, 320, 640),
        cases={
            "linear inverse": LINEAR,
            WITH_NOISE: LINEAR,
            "linear inverse, 15 steps per block": dataclasses.replace(LINEAR, num_steps=15),
            "gaussian, 20 steps per block": dataclasses.replace(GAUSSIAN, num_steps=20),
            "gaussian, 50 steps per block, affine statistics (published)": dataclasses.replace(
                GAUSSIAN, block_statistics="affine"
            ),
        },
    ),
    "vit_small_patch7": Plan(
        training="--model.name vit_small_patch7 --model.width 48 --train.epochs 16 "
        "--train.optimiser adamw --train.learning-rate 0.004 --train.warmup-steps 60 "
        "--train.weight-decay 0.05 --data.augment.crop-padding 2 "
        "--inversion.full-model.statistics-weight 0.0625",  # 0.25 for the mean of four blocks
        images_per_class=10,
        pmi_lengths=(20, 40, 80),
        noise_lengths=(20, 40, 80, 160, 320),
        cases={
            "linear inverse": LINEAR,
            "linear inverse, 5 steps per block": dataclasses.replace(LINEAR_LIGHT, num_steps=5),
            "linear inverse, 15 steps per block": dataclasses.replace(LINEAR_LIGHT, num_steps=15),
        },
    ),
}


class Problem(NamedTuple):
    """One trained network and the features that images are wanted for."""

    network: Network
    targets: Targets
    memory: Memory
    batches: list[tuple[jax.Array, jax.Array, jax.Array]]  # real images, to time the fit
    config: Config
    accuracy: float  # of the network, on test images


def train_problem(seed: int, *, model: str = "resnet_small", quick: bool = False) -> Problem:
    """Trains on all classes as one task by the package's own phases, and draws the targets."""
    per_class = 4 if quick else PLANS[model].images_per_class
    config = load_config(str(CONFIG), PLANS[model].training.split())
    config = dataclasses.replace(
        config,
        seed=seed,
        data=dataclasses.replace(config.data, tasks=1, num_classes=2 if quick else None),
        train=dataclasses.replace(config.train, epochs=1 if quick else config.train.epochs),
        inversion=dataclasses.replace(config.inversion, targets="gaussian"),
    )
    run, order = open_run(config)
    state = initial_state(run, order)
    for index, (_, phase) in enumerate(task_plan(run, 0)):
        state = state.replace(phase=jnp.asarray(index, jnp.int32), step=jnp.zeros((), jnp.int32))
        for tick in phase(run, state):
            state = tick.state
    network = state.network
    labels = jnp.repeat(jnp.arange(network.num_classes, dtype=jnp.int32), per_class)
    features = sample_class_features(state.memory.class_stats, labels, jax.random.key(1000 + seed))
    all_classes = jnp.ones(network.num_classes, bool)
    images = jnp.asarray(run.stream.train_images(0))
    images = normalise(images, network.mean, network.std)
    real, size = jnp.asarray(run.stream.train_labels(0)), 250
    parts = [slice(first, first + size) for first in range(0, len(real), size)]
    return Problem(
        network,
        Targets(features, labels, network.head, all_classes),
        state.memory,
        [(images[part], real[part], jnp.ones(len(real[part]))) for part in parts],
        config,
        float(state.accuracy[0, 0]),
    )


def noise_start(problem: Problem, key: jax.Array) -> jax.Array:
    """Standard-normal images."""
    shape = problem.network.image_shape
    standard = Moments(jnp.zeros(shape[-1]), jnp.ones(shape[-1]))
    return draw_start(standard, shape, key, problem.targets.features)


def per_layer_start(
    problem: Problem,
    per_layer: PerLayerConfig,
    key: jax.Array,
    variant: InversionVariant = WHOLE,
) -> jax.Array:
    """The images that per-layer inversion ends with."""
    block_inputs = problem.memory.block_inputs
    if per_layer.block_statistics == "affine":
        block_inputs = propagated_block_inputs(problem.network, published=True)
    start, _ = invert_blocks(
        problem.network,
        problem.targets,
        block_inputs,
        key,
        config=per_layer,
        inverses=problem.memory.inverses,
        variant=variant,
    )
    return start


def refine(problem: Problem, start: jax.Array, setting: Setting) -> float:
    """The loss, at its own weights, that full-model inversion ends with."""
    schedule = FullModelConfig(num_steps=setting.num_steps, learning_rate=setting.learning_rate)
    variant = dataclasses.replace(WHOLE, schedule=setting.schedule)
    loss = float(
        _descend(
            problem.network,
            start,
            problem.targets,
            learning_rates(schedule, variant),
            jnp.float32(problem.config.inversion.full_model.statistics_weight),
            jnp.float32(setting.boost),
            optimizer=setting.optimizer,
        )
    )
    return loss if math.isfinite(loss) else math.inf


@functools.partial(jax.jit, static_argnames="optimizer")
def _descend(network, start, targets, rates, weight, boost, *, optimizer):
    """One program per length: the setting is data. For L-BFGS only the number of rates counts."""

    def terms(x, key):
        del key
        outputs = forward(network.model, network.variables, x)
        named = target_terms(
            outputs.features, targets, feature_weight=1.0, cross_entropy_weight=0.0
        )
        stored = network.variables.batch_stats
        named["statistics"] = network_statistics(network.model, outputs.moments, stored)
        return named

    def score(named):
        return named["feature_match"] + weight * named["statistics"]

    if optimizer == "lbfgs":
        return _lbfgs(lambda x: score(terms(x, None)), start, rates.shape[0])
    weights = {"feature_match": 1.0, "statistics": boost * weight}
    key = jax.random.key(0)  # no term is random
    return score(minimise(terms, start, key, weights=weights, learning_rates=rates).terms)


def _lbfgs(loss_fn, x, num_steps):
    """The least loss of `num_steps` steps of L-BFGS, which begin at x."""
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=8, initial_guess_strategy="one")
    tx = optax.lbfgs(memory_size=20, linesearch=search)
    value_and_grad = optax.value_and_grad_from_state(loss_fn)

    def step(carry, _):
        x, opt_state = carry
        loss, grads = value_and_grad(x, state=opt_state)
        updates, opt_state = tx.update(
            grads, opt_state, x, value=loss, grad=grads, value_fn=loss_fn
        )
        return (x + updates, opt_state), loss

    (x, _), losses = jax.lax.scan(step, (x, tx.init(x)), None, length=num_steps)
    return losses.min()


def measure_costs(
    problem: Problem,
    cases: Mapping[str, PerLayerConfig],
    key: jax.Array,
    *,
    repetitions: int,
    clock: str = "wall",
) -> Costs:
    """Median seconds by one of `CLOCKS`, after a first call that compiles.

    The pieces take turns, so that whatever else the machine does hits all of them alike.
    """
    now = CLOCKS[clock]
    images = noise_start(problem, key)
    setting = Setting(TIMED_STEPS)
    rank = WHOLE.inverse_rank

    def fit():
        return fit_block_inverses(problem.network, problem.batches, rank=rank)

    work = {
        "adam": lambda: refine(problem, images, setting),
        "lbfgs": lambda: refine(problem, images, setting._replace(optimizer="lbfgs")),
        "noise": lambda: noise_start(problem, key),
        "fit": fit,
        **{
            name: lambda config=config, name=name: per_layer_start(
                problem, config, key, VARIANTS.get(name, WHOLE)
            )
            for name, config in cases.items()
        },
    }
    taken = {name: [] for name in work}
    for repetition in range(repetitions + 1):
        for name, function in work.items():
            since = now()
            jax.block_until_ready(function())
            if repetition > 0:
                taken[name].append(now() - since)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    steps = {name: seconds[name] / setting.num_steps for name in ("adam", "lbfgs")}
    starts = {name: seconds[name] for name in cases}
    return Costs(steps, seconds["noise"], starts, seconds["fit"])


def run_seed(
    seed: int, *, model: str, clock: str, quick: bool, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All cases on the network of one seed: rows, and what else was measured."""
    say(f"seed {seed}: training on all classes")
    problem = train_problem(seed, model=model, quick=quick)
    key_noise, key_start, key_costs = jax.random.split(jax.random.key(2000 + seed), 3)
    plan = PLANS[model]
    cases, lengths = plan.cases, (plan.pmi_lengths, plan.noise_lengths)
    if quick:
        cases, lengths = dict(list(cases.items())[:1]), (lengths[0][:1], lengths[1][:2])
    everywhere = 0 if quick else plan.noise_lengths[-1]

    def descend(name, start, lengths, searched, *, goal=0.0):
        def score(setting):
            loss = refine(problem, start, setting)
            say(f"seed {seed}: {name}: {loss:.3g} by {tuple(setting)}")
            return loss

        scores = search(score, lengths, searched=searched, goal=goal)
        for length in lengths:
            setting = Setting(length, optimizer="lbfgs")
            scores[setting] = score(setting)
            if scores[setting] <= goal:
                break
        return scores

    scores = {}
    for name, per_layer in cases.items():
        start = per_layer_start(problem, per_layer, key_start, VARIANTS.get(name, WHOLE))
        searched = everywhere if name == next(iter(cases)) else min(SEARCHED, everywhere)
        scores[name] = descend(name, start, lengths[0], searched)
    goal = min(min(tried.values()) for tried in scores.values())
    start = noise_start(problem, key_noise)
    noise = descend("noise", start, lengths[1], everywhere, goal=goal)
    say(f"seed {seed}: timing")
    repetitions = 1 if quick else 5
    costs = measure_costs(problem, cases, key_costs, repetitions=repetitions, clock=clock)
    rows = []
    for allowed in (("adam",), ("adam", "lbfgs")):
        for name, per_layer in cases.items():
            fitted = per_layer.start == "inverse"
            pmi, against = (_only(tried, allowed) for tried in (scores[name], noise))
            for row in ratio_rows(name, pmi, against, costs, fitted=fitted):
                rows.append({"seed": seed, "optimizers": " or ".join(allowed), **row})
    details = {
        "seed": seed,
        "test_accuracy": problem.accuracy,
        "seconds": costs._asdict(),
        "runs": {
            name: [{**s._asdict(), "loss": loss} for s, loss in sorted(tried.items())]
            for name, tried in {**scores, "noise": noise}.items()
        },
    }
    return rows, details


def _only(scores, optimizers):
    return {setting: loss for setting, loss in scores.items() if setting.optimizer in optimizers}
