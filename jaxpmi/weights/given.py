"""The trained network that a run begins with, wherever it comes from."""

from collections.abc import Callable
from pathlib import Path

from jaxpmi.config import DataConfig
from jaxpmi.config import ModelConfig
from jaxpmi.runs.writers.console import tell
from jaxpmi.weights.imagenet import read_efficientnet_lite0
from jaxpmi.weights.network_file import SavedNetwork
from jaxpmi.weights.network_file import network_of_factory
from jaxpmi.weights.preprocessing import Preprocessing
from jaxpmi.weights.zoo import describe
from jaxpmi.weights.zoo import read_weights

IMAGENET = "imagenet"  # as `ModelConfig.weights`: those that a package brings


def given_network(
    model: ModelConfig, data: DataConfig, field: str, say: Callable[[str], None] = tell
) -> SavedNetwork | None:
    """The trained network that `model.weights` names; None: it names none.

    Args:
      model: settings of the network.
      data: of the run; its image size and pixel moments count for weights that say none.
      field: the path of `model` in the config, for errors.
      say: is told what was read.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is no network, or another one than `model.name` says.
    """
    if model.weights is None:
        return None
    if model.weights == IMAGENET:
        return _of_package(model, field, say)
    path = Path(model.weights).expanduser()
    if not path.exists() and ":" in model.weights:
        return SavedNetwork(network_of_factory(model, field), model, None)
    if not path.exists():
        raise FileNotFoundError(
            f"{field}.weights='{model.weights}' does not exist; give a file or folder of weights, "
            f"'{IMAGENET}', or module:name of a function of yours."
        )
    images = Preprocessing(data.mean, data.std, data.image_size)
    saved = read_weights(path, None, images, say)
    usual = ModelConfig()
    if model.name not in (usual.name, saved.config.name):
        raise ValueError(
            f"{field}.name='{model.name}', but {path} is of {saved.config.name}; leave the name "
            "out, or give other weights."
        )
    return saved


def _of_package(model, field, say):
    name = "efficientnet_lite0"
    if model.name != name:
        raise ValueError(
            f"{field}.weights='{IMAGENET}' with {field}.name='{model.name}' is not there; they are "
            f"of {name}. Others are read from a file, see load_weights."
        )
    saved = read_efficientnet_lite0()
    say(describe("the package of its weights", name, saved.network, "known", ""))
    return saved
