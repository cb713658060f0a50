"""Contrastive model inversion (CMI): batches of images, each unlike all that were made before.

One call makes one batch: a generator and its latents are fitted to a frozen teacher, while a
projection head learns to tell the images apart, from each other and from those remembered of
earlier calls (docs/methods/cmi.md, eqs. 1 to 6).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpmi.augment import augment
from jaxpmi.config import AugmentConfig
from jaxpmi.config import CmiConfig
from jaxpmi.doors import check_inversion
from jaxpmi.inversion import contrast
from jaxpmi.inversion import memory_bank
from jaxpmi.inversion.latent_search import adams
from jaxpmi.inversion.latent_search import by_part
from jaxpmi.inversion.latent_search import network_terms
from jaxpmi.inversion.latent_search import part_rates
from jaxpmi.inversion.latent_search import term_weights
from jaxpmi.inversion.latent_search import to_normalised
from jaxpmi.inversion.memory_bank import MemoryBank
from jaxpmi.inversion.pixel_generator import generate_pixels
from jaxpmi.inversion.pixel_generator import generator_of
from jaxpmi.inversion.synthetic import Synthetic
from jaxpmi.inversion.synthetic import as_stored
from jaxpmi.inversion.variants import CMI_VARIANTS
from jaxpmi.inversion.variants import CmiVariant
from jaxpmi.network import Network
from jaxpmi.optimise.minimise import minimise
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

PARTS = ("generator", "latents", "projection")  # of what is optimised


class CmiState(NamedTuple):
    """What goes from call to call."""

    projection: Params
    opt_state: optax.OptState  # of the projection head's Adam
    bank: MemoryBank  # rows [local | global] of embeddings before the projection, f32[n, 2 D]
    generator: Params  # that the last call ended with, or a fresh one; () if every call draws one


def init_cmi(
    network: Network,
    key: PRNGKey,
    *,
    config: CmiConfig | None = None,
    variant: CmiVariant | None = None,
) -> CmiState:
    """A fresh projection head and an empty bank for a teacher; arguments as in `cmi`.

    A generator that is kept from call to call makes at first pixels of the network's `mean`.

    The bank takes `bank_size` x 2 D x 4 bytes, D being the channels of all layers whose moments the
    teacher keeps: 0.9 GB for a WRN-40-2 and 40,960 images.
    """
    config = CmiConfig() if config is None else config
    variant = CMI_VARIANTS[config.variant] if variant is None else variant
    width = jax.eval_shape(
        lambda x: contrast.embed(contrast.observe(network, x).moments),
        jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32),
    ).shape[1]
    key_projection, key_generator = jax.random.split(key)
    projection = contrast.init_projection(key_projection, width, variant.projection_dim)
    opt_state = adams(PARTS)["projection"].init(projection)
    bank = memory_bank.init_bank(config.bank_size, 2 * width)
    generator = ()
    if variant.keeps_generator:
        generator = generator_of(variant, key_generator, network.image_shape, network.mean)
    return CmiState(projection, opt_state, bank, generator)


def cmi(
    state: CmiState,
    network: Network,
    labels: jax.Array,
    key: PRNGKey,
    *,
    config: CmiConfig | None = None,
    student: Network | None = None,
    variant: CmiVariant | None = None,
) -> tuple[CmiState, Synthetic]:
    """Makes one batch of images; all steps are one compiled program.

    Args:
      state: of `init_cmi` or of the last call; donated.
      network: the teacher, of images whose height and width are divisible by 4.
      labels: i32[B], the class that each image is to show; `bank_size` is a multiple of B.
      key: consumed.
      config: `num_steps` steps are taken. None: the defaults.
      student: the network to disagree with; None: no such term.
      variant: a procedure of one's own; None: that of `config.variant`.

    Returns:
      The next state, and the images of the least loss.
    """
    config = CmiConfig() if config is None else config
    variant = CMI_VARIANTS[config.variant] if variant is None else variant
    check_inversion(network, labels, key, statistics_weight=config.statistics_weight)
    state, solution = _call(state, network, labels, student, key, config=config, variant=variant)
    return state, as_stored(network, solution, labels)


@functools.partial(jax.jit, static_argnames=("config", "variant"), donate_argnames="state")
def _call(state, network, labels, student, key, *, config, variant):
    """The next state, and normalised images of the least loss."""
    key_start, key_steps = jax.random.split(key)
    batch, mean, std = labels.shape[0], network.mean, network.std
    weights = term_weights(config, student)
    num_drawn = min(variant.num_negatives, config.bank_size)

    def terms_fn(parts, key):
        key_views, key_draw = jax.random.split(key)
        pixels = generate_pixels(parts["generator"], parts["latents"])
        views = to_normalised(two_views(pixels, key_views, config, variant), mean, std)
        shown = contrast.observe(network, views)
        embeddings = contrast.embed(shown.moments)
        whole, local = embeddings[:batch], embeddings[batch:]
        terms = network_terms(
            views[:batch],
            shown.features[:batch],
            contrast.batch_moments(jax.tree.map(lambda each: each[:batch], shown.moments)),
            labels,
            network,
            student,
            names=weights,
        )
        terms["contrastive"] = contrast.contrastive_loss(
            parts["projection"],
            local,
            whole,
            *memory_bank.draw(state.bank, key_draw, num_drawn),
            temperature=variant.temperature,
        )
        return terms, (pixels, jnp.concatenate([local, whole], 1))

    parts = _first_parts(state, batch, network, key_start, variant)
    tx = by_part(adams(PARTS))
    solution, ending = minimise(
        terms_fn,
        parts,
        key_steps,
        weights=weights | {"contrastive": config.contrastive_weight},
        learning_rates=jnp.ones(config.num_steps),
        scales=part_rates(config, variant, PARTS),
        tx=tx,
        opt_state=tx.init(parts) | {"projection": state.opt_state},
        has_aux=True,
    )
    pixels, rows = solution.x
    state = CmiState(
        ending.x["projection"],
        ending.opt_state["projection"],
        memory_bank.push(state.bank, rows),
        ending.x["generator"] if variant.keeps_generator else (),
    )
    return state, solution._replace(x=to_normalised(pixels, mean, std))


def two_views(pixels: jax.Array, key: PRNGKey, config: CmiConfig, variant: CmiVariant) -> jax.Array:
    """Random views of f32[B, H, W, C] in [0, 1]: B global and then B local ones.

    Global: a crop of the image in a black border. Local: a crop of `local_scale` of its area,
    enlarged. Either is mirrored at random where `flip` says so.
    """
    key_global, key_local = jax.random.split(key)
    local = AugmentConfig(crop_scale=variant.local_scale, flip=config.flip)
    return jnp.concatenate(
        [
            global_view(pixels, key_global, config, variant),
            augment(pixels, key_local, local, interpolation="linear"),
        ]
    )


def global_view(
    pixels: jax.Array, key: PRNGKey, config: CmiConfig, variant: CmiVariant
) -> jax.Array:
    """The first half of `two_views`."""
    return augment(pixels, key, AugmentConfig(crop_padding=variant.crop_padding, flip=config.flip))


def _first_parts(state, batch, network, key, variant):
    """What is optimised: new parts, but for the projection head."""
    key_generator, key_latents = jax.random.split(key)
    generator = state.generator
    if not variant.keeps_generator:
        generator = generator_of(variant, key_generator, network.image_shape, network.mean)
    latents = jax.random.normal(key_latents, (batch, variant.latent_dim), jnp.float32)
    return {"generator": generator, "latents": latents, "projection": state.projection}
