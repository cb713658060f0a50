"""A whole run in seconds: six made-up digits in three tasks, a network of two blocks."""

import dataclasses

import numpy as np
from rows import chain
from rows import piece
from small_network import blobs

from jaxpmi import experiment
from jaxpmi.config import CfsConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import FullModelConfig
from jaxpmi.config import GeneratorConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.config import TrainConfig
from jaxpmi.continual import start
from jaxpmi.inversion import variants
from jaxpmi.jobs import invert
from jaxpmi.jobs import state
from jaxpmi.models import MODELS
from jaxpmi.models import resnet
from jaxpmi.models import vit
from jaxpmi.sharding import make_mesh

NUM_CLASSES, NUM_TASKS, BATCH = 6, 3, 8


def set_up(patch, num_devices=1):
    """Makes two tiny models known, and runs use that many devices; `patch` can undo it."""
    # Of so few images more directions of what is pooled are mostly rounding.
    rows = {
        name: dataclasses.replace(row, inverse_rank=2)
        for name, row in variants.INVERSION_VARIANTS.items()
    }
    patch.setattr(variants, "INVERSION_VARIANTS", rows)
    patch.setitem(MODELS, "tiny", tiny_model)
    patch.setitem(MODELS, "tiny_vit", tiny_transformer)
    for module in (experiment, start, state, invert):
        patch.setattr(module, "make_mesh", lambda: make_mesh(num_devices))


def tiny_model(image_shape, width, *, rngs):
    """A stem and one residual block."""
    last = piece(resnet.ResidualBlock, 2 * width, stride=2, pool=True)
    return chain(piece(resnet.Stem, width), last)(image_shape, rngs=rngs)


def tiny_transformer(image_shape, width, *, rngs):
    """Two blocks on four patches and a class token."""
    return vit.vision_transformer(
        image_shape,
        patch_size=4,
        width=2 * width,
        depth=2,
        num_heads=2,
        features=2 * width,
        rngs=rngs,
    )


def tiny_config(folder, method="pmi", **changes):
    """Two training steps a task at one epoch, two batches of images before task 1, then four.

    Changes are of fields by path, with two underscores for a dot: `train__epochs=2`.
    """
    path = folder / "blobs.npz"
    if not path.exists():
        _write_blobs(path)
    config = Config(
        method=method,
        workdir=str(folder / "run"),
        data=DataConfig(source="npz", path=str(path), tasks=NUM_TASKS),
        model=ModelConfig(name="tiny", width=4),
        train=TrainConfig(batch_size=BATCH, replay_batch_size=BATCH, epochs=1),
        cfs=CfsConfig(num_epochs=1, num_rounds=4),
        inversion=InversionConfig(
            images_per_task=2 * BATCH,
            batch_size=BATCH,
            per_layer=PerLayerConfig(num_steps=2),
            full_model=FullModelConfig(num_steps=2),
        ),
        generator=GeneratorConfig(num_steps=2, batch_size=BATCH),
        save_images=True,
    )
    for name, value in changes.items():
        config = _change(config, name.split("__"), value)
    return config


def _write_blobs(path):
    """Eight training and four test images of every class."""
    arrays = {}
    for split, count in (("train", 8), ("test", 4)):
        images, labels = blobs(count, NUM_CLASSES, seed=count)
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    np.savez(path, **arrays)


def _change(config, names, value):
    first, *rest = names
    value = _change(getattr(config, first), rest, value) if rest else value
    return dataclasses.replace(config, **{first: value})
