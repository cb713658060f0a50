import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.blocks.blockwise import Variables
from jaxpmi.config import ClipPretrainingConfig
from jaxpmi.continual.clip.pretraining import contrastive_loss
from jaxpmi.continual.clip.pretraining import pretrain_clip
from jaxpmi.continual.clip.train import zero_shot_network
from jaxpmi.continual.evaluation import evaluate
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.models import clip
from jaxpmi.sharding import make_mesh

TINY = clip.clip(
    image_size=8, patch_size=4, width=16, depth=1, num_heads=2, features=6, vocabulary=8,
    context=4, text_width=8, text_depth=1, text_num_heads=2,
)  # fmt: skip
START, END = 6, 7
# Two captions of each of three classes.
TOKENS = np.asarray([[[START, c, END, 0], [START, 4, c, END]] for c in (1, 2, 3)], np.int32)
BLACK, UNIT = (0.0,) * 3, (1.0,) * 3
CONFIG = ClipPretrainingConfig(num_steps=60, learning_rate=1e-2)


def plain_colours(num_per_class=6):
    """Red, green and blue images u8[N, 8, 8, 3] and their labels."""
    labels = np.tile(np.arange(3, dtype=np.int32), num_per_class)
    pixels = 255 * np.eye(3, dtype=np.uint8)[labels]
    return np.broadcast_to(pixels[:, None, None], (len(labels), 8, 8, 3)).copy(), labels


@functools.cache
def pretrained():
    return pretrain(0)


def pretrain(seed=0, mean=BLACK):
    images, labels = plain_colours()
    key = jax.random.key(seed)
    return pretrain_clip(
        TINY, images, labels, TOKENS, key, config=CONFIG, mean=mean, std=UNIT, batch_size=6
    )


def recogniser(model, variables):
    return zero_shot_network(
        model, variables, jnp.asarray(TOKENS), ("red", "green", "blue"),
        mean=jnp.asarray(BLACK), std=jnp.asarray(UNIT),
    )  # fmt: skip


def test_captions_of_a_class_are_positives_of_all_its_images():
    logits = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    rows = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    columns = logits - np.log(np.exp(logits).sum(0, keepdims=True))
    # Pairs 0 and 2 are of one class.
    share = np.asarray([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
    expected = -((share * rows).sum() + (share * columns).sum()) / 6
    loss = contrastive_loss(jnp.asarray(logits), jnp.asarray([4, 1, 4]))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4], [0, 0, 1, 1, 1]])
def test_logits_that_say_nothing_cost_the_logarithm_of_the_batch(labels):
    loss = contrastive_loss(jnp.full((5, 5), 3.0), jnp.asarray(labels))
    np.testing.assert_allclose(loss, math.log(5), rtol=1e-6)


def test_colours_are_learnt_and_recognised():
    variables, metrics = pretrained()
    assert metrics.losses.shape == (60,) and int(metrics.bad_step) == -1
    # Six pairs of three classes: log 2 at best, where a batch has two of each.
    assert float(metrics.losses[:3].mean()) > math.log(6) > 1.0 > float(metrics.losses[-9:].mean())
    assert float(variables.logit_scale) <= math.log(100)
    images, labels = plain_colours(1)
    network, everything = recogniser(TINY, variables), np.ones(3)
    samples = LabelledSamples(images.__getitem__, labels)
    accuracies = evaluate(network, samples, everything, everything, mesh=make_mesh(1))
    assert accuracies == (1.0, 1.0)


def test_stored_moments_follow_the_images():
    variables, _ = pretrained()
    start = clip.init_clip(TINY, jax.random.key(0)).image.batch_stats
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), variables.image.batch_stats, start
    )
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_equal_keys_give_equal_models():
    first, second, other = pretrained(), pretrain(0), pretrain(1)
    chex.assert_trees_all_equal(first, second)
    assert not np.array_equal(first[1].losses, other[1].losses)


def test_the_first_loss_that_is_not_finite_is_told():
    _, metrics = pretrain(mean=(math.nan,) * 3)
    assert int(metrics.bad_step) == 0


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 3], [0, 1, -1]])
def test_labels_without_image_or_caption_are_errors(labels):
    images, key = np.zeros((3, 8, 8, 3), np.uint8), jax.random.key(0)
    with pytest.raises(ValueError, match=r"3 images, \d labels and captions of 3 classes"):
        pretrain_clip(
            TINY, images, np.asarray(labels), TOKENS, key, config=CONFIG, mean=BLACK, std=UNIT
        )


@dataclasses.dataclass(frozen=True)
class MeanColour:
    """Maps the mean colour of an image linearly: f32[B, H, W, 3] -> f32[B, D]."""

    def apply(self, params, batch_stats, x, *, train=False):
        return x.mean((1, 2)) @ params, batch_stats


@dataclasses.dataclass(frozen=True)
class ColourTower:
    blocks: tuple = (MeanColour(),)


def test_images_like_the_texts_of_their_classes_are_recognised():
    """An image tower made so that red, green and blue have the features of classes 0, 2 and 1."""
    variables = clip.init_clip(TINY, jax.random.key(1))
    said = np.stack([clip.encode_text(TINY, variables, tokens) for tokens in jnp.asarray(TOKENS)])
    said /= np.linalg.norm(said, axis=-1, keepdims=True)
    head = said.mean(1) / np.linalg.norm(said.mean(1), axis=-1, keepdims=True)
    image = Variables({"block00": jnp.asarray(head[[0, 2, 1]])}, {"block00": {}})
    model = dataclasses.replace(TINY, image=ColourTower())
    network = recogniser(model, variables._replace(image=image))
    np.testing.assert_allclose(network.head.kernel, head.T, atol=1e-6)
    images, labels = plain_colours(2)
    for mapping, masks, expected in (
        ([0, 2, 1], ([1, 1, 1], [1, 1, 1]), (1.0, 1.0)),
        ([0, 1, 2], ([1, 1, 1], [1, 0, 0]), (1 / 3, 1 / 3)),
        ([0, 2, 1], ([0, 1, 1], [1, 1, 0]), (2 / 3, 2 / 3)),
    ):
        samples = LabelledSamples(images.__getitem__, np.asarray(mapping)[labels])
        masks = (np.asarray(mask) for mask in masks)
        accuracies = evaluate(network, samples, *masks, mesh=make_mesh(1))
        np.testing.assert_allclose(accuracies, expected, atol=1e-6)
