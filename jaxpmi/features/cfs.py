"""Contrastive feature model and sampling (CFS): synthetic class features that cover their class.

Per class a small network spreads that class's features over a sphere. New features are drawn from
the class Gaussian, and of those draws the ones least like what is already kept stay. All classes
are trained and sampled at once: every array has a leading axis C, single-class code is vmapped.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpmi.features.gaussian import ClassStats
from jaxpmi.optimise.descend import Best
from jaxpmi.optimise.descend import Descent
from jaxpmi.optimise.descend import descend
from jaxpmi.optimise.descend import keep_best
from jaxpmi.types import Moments
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1
NEGATIVE_SLOPE = 0.01


class CfsModel(NamedTuple):
    """One network per class: L blocks of linear, BatchNorm and leaky ReLU, then a unit vector.

    Single-class functions take the same container without the axis C. The linear maps have no
    bias: the BatchNorm behind them would cancel it.

    Attributes:
      params: `weight` f32[C, L, D, D], `scale` and `shift` f32[C, L, D].
      running: f32[C, L, D], the moments that BatchNorm uses in evaluation.
    """

    params: Params
    running: Moments


@functools.partial(jax.jit, static_argnames=("num_classes", "feature_dim", "num_blocks"))
def init(key: PRNGKey, num_classes: int, feature_dim: int, *, num_blocks: int = 2) -> CfsModel:
    """Draws all classes' networks; weights are uniform within 1 / sqrt(D) (PyTorch's linear)."""
    shape = (num_classes, num_blocks, feature_dim)
    bound = feature_dim**-0.5
    weight = jax.random.uniform(key, (*shape, feature_dim), minval=-bound, maxval=bound)
    params = {"weight": weight, "scale": jnp.ones(shape), "shift": jnp.zeros(shape)}
    return CfsModel(params, Moments(jnp.zeros(shape), jnp.ones(shape)))


@functools.partial(jax.jit, static_argnames=("num_classes", "capacity"))
def group_by_class(
    features: jax.Array, labels: jax.Array, num_classes: int, capacity: int
) -> tuple[jax.Array, jax.Array]:
    """Sorts features f32[B, D] into one padded row per class.

    Args:
      features: f32[B, D].
      labels: i32[B]; rows with a label outside [0, C) are dropped.
      num_classes: C.
      capacity: K, places per class; later features of a fuller class are dropped.

    Returns:
      f32[C, K, D] with zeros in empty places, and f32[C, K], 1 where a place is taken.
    """
    labels = jnp.where(labels < 0, num_classes, labels)
    order = jnp.argsort(labels, stable=True)
    classes = labels[order]
    rank = jnp.arange(labels.shape[0]) - jnp.searchsorted(classes, classes, side="left")
    grouped = jnp.zeros((num_classes, capacity, features.shape[1]), features.dtype)
    grouped = grouped.at[classes, rank].set(features[order], mode="drop")
    mask = jnp.zeros((num_classes, capacity)).at[classes, rank].set(1.0, mode="drop")
    return grouped, mask


def uniformity_loss(
    embeddings: jax.Array, mask: jax.Array, *, temperature: float | jax.Array = 1.0
) -> jax.Array:
    """Mean over i of log mean over j of exp(<y_i, y_j> / temperature), j including i.

    docs/methods/pmi.md, eq. 13.

    Args:
      embeddings: y, f32[K, D], rows of norm 1.
      mask: f32[K], 0 for padding rows, which neither count nor repel.
      temperature: tau.

    Returns:
      f32[], at most 1 / tau (all rows equal); about 1 / 2 D tau^2 for uniform directions.
    """
    similarity = embeddings @ embeddings.T / temperature
    count = jnp.maximum(mask.sum(), 1.0)
    # A large negative number, not -inf, keeps an empty class finite.
    similarity = jnp.where(mask[None, :] > 0, similarity, -1e9)
    potential = jax.nn.logsumexp(similarity, axis=1) - jnp.log(count)
    return jnp.where(mask > 0, potential, 0.0).sum() / count


@jax.jit
def apply(model: CfsModel, features: jax.Array) -> jax.Array:
    """Unit embeddings f32[C, K, D] of each class's features f32[C, K, D], in evaluation mode."""
    return jax.vmap(_embed)(model, features)


@functools.partial(jax.jit, static_argnames=("num_epochs", "batch_size"))
def fit(
    model: CfsModel,
    features: jax.Array,
    mask: jax.Array,
    key: PRNGKey,
    *,
    learning_rate: float | jax.Array = 1e-2,
    num_epochs: int = 200,
    batch_size: int = 64,
    temperature: float | jax.Array = 1.0,
) -> tuple[CfsModel, dict[str, jax.Array]]:
    """Trains every class's network on that class's features (docs/methods/pmi.md, eq. 13).

    Args:
      model: the start; classes without features keep it.
      features: f32[C, K, D], padded (see `group_by_class`).
      mask: f32[C, K].
      key: consumed; class c trains as `fit_class` does with `jax.random.split(key, C)[c]`.
      learning_rate: of Adam.
      num_epochs: passes over the features.
      batch_size: features per step; a class with fewer is one batch, incomplete ones are dropped.
      temperature: tau of `uniformity_loss`.

    Returns:
      The model with the lowest minibatch loss per class, and metrics: `uniformity` f32[C], that
      loss (infinite for classes without features).
    """
    train = functools.partial(
        fit_class,
        learning_rate=learning_rate,
        num_epochs=num_epochs,
        batch_size=batch_size,
        temperature=temperature,
    )
    keys = jax.random.split(key, features.shape[0])
    model, loss = jax.vmap(train)(model, features, mask, keys)
    return model, {"uniformity": loss}


def fit_class(
    model: CfsModel,
    features: jax.Array,
    mask: jax.Array,
    key: PRNGKey,
    *,
    learning_rate: float | jax.Array,
    num_epochs: int,
    batch_size: int,
    temperature: float | jax.Array,
) -> tuple[CfsModel, jax.Array]:
    """Trains one class's network on f32[K, D] features with mask f32[K]; see `fit`.

    Weights are kept with the loss they had before their update (the published code stores the
    updated ones), and with the running moments that include that loss's batch.
    """
    capacity = features.shape[0]
    batch_size = min(batch_size, capacity)
    num_batches, count = capacity // batch_size, mask.sum().astype(jnp.int32)
    num_complete = jnp.where(count > 0, jnp.maximum(count // batch_size, 1), 0)
    tx = optax.scale_by_adam()

    def epoch(carry, draws):
        # Random order of the taken places, then the empty ones.
        order = jnp.argsort(jnp.where(mask > 0, draws, 2.0))
        batches = order[: num_batches * batch_size].reshape(num_batches, batch_size)

        def loss_fn(params, state, step):
            (running, best), rows = state, batches[step]
            loss, batch = _loss(params, features[rows], mask[rows], temperature)
            running = jax.tree.map(
                lambda old, new: old + BATCH_NORM_MOMENTUM * (new - old), running, batch
            )
            return loss, ((running, keep_best(best, loss, CfsModel(params, running))), None)

        rates = jnp.full(num_batches, learning_rate)
        return descend(loss_fn, carry, tx=tx, learning_rates=rates, num_steps=num_complete)

    state = model.running, Best(jnp.asarray(jnp.inf), model)
    draws = jax.random.uniform(key, (capacity, num_epochs))
    end, _ = jax.lax.scan(epoch, Descent(model.params, tx.init(model.params), state), draws.T)
    _, best = end.state
    return best.kept, best.loss


def select(embeddings: jax.Array, kept_mean: jax.Array, num_kept: int) -> jax.Array:
    """Picks the candidates least like the kept set, best first.

    The score of candidate j is the mean over kept k of <y_j, y_k> = <y_j, mean_k y_k>, so the
    mean is all that is needed of the kept set.

    Args:
      embeddings: f32[K, D] of the candidates.
      kept_mean: f32[D], mean embedding of everything kept so far.
      num_kept: how many to pick.

    Returns:
      i32[num_kept], indices of the lowest scores in ascending order.
    """
    return jax.lax.top_k(-(embeddings @ kept_mean), num_kept)[1]


@functools.partial(
    jax.jit,
    static_argnames=("num_per_class", "num_rounds", "keep_rate", "oversampling"),
)
def sample_features(
    model: CfsModel,
    stats: ClassStats,
    key: PRNGKey,
    *,
    num_per_class: int,
    num_rounds: int = 40,
    keep_rate: float = 0.5,
    oversampling: int = 1,
) -> jax.Array:
    """Contrastive feature sampling, the same number of features for every class.

    docs/methods/pmi.md, eqs. 14, 15.

    The first b = max(num_per_class // num_rounds, 2) draws are kept; then b of every
    floor(b / keep_rate) draws, those with the lowest mean similarity to all kept before. The
    temperature does not change that order.

    Args:
      model: trained networks.
      stats: class Gaussians, diagonal or full.
      key: consumed.
      num_per_class: K, features per class; K / keep_rate are drawn, all at once.
      num_rounds: P; fewer where a round would keep less than 2.
      keep_rate: r in (0, 1]; 1 keeps every draw.
      oversampling: all this is done for `oversampling` times as many features, of which a random
        K of every class are returned (PMI for CLIP, where K is 5 and moments of 5 say little).

    Returns:
      f32[C, K, D].
    """
    if not 0.0 < keep_rate <= 1.0:
        raise ValueError(f"{keep_rate=} is not in (0, 1]; it is the share of draws that is kept.")
    key_draw, key_subset = jax.random.split(key) if oversampling > 1 else (key, None)
    num_samples = oversampling * num_per_class
    per_round = min(max(num_samples // num_rounds, 2), num_samples)
    # 3 / 0.2 is 14.999...; it means 15 candidates.
    num_candidates = int(per_round / keep_rate + 1e-6)
    sample = functools.partial(
        _sample_class,
        num_samples=num_samples,
        per_round=per_round,
        num_candidates=num_candidates,
    )
    rounds_left = -(-num_samples // per_round) - 1
    draws = _draw(stats, key_draw, per_round + rounds_left * num_candidates)
    features = match_moments(jax.vmap(sample)(model, draws), stats.mean, stats.std)
    if oversampling == 1:
        return features
    keys = jax.random.split(key_subset, features.shape[0])
    return jax.vmap(lambda key, x: jax.random.permutation(key, x)[:num_per_class])(keys, features)


def match_moments(features: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Shifts and scales each class's features f32[C, K, D] to mean and std f32[C, D].

    z' = mu + (z - m) sigma / (s + 1e-8), with m and s the mean and unbiased standard deviation over
    K. (The released code has (z + mu - m) sigma / s, whose mean is off by mu (sigma / s - 1).)
    """
    centred = features - features.mean(1, keepdims=True)
    variance = jnp.square(centred).sum(1) / max(features.shape[1] - 1, 1)
    ratio = (std / (jnp.sqrt(variance) + 1e-8))[:, None]
    return mean[:, None] + centred * ratio


def _sample_class(model, candidates, *, num_samples, per_round, num_candidates):
    """Picks f32[num_samples, D] of one class's f32[per_round + R * num_candidates, D] draws."""

    def sample_round(carry, candidates):
        kept_sum, num_kept = carry
        embeddings = _embed(model, candidates)
        chosen = select(embeddings, kept_sum / num_kept, per_round)
        return (kept_sum + embeddings[chosen].sum(0), num_kept + per_round), candidates[chosen]

    first, rest = candidates[:per_round], candidates[per_round:]
    carry = (_embed(model, first).sum(0), jnp.asarray(per_round, first.dtype))
    rounds = rest.reshape(-1, num_candidates, first.shape[1])
    _, rest = jax.lax.scan(sample_round, carry, rounds)
    # Each round is sorted by score, so cutting the last one keeps its best.
    return jnp.concatenate([first, rest.reshape(-1, first.shape[1])])[:num_samples]


def _draw(stats, key, num, jitter=1e-6):
    """f32[C, num, D] from every class's Gaussian; `jitter` as in `sample_class_features`."""
    num_classes, dim = stats.mean.shape
    noise = jax.random.normal(key, (num_classes, num, dim), stats.mean.dtype)
    if stats.cov.ndim == 2:
        return stats.mean[:, None] + stats.std[:, None] * noise
    factor = jnp.linalg.cholesky(stats.cov + jitter * jnp.eye(dim)[None])
    return stats.mean[:, None] + jnp.einsum("cde,cke->ckd", factor, noise)


def _loss(params, x, mask, temperature):
    """The loss of a batch, and its moments."""
    embeddings, batch = _forward(params, x, lambda i, x: _masked_moments(x, mask))
    return uniformity_loss(embeddings, mask, temperature=temperature), batch


def _embed(model, x):
    return _forward(model.params, x, lambda i, _: jax.tree.map(lambda m: m[i], model.running))[0]


def _forward(params, x, moments_of):
    """Unit rows f32[K, D] and the moments that `moments_of(block, input)` gave, f32[L, D]."""
    used = []
    for i in range(params["weight"].shape[0]):
        x = x @ params["weight"][i]
        moments = moments_of(i, x)
        scale = params["scale"][i] * jax.lax.rsqrt(moments.var + BATCH_NORM_EPSILON)
        x = (x - moments.mean[None]) * scale[None] + params["shift"][i][None]
        x = jax.nn.leaky_relu(x, NEGATIVE_SLOPE)
        used.append(moments)
    square = jnp.square(x).sum(1, keepdims=True)
    # The inner `where` keeps the gradient of the root finite at a zero row.
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return x / (norm + 1e-6), jax.tree.map(lambda *m: jnp.stack(m), *used)


def _masked_moments(x, mask):
    share = mask / jnp.maximum(mask.sum(), 1.0)
    average = functools.partial(jnp.dot, share, precision=jax.lax.Precision.HIGHEST)
    mean = average(x)
    return Moments(mean, average(jnp.square(x - mean[None])))
