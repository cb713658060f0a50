"""FastDFKD: contrastive inversion's generator, with a start that is learned over the calls.

A few steps then make a batch. There is no contrast and no memory; instead, what the images of
earlier calls showed the teacher counts in the statistics that are matched (docs/methods/cmi.md,
eqs. 7 to 10).
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

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
from jaxpmi.models.blockwise import forward
from jaxpmi.network import Network
from jaxpmi.optimise.minimise import Ending
from jaxpmi.optimise.minimise import minimise
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

REPTILE_FACTOR = 67.0  # on the way that the generator went, as its gradient


class FastDfkdState(NamedTuple):
    """What goes from call to call."""

    generator: Params  # where every call starts
    opt_state: optax.OptState  # of its Adam
    statistics: dict[str, Any]  # moving average of the teacher's batch moments; 0 before a call
    num_calls: jax.Array  # i32[]


def init_fast_dfkd(
    network: Network, key: PRNGKey, *, config: CmiConfig | None = None
) -> FastDfkdState:
    """A fresh generator for a teacher, at first of pixels of the network's `mean`."""
    config = CmiConfig() if config is None else config
    generator = generator_of(config, key, network.image_shape, network.mean)
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
) -> tuple[FastDfkdState, Synthetic]:
    """Makes one batch of images and improves the generator's start; one compiled program.

    The arguments are those of `cmi`, with a state of `init_fast_dfkd`; any number of labels will
    do. Published settings have `num_steps` of 2 to 10. The student is left out of the loss before
    call `adversarial_warmup_calls`.
    """
    config = CmiConfig() if config is None else config
    check_inversion(network, labels, key, statistics_weight=config.statistics_weight)
    state, solution = _call(state, network, labels, student, key, config=config)
    return state, as_stored(network, solution, labels)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _call(state, network, labels, student, key, *, config):
    """The next state, and normalised images of the least loss."""
    mean, std = network.mean, network.std
    key_latents, key_layer, key_steps = jax.random.split(key, 3)
    call = state.num_calls + 1
    weights = term_weights(config, student)
    if "adversarial" in weights:
        late = call >= config.adversarial_warmup_calls
        weights["adversarial"] = jnp.where(late, weights["adversarial"], 0.0)
    redraw = call == config.reset_call + config.adversarial_warmup_calls
    start = jax.tree.map(
        functools.partial(jnp.where, redraw),
        redraw_first_layer(state.generator, key_layer),
        state.generator,
    )

    def terms_fn(parts, key):
        pixels = generate_pixels(parts["generator"], parts["latents"])
        views = to_normalised(global_view(pixels, key, config), mean, std)
        shown = forward(network.model, network.variables, views)
        terms = network_terms(
            views,
            shown.features,
            blend_statistics(state, shown.moments, config.statistics_momentum),
            labels,
            network,
            student,
            names=weights,
        )
        return terms, (pixels, shown.moments)

    latents = jax.random.normal(key_latents, (labels.shape[0], config.latent_dim))
    parts = {"generator": start, "latents": latents}
    directions = adams(parts)
    directions["generator"] = optax.chain(_summed(), directions["generator"])
    solution, ending = minimise(
        terms_fn,
        parts,
        key_steps,
        weights=weights,
        learning_rates=jnp.ones(config.num_steps),
        scales=part_rates(config, parts),
        tx=by_part(directions),
        has_aux=True,
    )
    gradient = meta_gradient(start, ending, config)
    updates, opt_state = _meta_optimiser(config).update(gradient, state.opt_state)
    (pixels, _), (_, moments) = solution.x, ending.shown
    state = FastDfkdState(
        optax.apply_updates(start, updates),
        opt_state,
        blend_statistics(state, moments, config.statistics_momentum),
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


def meta_gradient(start: Params, ending: Ending, config: CmiConfig) -> Params:
    """The gradient for the generator's start, of where a call that began there ended.

    fomaml: the sum of the gradients of all steps; reptile: 67 times the way they went, backwards.
    """
    if config.meta_learning == "fomaml":
        summed, _ = ending.opt_state["generator"]
        return summed
    end = ending.x["generator"]
    return jax.tree.map(lambda old, new: REPTILE_FACTOR * (old - new), start, end)


def _summed():
    """Leaves gradients as they are; its state is their sum."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, total, params=None: (grads, jax.tree.map(jnp.add, total, grads)),
    )


def _meta_optimiser(config):
    return optax.adam(config.num_steps * config.learning_rate, b1=0.5)
