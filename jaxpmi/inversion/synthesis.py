"""One batch of synthetic images: targets -> per-layer inversion -> full-model refinement.

Or, where inversion stops before the first block, of a later block's inputs (`InversionVariant`).
"""

import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import block_input_shapes
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.config import CfsConfig
from jaxpmi.config import InversionConfig
from jaxpmi.doors import check_inversion
from jaxpmi.inversion import priors
from jaxpmi.inversion.full_model import refine_images
from jaxpmi.inversion.memory_check import check_memory
from jaxpmi.inversion.memory_check import with_layer_moments
from jaxpmi.inversion.own_terms import OwnTerm
from jaxpmi.inversion.own_terms import find_own_terms
from jaxpmi.inversion.per_layer import draw_start
from jaxpmi.inversion.per_layer import invert_blocks
from jaxpmi.inversion.per_layer import propagated_block_inputs
from jaxpmi.inversion.synthetic import Synthetic
from jaxpmi.inversion.synthetic import as_stored
from jaxpmi.inversion.targets import Targets
from jaxpmi.inversion.variants import InversionVariant
from jaxpmi.inversion.variants import inversion_variant
from jaxpmi.inversion.variants import uses_layouts
from jaxpmi.memory import Memory
from jaxpmi.memory import draw_features
from jaxpmi.memory import give_layouts
from jaxpmi.memory import set_layouts
from jaxpmi.network import Network
from jaxpmi.optimise.minimise import Solution
from jaxpmi.types import Moments
from jaxpmi.types import PRNGKey


def synthesize(
    network: Network,
    labels: jax.Array,
    key: PRNGKey,
    *,
    memory: Memory,
    config: InversionConfig | None = None,
    features: jax.Array | None = None,
    layouts: jax.Array | None = None,
    class_mask: jax.Array | None = None,
    settings: CfsConfig | None = None,
    own_terms: tuple[OwnTerm, ...] = (),
    variant: InversionVariant | None = None,
) -> Synthetic:
    """Synthesises one batch of images by PMI and full-model refinement.

    With `config.per_layer.start == "noise"` the full model starts from noise (the
    DeepInversion-style baseline): standard-normal images, or patch embeddings with their moments.

    Args:
      network: frozen, in evaluation mode.
      labels: i32[B], each in [0, C).
      key: key[], consumed.
      memory: what is known of the data, for this network.
      config: of every part; None: the defaults.
      features: f32[B, D] to reach; None: drawn by `draw_features`.
      layouts: f32[B, P] of the images, see `features.layouts`; None: drawn of their classes, where
        `config` uses any.
      class_mask: bool[C], the classes that the head knows; None: all.
      settings: of CFS, where features are drawn by it; None: the defaults.
      own_terms: more terms of the refinement's loss.
      variant: a procedure of one's own; None: that of `config.variant`.

    Raises:
      ValueError: a label without a class, or one of a class that the memory has never seen; layouts
        where `config` uses none.
    """
    config = InversionConfig() if config is None else config
    variant = inversion_variant(config) if variant is None else variant
    network = with_layer_moments(network, memory)
    weight = config.full_model.statistics_weight
    check_inversion(network, labels, key, statistics_weight=weight)
    labels = jnp.asarray(labels)
    if features is None:
        key_features, key = jax.random.split(key)
        features = draw_features(
            memory, labels, key_features, targets=config.targets, settings=settings
        )
    known = jnp.ones(network.num_classes, bool) if class_mask is None else class_mask
    check_memory(network, memory, config, variant)
    if layouts is not None and not uses_layouts(config, variant):
        raise ValueError(
            f"layouts are given, but per_layer.start='{config.per_layer.start}' starts without "
            "any; use 'layout', and a variant that makes images."
        )
    own_terms += find_own_terms(config.full_model.own_terms, "full_model.own_terms")
    targets = Targets(features, labels, network.head, known)
    key_start, key_refine = jax.random.split(key)
    start, solutions = _start(network, targets, layouts, memory, key_start, config, variant)
    solution = refine_images(
        network,
        start,
        targets,
        memory,
        key_refine,
        config=config.full_model,
        labels_only=config.targets == "label",
        variant=variant,
        own_terms=own_terms,
    )
    if config.full_model.pixel_statistics_weight > 0:
        solution = solution._replace(x=_match_histogram(solution.x, network, memory.histogram))
    finite = solution.finite
    for of_block in solutions:
        finite = finite & of_block.finite.all()
    made = as_stored(
        network,
        solution._replace(finite=finite),
        labels,
        class_mask=class_mask,
        first_block=variant.first_block,
    )
    return made._replace(block_losses=_block_losses(solutions, variant.first_block))


def _start(network, targets, layouts, memory, key, config, variant):
    """Where refinement begins, and the solution of every block on the way, last to first."""
    first_block, per_layer = variant.first_block, config.per_layer
    if per_layer.start == "noise":
        channels = network.image_shape[-1]
        moments = Moments(jnp.zeros(channels), jnp.ones(channels))
        if first_block > 0:
            moments = memory.block_inputs[first_block]
        shapes = block_input_shapes(network.model, network.variables, network.image_shape)
        start = draw_start(moments, shapes[first_block], key, targets.features)
        return start, []
    block_inputs = memory.block_inputs
    if per_layer.block_statistics != "measured":
        published = per_layer.block_statistics == "affine"
        block_inputs = propagated_block_inputs(network, published=published)
    start, solutions = invert_blocks(
        network,
        targets,
        block_inputs,
        key,
        config=per_layer,
        inverses=memory.inverses,
        labels_only=config.targets == "label",
        variant=variant,
    )
    if uses_layouts(config, variant):
        key_layouts = jax.random.fold_in(key, len(network.model.blocks))
        if layouts is None:
            start = give_layouts(start, memory.layouts, targets.labels, key_layouts)
        else:
            start = set_layouts(start, layouts)
    return start, solutions


def _block_losses(solutions: list[Solution], first_block: int) -> dict[str, jax.Array]:
    """First and best loss f32[2] of every block, last to first; those of a stack are numbered."""
    found = {}
    for index, solution in enumerate(solutions):  # which end with the first block
        name = block_name(first_block + len(solutions) - 1 - index)
        losses = jnp.stack([solution.losses[..., 0], solution.loss], -1)
        if losses.ndim == 1:
            found[name] = losses
        else:
            found |= {f"{name}.{i}": losses[i] for i in reversed(range(len(losses)))}
    return found


@jax.jit
def _match_histogram(images, network, histogram):
    low, high = (limit.reshape(1, 1, 1, -1) for limit in network.pixel_range)
    span = high - low
    matched = priors.match_histogram((images - low) / span, histogram)
    return low + span * matched
