"""Small networks out of the library's modules: a row of parts, each told its output channels."""

from typing import Any
from typing import NamedTuple

from flax import nnx

from jaxpmi.flax_networks.nnx_model import as_block
from jaxpmi.models import inverted_residual
from jaxpmi.models.backbone import Backbone
from jaxpmi.models.init_network import abstract_backbone
from jaxpmi.models.init_network import init_backbone


class Part(NamedTuple):
    kind: type
    channels: int
    options: dict[str, Any]


def piece(kind, channels, **options):
    return Part(kind, channels, options)


def chain(*pieces, **statistics):
    """An architecture: what goes into a part is what the one before it gives."""

    def make(image_shape, *, rngs):
        channels, modules = image_shape[-1], []
        for kind, out, options in pieces:
            modules.append(kind(channels, out, rngs=rngs, **options))
            channels = out
        return Backbone(*modules, **statistics)

    return make


def sized(make, **sizes):
    """An architecture of these sizes."""
    return lambda image_shape, *, rngs: make(image_shape, rngs=rngs, **sizes)


def model_of(architecture, image_shape):
    return abstract_backbone(architecture, image_shape)[0]


def variables_of(architecture, key, image_shape):
    return init_backbone(architecture, key, image_shape)[1]


def block_of(module):
    """A module by itself: the block, its parameters and its BatchNorms' moments."""
    return as_block(module, statistics_of=(nnx.BatchNorm,))


def short_lite(image_shape, *, rngs):
    """EfficientNet-Lite0 of width 8 without the blocks between its first two and its last."""
    return chain(
        piece(inverted_residual.Stem, 8),
        piece(inverted_residual.InvertedResidual, 8, expansion=1),
        piece(inverted_residual.PooledConv, 320),
    )(image_shape, rngs=rngs)
