"""PMI's start against noise on a real ImageNet network: steps and seconds to the same loss.

EfficientNet-Lite0 makes pictures of the classes of configs/imagenet_subset.py, by the loss and the
parameters of that config (Fourier coefficients), from noise and from per-layer starts as
`--method pmi` makes them: from the labels, with block-input moments that BatchNorms imply. The loss
is random in the view, so a run's is that of its last images, averaged over the same views for all.
Every side may take the peak learning rate that serves it best. A side's cost of a loss is that of
the shortest run that *ends* there.
"""

import dataclasses
import functools
import math
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

from benchmarks.pmi_ratio import Costs
from benchmarks.pmi_ratio import Setting
from benchmarks.pmi_ratio import rate_neighbours
from benchmarks.pmi_ratio import ratio_rows
from benchmarks.pmi_ratio import search
from jaxpmi.augment import normalise
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.config.load import load_config
from jaxpmi.continual.state import ContinualState
from jaxpmi.inversion.deep_inversion import deep_inversion
from jaxpmi.inversion.spectrum import images_of
from jaxpmi.inversion.synthetic import Synthetic
from jaxpmi.inversion.variants import DEEP_INVERSION_VARIANTS
from jaxpmi.jobs import invert

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "imagenet_subset.py"
NUM_VIEWS = 8  # over which a loss is averaged
TIMED_STEPS = 20  # of a descent, for the seconds of one step
FIRST = Setting(0, learning_rate=0.1)  # what the search for a learning rate begins with

# Where a descent begins: what per-layer inversion ends with, noise whose Fourier coefficients have
# that deviation, or (None) the noise that the job begins with, whose coefficients have 0.01.
Start = PerLayerConfig | float | None

WHITE = PerLayerConfig(start="gaussian", block_statistics="propagated", num_steps=10)
COARSE = dataclasses.replace(WHITE, coarse_to_fine_steps=10)
CASES = {
    "10 steps per block, images coarse to fine": COARSE,
    "10 steps per block, images from white noise": WHITE,
    "5 steps per block, images coarse to fine": dataclasses.replace(COARSE, num_steps=5),
    "20 steps per block, images coarse to fine": dataclasses.replace(COARSE, num_steps=20),
    "no inversion: noise of more contrast": 0.2,
}


class Plan(NamedTuple):
    """How much is done."""

    image_size: int  # pixels
    jitter_pixels: int  # greatest shift of a view
    pmi_lengths: tuple[int, ...]
    noise_lengths: tuple[int, ...]
    searched: int  # all but noise and the first case take longer runs' rates from shorter ones
    cases: dict[str, Start]
    repetitions: int  # of what is timed


FULL = Plan(96, 12, (20, 40), (10, 20, 40, 80), 20, CASES, 3)
QUICK = Plan(32, 4, (2,), (2, 4), 0, dict(list(CASES.items())[:1]), 1)


class Problem(NamedTuple):
    """A network, and what is wanted of it."""

    run: invert.InvertRun  # a job's, as it begins
    state: ContinualState
    labels: jax.Array  # i32[B]
    config: DeepInversionConfig


def open_problem(plan: Plan) -> Problem:
    """The network with its weights, and one picture of every class."""
    return open_problem_of(plan.image_size, plan.jitter_pixels)


def open_problem_of(
    image_size: int,
    jitter_pixels: int,
    *,
    pictures_per_class: int = 1,
    overrides: Sequence[str] = (),
) -> Problem:
    """The network with its weights, the config's classes, and its settings with `overrides`."""
    config = load_config(
        str(CONFIG), ["--data.image-size", str(image_size), "--invert.no-learn-data", *overrides]
    )
    run, state = invert.begin(config)
    settings = dataclasses.replace(config.deep_inversion, jitter_pixels=jitter_pixels)
    labels = jnp.asarray(np.tile(run.classes, pictures_per_class), jnp.int32)
    return Problem(run, state, labels, settings)


def start_images(problem: Problem, start: Start, key: jax.Array) -> jax.Array:
    """Where a descent begins, f32[B, H, W, C]."""
    config, shape = problem.run.config, problem.run.stream.image_shape
    if isinstance(start, float):
        limits = (limit.reshape(1, 1, 1, -1) for limit in problem.state.network.pixel_range)
        waves = (len(problem.labels), shape[0], shape[1] // 2 + 1, shape[2], 2)
        return images_of(start * jax.random.normal(key, waves), *limits, image_shape=shape)
    if start is not None:
        inversion = dataclasses.replace(config.inversion, per_layer=start)
        config = dataclasses.replace(config, method="pmi", inversion=inversion)
    run = dataclasses.replace(problem.run, config=config)
    return invert.start_images(run, problem.state.network, problem.labels, key)


def refine(problem: Problem, start: jax.Array, setting: Setting, key: jax.Array) -> jax.Array:
    """The images, as stored, that a descent of one length and learning rate ends with."""
    return _invert(
        problem,
        start,
        key,
        stage_steps=(setting.num_steps,),
        learning_rate=setting.learning_rate,
    ).images


def measure_loss(problem: Problem, images: jax.Array) -> tuple[float, dict[str, float]]:
    """The loss of images averaged over views, and the terms of one view.

    A descent at a learning rate of 0 sees the same images, clipped, in `NUM_VIEWS` views. They are
    f32, normalised, or u8 as stored.
    """
    if images.dtype == jnp.uint8:
        network = problem.state.network
        images = normalise(images, network.mean, network.std)
    seen = _invert(
        problem,
        images,
        jax.random.key(0),
        stage_steps=(NUM_VIEWS,),
        learning_rate=0.0,
        parameters="pixels",
    )
    loss = float(seen.losses.mean())
    terms = {name: float(term) for name, term in seen.terms.items()}
    return (loss if math.isfinite(loss) else math.inf), terms


def measure_costs(problem: Problem, cases: dict[str, Start], *, repetitions: int) -> Costs:
    """Median seconds by the clock of the host, after a first call that compiles.

    The pieces take turns, so that whatever else the machine does hits all of them alike.
    """
    key = jax.random.key(1)
    images = start_images(problem, None, key)
    timed = FIRST._replace(num_steps=TIMED_STEPS)
    work = {"adam": lambda: refine(problem, images, timed, key)}
    for name, kind in {"noise": None, **cases}.items():
        work[name] = functools.partial(start_images, problem, kind, key)
    taken = {name: [] for name in work}
    for repetition in range(repetitions + 1):
        for name, function in work.items():
            since = time.perf_counter()
            jax.block_until_ready(function())
            if repetition > 0:
                taken[name].append(time.perf_counter() - since)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    step, noise = seconds.pop("adam") / TIMED_STEPS, seconds.pop("noise")
    return Costs({"adam": step}, noise, seconds, fit=0.0)


def run_seed(
    seed: int, *, plan: Plan, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All cases with the noise of one seed: rows, and what else was measured."""
    problem = open_problem(plan)
    key_start, key_views = jax.random.split(jax.random.key(seed))
    starts, scores = {}, {}
    for name, kind in {"noise": None, **plan.cases}.items():
        start = start_images(problem, kind, key_start)
        loss, terms = measure_loss(problem, start)
        starts[name] = {"loss": loss, "terms": terms, "pixel_deviation": float(start.std())}
        say(f"seed {seed}: {name}: {loss:.4g} at the start")

        def score(setting, name=name, start=start):
            loss, _ = measure_loss(problem, refine(problem, start, setting, key_views))
            say(f"seed {seed}: {name}: {loss:.4g} by {setting[:2]}")
            return loss

        thorough = name in ("noise", next(iter(plan.cases)))
        lengths = plan.noise_lengths if name == "noise" else plan.pmi_lengths
        searched = max(lengths) if thorough else plan.searched
        scores[name] = search(
            score, lengths, searched=searched, first=FIRST, neighbours=rate_neighbours
        )
    say(f"seed {seed}: timing")
    costs = measure_costs(problem, plan.cases, repetitions=plan.repetitions)
    rows = [
        {"seed": seed, "optimizers": "adam", **row}
        for name in plan.cases
        for row in ratio_rows(name, scores[name], scores["noise"], costs, fitted=False)
    ]
    details = {
        "seed": seed,
        "image_size": plan.image_size,
        "num_images": len(problem.labels),
        "seconds": costs._asdict(),
        "starts": starts,
        "runs": {
            name: [{**s._asdict(), "loss": loss} for s, loss in sorted(tried.items())]
            for name, tried in scores.items()
        },
    }
    return rows, details


def _invert(
    problem: Problem, start: jax.Array, key: jax.Array, parameters: str = "spectrum", **changes: Any
) -> Synthetic:
    """`deep_inversion` of the problem, by its settings with some of them changed."""
    config = dataclasses.replace(problem.config, **changes)
    variant = DEEP_INVERSION_VARIANTS[config.variant]
    variant = dataclasses.replace(variant, parameters=parameters, iterate="last")
    return deep_inversion(
        problem.state.network, problem.labels, key, config=config, start=start, variant=variant
    )
