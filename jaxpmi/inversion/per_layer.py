"""Per-layer model inversion (PMI): block by block, last to first, only one block at a time.

Each block's input is found so that its output hits the input found for the block after it; the
last block's output hits the target feature. The result for block 0 is a batch of images: a strong
start for full-model inversion. (Tong et al., NeurIPS 2025; docs/methods/pmi.md, eq. 2.)
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from jaxpmi.blocks import blockwise
from jaxpmi.blocks.blockwise import Block
from jaxpmi.blocks.blockwise import Stack
from jaxpmi.blocks.blockwise import block_input_shapes
from jaxpmi.blocks.blockwise import block_kind
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.config import PerLayerConfig
from jaxpmi.inversion import objectives
from jaxpmi.inversion.block_inverse import invert_linearly
from jaxpmi.inversion.coarse_to_fine import invert_coarse_to_fine
from jaxpmi.inversion.targets import Targets
from jaxpmi.inversion.targets import target_terms
from jaxpmi.inversion.variants import InversionVariant
from jaxpmi.memory import BlockInverse
from jaxpmi.network import Network
from jaxpmi.optimise.minimise import Solution
from jaxpmi.optimise.minimise import minimise
from jaxpmi.types import Moments
from jaxpmi.types import PRNGKey

# Limits of weight boosting, as multiples of the base weights (docs/methods/pmi.md, eq. 3).
MAX_BOOST = {"feature_match": 10.0, "cross_entropy": 10.0, "statistics": 10.0}
MAX_INPUT_BOOST = {**MAX_BOOST, "input_statistics": 5.0}


def batch_sharding(like: jax.Array) -> NamedSharding | None:
    """How a batch lies on the devices; None where it is whole, or not yet known inside a trace."""
    if isinstance(like, jax.core.Tracer):
        return None
    if not isinstance(like.sharding, NamedSharding) or not like.sharding.spec:
        return None
    return NamedSharding(like.sharding.mesh, PartitionSpec(like.sharding.spec[0]))


def draw_start(
    moments: Moments, shape: tuple[int, ...], key: PRNGKey, like: jax.Array
) -> jax.Array:
    """Gaussian noise f32[B, *shape] with per-channel `moments`, sharded as the batch `like` is."""
    return _draw_start(moments, key, shape=(like.shape[0], *shape), sharding=batch_sharding(like))


def standard_block_inputs(network: Network) -> tuple[Moments, ...]:
    """Moments of a standard Gaussian for every block's input, f32[C] each: nothing is known."""
    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    forward = functools.partial(blockwise.forward, network.model)
    seen = jax.eval_shape(forward, network.variables, image)
    return tuple(Moments(jnp.zeros(m.mean.shape), jnp.ones(m.var.shape)) for m in seen.block_inputs)


def propagated_block_inputs(network: Network, *, published: bool = False) -> tuple[Moments, ...]:
    """Block-input moments without data, from the affine parameters of the BatchNorms.

    Starts from standard-normal pixels and asks every block for `propagate(params, moments)`. With
    `published`, each block's input has the affine parameters (beta, gamma^2) of the last BatchNorm
    before it, which ignores the shortcut (docs/methods/pmi.md, eq. 4).
    """
    channels = network.image_shape[-1]
    moments = [Moments(jnp.zeros(channels), jnp.ones(channels))]
    for i, block in enumerate(network.model.blocks[:-1]):
        known, params = None if published else moments[-1], network.variables.params[block_name(i)]
        after = block.propagate(params, known) if hasattr(block, "propagate") else None
        if after is None:
            raise ValueError(
                f"{block_kind(block)} cannot propagate moments; use "
                "per_layer.block_statistics='measured'."
            )
        moments.append(after)
    return tuple(moments)


@functools.partial(jax.jit, static_argnames=("block", "config", "boost_weights", "match_input"))
def invert_block(
    params,
    batch_stats,
    start: jax.Array,
    target: jax.Array | Targets,
    input_moments: Moments,
    key: PRNGKey,
    *,
    block: Block,
    config: PerLayerConfig,
    boost_weights: bool = True,
    match_input: bool = True,
) -> Solution:
    """Finds inputs of one block whose outputs hit `target` (docs/methods/pmi.md, eq. 2).

    Args:
      params: the block's parameters, data; equal blocks share one compiled program.
      batch_stats: the block's stored moments, targets of its layer statistics.
      start: f32[B, ...], block inputs to start from.
      target: f32[B, ...], the wanted outputs; for a last block with labels only, `Targets`.
      input_moments: stored moments of this block's input.
      key: key[], consumed.
      block: the block.
      config: steps, learning rate, weights.
      boost_weights: double a term's weight while it exceeds its first value.
      match_input: also match the moments of the input (not for images of the published recipe).

    Returns:
      The best inputs, with the losses of every step.
    """
    labels_only = isinstance(target, Targets)

    def terms(x, key):
        del key
        output, moments = block.apply(params, batch_stats, x, train=False)
        if labels_only:
            named = target_terms(output, target, feature_weight=0.0, cross_entropy_weight=1.0)
        else:
            named = {"feature_match": objectives.feature_match(output, target)}
        named["statistics"] = objectives.statistics_loss(moments, batch_stats)
        if match_input:
            seen = blockwise.input_moments(block, x)
            named["input_statistics"] = objectives.moment_kl(seen, input_moments)
        return named

    weights = {"cross_entropy" if labels_only else "feature_match": 1.0}
    weights["statistics"] = config.statistics_weight
    if match_input:
        weights["input_statistics"] = config.statistics_weight
    return minimise(
        terms,
        start,
        key,
        weights=weights,
        learning_rates=jnp.full(config.num_steps, config.learning_rate),
        max_boost={k: MAX_INPUT_BOOST[k] for k in weights} if boost_weights else None,
    )


def invert_blocks(
    network: Network,
    targets: Targets,
    block_inputs: Sequence[Moments],
    key: PRNGKey,
    *,
    config: PerLayerConfig,
    inverses: Sequence[BlockInverse] | None = None,
    labels_only: bool = False,
    variant: InversionVariant = InversionVariant(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, list[Solution]]:
    """Inverts all blocks from the last to `variant.first_block`.

    Args:
      network: frozen, in evaluation mode.
      targets: what the last block's output must mean.
      block_inputs: stored moments of every block's input, as `Forward.block_inputs`.
      key: key[], consumed.
      config: start, steps and weights per block.
      inverses: linear block inverses, for `config.is_linear`.
      labels_only: the last block minimises the labels' cross-entropy, not a feature distance.
      variant: where to stop, whether weights are boosted, and which iterates count.

    Returns:
      Images f32[B, H, W, C] in normalised pixel units, not clipped (or inputs of `first_block`),
      and the solution of every block from last to first (empty when `config.num_steps` is 0).
      The solution of a stack has a leading axis L, first block first, and no `x`.
    """
    model, variables = network.model, network.variables
    shapes = block_input_shapes(model, variables, network.image_shape)
    sharding = batch_sharding(targets.features)
    last = len(model.blocks) - 1
    target, solutions = (targets if labels_only else targets.features), []
    for i in range(last, variant.first_block - 1, -1):
        name, block = block_name(i), model.blocks[i]
        invert = _invert_stack if isinstance(block, Stack) else _invert_unit
        if i == variant.first_block and config.coarse_to_fine_steps > 0:
            invert = _invert_from_coarse
        target, solution = invert(
            variables.params[name],
            variables.batch_stats[name],
            target,
            block_inputs[i],
            inverses[i] if config.is_linear else None,
            targets.labels,
            jax.random.fold_in(key, i),
            block=block,
            config=config,
            variant=variant,
            input_shape=shapes[i],
            match_input=i > 0 or config.is_linear,
            sharding=sharding,
        )
        if solution is not None:
            solutions.append(solution)
    return target, solutions


def _invert_unit(
    params,
    batch_stats,
    target,
    block_input,
    inverse,
    labels,
    key,
    *,
    block,
    config,
    variant,
    input_shape,
    match_input,
    sharding,
):
    """Start and descent of one block: its inputs, and the solution (None without steps)."""
    key_start, key_solve = jax.random.split(key)
    if inverse is not None and not isinstance(target, Targets):
        x = invert_linearly(
            inverse,
            target,
            labels,
            key_start,
            input_shape=input_shape,
            residual_scale=variant.residual_scale,
            noise_scale=variant.noise_scale,
        )
    else:
        shape = (labels.shape[0], *input_shape)
        x = _draw_start(block_input, key_start, shape=shape, sharding=sharding)
    if config.num_steps == 0:
        return x, None
    solution = invert_block(
        params,
        batch_stats,
        x,
        target,
        block_input,
        key_solve,
        block=block,
        config=config,
        boost_weights=variant.boost_weights,
        match_input=match_input,
    )
    return solution.x, solution


def _invert_from_coarse(
    params, batch_stats, target, block_input, inverse, labels, key, *, block, config, **rest
):
    """As `_invert_unit`, coarse to fine, from noise."""
    del inverse
    key_start, key_solve = jax.random.split(key)
    shape = (labels.shape[0], *rest["input_shape"])
    start = _draw_start(block_input, key_start, shape=shape, sharding=rest["sharding"])
    solution = invert_coarse_to_fine(
        params, batch_stats, start, target, block_input, key_solve, block=block, config=config,
        iterate=rest["variant"].iterate,
    )  # fmt: skip
    return solution.x, solution


@functools.partial(
    jax.jit,
    static_argnames=("block", "config", "variant", "input_shape", "match_input", "sharding"),
)
def _invert_stack(
    params, batch_stats, target, block_inputs, inverses, labels, key, *, block, **static
):
    """As `_invert_unit`, for all blocks of a stack, last to first, in one program.

    Everything but target and labels has a leading axis L. The solution has no `x`: only one
    block's input is kept at a time.
    """

    def step(target, layer):
        x, solution = _invert_unit(*layer[:2], target, *layer[2:4], labels, *layer[4:], **one)
        return x, solution if solution is None else solution._replace(x=())

    one = {"block": block.block, **static}
    keys = jax.random.split(key, block.depth)
    layers = (params, batch_stats, block_inputs, inverses, keys)
    return jax.lax.scan(step, target, layers, reverse=True)


@functools.partial(jax.jit, static_argnames=("shape", "sharding"))
def _draw_start(moments, key, *, shape, sharding):
    noise = jax.random.normal(key, shape, jnp.float32)
    if sharding is not None:
        noise = jax.lax.with_sharding_constraint(noise, sharding)
    mean, std = (
        part.reshape((1,) * (len(shape) - part.ndim) + part.shape)
        for part in (moments.mean, jnp.sqrt(moments.var))
    )
    return mean + std * noise
