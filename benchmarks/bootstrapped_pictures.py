"""What a bootstrapped memory saves when many pictures are made from labels alone.

The network, the classes and the loss are those of `benchmarks.pictures`, in batches of three
pictures of every class. Noise makes two batches by its best schedule. From the first of them on,
further batches are made as `--method bootstrapped_pmi` makes them, in fewer steps. What is told is
what both sides' pictures are like, and what a thousand would cost: the seconds of a batch, of a
start and of a fit are measured, their numbers follow from the job's plan; compilation is left out.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.pictures import Problem
from benchmarks.pictures import measure_loss
from benchmarks.pictures import open_problem_of
from jaxpmi.continual.state import Replay
from jaxpmi.inversion.deep_inversion import deep_inversion
from jaxpmi.jobs import bootstrap
from jaxpmi.jobs import invert
from jaxpmi.network import raw_features
from jaxpmi.quality import mean_pairwise_distance
from jaxpmi.sharding import make_mesh

NUM_PICTURES = 1000  # whose cost is told
CELLS = 8  # an image's sides in cells, whose means are compared


class Plan(NamedTuple):
    """How much is done."""

    image_size: int  # pixels
    jitter_pixels: int  # greatest shift of a view
    noise_steps: int
    steps: int  # of every batch that does not start from noise
    num_batches: int  # of these


FULL = Plan(96, 12, noise_steps=150, steps=30, num_batches=6)
QUICK = Plan(32, 4, noise_steps=3, steps=2, num_batches=2)


class Made(NamedTuple):
    """A batch of pictures u8[B, H, W, C], and what it took."""

    images: np.ndarray
    seconds: float
    loss: float
    agreement: float


def run_seed(
    seed: int, *, plan: Plan, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Both sides with the noise of one seed: a row, and what else was measured."""
    problem, noise, later, fits = make_both(seed, plan=plan, say=say)
    row = {
        "seed": seed,
        "loss_of_noise": statistics.mean(made.loss for made in noise),
        "loss": statistics.mean(made.loss for made in later),
        "agreement_of_noise": statistics.mean(made.agreement for made in noise),
        "agreement": statistics.mean(made.agreement for made in later),
        **_compare(problem, noise, later),
        **extrapolate(
            NUM_PICTURES,
            batch_size=len(problem.labels),
            noise=noise[-1].seconds,  # the first compiles, once
            later=statistics.median(made.seconds for made in later),
            fit=statistics.median(fits),
        ),
    }
    sides = {"noise": noise, "later": later}
    told = {
        name: [{k: v for k, v in made._asdict().items() if k != "images"} for made in side]
        for name, side in sides.items()
    }
    return [row], {"seed": seed, "plan": plan._asdict(), "fits": fits, **told}


def make_both(
    seed: int, *, plan: Plan, say: Callable[[str], None]
) -> tuple[Problem, list[Made], list[Made], list[float]]:
    """The problem, batches from noise, batches from memory, seconds of the fits."""
    settings = f"""--method bootstrapped_pmi --invert.images-per-class 100
      --inversion.full-model.num-steps {plan.steps}"""
    problem = open_problem_of(
        plan.image_size,
        plan.jitter_pixels,
        pictures_per_class=bootstrap.FIRST_PER_CLASS,
        overrides=settings.split(),
    )
    # All on one device, of which a batch need not be a multiple.
    problem = problem._replace(state=jax.device_put(problem.state, jax.devices()[0]))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 18), 3)
    noise = [_from_noise(problem, key, steps=plan.noise_steps) for key in keys[:2]]
    for made in noise:
        say(f"seed {seed}: noise: {made.loss:.2f}, {made.agreement:.2f} in {made.seconds:.1f} s")
    return problem, noise, *_from_memory(problem, noise[0].images, keys[2], plan, say)


def extrapolate(
    num_pictures: int, *, batch_size: int, noise: float, later: float, fit: float
) -> dict[str, float]:
    """Seconds for so many pictures, by measured seconds of a batch of either kind and of a fit."""
    num_batches = -(-num_pictures // batch_size)
    num_fits = len({bootstrap.remembered_batches(index, 1) for index in range(1, num_batches)})
    all_from_noise = num_batches * noise
    bootstrapped = noise + num_fits * fit + (num_batches - 1) * later
    return {
        "seconds_of_noise_batch": noise,
        "seconds_of_batch": later,
        "seconds_of_fit": fit,
        "num_fits": num_fits,
        "seconds_all_from_noise": all_from_noise,
        "seconds_bootstrapped": bootstrapped,
        "wall_clock_ratio": all_from_noise / bootstrapped,
    }


def nearest_distance(one: np.ndarray, others: np.ndarray, same: np.ndarray) -> float:
    """Mean distance of rows f32[N, D] to the nearest of f32[M, D] in bool[N, M] `same`."""
    distances = np.linalg.norm(one[:, None] - others[None], axis=-1)
    return float(np.where(same, distances, np.inf).min(1).mean())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a line per seed."""
    lines = [
        "| seed | loss, noise | loss, bootstrapped | agreement | spread of features, of pixels | "
        "nearest of the first batch, features, pixels | seconds of a batch: noise, later, fit | "
        f"{NUM_PICTURES} pictures, s | ratio |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        spread, nearest = (
            ", ".join(f"{row[f'{name}_{of}']:.2f}" for of in ("features", "pixels"))
            for name in ("spread", "nearest")
        )
        lines.append(
            f"| {row['seed']} | {row['loss_of_noise']:.1f} | {row['loss']:.1f} "
            f"| {row['agreement_of_noise']:.2f}, {row['agreement']:.2f} | {spread} | {nearest} "
            f"| {row['seconds_of_noise_batch']:.1f}, {row['seconds_of_batch']:.1f}, "
            f"{row['seconds_of_fit']:.1f} | {row['seconds_all_from_noise']:.0f}, "
            f"{row['seconds_bootstrapped']:.0f} | {row['wall_clock_ratio']:.2f} |"
        )
    return "\n".join(lines)


def _from_noise(problem: Problem, key: jax.Array, *, steps: int) -> Made:
    """A batch as the job makes its first."""
    key_start, key_refine = jax.random.split(key)
    config = dataclasses.replace(problem.config, stage_steps=(steps,))

    def make():
        start = invert.start_images(problem.run, problem.state.network, problem.labels, key_start)
        return deep_inversion(
            problem.state.network, problem.labels, key_refine, config=config, start=start
        )

    return _timed(problem, make)


def _from_memory(problem, first, key, plan, say):
    """Batches as the job makes them after the first, and the seconds of every fit."""
    size, network = len(problem.labels), problem.state.network
    # The job's functions read the size of its batches from its config.
    settings = dataclasses.replace(problem.config, batch_size=size)
    config = dataclasses.replace(problem.run.config, deep_inversion=settings)
    run = dataclasses.replace(problem.run, config=config, mesh=make_mesh(1))
    count = (plan.num_batches + 1) * size
    images = np.zeros((count, *first.shape[1:]), np.uint8)
    images[:size] = first
    labels = np.resize(np.asarray(problem.labels), count).astype(np.int32)

    def fit(index, before):
        replay = Replay(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(index * size))
        seen = run, network, replay
        since = time.perf_counter()
        remembered = bootstrap.remember_batches(*seen, index, key, first=1, before=before)
        jax.block_until_ready(remembered.memory)
        return (*seen, remembered), time.perf_counter() - since

    def make(index, seen):
        return bootstrap.make_batch(
            *seen,
            problem.labels,
            index,
            jax.random.fold_in(key, index),
            class_mask=jnp.ones(network.num_classes, bool),
        )

    seen, _ = fit(1, None)
    make(1, seen)  # both are compiled now
    remembered, later, fits = None, [], []
    for index in range(1, plan.num_batches + 1):
        seen, seconds = fit(index, remembered)
        if seen[-1] is not remembered:
            fits.append(seconds)
        remembered = seen[-1]
        made = _timed(problem, functools.partial(make, index, seen))
        say(f"batch {index}: {made.loss:.2f}, {made.agreement:.2f} in {made.seconds:.1f} s")
        images[index * size : (index + 1) * size] = made.images
        later.append(made)
    return later, fits


def _timed(problem, make):
    since = time.perf_counter()
    made = jax.block_until_ready(make())
    seconds = time.perf_counter() - since
    images = np.asarray(made.images)
    return Made(images, seconds, measure_loss(problem, made.images)[0], float(made.agreement))


def _compare(problem, noise, later):
    """Spread within a class, and distance to the nearest picture of the first batch or its mirror.

    Both are relative to those of noise, whose second batch is compared with its first.
    """
    labels = np.asarray(problem.labels)
    same = labels[:, None] == np.tile(labels, 2)[None]
    found = {}
    for name, describe in (("features", _features), ("pixels", _cells)):
        first, second, *rest = (describe(problem, m.images) for m in (*noise, *later))
        both = np.concatenate([first, describe(problem, noise[0].images[:, :, ::-1])])
        spread = [mean_pairwise_distance(part, labels) for part in (first, second, *rest)]
        nearest = [nearest_distance(part, both, same) for part in (second, *rest)]
        found[f"spread_{name}"] = statistics.mean(spread[2:]) / statistics.mean(spread[:2])
        found[f"nearest_{name}"] = statistics.mean(nearest[1:]) / nearest[0]
    return found


def _features(problem, images):
    return np.asarray(raw_features(problem.state.network, jnp.asarray(images)))


def _cells(problem, images):
    """Means of CELLS x CELLS cells, f32[B, CELLS^2 C]."""
    del problem
    batch, height, width, channels = images.shape
    cells = images.reshape(batch, CELLS, height // CELLS, CELLS, width // CELLS, channels)
    return cells.astype(np.float32).mean((2, 4)).reshape(batch, -1)
