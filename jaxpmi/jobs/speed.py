"""How long a classifier takes on this machine, by the clock of the host."""

import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import forward

Classifier = tuple[BlockwiseModel, Variables, jax.Array]  # model, variables, head f32[D, C]


def measure_speed_up(
    before: Classifier,
    after: Classifier,
    *,
    image_shape: tuple[int, int, int],
    batch_size: int,
    num_rounds: int = 30,
) -> float:
    """How many times faster `after` is than `before`; the rest as in `measure_seconds`."""
    slow, fast = measure_seconds(
        [before, after], image_shape=image_shape, batch_size=batch_size, num_rounds=num_rounds
    )
    return slow / fast


def measure_seconds(
    classifiers: Sequence[Classifier],
    *,
    image_shape: tuple[int, int, int],
    batch_size: int,
    num_rounds: int = 30,
) -> list[float]:
    """Median time of the compiled forward pass of every classifier.

    They take turns in one process, so that whatever else the machine does meets all alike.

    Args:
      classifiers: `(model, variables, head)` each.
      image_shape: (H, W, C).
      batch_size: images per pass, all zero: the time does not depend on what they show.
      num_rounds: passes of each that are timed, after one that is not.

    Returns:
      Seconds per batch, one number per classifier.
    """
    images = jnp.zeros((batch_size, *image_shape))
    programs = [_compile(*classifier, images) for classifier in classifiers]
    seconds = [[] for _ in classifiers]
    for _ in range(1 + num_rounds):
        for (_, variables, head), program, times in zip(
            classifiers, programs, seconds, strict=True
        ):
            begin = time.perf_counter()
            jax.block_until_ready(program(variables, head, images))
            times.append(time.perf_counter() - begin)
    return [statistics.median(times[1:]) for times in seconds]


def _compile(model, variables, head, images):
    def logits(variables, head, images):
        return forward(model, variables, images).features @ head

    return jax.jit(logits).lower(variables, head, images).compile()
