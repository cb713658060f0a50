"""The library's hand-written convolutions against XLA's own, layer by layer, alone and in a loop.

What is faster on a platform belongs into `HAND_WRITTEN` of jaxpmi/blocks/convolutions.py.
"""

import functools
import itertools
import math
import statistics
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax

from benchmarks.device.cases import draws
from benchmarks.device.timing import median_seconds
from jaxpmi.blocks import convolutions

LOOP = 4  # convolutions in a loop

Kind = Literal["gradient", "depthwise"]
What = Literal["forward", "input gradient", "kernel gradient"]


class Layer(NamedTuple):
    """A convolution of a network."""

    kind: Kind  # as in `HAND_WRITTEN`
    image: int  # pixels of the input's side
    in_channels: int
    out_channels: int
    size: int  # of the kernel
    stride: int
    batch: int


def _plain(image, in_channels, out_channels, size, stride, batch):
    return Layer("gradient", image, in_channels, out_channels, size, stride, batch)


def _depthwise(image, channels, size, stride):
    return Layer("depthwise", image, channels, channels, size, stride, 64)


# The kinds of layers, dearest first of each network, so that one cut short is judged by these.
LAYERS = {
    "ResNet-34, 64 channels": _plain(32, 64, 64, 3, 1, 256),
    "Lite0, depthwise 5 x 5": _depthwise(14, 672, 5, 1),
    "ResNet-50, 3 x 3": _plain(14, 256, 256, 3, 1, 64),
    "ResNet-34, stride 2": _plain(32, 64, 128, 3, 2, 256),
    "Lite0, depthwise stride 2": _depthwise(112, 96, 3, 2),
    "ResNet-50, 1 x 1": _plain(14, 1024, 256, 1, 1, 64),
    "ResNet-34, 512 channels": _plain(4, 512, 512, 3, 1, 256),
    "Lite0, depthwise 3 x 3": _depthwise(112, 32, 3, 1),
    "ResNet-50, stem": _plain(224, 3, 64, 7, 2, 64),
    "ResNet-34, shortcut": _plain(32, 64, 128, 1, 2, 256),
    "Lite0, depthwise 5 x 5, stride 2": _depthwise(56, 144, 5, 2),
    "ResNet-50, stride 2": _plain(56, 128, 128, 3, 2, 64),
}


def small(layer: Layer) -> Layer:
    """The same kind of layer, for a rehearsal."""
    return layer._replace(
        image=max(layer.image // 8, 4),
        in_channels=max(layer.in_channels // 16, 3),
        out_channels=max(layer.out_channels // 16, 3),
        batch=2,
    )


def compared(layer: Layer) -> tuple[What, ...]:
    """What the two versions do differently."""
    gradients = ("input gradient", "kernel gradient")
    return gradients if layer.kind == "gradient" else ("forward", *gradients)


def measure(layer: Layer, *, repeats: int) -> Iterator[dict[str, Any]]:
    """A row per direction of a layer and per place, alone or in a loop: seconds of one.

    All are compiled before, side by side.
    """
    keys = list(itertools.product(compared(layer), (False, True), ("hand", "xla")))

    def compiled(key):
        what, loop, version = key
        return _compile(_direction(layer, version, what), layer, loop)

    with ThreadPoolExecutor() as pool:
        programs = dict(zip(keys, pool.map(compiled, keys), strict=True))
    for what in compared(layer):
        for loop in (False, True):
            runs = {version: programs[what, loop, version] for version in ("hand", "xla")}
            times = 1 / LOOP if loop else 1
            taken = median_seconds(runs, repeats=repeats, most_seconds=3.0)
            seconds = {version: times * value for version, value in taken.items()}
            yield {
                "kind": layer.kind,
                "layer": layer._asdict(),
                "what": what,
                "in_loop": loop,
                "hand_seconds": seconds["hand"],
                "xla_seconds": seconds["xla"],
                "xla_over_hand": seconds["xla"] / seconds["hand"],
            }


def verdict(rows: Iterable[Mapping[str, Any]], platform: str) -> Iterator[dict[str, Any]]:
    """A row per kind: which is faster, by the mean over layers of the logarithm of the ratio.

    Loops alone count: the library's steps are all inside of one.
    """
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row.get("in_loop"):
            ratios.setdefault(row["kind"], []).append(math.log(row["xla_over_hand"]))
    for kind, logs in ratios.items():
        mean = math.exp(statistics.mean(logs))
        used = "hand" if kind in convolutions.HAND_WRITTEN.get(platform, ()) else "xla"
        yield {
            "kind": kind,
            "xla_over_hand": mean,
            "faster": "hand" if mean > 1.0 else "xla",
            "used": used,
            "num_compared": len(logs),
        }


def _direction(layer: Layer, version: str, what: What) -> Callable:
    """A function of image, kernel and output gradient."""
    if layer.kind == "gradient":
        by = {"hand": convolutions.conv_by_hand, "xla": convolutions.conv_by_xla}[version]
        convolve = lambda x, k: by(x, k, layer.stride, "same")  # noqa: E731
    else:
        hand, xla = convolutions.depthwise_conv_by_hand, convolutions.depthwise_conv_by_xla
        by = {"hand": hand, "xla": xla}[version]
        convolve = lambda x, k: by(x, k, layer.stride, "same")  # noqa: E731
    if what == "forward":
        return lambda x, kernel, grad: convolve(x, kernel)
    place = ("input gradient", "kernel gradient").index(what)
    return lambda x, kernel, grad: jax.vjp(convolve, x, kernel)[1](grad)[place]


def _compile(function, layer, loop):
    """A call without arguments; in a loop every convolution has another factor, or it was one."""
    arguments = _arguments(layer)
    factors = draws((LOOP,), 3)

    def in_loop(x, kernel, grad, factors):
        def step(total, factor):
            return total + function(x * factor, kernel, grad * factor), None

        first = jax.eval_shape(function, x, kernel, grad)
        return jax.lax.scan(step, jax.numpy.zeros(first.shape, first.dtype), factors)[0]

    program = in_loop if loop else function
    inputs = jax.device_put((*arguments, factors) if loop else arguments)
    return functools.partial(jax.jit(program).lower(*inputs).compile(), *inputs)


def _arguments(layer):
    shape = (layer.size, layer.size, layer.in_channels)
    kernel = shape if layer.kind == "depthwise" else (*shape, layer.out_channels)
    side = -(-layer.image // layer.stride)
    return (
        draws((layer.batch, layer.image, layer.image, layer.in_channels), 0),
        draws(kernel, 1, std=0.1),
        draws((layer.batch, side, side, layer.out_channels), 2),
    )
