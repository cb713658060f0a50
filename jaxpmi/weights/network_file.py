"""A trained network in one file: what a job leaves to be used elsewhere.

The file is an archive of NumPy arrays, of which none is a pickle: parameters, running moments, the
classifier and the moments of pixels by name, and a JSON text of all else. It does not hold the
model but how to build it: its `ModelConfig` and, if it is pruned, the channels that were kept.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.blocks.blockwise import block_input_shapes
from jaxpmi.config import ModelConfig
from jaxpmi.lookup import find
from jaxpmi.models import architecture
from jaxpmi.models.init_network import abstract_backbone
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.pruning import Kept
from jaxpmi.pruning import remove_filters
from jaxpmi.runs.writers.files import replace_file
from jaxpmi.weights.old_names import from_version_1
from jaxpmi.weights.old_names import from_version_2
from jaxpmi.weights.weight_names import check_tensors

FORMAT_VERSION = 3  # raised whenever the meaning of the file changes
_ABOUT = "about"  # the array that holds the JSON text


class SavedNetwork(NamedTuple):
    """A network, and what builds its model: `save_network`'s arguments.

    Attributes:
      network: with its arrays.
      config: what its model was built by.
      kept: the channels that were kept of it; None: it is whole.
    """

    network: Network
    config: ModelConfig
    kept: Kept | None


def save_network(
    path: str | os.PathLike,
    network: Network,
    config: ModelConfig,
    kept: Kept | None = None,
    *,
    class_order: Sequence[int] | None = None,
) -> None:
    """Writes a network to a file that `load_network` reads; the file is complete or not there.

    Args:
      path: of the file, by custom `network.npz`; its folder is created if there is none.
      network: what is written.
      config: what its model was built by, see `architecture`.
      kept: what `remove_filters` was given, for a pruned network; None: it is whole.
      class_order: the label in the data set of each of its classes; None: they are its own.

    Raises:
      ValueError: the network is not what `config` and `kept` build.
      OSError: the file cannot be written.
    """
    fresh = _build(
        config, kept, network.image_shape, network.class_names, network.head.bias is not None
    )
    if fresh.model != network.model:
        raise ValueError(
            f"the network is no {config.name} of width {config.width} with the given filters kept; "
            "give the ModelConfig that its model was built by, and what was kept of it."
        )
    arrays = arrays_by_name(jax.device_get(network))
    _check_arrays(Path(path), arrays, fresh)
    about = {
        "version": FORMAT_VERSION,
        "model": dataclasses.asdict(config),
        "kept": None if kept is None else {name: list(map(int, kept[name])) for name in kept},
        "image_shape": network.image_shape,
        "class_names": network.class_names,
        "class_order": None if class_order is None else list(map(int, class_order)),
    }
    with replace_file(path) as file:
        np.savez(file, **{_ABOUT: np.asarray(json.dumps(about))}, **arrays)


def load_network(path: str | os.PathLike) -> Network:
    """Reads what `save_network` or a job wrote (its `network.npz`); executes nothing of it.

    A network of your own backbone needs the module that it was named by, or its entry in `MODELS`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, something else, or of another version or an unknown backbone.
    """
    return read_network(Path(path)).network


def read_network(path: Path) -> SavedNetwork:
    """As `load_network`, with all that `save_network` was given."""
    path = path.expanduser()
    about, arrays = _read(path)
    version = about["version"]
    if version not in range(1, FORMAT_VERSION + 1):
        raise ValueError(
            f"{path} has format version {version}, but this jaxpmi reads versions 1 to "
            f"{FORMAT_VERSION}; load it with the jaxpmi that wrote it."
        )
    if version == 1:
        arrays = from_version_1(arrays, about)
    if version <= 2:
        arrays = from_version_2(arrays, about)
    try:
        config, kept = _model_config(about["model"]), about["kept"]
        shape, names = tuple(about["image_shape"]), tuple(about["class_names"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    fresh = _build(config, kept, shape, names, "head/bias" in arrays)
    _check_arrays(path, arrays, fresh)
    leaves = [jnp.asarray(arrays[name]) for name in arrays_by_name(fresh)]
    network = jax.tree.unflatten(jax.tree.structure(fresh), leaves)
    return SavedNetwork(network, config, kept)


def network_labels(path: str | os.PathLike) -> tuple[int, ...]:
    """The label in the data set of each class of a network's file, in the order of its logits.

    A run learns classes in an order of its own; a file that says nothing has them as they are.

    Raises:
      FileNotFoundError, ValueError: as `load_network`.
    """
    about, _ = _read(Path(path).expanduser())
    order = about.get("class_order")
    return tuple(range(len(about["class_names"]))) if order is None else tuple(order)


def _read(path):
    """What the file says of the network, and its arrays by name."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist or is no file; give the network.npz that a job wrote."
        )
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            about = json.loads(str(file[_ABOUT]))
            about["version"]
            return about, {name: file[name] for name in file.files if name != _ABOUT}
    except Exception as error:  # a damaged archive raises nearly anything
        raise _damaged(path, error) from error


def network_of_factory(model: ModelConfig, field: str = "model") -> Network:
    """The trained network that a user's function makes, `module:name` in `model.weights`."""
    network = find(model.weights, {}, f"{field}.weights")()
    if not isinstance(network, Network):
        raise ValueError(
            f"{field}.weights='{model.weights}' returns a {type(network).__name__}; return a "
            "Network, such as one of jaxpmi.from_nnx."
        )
    return network


def _model_config(fields):
    """As written; older files name a user's function `factory`, and as weights whose they were."""
    fields = dict(fields)
    if "factory" in fields:
        fields["weights"] = fields.pop("factory")
    elif ":" not in str(fields.get("weights")):
        fields.pop("weights", None)
    return ModelConfig(**fields)


def _build(config, kept, image_shape, class_names, has_bias):
    """The network, with shapes and types in place of its arrays."""
    if config.weights is None:
        own = architecture(config.name, config.width)
        model, shapes = abstract_backbone(own, image_shape)
    else:
        given = network_of_factory(config)
        model, shapes = given.model, given.variables
    *_, dim = block_input_shapes(model, shapes, image_shape)[-1]

    def fresh(variables):
        bias = jnp.zeros(len(class_names)) if has_bias else None
        head, pixels = Head(jnp.zeros((dim, len(class_names))), bias), jnp.zeros(image_shape[-1])
        network = Network(variables, head, pixels, pixels, model, image_shape, class_names)
        return network if kept is None else remove_filters(network, kept)

    return jax.eval_shape(fresh, shapes)


def arrays_by_name(network):
    """A network's arrays by their paths, such as `variables/params/block00/conv/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(network)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _check_arrays(path, arrays, fresh):
    """Raises if arrays by name are not those of the model, in shape and type."""
    needed = arrays_by_name(fresh)
    shapes = {name: array.shape for name, array in arrays.items()}
    check_tensors(path, shapes, {name: leaf.shape for name, leaf in needed.items()}, ())
    for name, leaf in needed.items():
        if arrays[name].dtype != leaf.dtype:
            raise ValueError(
                f"{path}: {name} is {arrays[name].dtype}, but the model has {leaf.dtype}; convert "
                "it before the network is saved."
            )


def _damaged(path, error):
    reason = str(error).splitlines()[0] if str(error) else "no reason given"
    return ValueError(
        f"{path} is damaged or no file of a network ({type(error).__name__}: {reason}); give the "
        "network.npz that a job wrote, or write it anew."
    )
