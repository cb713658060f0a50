"""FastDFKD: contrastive inversion's generator, with a start that is learned over the calls.

A few steps then make a batch. There is no contrast and no memory; instead, what the images of
earlier calls showed the teacher counts in the statistics that are matched (docs/methods/cmi.md,
eqs. 7 to 9).
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpmi.blocks.blockwise import forward
from jaxpmi.config import CmiConfig
from jaxpmi.doors import check_inversion
from jaxpmi.inversion.cmi import global_view
from jaxpmi.inversion.latent_search import adams
from jaxpmi.inversion.latent_search import by_part
from jaxpmi.inversion.latent_search import network_terms
from jaxpmi.inversion.latent_search import part_rates
from jaxpmi.inversion.latent_search import term_weights
from jaxpmi.inversion.latent_search import to_normalised
from jaxpmi.inversion.pixel_generator import generate_pixels
from jaxpmi.inversion.pixel_generator import generator_of
from jaxpmi.inversion.pixel_generator import redraw_first_layer
from jaxpmi.inversion.synthetic import Synthetic
from jaxpmi.inversion.synthetic import as_stored
from jaxpmi.inversion.variants import CMI_VARIANTS
from jaxpmi.inversion.variants import CmiVariant
from jaxpmi.network import Network
from jaxpmi.optimise.minimise import minimise
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey


class FastDfkdState(NamedTuple):
    """What goes from call to call."""

    generator: Params  # where every call starts
    opt_state: optax.OptState  # of its Adam
    statistics: dict[str, Any]  # moving average of the teacher's batch moments; 0 before a call
    num_calls: jax.Array  # i32[]


def init_fast_dfkd(
    network: Network,
    key: PRNGKey,
    *,
    config: CmiConfig | None = None,
    variant: CmiVariant | None = None,
) -> FastDfkdState:
    """A fresh generator for a teacher, at first of pixels of the network's `mean`."""
    config = CmiConfig() if config is None else config
    variant = CMI_VARIANTS[config.variant] if variant is None else variant
    generator = generator_of(variant, key, network.image_shape, network.mean)
    statistics = jax.tree.map(jnp.zeros_like, network.variables.batch_stats)
    opt_state = _meta_optimiser(config).init(generator)
    return FastDfkdState(generator, opt_state, statistics, jnp.zeros((), jnp.int32))


def fast_dfkd(
    state: FastDfkdState,
    network: Network,
    labels: jax.Array,
    key: PRNGKey,
    *,
    config: CmiConfig | None = None,
    student: Network | None = None,
    variant: CmiVariant | None = None,
) -> tuple[FastDfkdState, Synthetic]:
    """Makes one batch of images and improves the generator's start; one compiled program.

    The arguments are those of `cmi`, with a state of `init_fast_dfkd`; any number of labels will
    do. Published settings have `num_steps` of 2 to 10. The student is left out of the loss before
    call `variant.adversarial_warmup_calls`.
    """
    config = CmiConfig() if config is None else config
    variant = CMI_VARIANTS[config.variant] if variant is None else variant
    check_inversion(network, labels, key, statistics_weight=config.statistics_weight)
    state, solution = _call(state, network, labels, student, key, config=config, variant=variant)
    return state, as_stored(network, solution, labels)


@functools.partial(jax.jit, static_argnames=("config", "variant"), donate_argnames="state")
def _call(state, network, labels, student, key, *, config, variant):
    """The next state, and normalised images of the least loss."""
    mean, std = network.mean, network.std
    key_latents, key_layer, key_steps = jax.random.split(key, 3)
    call = state.num_calls + 1
    weights = term_weights(config, student)
    if "adversarial" in weights:
        late = call >= variant.adversarial_warmup_calls
        weights["adversarial"] = jnp.where(late, weights["adversarial"], 0.0)
    redraw = call == variant.reset_call + variant.adversarial_warmup_calls
    start = jax.tree.map(
        functools.partial(jnp.where, redraw),
        redraw_first_layer(state.generator, key_layer),
        state.generator,
    )

    def terms_fn(parts, key):
        pixels = generate_pixels(parts["generator"], parts["latents"])
        views = to_normalised(global_view(pixels, key, config, variant), mean, std)
        shown = forward(network.model, network.variables, views)
        terms = network_terms(
            views,
            shown.features,
            blend_statistics(state, shown.moments, variant.statistics_momentum),
            labels,
            network,
            student,
            names=weights,
        )
        return terms, (pixels, shown.moments)

    latents = jax.random.normal(key_latents, (labels.shape[0], variant.latent_dim), jnp.float32)
    parts = {"generator": start, "latents": latents}
    directions = adams(parts)
    directions["generator"] = optax.chain(_summed(), directions["generator"])
    solution, ending = minimise(
        terms_fn,
        parts,
        key_steps,
        weights=weights,
        learning_rates=jnp.ones(config.num_steps),
        scales=part_rates(config, variant, parts),
        tx=by_part(directions),
        has_aux=True,
    )
    # The gradient for the start: the sum of those of all steps (docs/methods/cmi.md, eq. 8).
    gradient, _ = ending.opt_state["generator"]
    updates, opt_state = _meta_optimiser(config).update(gradient, state.opt_state)
    (pixels, _), (_, moments) = solution.x, ending.shown
    state = FastDfkdState(
        optax.apply_updates(start, updates),
        opt_state,
        blend_statistics(state, moments, variant.statistics_momentum),
        call,
    )
    return state, solution._replace(x=to_normalised(pixels, mean, std))


def blend_statistics(
    state: FastDfkdState, moments: dict[str, Any], momentum: float | jax.Array
) -> dict[str, Any]:
    """momentum * those of earlier calls + (1 - momentum) * `moments`; in the first call `moments`.

    Gradients flow through `moments` alone.
    """
    momentum = jnp.where(state.num_calls > 0, momentum, 0.0)
    earlier = jax.lax.stop_gradient(state.statistics)
    return jax.tree.map(lambda old, new: momentum * old + (1.0 - momentum) * new, earlier, moments)


def _summed():
    """Leaves gradients as they are; its state is their sum."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, total, params=None: (grads, jax.tree.map(jnp.add, total, grads)),
    )


def _meta_optimiser(config):
    return optax.adam(config.num_steps * config.learning_rate, b1=0.5)
