"""How the logits of a task's classes may drift together: a precision matrix from a class graph.

Nodes are the classes of one old task, described by their columns of the classifier; edges are the
cosines between these. Two graph convolutions, shared by all tasks and trained with the network,
give every class a direction u_c, and the precision is S = P + epsilon I with P = U U^T, u_c of unit
length: classes that may drift against each other are told from those that may not
(docs/methods/vdfd.md, eqs. 7 to 9).
"""

import jax
import jax.numpy as jnp

from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

TINY = 1e-12  # least degree of a node, and least length of a direction


def init_class_graph(
    key: PRNGKey, feature_dim: int, hidden_dim: int, output_dim: int
) -> dict[str, Params]:
    """Two affine layers, uniform within 1 / sqrt(fan-in)."""
    params = {}
    dims = {"hidden": (feature_dim, hidden_dim), "output": (hidden_dim, output_dim)}
    for name, (fan_in, fan_out) in dims.items():
        key, key_weight, key_bias = jax.random.split(key, 3)
        bound = fan_in**-0.5
        params[name] = {
            "weight": jax.random.uniform(
                key_weight, (fan_in, fan_out), minval=-bound, maxval=bound
            ),
            "bias": jax.random.uniform(key_bias, (fan_out,), minval=-bound, maxval=bound),
        }
    return params


def class_nodes(head: jax.Array, classes: jax.Array, class_mask: jax.Array) -> jax.Array:
    """Unit columns of a classifier f32[F, K], those of i32[..., C]: f32[..., C, F], 0 if masked."""
    return class_mask[..., None] * _unit_rows(head.T[classes])


def class_precision(
    graph: Params,
    nodes: jax.Array,
    class_mask: jax.Array,
    *,
    epsilon: float,
    residual: bool = False,
) -> jax.Array:
    """S of one task, f32[C, C]; padded classes have the identity, which changes no determinant.

    Args:
      graph: from `init_class_graph`.
      nodes: f32[C, F], from `class_nodes`.
      class_mask: f32[C].
      epsilon: added to the diagonal.
      residual: adds the nodes to the output of the second layer, which must be as wide.

    Returns:
      Symmetric, positive definite, diagonal 1 + epsilon.
    """
    cosines = _dot(nodes, nodes.T)
    edges = cosines + jnp.eye(len(nodes), dtype=nodes.dtype)
    degree = edges.sum(1)
    # Cosines may be negative, and so may degrees: such a node is cut off.
    scale = jnp.where(degree > TINY, jax.lax.rsqrt(jnp.maximum(degree, TINY)), 0.0)
    edges = scale[:, None] * edges * scale[None, :]
    hidden = jax.nn.relu(_convolve(graph["hidden"], edges, nodes))
    output = _convolve(graph["output"], edges, hidden) + (nodes if residual else 0.0)
    directions = class_mask[:, None] * _unit_rows(output)
    return _dot(directions, directions.T) + jnp.diag(epsilon * class_mask + (1.0 - class_mask))


def log_determinant(precision: jax.Array) -> jax.Array:
    """log det f32[...] of positive definite f32[..., C, C], which a product would underflow."""
    diagonal = jnp.diagonal(jnp.linalg.cholesky(precision), axis1=-2, axis2=-1)
    return 2.0 * jnp.log(diagonal).sum(-1)


def _convolve(layer, edges, x):
    """A graph convolution: every node sees its neighbours' features f32[C, F]."""
    return _dot(_dot(edges, x), layer["weight"]) + layer["bias"][None]


def _unit_rows(x):
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, TINY**2))


def _dot(a, b):
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
