"""Compressed gradients of a task's mean logits: all that VDFD and DFD keep of its data.

To first order, weights w instead of w* change the logits of a task, averaged over its images, by
G^T (w - w*), one column of G per class. Of every tensor of w the gradients are averaged over all
weights that feed one output channel, M_l f32[n_l, C], and M_l = U diag(sigma) V^T is cut to rank r.
So only the sum K_l(w) f32[n_l] of the weights of every channel is needed (docs/methods/vdfd.md,
eqs. 1 to 3):

    g(w) = sum_l V_l diag(sigma_l) U_l^T K_l(w),    drift d(w) = g(w) - g(w*).

Tensors are a dict by name, see `regularised_tensors`. The last axis of a tensor is its output
channels, whatever it is: of dense and (depthwise) convolution kernels, which are averaged over all
other axes, and of gains and biases, which have no other. Nothing here knows what a batch or a logit
is, so it serves predictions per pixel as well.

What averages leave out can be most of a gradient. Ours is to keep it whole, of every weight, as a
sum of r products of three vectors (`factorise`): over the a_l weights that feed a channel, over
channels and over classes (docs/methods/vdfd.md, eq. 11):

    g(w) = sum_l V_l diag(sigma_l) diag(F_l^T W_l U_l),    W_l the weights as f32[a_l, n_l].
"""

import functools
import math
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import BlockwiseModel
from jaxpmi.blocks.blockwise import named_tensors
from jaxpmi.network import Head
from jaxpmi.types import Params

Tensors = dict[str, jax.Array]


class GradientRecords(NamedTuple):
    """A row per task of the whole run; rows of tasks not yet learnt are zero.

    The axis L is that of the tensors' sorted names. Tasks of fewer classes than C are padded.
    """

    left: Tensors  # U: f32[T, n_l, r] per tensor
    scale: jax.Array  # sigma: f32[T, L, r]
    right: jax.Array  # V: f32[T, L, C, r]
    origin: jax.Array  # g(w*): f32[T, C]
    classes: jax.Array  # i32[T, C], columns of the classifier; 0 where padded
    class_mask: jax.Array  # f32[T, C], 0 where padded
    fan_in: Tensors | tuple[()] = ()  # F: f32[T, a_l, r] per tensor; () where averaged over these


def empty_records(
    tensors: Tensors, *, num_tasks: int, num_classes: int, rank: int, whole: bool = False
) -> GradientRecords:
    """Room for the records of `num_tasks` tasks with up to `num_classes` classes each.

    With `whole`, for gradients of every weight, not averages.
    """
    left = {name: jnp.zeros((num_tasks, t.shape[-1], rank)) for name, t in tensors.items()}
    per_class = jnp.zeros((num_tasks, num_classes))
    return GradientRecords(
        left,
        jnp.zeros((num_tasks, len(tensors), rank)),
        jnp.zeros((num_tasks, len(tensors), num_classes, rank)),
        origin=per_class,
        classes=jnp.zeros((num_tasks, num_classes), jnp.int32),
        class_mask=per_class,
        fan_in={n: jnp.zeros((num_tasks, _fan_in(t), rank)) for n, t in tensors.items()}
        if whole
        else (),
    )


def regularised_tensors(
    model: BlockwiseModel, backbone: Params, head: Head, *, with_head: bool
) -> Tensors:
    """The weights that records are of: the backbone's by name, and the head's if wanted."""
    tensors = named_tensors(model, backbone)
    if with_head:
        tensors["head"] = head.kernel
        if head.bias is not None:
            tensors["head/bias"] = head.bias
    return tensors


def channel_sums(tensors: Tensors) -> Tensors:
    """K: the sum f32[n] of the weights that feed every output channel, per tensor.

    Sums are products with a row of ones, for XLA:CPU reduces leading axes slowly.
    """
    return {name: _sum_rows(tensor) for name, tensor in tensors.items()}


def logit_gradients(
    sum_logits: Callable[[Params], jax.Array],
    params: Params,
    *,
    named: Callable[[Params], Tensors] = lambda params: params,
    whole: bool = False,
) -> Tensors:
    """M before division by the number of images: f32[n_l, C] per tensor, of one batch.

    With `whole`, not averaged: f32[a_l, n_l, C].

    Args:
      sum_logits: from parameters to the logits summed over a batch, f32[C]; to average over data,
        add up the results of its batches and divide by the number of rows.
      params: where the gradients are taken.
      named: from a tree like `params` to its tensors by name.
      whole: of every weight.

    Returns:
      Gradients averaged over the weights of an output channel, a column per class.
    """
    logits, pull = jax.vjp(sum_logits, params)

    def of_class(cotangent):
        (gradient,) = pull(cotangent)
        tensors = named(gradient)
        if whole:
            return {name: _as_matrix(t) for name, t in tensors.items()}
        return {name: _sum_rows(t) / _fan_in(t) for name, t in tensors.items()}

    # One class after another: memory for one gradient, not for C.
    rows = jax.lax.map(of_class, jnp.eye(logits.shape[0], dtype=logits.dtype))
    return {name: jnp.moveaxis(gradient, 0, -1) for name, gradient in rows.items()}


def add_record(
    records: GradientRecords,
    task: jax.Array,
    gradients: Tensors,
    tensors: Tensors,
    classes: jax.Array,
    class_mask: jax.Array,
) -> GradientRecords:
    """Writes row `task` i32[]; the rows of other tasks stay as they are.

    Args:
      records: of the tasks before.
      task: the row.
      gradients: M, f32[n_l, C] per tensor, of the mean over the task's images; f32[a_l, n_l, C]
        for records of whole gradients.
      tensors: w*, the weights just trained.
      classes: i32[C], the task's columns of the classifier, padded.
      class_mask: f32[C], 0 where padded.

    Returns:
      The new records, of the rank of `records`.
    """
    rank, whole = records.scale.shape[-1], records.fan_in != ()
    cut = factorise if whole else compress
    factors = {}
    for name in sorted(gradients):
        mask = jnp.expand_dims(class_mask, range(gradients[name].ndim - 1))
        factors[name] = cut(mask * gradients[name], rank)
    new = GradientRecords(
        left={name: left for name, (*_, left, _, _) in factors.items()},
        scale=jnp.stack([scale for *_, scale, _ in factors.values()]),
        right=jnp.stack([class_mask[:, None] * right for *_, right in factors.values()]),
        origin=jnp.zeros_like(class_mask),
        classes=classes,
        class_mask=class_mask,
        fan_in={name: fan_in for name, (fan_in, *_) in factors.items()} if whole else (),
    )
    alone = jax.tree.map(lambda row: row[None], new)
    new = new._replace(origin=predicted_logits(alone, tensors)[0])
    return jax.tree.map(lambda rows, row: rows.at[task].set(row), records, new)


def compress(gradient: jax.Array, rank: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best approximation of f32[n, C] of a rank: U f32[n, r], sigma f32[r], V f32[C, r].

    A rank above min(n, C) is filled up with zeros.
    """
    left, scale, right = jnp.linalg.svd(gradient, full_matrices=False)
    room = max(rank - len(scale), 0)
    left, right = jnp.pad(left, ((0, 0), (0, room))), jnp.pad(right.T, ((0, 0), (0, room)))
    return left[:, :rank], jnp.pad(scale, (0, room))[:rank], right[:, :rank]


def factorise(gradient: jax.Array, rank: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The largest `rank` terms of f32[a, n, C] as an orthogonal sum of products of three vectors.

    An SVD over classes gives directions of C, each with an f32[a, n], whose own SVD gives the
    products; all of them are orthogonal, so that what is cut off is the sum of squares of the
    others' scales. For a = 1 it is `compress`.

    Returns:
      F f32[a, r], U f32[n, r], sigma f32[r], V f32[C, r]; a rank above the number of products is
      filled up with zeros.
    """
    a, n, classes = gradient.shape
    planes, sizes, right = jnp.linalg.svd(gradient.reshape(a * n, classes), full_matrices=False)
    fan_in, scales, left = jnp.linalg.svd(planes.T.reshape(-1, a, n), full_matrices=False)
    scales = sizes[:, None] * scales
    order = jnp.argsort(-scales.reshape(-1))[:rank]
    direction, term = jnp.divmod(order, scales.shape[1])
    parts = fan_in[direction, :, term], left[direction, term], right[direction]
    room = max(rank - len(order), 0)
    fan_in, left, right = (jnp.pad(part.T, ((0, 0), (0, room))) for part in parts)
    return fan_in, left, jnp.pad(scales.reshape(-1)[order], (0, room)), right


def predicted_logits(records: GradientRecords, tensors: Tensors) -> jax.Array:
    """g(w) of every task, f32[T, C]: linear in the weights, float32 throughout."""
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    if records.fan_in == ():
        sums = channel_sums(tensors)
        along = [
            einsum("tnr,n->tr", records.left[name], sums[name]) for name in sorted(records.left)
        ]
    else:
        along = [
            einsum(
                "trn,tnr->tr",
                einsum("tar,an->trn", records.fan_in[name], _as_matrix(tensors[name])),
                records.left[name],
            )
            for name in sorted(records.left)
        ]
    along = records.scale * jnp.stack(along, axis=1)
    return einsum("tlr,tlcr->tc", along, records.right)


def drift(records: GradientRecords, tensors: Tensors) -> jax.Array:
    """d(w) of every task, f32[T, C]: how far its mean logits have moved, to first order.

    The difference is taken before anything is squared: g is large where d is small.
    """
    return predicted_logits(records, tensors) - records.origin


def is_recorded(records: GradientRecords) -> jax.Array:
    """1 for the tasks that have a record, else 0, f32[T]."""
    return (records.class_mask.sum(1) > 0).astype(jnp.float32)


def floats_per_task(
    channels: Iterable[int], num_classes: int, rank: int, fan_in: Iterable[int] = ()
) -> int:
    """Floats kept of a task of C classes: sum_l r (n_l + C + 1), and C of the origin.

    Args:
      channels: n_l, output channels of every tensor.
      num_classes: C.
      rank: r.
      fan_in: a_l, weights that feed a channel, where gradients are kept whole: r a_l more.
    """
    return sum(rank * (n + num_classes + 1) for n in channels) + rank * sum(fan_in) + num_classes


def _fan_in(tensor: Any) -> int:
    """Weights that feed one output channel."""
    return math.prod(tensor.shape[:-1])


def _as_matrix(tensor):
    """f32[a, n]: the weights that feed every output channel; of gains and biases a = 1."""
    return tensor.reshape(-1, tensor.shape[-1])


def _sum_rows(tensor):
    if tensor.ndim == 1:
        return tensor
    rows = _as_matrix(tensor)
    ones = jnp.ones(rows.shape[0], rows.dtype)
    return jnp.dot(ones, rows, precision=jax.lax.Precision.HIGHEST)
