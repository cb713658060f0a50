"""Scenes that lie as two files each, a photograph and its label map, brought to one size."""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from typing import NamedTuple

import numpy as np

from jaxpmi.data import decoding
from jaxpmi.data import image_files
from jaxpmi.data.image_source import shorten
from jaxpmi.data.scene_source import SceneSource

if TYPE_CHECKING:
    from PIL import Image

AS_STORED = np.arange(256, dtype=np.uint8)  # a table that leaves labels as they are
LABEL_MODES = ("P", "L")  # Pillow modes whose pixels are label numbers


class SceneFile(NamedTuple):
    """One scene on disk."""

    image: Path
    labels: Path
    table: np.ndarray  # u8[256], stored label -> label


def open_scene_files(
    name: str,
    files: Mapping[str, Sequence[SceneFile]],
    scene_size: tuple[int, int],
    class_names: tuple[str, ...],
    has_background: bool,
    domains: Mapping[str, np.ndarray],
    domain_names: tuple[str, ...],
) -> SceneSource:
    """Returns RGB scenes of `scene_size` (height, width) that are decoded when they are read.

    Args:
      name, class_names, has_background, domains, domain_names: see `SceneSource`.
      files: split -> N scenes.
      scene_size: photographs and label maps are cropped to its aspect ratio, at their centre, and
        resized: pixels by bilinear interpolation with antialiasing, labels to the nearest.
    """
    shape = (*scene_size, 3)
    digest = _inspect(files)

    def read_labels(split: str, indices: np.ndarray) -> np.ndarray:
        return _map_files(read_label_map, [files[split][i] for i in indices], scene_size)

    def read(split: str, indices: np.ndarray) -> np.ndarray:
        return _map_files(read_scene, [files[split][i] for i in indices], (*scene_size, 4))

    return SceneSource(
        name=name,
        class_names=class_names,
        has_background=has_background,
        image_shape=shape,
        domain_names=domain_names,
        domains=domains,
        reader=read,
        label_reader=read_labels,
        digest=digest,
    )


def _inspect(files: Mapping[str, Sequence[SceneFile]]) -> str:
    """Reads all headers, raises for a scene that could not be read; returns a digest of them."""
    digest = hashlib.blake2b(digest_size=16)
    for split, scenes in files.items():
        for scene, sample in zip(scenes, image_files.read_all(_sample, scenes), strict=True):
            names = f"{split}/{scene.image.name}/{scene.labels.name}\0"
            digest.update(names.encode(errors="surrogateescape") + scene.table.tobytes() + sample)
    return digest.hexdigest()


def _sample(file: SceneFile) -> bytes:
    """Checks the headers of one scene and returns a digest of its two files."""
    with (
        image_files.open_file(file.image) as (image, of_image),
        image_files.open_file(file.labels) as (labels, of_labels),
    ):
        decoding.read_header(image, str(file.image))
        _check_pair(file, image, labels)
    return of_image + of_labels


def check_files(files: Sequence[SceneFile], advice: str) -> None:
    """Raises a FileNotFoundError that names files which are missing; `advice` says what to do."""
    paths = [path for file in files for path in (file.image, file.labels)]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{shorten(missing, 2)} cannot be found; {advice}")


def read_scene(file: SceneFile, scene_size: tuple[int, int]) -> np.ndarray:
    """Returns u8[H, W, 4], RGB and label; raises if the two files are of different sizes."""
    from PIL import Image

    image = decoding.open_image(file.image.read_bytes(), str(file.image))
    labels = decoding.open_image(file.labels.read_bytes(), str(file.labels))
    _check_pair(file, image, labels)
    image = decoding.convert(image, "RGB", str(file.image))
    pixels = np.asarray(_fit(image, scene_size, Image.Resampling.BILINEAR))
    return np.concatenate([pixels, _fit_labels(file, labels, scene_size)[..., None]], axis=-1)


def read_label_map(file: SceneFile, scene_size: tuple[int, int]) -> np.ndarray:
    """Returns u8[H, W]; a palette's colours are not looked at, only its numbers."""
    labels = decoding.open_image(file.labels.read_bytes(), str(file.labels))
    _check_labels(file, labels)
    return _fit_labels(file, labels, scene_size)


def _check_pair(file: SceneFile, image: "Image.Image", labels: "Image.Image") -> None:
    """Raises unless the second is a label map of the first, as they are stored."""
    _check_labels(file, labels)
    if image.size != labels.size:
        sizes = [f"{width}x{height}" for width, height in (image.size, labels.size)]
        raise ValueError(
            f"{file.image} is {sizes[0]} pixels but its label map {file.labels} is {sizes[1]}; the "
            "two must be of one size."
        )


def _check_labels(file: SceneFile, labels: "Image.Image") -> None:
    if labels.mode not in LABEL_MODES:
        raise ValueError(
            f"{file.labels} is no label map (mode {labels.mode}); expected a palette or 8-bit "
            "grey image whose pixels are label numbers, not colours."
        )


def _fit_labels(file: SceneFile, labels: "Image.Image", scene_size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    labels = decoding.decode_numbers(labels, str(file.labels))
    return file.table[np.asarray(_fit(labels, scene_size, Image.Resampling.NEAREST))]


def _fit(
    image: "Image.Image", scene_size: tuple[int, int], resampling: "Image.Resampling"
) -> "Image.Image":
    """Crops the centre of an image to the aspect ratio of (height, width) and resizes it."""
    height, width = scene_size
    scale = min(image.width / width, image.height / height)
    box = max(1, round(scale * width)), max(1, round(scale * height))
    left, top = (image.width - box[0]) // 2, (image.height - box[1]) // 2
    crop = image.crop((left, top, left + box[0], top + box[1]))
    return crop.resize((width, height), resampling)


def _map_files(
    read: Callable[[SceneFile, tuple[int, int]], np.ndarray],
    files: Sequence[SceneFile],
    shape: tuple[int, ...],
) -> np.ndarray:
    """Returns u8[n, *shape], `read(file, (H, W))` of every file, in threads."""
    arrays = np.empty((len(files), *shape), np.uint8)

    def fill(i: int) -> None:
        arrays[i] = read(files[i], shape[:2])

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(len(files))))  # list: re-raises the first error
    return arrays
