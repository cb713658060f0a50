"""Is it fast? Seconds of a step of what the library is made for, and its share of the peak."""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax

from benchmarks.device import cases
from benchmarks.device.cases import Case
from benchmarks.device.machine import peak_bytes
from benchmarks.device.timing import compile_case
from benchmarks.device.timing import median_seconds
from jaxpmi.config import CmiConfig
from jaxpmi.config.load import load_config
from jaxpmi.inversion.variants import CmiVariant
from jaxpmi.models import efficientnet_lite
from jaxpmi.models import imagenet_resnet
from jaxpmi.models import inverted_residual
from jaxpmi.models import resnet
from jaxpmi.models import vit
from jaxpmi.models.backbone import Backbone
from jaxpmi.models.init_network import Architecture

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CIFAR = (32, 32, 3)


class Size(NamedTuple):
    """How large everything is."""

    whole: bool  # the networks; if not, they are cut to few layers
    width: int  # of ResNets of CIFAR; of others in proportion
    batch: int  # of ResNets of CIFAR
    lite_batch: int
    imagenet_batch: int  # of ResNets of ImageNet
    imagenet_image: int  # pixels, also of EfficientNet-Lite0
    vit_depth: int
    vit_width: int
    vit_batch: int
    num_steps: int  # per call
    repeats: int


FULL = Size(True, 64, 256, 64, 100, 224, 12, 768, 32, 10, 5)
CPU = FULL._replace(batch=8, lite_batch=2, imagenet_batch=2, vit_batch=1, num_steps=2, repeats=2)
QUICK = Size(False, 8, 4, 2, 2, 32, 2, 48, 2, 2, 1)


def cifar_resnet(name: str, size: Size) -> Architecture:
    """The network; in small it is also shallow, which a rehearsal's compiler is grateful for."""
    if name == "resnet32":
        width, depth = max(size.width // 4, 2), 5 if size.whole else 1
        return functools.partial(resnet.resnet32, width=width, depth=depth)
    build = {"resnet18": resnet.resnet18, "resnet34": resnet.resnet34}[name]
    return functools.partial(build if size.whole else resnet.resnet18, width=size.width)


def deep_inversion(name: str, precision: str, size: Size) -> Case:
    """A DeepInversion of CIFAR's shape by "resnet32" or "resnet34"; 16 channels or 64."""
    model = cifar_resnet(name, size)
    return cases.deep_inversion(
        model, CIFAR, batch=size.batch, num_steps=size.num_steps, precision=precision
    )


def lite_inversion(precision: str, size: Size) -> Case:
    """The same of EfficientNet-Lite0 at ImageNet's size, by Fourier coefficients."""
    width = size.width // 2
    whole = functools.partial(efficientnet_lite.efficientnet_lite0, width=width)
    return cases.deep_inversion(
        whole if size.whole else functools.partial(_short_lite, width),
        (size.imagenet_image, size.imagenet_image, 3),
        batch=size.lite_batch,
        num_steps=size.num_steps,
        num_classes=1000,
        precision=precision,
        parameters="spectrum",
        clip_pixels=False,
        learning_rate=0.02,
    )


def _short_lite(width, image_shape, *, rngs):
    """Its first two blocks and its last."""
    return Backbone(
        inverted_residual.Stem(image_shape[-1], width, rngs=rngs),
        inverted_residual.InvertedResidual(width, 8, expansion=1, rngs=rngs),
        inverted_residual.PooledConv(8, 40 * width, rngs=rngs),
    )


def imagenet_resnet_inversion(depth: int, precision: str, size: Size) -> Case:
    """A DeepInversion as published, of a ResNet of ImageNet of 18 or 50 layers."""
    settings = {"depth": depth, "width": size.width}
    whole = functools.partial(imagenet_resnet.imagenet_resnet, **settings)
    return cases.deep_inversion(
        whole if size.whole else functools.partial(_short_imagenet_resnet, **settings),
        (size.imagenet_image, size.imagenet_image, 3),
        batch=size.imagenet_batch,
        num_steps=size.num_steps,
        num_classes=1000,
        precision=precision,
    )


def _short_imagenet_resnet(image_shape, *, depth, width, rngs):
    """Its stem and one block."""
    stem = imagenet_resnet.ImageNetStem(image_shape[-1], width, rngs=rngs)
    if depth in imagenet_resnet.BASIC_STAGES:
        options = {"stride": 2, "projection": True, "final_relu": True}
        last = resnet.ResidualBlock(width, 2 * width, pool=True, rngs=rngs, **options)
    else:
        last = imagenet_resnet.Bottleneck(width, 4 * width, pool=True, rngs=rngs)
    return Backbone(stem, last)


def vit_block(size: Size) -> Case:
    """The descent of one transformer block of ViT-B/16: 197 tokens of 768 channels."""
    width, tokens = size.vit_width, 197 if size.whole else 17
    return cases.block_solve(
        functools.partial(vit.TransformerBlock, width, width // 64 or 3),
        (tokens, width),
        statistics_of=(vit.Attention, vit.Mlp),
        batch=size.vit_batch,
        num_steps=size.num_steps,
    )


def vit_refinement(size: Size) -> Case:
    """The refinement of images through a ViT-B/16 of 224 pixels."""
    pixels = 224 if size.whole else 64
    model = functools.partial(
        vit.vision_transformer,
        patch_size=16,
        width=size.vit_width,
        depth=size.vit_depth,
        num_heads=size.vit_width // 64 or 3,
        features=512,
    )
    shape = (pixels, pixels, 3)
    return cases.refinement(
        model, shape, batch=size.vit_batch, num_steps=size.num_steps, num_classes=100
    )


def cmi_call(size: Size) -> Case:
    """A call of CMI: a ResNet-34 teaches a ResNet-18; its memory holds 10 batches, all drawn."""
    names = ("resnet34", "resnet18") if size.whole else ("resnet32", "resnet32")
    teacher, student = (cifar_resnet(name, size) for name in names)
    config = CmiConfig(
        batch_size=size.batch,
        num_steps=size.num_steps,
        bank_size=10 * size.batch,
        flip=True,
    )
    variant = CmiVariant(channels=(2 * size.width, 2 * size.width, size.width))
    return cases.generator_call(
        teacher, student, CIFAR, config=config, variant=variant, num_classes=100
    )


def cifar100_step(size: Size) -> Case:
    """Steps of configs/cifar100.py's longest phase, in the last of ten tasks' shapes."""
    config = load_config(str(CONFIGS / "cifar100.py"), [])
    half = min(config.train.batch_size, size.batch)  # as many real images as synthetic ones
    train = dataclasses.replace(config.train, batch_size=half, replay_batch_size=half)
    config = dataclasses.replace(config, train=train)
    phase = cases.later_phase("pmi", config, "body")
    model = cifar_resnet("resnet32", size)
    return cases.class_incremental(
        model, CIFAR, config, phase, num_classes=100, num_steps=size.num_steps
    )


# By name and precision of the backbone's products.
WORK: dict[tuple[str, str], Callable[[Size], Case]] = {
    ("DeepInversion, ResNet-32", "float32"): functools.partial(
        deep_inversion, "resnet32", "float32"
    ),
    ("DeepInversion, ResNet-34", "float32"): functools.partial(
        deep_inversion, "resnet34", "float32"
    ),
    ("DeepInversion, ResNet-34", "bfloat16"): functools.partial(
        deep_inversion, "resnet34", "bfloat16"
    ),
    **{
        (f"DeepInversion, ResNet-{depth} of 224 pixels", precision): functools.partial(
            imagenet_resnet_inversion, depth, precision
        )
        for depth in (18, 50)
        for precision in ("float32", "bfloat16")
    },
    ("training step, configs/cifar100.py", "float32"): cifar100_step,
    ("block solve, ViT-B/16", "float32"): vit_block,
    ("DeepInversion, Lite0 of 224 pixels", "float32"): functools.partial(lite_inversion, "float32"),
    ("refinement, ViT-B/16", "float32"): vit_refinement,
    ("CMI, ResNet-34 to 18", "float32"): cmi_call,
    ("DeepInversion, ResNet-32", "bfloat16"): functools.partial(
        deep_inversion, "resnet32", "bfloat16"
    ),
    ("DeepInversion, Lite0 of 224 pixels", "bfloat16"): functools.partial(
        lite_inversion, "bfloat16"
    ),
}


def prepare(size: Size, *, compilers: int) -> tuple[ThreadPoolExecutor, dict[Any, Future]]:
    """Begins to compile all work, so many programs at a time; returns who does it, and promises."""
    pool = ThreadPoolExecutor(compilers)
    start = lambda make: pool.submit(lambda: _compiled(make, size))  # noqa: E731
    return pool, {key: start(make) for key, make in WORK.items()}


def _compiled(make, size):
    case = make(size)
    return case, compile_case(case)


def measure(
    name: str,
    precision: str,
    *,
    size: Size,
    peaks: Mapping[str, float],
    prepared: Mapping[Any, Future],
    taken: Mapping[Any, float],
) -> Iterator[dict[str, Any]]:
    """The row of one kind of work.

    Args:
      name: of `WORK`, with
      precision: of its backbone's products.
      size: how large it is.
      peaks: measured floating-point operations per second of matrix products, by precision:
        float32 steps run at JAX's default one.
      prepared: of `prepare`, as far as it came.
      taken: median seconds of the prepared programs, which took turns; others are timed by
        themselves.
    """
    promise = prepared.get((name, precision))
    if promise is None:
        yield {"precision": precision, "skipped": "no time was left to compile it"}
        return
    case, program = promise.result()
    seconds = taken.get((name, precision))
    if seconds is None:
        (seconds,) = median_seconds({"": program.run}, repeats=size.repeats).values()
    finite = all(bool(loss) for loss in _finite(program.run()))
    peak = peaks.get("default" if precision == "float32" else precision)
    rate = program.flops / seconds
    yield {
        "precision": precision,
        "batch": case.num_images,
        "step_seconds": seconds / case.num_steps,
        "images_per_second": case.num_images * case.num_steps / seconds,
        "flops_per_step": program.flops / case.num_steps,
        "flops_from": program.flops_from,
        "flops_per_second": rate,
        "share_of_peak": None if peak is None else rate / peak,
        "program_bytes": program.memory_bytes,
        "peak_bytes_so_far": peak_bytes(),
        "compile_seconds": program.compile_seconds,
        "finite": finite,
    }


def _finite(outputs):
    """Whether each loss and term is."""
    kept = {name: outputs[name] for name in ("losses", "terms") if name in outputs}
    return [jax.numpy.isfinite(leaf).all() for leaf in jax.tree.leaves(kept)]
