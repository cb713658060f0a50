"""Data sets from their original archives to TFDS's ArrayRecord layout, without tensorflow.

The stock TFDS builders need tensorflow to *write* these sets. These write the same features under
the same names and versions, so `tfds.builder_from_directory` and `data.source='tfds'` read them.
"""

import contextlib
import functools
import re
import tempfile
from pathlib import Path

from jaxpmi.config.places import expand
from jaxpmi.data import folder_source
from jaxpmi.data.archive import Examples
from jaxpmi.data.archive import Recipe
from jaxpmi.data.archive import png_or_jpeg
from jaxpmi.data.cifar_archive import cifar_recipe
from jaxpmi.data.cub_archive import cub_recipe
from jaxpmi.data.imagenet_archives import imagenet_recipe
from jaxpmi.data.imagenet_archives import tiny_imagenet_recipe
from jaxpmi.runs.writers.console import tell

KINDS = ("cifar10", "cifar100", "tiny_imagenet", "imagenet", "cub200", "folder")


def prepare(
    kind: str,
    archives: list[Path],
    data_dir: Path,
    *,
    name: str | None = None,
    val_labels: Path | None = None,
    classes: Path | None = None,
) -> Path:
    """Writes one data set and returns its version folder; nothing is left behind on an error.

    Args:
      kind: one of `KINDS`.
      archives: the original archive file(s), or for 'folder' one folder of class folders.
      data_dir: where the data set's folder goes.
      name: data-set name; None: TFDS's own, or the folder's.
      val_labels: 'imagenet' only, see `imagenet_recipe`.
      classes: 'imagenet' only, see `imagenet_recipe`.
    """
    if kind != "imagenet" and (val_labels or classes):
        raise ValueError(f"--val-labels and --classes are for imagenet; leave them out for {kind}.")
    archives = [Path(expand(str(archive))) for archive in archives]
    val_labels = val_labels and Path(expand(str(val_labels)))
    classes = classes and Path(expand(str(classes)))
    missing = [str(archive) for archive in archives if not archive.exists()]
    if missing:
        raise FileNotFoundError(f"archive {missing[0]} does not exist; check the path.")
    if kind in ("cifar10", "cifar100"):
        recipe = cifar_recipe(kind, archives)
    elif kind == "tiny_imagenet":
        recipe = tiny_imagenet_recipe(archives)
    elif kind == "imagenet":
        recipe = imagenet_recipe(archives, val_labels, classes)
    elif kind == "cub200":
        recipe = cub_recipe(archives)
    elif kind == "folder":
        recipe = folder_recipe(archives)
    else:
        raise ValueError(f"data-set kind '{kind}' is unknown; use one of {KINDS}.")
    return write_dataset(recipe._replace(name=name or recipe.name), data_dir)


def folder_recipe(archives: list[Path]) -> Recipe:
    """Reads the file list of a folder of class folders, or of train/ and test/ (or val/)."""
    if len(archives) != 1:
        raise ValueError(f"got {len(archives)} folders; expected one folder of class folders.")
    root = archives[0].resolve()
    tree = folder_source.list_images(root)
    headers = folder_source.inspect_images(tree)
    for entry in tree.passed_over:
        tell(f"passed over: {entry}")
    return Recipe(
        name=re.sub(r"\W+", "_", root.name.lower()),
        version="1.0.0",
        description=f"Images of the folder {root.name}.",
        homepage="",
        image_shape=(*(headers.size or (None, None)), headers.channels),
        encoding=None,
        labels={"label": tree.class_names},
        text="file_name",
        splits={
            split: functools.partial(_folder_examples, root, tree, split) for split in tree.files
        },
    )


def _folder_examples(root: Path, tree: folder_source.ImageTree, split: str) -> Examples:
    for file, label in zip(tree.files[split], tree.labels[split], strict=True):
        file_name = str(file.relative_to(root))
        image = png_or_jpeg(file.read_bytes(), str(file))
        yield file_name, {"image": image, "label": int(label), "file_name": file_name}


def write_dataset(recipe: Recipe, data_dir: Path) -> Path:
    """Writes a recipe as `data_dir`/name/version and returns that folder."""
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[a-z][a-z0-9_]*", recipe.name):
        raise ValueError(
            f"data-set name '{recipe.name}' must be lower-case letters, digits and underscores; "
            "give another with --name."
        )
    data_dir = Path(expand(str(data_dir)))
    folder = data_dir / recipe.name / recipe.version
    if folder.exists():
        raise ValueError(f"{folder} exists already; remove it or give another --name.")
    new_folders = [path for path in folder.absolute().parents if not path.exists()]
    try:
        builder = _builder_class(recipe)(data_dir=data_dir, file_format="array_record")
        with tempfile.TemporaryDirectory() as downloads:  # TFDS insists on one; it stays empty
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except BaseException:
        for path in new_folders:  # TFDS removes the unfinished version folder itself
            with contextlib.suppress(OSError):  # not empty: someone else's
                path.rmdir()
        raise
    return folder


def _builder_class(recipe: Recipe):
    """Makes the TFDS builder of a recipe; unregistered, as TFDS has its own cifar10."""
    import tensorflow_datasets as tfds

    class RecipeInfo(tfds.core.DatasetInfo):
        def initialize_from_bucket(self):
            """Does nothing: no recipe is in Google's bucket, and TFDS leaves an empty folder."""

    class RecipeBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = recipe.name
        VERSION = tfds.core.Version(recipe.version)

        def _info(self):
            image = tfds.features.Image(shape=recipe.image_shape, encoding_format=recipe.encoding)
            labels = {
                feature: tfds.features.ClassLabel(names=names)
                for feature, names in recipe.labels.items()
            }
            text = {recipe.text: tfds.features.Text()}
            return RecipeInfo(
                builder=self,
                description=recipe.description,
                homepage=recipe.homepage,
                features=tfds.features.FeaturesDict({"image": image, **labels, **text}),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            del dl_manager  # nothing is downloaded
            return {split: examples() for split, examples in recipe.splits.items()}

        def _generate_examples(self):
            raise NotImplementedError  # abstract in TFDS; the generators above are passed directly

    return RecipeBuilder
