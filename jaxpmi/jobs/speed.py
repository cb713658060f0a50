"""How long a classifier takes on this machine, by the clock of the host."""

import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import forward
from jaxpmi.network import Network


def measure_speed_up(
    before: Network,
    after: Network,
    *,
    batch_size: int,
    num_rounds: int = 30,
) -> float:
    """How many times faster `after` is than `before`; the rest as in `measure_seconds`."""
    slow, fast = measure_seconds([before, after], batch_size=batch_size, num_rounds=num_rounds)
    return slow / fast


def measure_seconds(
    networks: Sequence[Network],
    *,
    batch_size: int,
    num_rounds: int = 30,
) -> list[float]:
    """Median time of the compiled forward pass of every network.

    They take turns in one process, so that whatever else the machine does meets all alike.

    Args:
      networks: of images of one shape.
      batch_size: images per pass, all zero: the time does not depend on what they show.
      num_rounds: passes of each that are timed, after one that is not.

    Returns:
      Seconds per batch, one number per network.
    """
    images = jnp.zeros((batch_size, *networks[0].image_shape))
    programs = [_logits.lower(network, images).compile() for network in networks]
    seconds = [[] for _ in networks]
    for _ in range(1 + num_rounds):
        for network, program, times in zip(networks, programs, seconds, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(program(network, images))
            times.append(time.perf_counter() - begin)
    return [statistics.median(times[1:]) for times in seconds]


@jax.jit
def _logits(network, images):
    return network.head(forward(network.model, network.variables, images).features)
