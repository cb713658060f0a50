"""`load_weights`: a trained network of a zoo as a `Network`, by what its file says it is.

Nothing is guessed silently: architecture and width are read off the names and shapes, preprocessing
off the files beside the weights, and what was taken for what is said.
"""

from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.blocks.blockwise import block_input_shapes
from jaxpmi.config import ModelConfig
from jaxpmi.data import imagenet_class_names
from jaxpmi.lookup import find
from jaxpmi.models import MODELS
from jaxpmi.models import architecture as architecture_of
from jaxpmi.models.init_network import abstract_backbone
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.network import from_blocks
from jaxpmi.runs.writers.console import tell
from jaxpmi.types import Moments
from jaxpmi.weights.layer_sources import network_sources
from jaxpmi.weights.network_file import SavedNetwork
from jaxpmi.weights.network_file import read_network
from jaxpmi.weights.positions import resample_positions
from jaxpmi.weights.preprocessing import IMAGENET_MEAN
from jaxpmi.weights.preprocessing import IMAGENET_STD
from jaxpmi.weights.preprocessing import Preprocessing
from jaxpmi.weights.preprocessing import read_json_object
from jaxpmi.weights.preprocessing import read_preprocessing
from jaxpmi.weights.stored_tensors import WEIGHT_FILES
from jaxpmi.weights.stored_tensors import StoredTensors
from jaxpmi.weights.stored_tensors import open_tensors
from jaxpmi.weights.weight_names import Source
from jaxpmi.weights.weight_names import check_tensors
from jaxpmi.weights.weight_names import some
from jaxpmi.weights.zoo_names import Names
from jaxpmi.weights.zoo_names import all_names

_TENSORS_OF_LAYER = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Fields of a `config.json` that change what a network computes, but no name and no shape of its
# weights: what a library takes where they are absent, and what is supported.
_FIXED: dict[str, tuple[tuple[str, Any, Any], ...]] = {
    "resnet": (
        ("hidden_act", "relu", ("relu",)),
        ("downsample_in_first_stage", False, (False,)),
        ("downsample_in_bottleneck", False, (False,)),
    ),
    "vit": (("hidden_act", "gelu", ("gelu",)), ("qkv_bias", True, (True,))),
    "mobilenet_v2": (
        ("hidden_act", "relu6", ("relu6",)),
        ("tf_padding", True, (True,)),
        ("layer_norm_eps", 1e-3, (1e-3,)),
        ("output_stride", 32, (32,)),
        ("first_layer_is_expansion", True, (True,)),
    ),
}


class _Choice(NamedTuple):
    """What a file is taken for, and how much of it that explains, from 0 to 1."""

    names: Names
    share: float


def load_weights(
    path: str | Path,
    architecture: str | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    class_names: Sequence[str] | None = None,
    say: Callable[[str], None] = tell,
) -> Network:
    """Reads a trained classifier of images as the zoos publish them, and executes nothing of it.

    Known are the networks of ImageNet in `MODELS` (ResNet, MobileNetV2, VGG with BatchNorm, ViT and
    DeiT without distillation, EfficientNet-Lite0) and the ResNets for CIFAR, in the names of
    torchvision, timm and transformers, of any width and with any number of classes.

    Args:
      path: a `.safetensors` file, the index of its shards, a PyTorch state dict or checkpoint, a
        folder of Hugging Face or timm (or its weights, by their usual name), or a `network.npz` of
        ours.
      architecture: a key of `MODELS` that it must be of; None: whatever it is.
      mean: per channel, of pixels in [0, 1]; None: what the folder says.
      std: the same.
      image_size: pixels; None: what the folder says, or else what is usual. The positions of a
        transformer that was trained with another size are interpolated. A network of ours has its
        own.
      class_names: in the order of the logits; None: what the folder says, or else ImageNet's for
        1,000 classes, and numbers for others.
      say: is told in one line what was read, and where anything had to be assumed.

    Returns:
      The network, in f32 whatever the file's float type.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged; it is of no known architecture, and then the nearest is
        named; nothing says how images are normalised.
    """
    given = Preprocessing(
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        image_size=image_size,
        class_names=None if class_names is None else tuple(class_names),
    )
    return read_weights(Path(path), architecture, given, say).network


def read_weights(
    path: Path,
    architecture: str | None,
    given: Preprocessing,
    say: Callable[[str], None],
) -> SavedNetwork:
    """As `load_weights`, with the settings by which the network can be written and built anew."""
    path = path.expanduser()
    if architecture is not None:
        find(architecture, MODELS, "architecture")
    if path.suffix == ".npz":
        return _of_ours(path, architecture, given, say)
    with open_tensors(path) as stored:
        choice, found = _choose(stored, architecture), Preprocessing()
        # What lies beside a file of another name may be of another network.
        if stored.path.name in WEIGHT_FILES:
            _check_config(stored.path.with_name("config.json"))
            found = read_preprocessing(stored.path.parent)
        images = _known_images(stored, given, found)
        network, config = _read(stored, choice.names, images, say)
    say(describe(stored.path, choice.names.architecture, network, images.source, stored.prefix))
    return SavedNetwork(network, config, None)


def describe(
    path: Path | str, architecture: str, network: Network, source: str, prefix: str
) -> str:
    """What was read, in one line."""
    height, width, channels = network.image_shape
    names = network.class_names
    mean, std = ([round(float(x), 4) for x in part] for part in (network.mean, network.std))
    taken_off = f", all names without '{prefix}'" if prefix else ""
    return (
        f"read {path}: {architecture}, {len(names)} classes ({names[0]}, ..., {names[-1]}), images "
        f"{height} x {width} x {channels}, mean {mean}, std {std} ({source}){taken_off}"
    )


def _of_ours(path, architecture, given, say):
    """A `network.npz`, which says everything itself."""
    saved = read_network(path)
    if architecture not in (None, saved.config.name):
        raise ValueError(f"{path} is of {saved.config.name}, not of {architecture}.")
    network = saved.network
    own = {name: tuple(np.asarray(getattr(network, name)).tolist()) for name in ("mean", "std")}
    other = [
        name
        for name, value in own.items()
        if getattr(given, name) and not np.allclose(getattr(given, name), value, atol=1e-6)
    ]
    if given.class_names not in (None, network.class_names):
        other.append("class_names")
    if other:
        raise ValueError(
            f"{path} has its own {', '.join(other)}; leave them out, or change the network by its "
            "method `replace`."
        )
    say(describe(path, saved.config.name, saved.network, "its own", ""))
    return saved


def _choose(stored: StoredTensors, architecture: str | None) -> _Choice:
    """The network whose layers are the file's; raises and names the nearest where none is."""
    layers = {_layer_of(name) for name in stored.shapes}
    choices = []
    for names in all_names():
        if architecture in (None, names.architecture):
            known = names.layers()
            shared, everything = len(known & layers), len(known | layers)
            choices.append(_Choice(names, shared / everything))
    if not choices:
        known = dict.fromkeys(names.architecture for names in all_names())
        raise ValueError(
            f"{architecture} has no table of names for weights of other libraries, as "
            f"{', '.join(known)} have; put them into a module of your own with set_tensors."
        )
    # Of two that explain as much, the one whose first kernel has the file's size.
    best = max(choices, key=lambda choice: (choice.share, _first_kernel_fits(stored, choice.names)))
    if best.share == 1.0 and _first_kernel_fits(stored, best.names):
        return best
    raise ValueError(_no_fit(stored, best, layers, architecture))


def _no_fit(stored, best, layers, architecture):
    """Why no network fits, in a sentence that is never longer than some ten names."""
    names = best.names
    wanted = "no network that is known" if architecture is None else f"no {architecture}"
    if best.share < 0.2:
        examples = ", ".join(sorted(stored.shapes)[:4])
        known = ", ".join(sorted({each.architecture for each in all_names()}))
        return (
            f"{stored.path} is of {wanted}: its {len(stored.shapes)} tensors ({examples}, ...) are "
            f"not named as those of {known}; put them into a module of your own with set_tensors."
        )
    lacks, more = sorted(names.layers() - layers), sorted(layers - names.layers())
    parts = [f"it lacks {some(lacks)}"] if lacks else []
    parts += [f"it also has {some(more)}"] if more else []
    name, size = names.patch
    found = stored.shapes.get(f"{name}.weight", ())
    if not _first_kernel_fits(stored, names):
        parts.append(f"its {name} is {found}, not of {size} x {size} pixels")
    return (
        f"{stored.path} is of {wanted}; the nearest is {names.architecture} in {names.library} "
        f"names, but {'; '.join(parts)}."
    )


def _first_kernel_fits(stored, names):
    name, size = names.patch
    shape = stored.shapes.get(f"{name}.weight", ())
    return len(shape) == 4 and shape[-1] == size


def _layer_of(name):
    """The layer that a tensor belongs to, or its own name."""
    layer, _, last = name.rpartition(".")
    return layer if last in _TENSORS_OF_LAYER else name


def _check_config(path: Path) -> None:
    """Raises where transformers' config names something that is computed otherwise here."""
    if not path.is_file():
        return
    values = read_json_object(path)
    for field, usual, supported in _FIXED.get(str(values.get("model_type")), ()):
        value = values.get(field, usual)
        if value not in supported:
            raise ValueError(
                f"{path} has {field} = {value!r}, but only {' or '.join(map(repr, supported))} is "
                "supported."
            )
    heads, width = values.get("num_attention_heads"), values.get("hidden_size")
    if values.get("model_type") == "vit" and heads and width and width != 64 * heads:
        raise ValueError(
            f"{path} has {heads} heads for a width of {width}, but only heads of 64 channels are "
            "supported."
        )


def _known_images(
    stored: StoredTensors, given: Preprocessing, found: Preprocessing
) -> Preprocessing:
    """What is given counts, then what the folder says; of pixel moments something must."""
    images = Preprocessing(
        *(g if g is not None else f for g, f in zip(given[:4], found[:4], strict=True))
    )
    source = found.source if given.mean is None or given.std is None else "as given"
    if images.mean is None or images.std is None:
        raise ValueError(
            f"nothing beside {stored.path} says how its images are normalised; give mean and std "
            f"of pixels in [0, 1]: most networks of ImageNet have {IMAGENET_MEAN} and "
            f"{IMAGENET_STD}, transformers often 0.5 three times. (In a run: data.mean, data.std.)"
        )
    return images._replace(source=source)


def _read(stored, names, images, say):
    """The network of these names, and the settings that build its blocks."""
    width = next((n for n in stored.shapes[names.width] if n != 1), 1)
    config = ModelConfig(names.architecture, width)
    size = images.image_size or names.image_size
    stored = _with_positions(stored, names, size, say)
    shape = (size, size, 3)
    model, fresh = abstract_backbone(architecture_of(config.name, config.width), shape)
    *_, features = block_input_shapes(model, fresh, shape)[-1]
    num_classes = stored.shapes[f"{names.head}.weight"][0]
    head = Head(
        *(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((features, num_classes), (num_classes,)))
    )
    sources = network_sources(model, fresh, names.blocks, names.head, stored.shapes)
    needed: dict[str, tuple[int, ...]] = {}
    _map_sources(
        lambda source, leaf: needed.update(source.shapes(leaf.shape)), sources, (fresh, head)
    )
    ignored = {name for name in stored.shapes if name.endswith(".num_batches_tracked")}
    check_tensors(stored.path, stored.shapes, needed, ignored)

    def read(source, leaf):
        return jnp.asarray(source.read(leaf.shape, stored.get))

    variables, head = _map_sources(read, sources, (fresh, head))
    network = from_blocks(
        model,
        variables,
        head,
        mean=images.mean,
        std=images.std,
        image_shape=shape,
        class_names=_class_names(stored.path, images.class_names, num_classes),
    )
    return network, config


def _class_names(path, names, num_classes):
    """Those that are known, ImageNet's for 1,000 classes, or None, which stands for numbers."""
    if names is None:
        return imagenet_class_names() if num_classes == 1000 else None
    if len(names) != num_classes:
        raise ValueError(
            f"{path} has a classifier of {num_classes} classes, but {len(names)} class names are "
            "given; give one per class."
        )
    return names


def _with_positions(stored, names, size, say):
    """The stored tensors, with a transformer's positions for images of another size."""
    name = next((b["positions"] for b in names.blocks if "positions" in b), None)
    if name is None or size % names.patch[1]:
        return stored
    return resample_positions(stored, name, size // names.patch[1], say)


def _map_sources(function, sources, network):
    """A tree of `function(source, leaf)`; moments that a file has none of stay as they begin."""

    def apply(source, leaf):
        if source is not None:
            return function(source, leaf)
        return jax.tree.map(_standard, leaf, is_leaf=lambda x: isinstance(x, Moments))

    is_source = lambda node: isinstance(node, Source) or node is None  # noqa: E731
    return jax.tree.map(apply, sources, network, is_leaf=is_source)


def _standard(moments):
    return Moments(jnp.zeros(moments.mean.shape), jnp.ones(moments.var.shape))
