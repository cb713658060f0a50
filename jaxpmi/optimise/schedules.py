"""Learning rates as arrays, one per step: data of a program, so that another rate compiles nothing.

All of them are a warm-up, a share of the peak that rises, and then a decay from the peak.
"""

import contextlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

# The share of the peak at step i of a warm-up of W steps:
#   from_zero     i / W                        training of a task
#   to_peak       (i + 1) / W                  DeepInversion: the last step has the peak
#   below_peak    (i + 1) / (W + 1)            a student, pretraining: the step after has it
#   first_twice   max(i, 1) / W                PMI, as published: steps 0 and 1 share a rate
#   from_first    1 / W + (1 - 1 / W) i / W    CLIP, as published
Warmup = Literal["from_zero", "to_peak", "below_peak", "first_twice", "from_first"]


def learning_rates(
    num_steps: int,
    peak: float,
    decay: optax.Schedule,
    *,
    warmup_steps: int = 0,
    warmup: Warmup = "from_zero",
    in_program: bool = False,
) -> np.ndarray | jax.Array:
    """The learning rate of every step, f32[num_steps].

    Args:
      num_steps: S.
      peak: the highest rate.
      decay: maps the number of steps since the warm-up to a share of the peak, 1 at 0.
      warmup_steps: W, at least 0.
      warmup: how the rate rises.
      in_program: computed by the program that is being traced, whose last bits may differ from
        those on the host, which need no program for another number of steps.
    """
    xp = jnp if in_program else np
    steps, length = xp.arange(num_steps), max(warmup_steps, 1)
    with contextlib.nullcontext() if in_program else jax.ensure_compile_time_eval():
        decayed = xp.asarray(jax.vmap(decay)(xp.maximum(steps - warmup_steps, 0)), xp.float32)
    ramps = {
        "from_zero": lambda: steps / length,
        "to_peak": lambda: (steps + 1) / length,
        "below_peak": lambda: (steps + 1) / (length + 1),
        "first_twice": lambda: xp.maximum(steps, 1) / length,
        "from_first": lambda: 1 / length + (1 - 1 / length) * steps / length,
    }
    ramp = xp.minimum(xp.asarray(ramps[warmup](), xp.float32), 1.0)
    return xp.float32(peak) * xp.where(steps < warmup_steps, ramp, decayed)


def cosine(num_steps: int) -> optax.Schedule:
    """(1 + cos(pi t)) / 2 at progress t, from 1 to 0 in `num_steps`, at least 1; then 0."""
    return optax.cosine_decay_schedule(1.0, max(num_steps, 1))


def cosine_to_zero(num_steps: int) -> optax.Schedule:
    """`cosine` as the square of a sine, which is exact where the rate is nearly 0."""
    length = max(num_steps, 1)
    return lambda step: jnp.square(jnp.sin(0.5 * jnp.pi * (length - step) / length))


def polynomial(num_steps: int, power: float) -> optax.Schedule:
    """(1 - t)^power at progress t, from 1 to 0 in `num_steps`."""
    return optax.polynomial_schedule(1.0, 0.0, power, num_steps)


def falls(factors: dict[int, float]) -> optax.Schedule:
    """1, multiplied by a factor at each of these steps."""
    return optax.piecewise_constant_schedule(1.0, factors)


def constant() -> optax.Schedule:
    """1 for ever."""
    return optax.constant_schedule(1.0)
