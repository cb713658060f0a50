"""Generator inversion (ABD, R-DFCIL): one small network learns to make images a teacher trusts.

The generator is trained on the frozen network of the last task, without data and without labels,
and sampled while the next task is learned. Its architecture is read off its parameters. Images
are in the normalised range, f32[B, H, W, C], H and W divisible by 4.
"""

import functools
from collections.abc import Callable
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpmi.blocks import blockwise
from jaxpmi.blocks.convolutions import conv
from jaxpmi.blocks.convolutions import upsampled_conv
from jaxpmi.inversion import objectives
from jaxpmi.inversion import priors
from jaxpmi.network import Network
from jaxpmi.optimise.descend import Descent
from jaxpmi.optimise.descend import descend
from jaxpmi.types import Moments
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

BATCH_NORM_EPSILON = 1e-5  # of the first and the last BatchNorm
HIDDEN_EPSILON = 0.8  # of the two between: what the published code does
NEGATIVE_SLOPE = 0.2
# Content: cross-entropy to the teacher's own label, at this temperature.
CONTENT_TEMPERATURE = 1000.0
TERM_WEIGHTS = MappingProxyType({"content": 1.0, "balance": 1.0, "statistics": 50.0, "prior": 1e-3})

SIZES = MappingProxyType(
    {
        "small": {"latent_dim": 100, "widths": (32, 32, 16)},
        "published": {"latent_dim": 1000, "widths": (128, 128, 64)},
    }
)
"""As `GeneratorConfig.size` names them, arguments of `init_generator`."""


class GeneratorState(NamedTuple):
    """All that is carried from step to step and, in ABD, from task to task."""

    params: Params
    batch_stats: dict[str, Moments]
    opt_state: optax.OptState


def init_generator(
    key: PRNGKey,
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int = 1000,
    widths: tuple[int, int, int] = (128, 128, 64),
) -> GeneratorState:
    """Initialises a generator of images (H, W, C), uniformly within 1 / sqrt(fan-in).

    linear - BN - 2x - conv - BN - leaky ReLU - 2x - conv - BN - leaky ReLU - conv - tanh - BN
    (docs/methods/baselines.md). `widths` are the channels after the linear map and the first two
    convolutions; see `SIZES`.
    """
    check_image_size(image_shape)
    height, width, channels = image_shape
    keys = jax.random.split(key, 5)

    def uniform(key, fan_in, shape):
        return jax.random.uniform(key, shape, jnp.float32, -(fan_in**-0.5), fan_in**-0.5)

    sizes = (*widths, channels)
    params = {
        "linear": uniform(keys[0], latent_dim, (latent_dim, height // 4, width // 4, widths[0])),
        "bias": uniform(keys[4], 9 * widths[2], (channels,)),
    }
    for i in range(3):
        shape = (3, 3, sizes[i], sizes[i + 1])
        params[f"conv{i}"] = uniform(keys[i + 1], 9 * sizes[i], shape)
        params[f"bn{i}"] = {"scale": jnp.ones(sizes[i]), "shift": jnp.zeros(sizes[i])}
    batch_stats = {f"bn{i}": Moments(jnp.zeros(n), jnp.ones(n)) for i, n in enumerate(sizes)}
    return GeneratorState(params, batch_stats, _optimiser().init(params))


def generate(
    params: Params,
    batch_stats: dict[str, Moments],
    noise: jax.Array,
    *,
    train: bool = False,
    hidden_epsilon: float = HIDDEN_EPSILON,
) -> tuple[jax.Array, dict[str, Moments]]:
    """Maps standard Gaussian noise f32[B, latent] to images f32[B, H, W, C].

    Also returns the batch's moments at every BatchNorm. With `train` the layers normalise by
    these, otherwise by `batch_stats`. The last BatchNorm has no parameters, so the images of a
    training batch have mean 0 and variance 1 per channel.
    """
    moments = {}

    def batch_norm(i, x, epsilon):
        name = f"bn{i}"
        moments[name] = blockwise.channel_moments(x)
        mean, var = moments[name] if train else batch_stats[name]
        x = (x - mean[None, None, None]) * jax.lax.rsqrt(var + epsilon)[None, None, None]
        if name not in params:
            return x
        scale, shift = params[name]["scale"], params[name]["shift"]
        return x * scale[None, None, None] + shift[None, None, None]

    epsilons = (BATCH_NORM_EPSILON, hidden_epsilon, hidden_epsilon)
    x = decode(params, noise, lambda i, x: batch_norm(i, x, epsilons[i]))
    return batch_norm(3, jnp.tanh(x), BATCH_NORM_EPSILON), moments


def decode(
    params: Params, noise: jax.Array, batch_norm: Callable[[int, jax.Array], jax.Array]
) -> jax.Array:
    """From noise f32[B, latent] to the last convolution's output f32[B, H, W, C].

    What generators of all methods share; `batch_norm(i, x)` is their layer i of 0, 1 and 2. A
    linear map with a bias has it in `params["linear_bias"]`.
    """
    latent, *shape = params["linear"].shape
    x = (noise @ params["linear"].reshape(latent, -1)).reshape(-1, *shape)
    if "linear_bias" in params:
        x = x + params["linear_bias"][None]
    x = batch_norm(1, upsampled_conv(batch_norm(0, x), params["conv0"]))
    x = jax.nn.leaky_relu(x, NEGATIVE_SLOPE)
    x = batch_norm(2, upsampled_conv(x, params["conv1"]))
    x = conv(jax.nn.leaky_relu(x, NEGATIVE_SLOPE), params["conv2"])
    return x + params["bias"][None, None, None]


def check_image_size(image_shape: tuple[int, int, int]) -> None:
    """Raises a ValueError for images (H, W, C) that are not twice doubled ones."""
    height, width, _ = image_shape
    if height % 4 or width % 4:
        raise ValueError(f"image size {height} x {width} is not divisible by 4; pad the images.")


def generator_terms(
    network: Network,
    seen_mask: jax.Array,
    images: jax.Array,
) -> dict[str, jax.Array]:
    """The four terms of the generator's loss on images f32[B, H, W, C].

    docs/methods/baselines.md, eq. 4.

    content: cross-entropy of logits / 1000 to their own argmax; balance: see `class_imbalance`;
    statistics: mean over layers of KL(stored || batch); prior: distance to the blurred image.
    """
    teacher = blockwise.forward(network.model, network.variables, images, train=False)
    logits = network.head(teacher.features)
    return {
        "content": objectives.self_cross_entropy(
            logits, seen_mask, temperature=CONTENT_TEMPERATURE
        ),
        "balance": objectives.class_imbalance(logits, seen_mask),
        "statistics": objectives.reverse_statistics_loss(
            teacher.moments, network.variables.batch_stats
        ),
        "prior": priors.blur_distance(images),
    }


@functools.partial(jax.jit, static_argnames=("num_steps", "batch_size", "hidden_epsilon"))
def train_generator(
    state: GeneratorState,
    network: Network,
    seen_mask: jax.Array,
    key: PRNGKey,
    *,
    num_steps: int,
    batch_size: int = 128,
    learning_rate: float | jax.Array = 1e-3,
    weights: Mapping[str, float | jax.Array] | None = None,
    hidden_epsilon: float = HIDDEN_EPSILON,
) -> tuple[GeneratorState, dict[str, jax.Array]]:
    """Trains the generator against a frozen teacher, all steps in one compiled loop.

    Args:
      state: the start: fresh (R-DFCIL) or the last task's (ABD).
      network: the teacher, whose stored moments are the target statistics.
      seen_mask: bool[C] or f32[C], the classes the teacher has learned.
      key: consumed.
      num_steps: Adam steps; call again with the returned state for more.
      batch_size: noise vectors per step.
      learning_rate: of Adam.
      weights: changes to `TERM_WEIGHTS`.
      hidden_epsilon: of the two BatchNorms between the convolutions.

    Returns:
      The new state and metrics, f32[S] each: the unweighted terms and `loss`.
    """
    weights, keys = _term_weights(weights), jax.random.split(key, num_steps)

    def loss_fn(params, batch_stats, step):
        noise = jax.random.normal(keys[step], (batch_size, params["linear"].shape[0]), jnp.float32)
        images, moments = generate(
            params, batch_stats, noise, train=True, hidden_epsilon=hidden_epsilon
        )
        terms = generator_terms(network, seen_mask, images)
        loss = sum(weights[name] * terms[name] for name in terms)
        batch_stats = blockwise.update_batch_stats(batch_stats, moments)
        return loss, (batch_stats, {**terms, "loss": loss})

    end, metrics = descend(
        loss_fn,
        Descent(state.params, state.opt_state, state.batch_stats),
        tx=_optimiser(),
        learning_rates=jnp.full(num_steps, learning_rate),
    )
    return GeneratorState(end.params, end.state, end.opt_state), metrics


@functools.partial(jax.jit, static_argnames=("num_images", "hidden_epsilon"))
def sample_images(
    state: GeneratorState,
    key: PRNGKey,
    num_images: int,
    *,
    hidden_epsilon: float = HIDDEN_EPSILON,
) -> jax.Array:
    """Draws images f32[num_images, H, W, C] in evaluation mode (running moments)."""
    noise = jax.random.normal(key, (num_images, state.params["linear"].shape[0]), jnp.float32)
    params, batch_stats = state.params, state.batch_stats
    return generate(params, batch_stats, noise, hidden_epsilon=hidden_epsilon)[0]


@jax.jit
def label_images(
    network: Network,
    seen_mask: jax.Array,
    images: jax.Array,
) -> jax.Array:
    """The teacher's best seen class i32[B] for each image f32[B, H, W, C]."""
    seen = blockwise.forward(network.model, network.variables, images, train=False)
    logits = network.head(seen.features)
    return jnp.argmax(jnp.where((seen_mask > 0)[None], logits, -jnp.inf), axis=1)


def _term_weights(weights):
    unknown = set(weights or {}) - set(TERM_WEIGHTS)
    if unknown:
        raise ValueError(f"unknown terms {sorted(unknown)}; the terms are {sorted(TERM_WEIGHTS)}.")
    return {**TERM_WEIGHTS, **(weights or {})}


def _optimiser():
    return optax.scale_by_adam()
