"""Synthetic images as every verb of inversion returns them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.augment import denormalise
from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import forward
from jaxpmi.network import Network
from jaxpmi.optimise.minimise import Solution


class Synthetic(NamedTuple):
    """Images made from a network, and how they came about.

    Attributes:
      images: u8[B, H, W, channels] as images are stored; or, where inversion stopped before a later
        block, that block's inputs f32[B, ...], such as patch embeddings.
      loss: f32[], of the images, before they were rounded.
      losses: f32[S], before every step.
      terms: its unweighted terms, f32[] each.
      finite: bool[], False if any loss was NaN or infinite.
      agreement: f32[], share of the images, as they are stored, that the network itself gives the
        intended label.
      block_losses: f32[2] of every block that was descended on by itself, in that order: of the
        inputs that it began with, and of those found.
    """

    images: jax.Array
    loss: jax.Array
    losses: jax.Array
    terms: dict[str, jax.Array]
    finite: jax.Array
    agreement: jax.Array
    block_losses: dict[str, jax.Array] = {}


def as_stored(
    network: Network,
    solution: Solution,
    labels: jax.Array,
    *,
    class_mask: jax.Array | None = None,
    first_block: int = 0,
) -> Synthetic:
    """Rounds the normalised images of a solution to what is stored, and asks the network.

    Inputs f32[B, ...] of a later `first_block` stay as they are; the rest is as in
    `label_agreement`.
    """
    x, loss, losses, terms, finite = solution
    images = denormalise(x, network.mean, network.std) if first_block == 0 else x
    agreement = label_agreement(
        network, images, labels, class_mask=class_mask, first_block=first_block
    )
    return Synthetic(images, loss, losses, terms, finite, agreement)


def as_metrics(made: Synthetic) -> dict[str, jax.Array]:
    """What is logged of a batch: losses at first and last, agreement, unweighted terms."""
    first = {"initial_loss": made.losses[0]} if made.losses.size else {}
    terms = {f"final_{name}": term for name, term in made.terms.items()}
    blocks = {
        f"{block}/{when}_loss": loss
        for block, losses in made.block_losses.items()
        for when, loss in zip(("initial", "final"), losses, strict=True)
    }
    return {**first, "final_loss": made.loss, "agreement": made.agreement, **terms, **blocks}


@functools.partial(jax.jit, static_argnames="first_block")
def label_agreement(
    network: Network,
    samples: jax.Array,
    labels: jax.Array,
    *,
    class_mask: jax.Array | None = None,
    first_block: int = 0,
) -> jax.Array:
    """Share of samples that a network gives the intended label, f32[].

    Args:
      network: run in evaluation mode.
      samples: images u8[B, H, W, channels], or inputs f32[B, ...] of a later `first_block`.
      labels: i32[B].
      class_mask: bool[C], classes to choose from; None: all.
      first_block: whose inputs the samples are.
    """
    x = normalise(samples, network.mean, network.std) if first_block == 0 else samples
    outputs = forward(network.model, network.variables, x, first_block=first_block)
    logits = network.head(outputs.features)
    if class_mask is not None:
        logits = jnp.where(class_mask, logits, -jnp.inf)
    return (logits.argmax(1) == labels).mean()
