"""What a folder says of the images that its network takes, in the files of three libraries."""

import json
from pathlib import Path
from typing import Any
from typing import NamedTuple

# Of pixels in [0, 1], per channel: what torchvision's networks, and most others of ImageNet, take.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocessing(NamedTuple):
    """What is known of a network's images; None: nothing is said of it.

    Attributes:
      mean: per channel, of pixels in [0, 1].
      std: the same.
      image_size: pixels, of square images.
      class_names: in the order of the logits.
      architecture: timm's name of the network.
      source: the file that says so, for messages.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    class_names: tuple[str, ...] | None = None
    architecture: str | None = None
    source: str = ""


def read_preprocessing(folder: Path) -> Preprocessing:
    """Reads what stands beside weights, all of it optional.

    These are `preprocessor_config.json` and `config.json` of transformers, the latter's
    `pretrained_cfg` of timm, and `preprocess_cfg` in open_clip's `open_clip_config.json`.

    Raises:
      ValueError: a file that is no JSON object, or that says what cannot be followed.
    """
    found = Preprocessing()
    for name, read in _READERS:
        path = folder / name
        if path.is_file():
            values = read_json_object(path)
            try:
                known = {k: v for k, v in read(values, path).items() if v is not None}
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                if isinstance(error, ValueError) and str(path) in str(error):
                    raise
                raise ValueError(
                    f"{path} describes images in a way that is not known ({error}); correct it, "
                    "or give mean, std and image_size and move it away."
                ) from error
            fresh = {k: v for k, v in known.items() if getattr(found, k) is None}
            if fresh:
                names = [found.source, name] if found.source else [name]
                found = found._replace(source=" and ".join(names), **fresh)
    return found


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, whose numbers and texts are as they are."""
    try:
        values = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no JSON file ({type(error).__name__}); fetch it again."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not a JSON object.")
    return values


def _transformers_images(values, path):
    """`preprocessor_config.json`: pixels of 0 to 255 times a factor, less a mean, over a std."""
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    scale = 255.0 * factor  # of pixels in [0, 1]
    offset = -1.0 if values.get("rescale_offset") else 0.0
    mean, std = (0.0,) * 3, (1.0,) * 3
    if values.get("do_normalize", True) and "image_mean" in values:
        mean, std = _numbers(values["image_mean"]), _numbers(values["image_std"])
    elif values.get("do_normalize", True):
        return {"image_size": _transformers_size(values)}
    return {
        "mean": tuple((x - offset) / scale for x in mean),
        "std": tuple(x / scale for x in std),
        "image_size": _transformers_size(values),
    }


def _transformers_size(values):
    crops = values.get("do_center_crop", "crop_size" in values)
    size = values.get("crop_size") if crops else values.get("size")
    if isinstance(size, dict):
        sides = {size[key] for key in ("height", "width", "shortest_edge") if key in size}
        if len(sides) != 1:
            raise ValueError(f"images of {size} are not square")
        (size,) = sides
    return None if size is None else int(size)


def _transformers_model(values, path):
    """`config.json`: class names, and what timm writes into it."""
    del path
    timm = values.get("pretrained_cfg")
    known = _timm(timm, values) if isinstance(timm, dict) else {}
    labels = values.get("id2label")
    if labels:
        by_number = {int(number): str(label) for number, label in labels.items()}
        if sorted(by_number) == list(range(len(by_number))):
            known.setdefault("class_names", tuple(by_number[i] for i in range(len(by_number))))
    if isinstance(values.get("image_size"), int):
        known.setdefault("image_size", values["image_size"])
    return known


def _timm(images, values):
    known = {"architecture": values.get("architecture")}
    if "mean" in images:
        known |= {"mean": _numbers(images["mean"]), "std": _numbers(images["std"])}
    if "input_size" in images:
        _, height, width = images["input_size"]
        if height != width:
            raise ValueError(f"images of {height} x {width} pixels are not square")
        known["image_size"] = int(height)
    names = images.get("label_names") or values.get("label_names")
    texts = images.get("label_descriptions") or values.get("label_descriptions") or {}
    if names:
        known["class_names"] = tuple(str(texts.get(name, name)) for name in names)
    return known


def _open_clip(values, path):
    """`open_clip_config.json`."""
    del path
    images = values.get("preprocess_cfg") or {}
    if "mean" not in images:
        return {}
    return {"mean": _numbers(images["mean"]), "std": _numbers(images["std"])}


def _numbers(values):
    """Three numbers, of one or three."""
    values = tuple(float(value) for value in values)
    if len(values) not in (1, 3):
        raise ValueError(f"{len(values)} values per pixel instead of 3")
    return values * (3 // len(values))


_READERS = (
    ("preprocessor_config.json", _transformers_images),
    ("open_clip_config.json", _open_clip),
    ("config.json", _transformers_model),
)
