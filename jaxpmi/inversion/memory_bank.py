"""A first-in first-out memory of vectors on the device, and draws from it.

CMI's memory bank, docs/methods/cmi.md.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.types import PRNGKey


class MemoryBank(NamedTuple):
    """A ring of rows, of which the newest take the place of the oldest."""

    rows: jax.Array  # f32[capacity, D]; zeros where nothing was pushed yet
    count: jax.Array  # i32[], rows held
    position: jax.Array  # i32[], where the next ones go


def init_bank(capacity: int, width: int) -> MemoryBank:
    """An empty bank of `capacity` rows."""
    # Two arrays, because one that is donated cannot be donated twice.
    return MemoryBank(jnp.zeros((capacity, width)), *(jnp.zeros((), jnp.int32) for _ in range(2)))


def push(bank: MemoryBank, rows: jax.Array) -> MemoryBank:
    """Adds rows f32[B, D]; the capacity is a multiple of B, so no push runs over the end."""
    capacity, number = bank.rows.shape[0], rows.shape[0]
    if capacity % number:
        raise ValueError(
            f"a bank of {capacity} rows is not filled by pushes of {number}; use a capacity that "
            f"is a multiple of {number}."
        )
    return MemoryBank(
        jax.lax.dynamic_update_slice(bank.rows, rows, (bank.position, 0)),
        jnp.minimum(bank.count + number, capacity),
        (bank.position + number) % capacity,
    )


def draw(bank: MemoryBank, key: PRNGKey, number: int) -> tuple[jax.Array, jax.Array]:
    """Draws rows f32[number, D] without replacement, and bool[number], which of them are held.

    The first `count` are, where the bank holds fewer than `number`; the others mean nothing.
    """
    capacity = bank.rows.shape[0]
    if number > capacity:
        raise ValueError(
            f"{number} rows cannot be drawn from a bank of {capacity} without replacement; draw "
            "fewer or use a larger bank."
        )
    held = jnp.arange(capacity) < bank.count
    lots = jnp.where(held, jax.random.uniform(key, (capacity,)), -1.0)
    _, drawn = jax.lax.top_k(lots, number)
    return bank.rows[drawn], jnp.arange(number) < bank.count
