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

from jaxpmi.config import ContrastiveInversionConfig
from jaxpmi.inversion.contrastive_inversion import global_view
from jaxpmi.inversion.latent_search import Found
from jaxpmi.inversion.latent_search import Networks
from jaxpmi.inversion.latent_search import network_terms
from jaxpmi.inversion.latent_search import optimisers
from jaxpmi.inversion.latent_search import search
from jaxpmi.inversion.latent_search import term_weights
from jaxpmi.inversion.latent_search import to_normalised
from jaxpmi.inversion.pixel_generator import generate_pixels
from jaxpmi.inversion.pixel_generator import generator_of
from jaxpmi.inversion.pixel_generator import redraw_first_layer
from jaxpmi.inversion.solver import Solution
from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import forward
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

REPTILE_FACTOR = 67.0  # on the way that the generator went, as its gradient


class FastState(NamedTuple):
    """What goes from call to call."""

    generator: Params  # where every call starts
    opt_state: optax.OptState  # of its Adam
    statistics: dict[str, Any]  # moving average of the teacher's batch moments; 0 before a call
    num_calls: jax.Array  # i32[]


def init_fast_inversion(
    key: PRNGKey,
    variables: Variables,
    image_shape: tuple[int, int, int],
    *,
    mean: jax.Array,
    config: ContrastiveInversionConfig,
) -> FastState:
    """A fresh generator of images (H, W, C), at first of pixels f32[C] `mean` in [0, 1].

    `variables` are of the teacher.
    """
    generator = generator_of(config, key, image_shape, mean)
    statistics = jax.tree.map(jnp.zeros_like, variables.batch_stats)
    opt_state = _meta_optimiser(config).init(generator)
    return FastState(generator, opt_state, statistics, jnp.zeros((), jnp.int32))


@functools.partial(
    jax.jit, static_argnames=("model", "student_model", "config"), donate_argnames="state"
)
def fast_inversion(
    state: FastState,
    variables: Variables,
    head: jax.Array,
    labels: jax.Array,
    student: tuple[Variables, jax.Array] | None,
    key: PRNGKey,
    *,
    mean: jax.Array,
    std: jax.Array,
    model: BlockwiseModel,
    student_model: BlockwiseModel | None,
    config: ContrastiveInversionConfig,
) -> tuple[FastState, Solution]:
    """Makes one batch of images and improves the generator's start; one compiled program.

    The arguments are those of `contrastive_inversion`, with a state of `init_fast_inversion`; any
    number of labels will do. Published settings have `num_steps` of 2 to 10. The student is left
    out of the loss before call `adversarial_warmup_calls`.
    """
    key_latents, key_layer, key_steps = jax.random.split(key, 3)
    call, networks = state.num_calls + 1, Networks(variables, head, student)
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
        shown = forward(model, variables, views)
        terms = network_terms(
            views,
            shown.features,
            blend_statistics(state, shown.moments, config.statistics_momentum),
            labels,
            networks,
            model=model,
            student_model=student_model,
            names=weights,
        )
        return terms, (pixels, shown.moments)

    latents = jax.random.normal(key_latents, (labels.shape[0], config.latent_dim))
    parts = {"generator": start, "latents": latents}
    adams = {name: optimisers(config)[name] for name in parts}
    found = search(
        terms_fn,
        parts,
        {name: adams[name].init(parts[name]) for name in parts},
        key_steps,
        optimisers=adams,
        weights=weights,
        num_steps=config.num_steps,
    )
    gradient = meta_gradient(start, found, config)
    updates, opt_state = _meta_optimiser(config).update(gradient, state.opt_state)
    (pixels, _), (_, moments) = found.best, found.last
    state = FastState(
        optax.apply_updates(start, updates),
        opt_state,
        blend_statistics(state, moments, config.statistics_momentum),
        call,
    )
    images = to_normalised(pixels, mean, std)
    return state, Solution(images, found.loss, found.losses, found.terms, found.finite)


def blend_statistics(
    state: FastState, moments: dict[str, Any], momentum: float | jax.Array
) -> dict[str, Any]:
    """momentum * those of earlier calls + (1 - momentum) * `moments`; in the first call `moments`.

    Gradients flow through `moments` alone.
    """
    momentum = jnp.where(state.num_calls > 0, momentum, 0.0)
    earlier = jax.lax.stop_gradient(state.statistics)
    return jax.tree.map(lambda old, new: momentum * old + (1.0 - momentum) * new, earlier, moments)


def meta_gradient(start: Params, found: Found, config: ContrastiveInversionConfig) -> Params:
    """The gradient for the generator's start, of what a call `found` from it.

    fomaml: the sum of the gradients of all steps; reptile: 67 times the way they went, backwards.
    """
    if config.meta_learning == "fomaml":
        return found.grads["generator"]
    end = found.parts["generator"]
    return jax.tree.map(lambda old, new: REPTILE_FACTOR * (old - new), start, end)


def _meta_optimiser(config):
    return optax.adam(config.num_steps * config.learning_rate, b1=0.5)
