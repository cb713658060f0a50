"""Contrastive training of a small CLIP on captioned images, for runs without pretrained weights.

It learns from few classes what the words of their names look like. Classes that are named by the
same words in other combinations are then recognised without any image of them: zero-shot.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpmi.augment import augment
from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import forward
from jaxpmi.blocks.blockwise import update_batch_stats
from jaxpmi.config import AugmentConfig
from jaxpmi.config import ClipPretrainingConfig
from jaxpmi.continual.train import decayed
from jaxpmi.data.batches import epoch_batches
from jaxpmi.models.clip import Clip
from jaxpmi.models.clip import ClipVariables
from jaxpmi.models.clip import encode_text
from jaxpmi.models.clip import init_clip
from jaxpmi.models.clip import similarity_logits
from jaxpmi.optimise.descend import Descent
from jaxpmi.optimise.descend import descend
from jaxpmi.types import PRNGKey

BATCH_SIZE = 64
WARMUP_STEPS = 40  # of AdamW, linear
WEIGHT_DECAY = 1.0  # of matrices; much of it helps classes that are not seen
CROP_PADDING = 1  # black pixels around an image before a random crop
MAX_LOGIT_SCALE = float(np.log(100.0))  # as in CLIP


class PretrainingMetrics(NamedTuple):
    """What the steps of a pretraining showed."""

    losses: jax.Array  # f32[S]
    bad_step: jax.Array  # i32[], first step whose loss was not finite, or -1


class PretrainingData(NamedTuple):
    """What the steps draw from."""

    images: jax.Array  # u8[N, H, W, 3], raw
    labels: jax.Array  # i32[N]
    tokens: jax.Array  # i32[C, P, T], token ids of P captions of every class
    mean: jax.Array  # f32[3], of pixels in [0, 1]
    std: jax.Array  # f32[3]


def contrastive_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Symmetric cross-entropy f32[] between images and captions (Radford et al., 2021).

    The captions of a class fit all its images, so a row's target is shared equally by the columns
    of its class. Logits that are all the same give log B.

    Args:
      logits: f32[B, B], of every image with every caption; pairs are on the diagonal.
      labels: i32[B], classes of the pairs.
    """
    same = labels[:, None] == labels[None, :]
    targets = same / same.sum(1, keepdims=True)
    by_image = optax.softmax_cross_entropy(logits, targets)
    by_caption = optax.softmax_cross_entropy(logits.T, targets)
    return (by_image.mean() + by_caption.mean()) / 2


def pretrain_clip(
    model: Clip,
    images: np.ndarray,
    labels: np.ndarray,
    tokens: np.ndarray,
    key: PRNGKey,
    *,
    config: ClipPretrainingConfig,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = BATCH_SIZE,
) -> tuple[ClipVariables, PretrainingMetrics]:
    """Trains both towers from random weights, all steps as one compiled program.

    Args:
      model: static.
      images: u8[N, H, W, 3], raw.
      labels: i32[N], each in [0, C); classes may be without images.
      tokens: i32[C, P, T], token ids of P captions of every class; a pair takes one at random.
      key: key[], consumed.
      config: static.
      mean: of pixels in [0, 1], per channel.
      std: the same.
      batch_size: pairs of an image and a caption per step.

    Returns:
      The trained variables, among them running moments of the image tower, and the metrics.

    Raises:
      ValueError: images and labels do not fit, or a class has no captions.
    """
    if len(images) != len(labels) or not np.isin(labels, np.arange(len(tokens))).all():
        raise ValueError(
            f"got {len(images)} images, {len(labels)} labels and captions of {len(tokens)} "
            "classes; expected one label per image, each the index of a class with captions."
        )
    key_init, key_batches, key_steps = jax.random.split(key, 3)
    seed = np.asarray(jax.random.key_data(key_batches)).tolist()
    batches = epoch_batches(len(images), batch_size, config.num_steps, seed)
    pixels = (jnp.asarray(moment, jnp.float32) for moment in (mean, std))
    data = PretrainingData(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(tokens), *pixels)
    variables = init_clip(model, key_init)
    return _train(variables, data, batches, key_steps, model=model, config=config)


@functools.partial(jax.jit, static_argnames=("model", "config"), donate_argnames="variables")
def _train(variables, data, batches, key, *, model, config):
    """One step per row of `batches`, i32[S, B] indices of images."""
    image, text, logit_scale = variables
    params = {"image": image.params, "text": text, "logit_scale": logit_scale}

    def loss_fn(params, batch_stats, step):
        rows, key_step = batches[step], jax.random.fold_in(key, step)
        loss, moments = _loss(params, batch_stats, data, rows, key_step, model)
        return loss, (update_batch_stats(batch_stats, moments), loss)

    def limit(params):
        return params | {"logit_scale": jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)}

    tx = _optimiser()
    end, losses = descend(
        loss_fn,
        Descent(params, tx.init(params), image.batch_stats),
        tx=tx,
        learning_rates=jax.vmap(_schedule(config))(jnp.arange(len(batches))),
        project=limit,
    )
    bad = ~jnp.isfinite(losses)
    bad_step = jnp.where(bad.any(), jnp.argmax(bad), -1)
    return _variables(end.params, end.state), PretrainingMetrics(losses, bad_step)


def _loss(params, batch_stats, data, rows, key, model):
    """The loss of one batch, and the moments that its images show in the image tower."""
    key_crop, key_caption = jax.random.split(key)
    labels = data.labels[rows]
    images = normalise(data.images[rows], data.mean, data.std)
    view = AugmentConfig(crop_padding=CROP_PADDING)
    images = augment(images, key_crop, view, -data.mean / data.std)
    captions = jax.random.randint(key_caption, labels.shape, 0, data.tokens.shape[1])
    variables = _variables(params, batch_stats)
    seen = forward(model.image, variables.image, images)
    said = encode_text(model, variables, data.tokens[labels, captions])
    logits = similarity_logits(seen.features, said, params["logit_scale"])
    return contrastive_loss(logits, labels), seen.moments


def _schedule(config: ClipPretrainingConfig) -> optax.Schedule:
    warmup = min(WARMUP_STEPS, config.num_steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.num_steps)


def _optimiser() -> optax.GradientTransformation:
    """AdamW's direction as CLIP was trained with: weight decay on matrices alone."""
    decay = optax.add_decayed_weights(WEIGHT_DECAY, mask=decayed)
    return optax.chain(optax.scale_by_adam(b2=0.98), decay)


def _variables(params, batch_stats):
    image = Variables(params["image"], batch_stats)
    return ClipVariables(image, params["text"], params["logit_scale"])
