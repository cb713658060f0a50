"""Does this device compute what a CPU does? Every method on a small network, against kept values.

A result counts as the same if, for every array of it, the norm of the difference is at most a
tolerance times the norm of the kept one. Three steps are taken, so that the optimiser, random views
and what is carried from step to step take part. All run at JAX's matmul precision "highest": at the
default one a GPU rounds the factors of float32 products to 10 bits (TF32) and a TPU to 7, which is
reported beside, for information.

`python launch/bench.py device --write-expected`, on a CPU, writes the kept values.
"""

import functools
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from benchmarks.device import cases
from benchmarks.device.cases import Case
from jaxpmi.config import AugmentConfig
from jaxpmi.config import CmiConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import TrainConfig
from jaxpmi.inversion.variants import CmiVariant
from jaxpmi.models import clip
from jaxpmi.models import resnet
from jaxpmi.models.backbone import Backbone

EXPECTED = Path(__file__).with_name("expected.npz")

# Of the relative difference: five times (float32) and three times (bfloat16) the most that was seen
# where all inputs change at random, by 1e-6 and 2e-3 of themselves; benchmarks/device.md.
TOLERANCES = {"float32": 1e-3, "bfloat16": 1e-2}

Precision = Literal["float32", "bfloat16"]

SHAPE, BATCH, STEPS = (8, 8, 3), 8, 3
BLOCK = functools.partial(resnet.ResidualBlock, 4, 8, stride=2)
CLIP = clip.clip(
    image_size=8, patch_size=4, width=16, depth=2, num_heads=2, features=8, vocabulary=12,
    context=6, text_width=16, text_depth=1, text_num_heads=2,
)  # fmt: skip
CMI = {
    "config": CmiConfig(batch_size=BATCH, num_steps=STEPS, learning_rate=5e-3, bank_size=16),
    "variant": CmiVariant(
        latent_dim=8, channels=(8, 8, 4), projection_dim=6, num_negatives=12, crop_padding=1
    ),
}
TRAINING = Config(
    data=DataConfig(augment=AugmentConfig(crop_padding=2, flip=True)),
    train=TrainConfig(batch_size=BATCH, replay_batch_size=BATCH),
    losses=MethodConfig(recipe="stagewise"),
)


def two_blocks(image_shape: tuple[int, int, int], *, rngs: nnx.Rngs) -> Backbone:
    """A stem and a residual block."""
    return Backbone(resnet.Stem(image_shape[-1], 4, rngs=rngs), BLOCK(pool=True, rngs=rngs))


class Comparison(NamedTuple):
    """Of a method's results with kept ones."""

    difference: float  # largest over arrays, relative
    array: str  # whose it is


def _deep_inversion(precision: str = "float32") -> Case:
    # Adam makes the sign of a gradient out of nearly nothing, so in bfloat16 its steps are small.
    rate = 0.1 if precision == "float32" else 0.01
    return cases.deep_inversion(
        two_blocks, SHAPE, batch=BATCH, num_steps=STEPS, precision=precision, learning_rate=rate
    )


def _class_incremental() -> Case:
    phase = cases.later_phase("pmi", TRAINING, "body")
    return cases.class_incremental(
        two_blocks, SHAPE, TRAINING, phase, num_classes=6, num_steps=STEPS
    )


CASES: dict[str, tuple[Precision, Callable[[], Case]]] = {
    "PMI block solve": (
        "float32",
        functools.partial(cases.block_solve, BLOCK, (8, 8, 4), batch=BATCH, num_steps=STEPS),
    ),
    "PMI refinement": (
        "float32",
        functools.partial(cases.refinement, two_blocks, SHAPE, batch=BATCH, num_steps=STEPS),
    ),
    "DeepInversion": ("float32", _deep_inversion),
    "DeepInversion, bfloat16": ("bfloat16", functools.partial(_deep_inversion, "bfloat16")),
    "CMI": (
        "float32",
        functools.partial(cases.generator_call, two_blocks, two_blocks, SHAPE, **CMI),
    ),
    "FastDFKD": (
        "float32",
        functools.partial(cases.generator_call, two_blocks, two_blocks, SHAPE, **CMI, fast=True),
    ),
    "class-incremental training": ("float32", _class_incremental),
    "VDFD training": (
        "float32",
        functools.partial(cases.vdfd, two_blocks, SHAPE, TRAINING, num_classes=6, num_steps=STEPS),
    ),
    "CLIP training": (
        "float32",
        functools.partial(cases.clip_training, CLIP, batch=BATCH, num_steps=STEPS),
    ),
}


def results(case: Case) -> dict[str, np.ndarray]:
    """What a case makes, as named arrays."""
    outputs = jax.device_get(jax.jit(case.run)(case.inputs))
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): np.asarray(leaf) for path, leaf in leaves}


def compare(expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> Comparison:
    """The array that differs most. Another set of arrays, or a NaN, differs infinitely."""
    if set(expected) != set(got):
        odd = sorted(set(expected) ^ set(got))[0]
        return Comparison(float("inf"), odd)
    worst = Comparison(0.0, "")
    for name, reference in expected.items():
        difference = np.linalg.norm(np.ravel(got[name] - reference).astype(np.float64))
        norm = np.linalg.norm(np.ravel(reference).astype(np.float64))
        relative = difference / norm if norm > 0 else (0.0 if difference == 0 else float("inf"))
        if not relative <= worst.difference:  # a NaN is worse than anything
            worst = Comparison(float(relative) if np.isfinite(relative) else float("inf"), name)
    return worst


def expected_of(name: str) -> dict[str, np.ndarray]:
    """The kept values of a case."""
    with np.load(EXPECTED) as kept:
        prefix = f"{name}: "
        return {k.removeprefix(prefix): kept[k] for k in kept.files if k.startswith(prefix)}


def write_expected() -> None:
    """Computes and keeps the values of all cases.

    Raises:
      RuntimeError: this is not a CPU.
    """
    if jax.default_backend() != "cpu":
        raise RuntimeError(
            f"the kept values are a CPU's, and this is a {jax.default_backend()}; run with "
            "JAX_PLATFORMS=cpu."
        )
    kept = {}
    for name, (_, make) in CASES.items():
        with jax.default_matmul_precision("highest"):
            kept |= {f"{name}: {array}": value for array, value in results(make()).items()}
    np.savez_compressed(EXPECTED, **kept)


def check(name: str, *, default_too: bool = False) -> Iterator[dict[str, Any]]:
    """The row of a case; with `default_too` another, of JAX's default matmul precision.

    That one passes no judgement. The two are compiled side by side.
    """
    precision, make = CASES[name]
    expected, tolerance = expected_of(name), TOLERANCES[precision]

    def found_at(matmul_precision):
        with jax.default_matmul_precision(matmul_precision):
            return compare(expected, results(make()))

    matmul_precisions = ("highest", "default")[: 1 + default_too]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(found_at, matmul_precisions))
    for matmul_precision, comparison in zip(matmul_precisions, found, strict=True):
        row = {
            "precision": precision,
            "matmul_precision": matmul_precision,
            "difference": comparison.difference,
            "array": comparison.array,
            "tolerance": tolerance,
        }
        if matmul_precision == "highest":
            row["passed"] = comparison.difference <= tolerance
        yield row
