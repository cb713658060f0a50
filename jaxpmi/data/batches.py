"""Which images form each training step, and the pixel statistics they are normalised by."""

from collections.abc import Sequence

import numpy as np


def epoch_batches(
    num_examples: int,
    batch_size: int,
    num_steps: int,
    seed: int | Sequence[int],
    start_step: int = 0,
) -> np.ndarray:
    """Draws the image indices of training steps start_step .. start_step + num_steps - 1.

    Each epoch is a permutation of its own, of ceil(num_examples / batch_size) steps. Its last batch
    is filled up from the start of the same permutation, so every batch has one shape and, where
    num_examples >= batch_size, no image twice. Step s is the same whatever `start_step` is.

    Args:
      num_examples: images to draw from, 1 or more.
      batch_size: B.
      num_steps: S, rows to return.
      seed: integers of 0 or more, e.g. (run seed, task).
      start_step: first step to return, for a resumed run.

    Returns:
      i32[S, B], each in [0, num_examples).
    """
    if num_examples < 1 or batch_size < 1:
        raise ValueError(
            f"{num_examples} images in batches of {batch_size} give no batch; "
            "both must be 1 or more."
        )
    seed = (seed,) if isinstance(seed, int | np.integer) else tuple(seed)
    steps_per_epoch = -(-num_examples // batch_size)
    batches = np.empty((num_steps, batch_size), np.int32)
    row = 0
    while row < num_steps:
        epoch, first = divmod(start_step + row, steps_per_epoch)
        permutation = np.random.default_rng((*seed, epoch)).permutation(num_examples)
        rows = np.resize(permutation, (steps_per_epoch, batch_size))  # repeats from its start
        taken = rows[first : first + num_steps - row]
        batches[row : row + len(taken)] = taken
        row += len(taken)
    return batches


def channel_moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and standard deviation per channel of u8[N, H, W, C], of pixels in [0, 1].

    They come from exact pixel counts. A channel of one value gets the std 1.0, so that normalised
    pixels stay finite.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise ValueError(
            f"got {images.dtype} images of shape {images.shape}; expected uint8 [N, H, W, C] with "
            "at least one image."
        )
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[-1]):
        weights = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = float(np.average(levels, weights=weights))
        variance = float(np.average((levels - mean) ** 2, weights=weights))
        means.append(mean)
        stds.append(variance**0.5 if np.count_nonzero(weights) > 1 else 1.0)
    return tuple(means), tuple(stds)
