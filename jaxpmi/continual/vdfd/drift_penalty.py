"""What VDFD and DFD charge for the drift of old tasks' mean logits (docs/methods/vdfd.md, eq. 6).

    sum_{i old} [ d_i^T S_i d_i - log det S_i ]

DFD has S_i = I, so the second part is gone. VDFD learns S_i with the network: where it calls a
drift likely the first part shrinks, which the second part makes costly only as a logarithm. So a
small penalty does not tell that little has moved; `squared_drift` does.
"""

import functools
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.config import VdfdConfig
from jaxpmi.continual.vdfd.class_graph import class_nodes
from jaxpmi.continual.vdfd.class_graph import class_precision
from jaxpmi.continual.vdfd.class_graph import init_class_graph
from jaxpmi.continual.vdfd.class_graph import log_determinant
from jaxpmi.continual.vdfd.gradient_records import GradientRecords
from jaxpmi.continual.vdfd.gradient_records import is_recorded
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

EPSILON = 1e-3  # on the diagonal of the precision matrices, as published
LEAST_DIM = 16  # of a layer of the class graph, where features are fewer than was published


class PenaltyVariant(NamedTuple):
    """What a `VdfdConfig.variant` means.

    Attributes:
      residual: the class graph's layers are as wide as the features, which are added to its output.
      quadratic_epsilon: of the precision in the quadratic form, as in the determinant.
      last_task_only: of old tasks the last alone counts, its quadratic form times the square of
        their number.
      whole_gradients: records are of the gradients of all weights, not of averages over those that
        feed a channel; of DFD as well.
    """

    residual: bool = False
    quadratic_epsilon: bool = True
    last_task_only: bool = False
    whole_gradients: bool = False


PENALTY_VARIANTS = MappingProxyType(
    {
        "task_given": PenaltyVariant(),
        "all_classes": PenaltyVariant(residual=True),
        "whole_gradients": PenaltyVariant(whole_gradients=True),
        # Released code of Li et al., TPAMI 2023.
        "published_task_given": PenaltyVariant(quadratic_epsilon=False),
        "published_all_classes": PenaltyVariant(
            residual=True, quadratic_epsilon=False, last_task_only=True
        ),
    }
)


def squared_drift(drifts: jax.Array) -> jax.Array:
    """sum_i |d_i|^2, f32[], of drifts f32[T, C]: DFD's penalty, and what VDFD's may hide."""
    return jnp.square(drifts).sum()


def graph_dims(feature_dim: int, config: VdfdConfig) -> tuple[int, int]:
    """Widths of the class graph's two layers for features of that size."""
    if PENALTY_VARIANTS[config.variant].residual:
        return feature_dim, feature_dim
    return max(feature_dim // 16, LEAST_DIM), max(feature_dim // 8, LEAST_DIM)


def fresh_class_graph(key: PRNGKey, feature_dim: int, config: VdfdConfig) -> Params:
    """Random weights of a class graph, as every task gets them."""
    return init_class_graph(key, feature_dim, *graph_dims(feature_dim, config))


def class_precisions(
    graph: Params, head: jax.Array, records: GradientRecords, config: VdfdConfig
) -> jax.Array:
    """S_i of every task, f32[T, C, C]; the identity for tasks without a record.

    Args:
      graph: from `fresh_class_graph`.
      head: f32[D, K], the classifier whose columns `records.classes` are the nodes.
      records: of the tasks.
      config: of VDFD.
    """
    nodes = class_nodes(head, records.classes, records.class_mask)
    residual = PENALTY_VARIANTS[config.variant].residual
    precision = functools.partial(class_precision, epsilon=EPSILON, residual=residual)
    return jax.vmap(precision, (None, 0, 0))(graph, nodes, records.class_mask)


def learned_penalty(
    drifts: jax.Array, precisions: jax.Array, records: GradientRecords, config: VdfdConfig
) -> tuple[jax.Array, jax.Array]:
    """Sums over old tasks of d^T S d and of -log det S, f32[] each.

    Args:
      drifts: f32[T, C], 0 for tasks without a record.
      precisions: f32[T, C, C].
      records: of the tasks.
      config: of VDFD, whose variant says what is done as published.
    """
    highest = jax.lax.Precision.HIGHEST
    quadratic = jnp.einsum("tc,tcd,td->t", drifts, precisions, drifts, precision=highest)
    variant = PENALTY_VARIANTS[config.variant]
    if not variant.quadratic_epsilon:
        quadratic = quadratic - EPSILON * jnp.square(drifts).sum(1)
    counts, old = is_recorded(records), is_recorded(records)
    if variant.last_task_only:
        last = jnp.arange(len(old)) == old.sum() - 1.0
        counts, old = old.sum() ** 2 * last, 1.0 * last
    return (counts * quadratic).sum(), -(old * log_determinant(precisions)).sum()
