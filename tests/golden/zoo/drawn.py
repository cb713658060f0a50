"""Weights and images that are drawn by name, the same wherever NumPy is."""

import math
import zlib

import numpy as np


def tensor(name, shape):
    """An array of a state dict: of a scale by which signals neither vanish nor grow."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.asarray(1, np.int64)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) > 1 and not name.endswith(
        ("token", "pos_embed", "pos_embedding", "position_embeddings")
    ):
        std = math.prod(shape[1:]) ** -0.5
        return (std * rng.standard_normal(shape, np.float32)).astype(np.float32)
    if name.endswith("weight"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.1 * rng.standard_normal(shape, np.float32)).astype(np.float32)


def state_dict(names, shapes):
    """All arrays of a state dict, whose shapes are texts such as "64 3 7 7"."""
    return {
        str(name): tensor(str(name), tuple(map(int, str(shape).split())))
        for name, shape in zip(names, shapes, strict=True)
    }


def images(size, seed):
    """Normalised images f32[2, 3, size, size], channels first."""
    return np.random.default_rng(seed).standard_normal((2, 3, size, size), np.float32)


def cotangent(shape):
    """What the logits are multiplied by before the gradient is taken."""
    return np.random.default_rng(2).standard_normal(shape, np.float32)
