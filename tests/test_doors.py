"""What is refused at the public edge: a sentence for each mistake, before anything is traced."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_network
from rows import model_of
from rows import sized

import jaxpmi
from jaxpmi.models import resnet

IMAGES = np.zeros((4, *small_network.SHAPE), np.uint8)
LABELS = jnp.arange(4, dtype=jnp.int32)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def net():
    return small_network.trained()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (IMAGES.transpose(0, 3, 1, 2), ValueError, r"\(4, 1, 8, 8\), channels first \(NCHW\); exp"),
        (IMAGES[0], ValueError, r"images have shape \(8, 8, 1\); expected u8\[B, 8, 8, 1\], chan"),
        (np.zeros((4, 8, 8, 3), np.uint8), ValueError, r"shape \(4, 8, 8, 3\); expected u8\[B, 8"),
        (IMAGES[:0], ValueError, "is an empty batch; give at least one."),
        (IMAGES.astype(np.float32), TypeError, "images have the type float32; expected u8"),
        (IMAGES.tolist(), TypeError, "images have the type None; expected u8"),
    ],
)
def test_images_of_another_layout_or_type(net, images, error, message):
    with pytest.raises(error, match=message):
        jaxpmi.logits(net.network, images)
    with pytest.raises(error, match=message):
        jaxpmi.remember(net.network, [(images, np.zeros(len(images), np.int32))])
    with pytest.raises(error, match=message):
        jaxpmi.distill(net.network, net.network, images, KEY)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 1, "labels range from 1 to 4, but the network has 4 classes, 0 to 3."),
        (LABELS - 1, "labels range from -1 to 2, but the network has 4 classes"),
        (LABELS.astype(jnp.float32), r"labels have shape \(4,\) and type float32; expected i32"),
        (jax.nn.one_hot(LABELS, 4), r"labels have shape \(4, 4\) and type float32"),
        (LABELS[:0], "at least one"),
    ],
)
def test_labels_that_are_no_classes(net, labels, message):
    cmi, fast = jaxpmi.init_cmi(net.network, KEY), jaxpmi.init_fast_dfkd(net.network, KEY)
    for verb in (
        lambda: jaxpmi.deep_inversion(net.network, labels, KEY),
        lambda: jaxpmi.synthesize(net.network, labels, KEY, memory=net.memory),
        lambda: jaxpmi.cmi(cmi, net.network, labels, KEY),
        lambda: jaxpmi.fast_dfkd(fast, net.network, labels, KEY),
    ):
        with pytest.raises(ValueError, match=message):
            verb()


@pytest.mark.parametrize("key", [0, 3.0, jnp.zeros(3, jnp.uint32), None])
def test_numbers_are_no_keys(net, key):
    for verb in (
        lambda: jaxpmi.deep_inversion(net.network, LABELS, key),
        lambda: jaxpmi.synthesize(net.network, LABELS, key, memory=net.memory),
        lambda: jaxpmi.distill(net.network, net.network, IMAGES, key),
    ):
        with pytest.raises(TypeError, match=r"is no random key; give jax.random.key\(0\), say"):
            verb()


def test_a_batch_of_one_and_old_keys_will_do(net):
    config = jaxpmi.DeepInversionConfig(stage_steps=(2,), jitter_pixels=0)
    for key in (KEY, jax.random.key_data(KEY)):
        made = jaxpmi.deep_inversion(net.network, LABELS[:1], key, config=config)
        assert made.images.shape == (1, *small_network.SHAPE) and bool(made.finite)


def test_a_class_never_seen_is_no_draw_from_a_standard_gaussian(net):
    few = net.labels < 3
    config = jaxpmi.InversionConfig(targets="gaussian")
    memory = jaxpmi.remember(net.network, [(net.raw[few], net.labels[few])], config=config)
    with pytest.raises(ValueError, match="the memory has seen no image of class 3; ask for"):
        jaxpmi.synthesize(net.network, LABELS, KEY, memory=memory, config=config)


def test_memories_of_another_network_are_refused(net):
    deeper = small_network.fresh_network(sized(resnet.resnet32, width=4, depth=2))
    wider = small_network.fresh_network(sized(resnet.resnet_small, width=6))
    classes = small_network.fresh_network(sized(resnet.resnet_small, width=4), num_classes=5)
    for other, message in (
        (deeper, "the memory is of another network: it has moments of 5 blocks' inputs"),
        (wider, "the memory is of another network"),
        (classes, "the memory is of 4 classes, but the network has 5"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxpmi.synthesize(other, LABELS, KEY, memory=net.memory)
    (first, *others) = net.memory.inverses
    wrong = first._replace(weight=first.weight[:-1])
    for inverses in ((), tuple(others), (wrong, *others)):
        memory = net.memory._replace(inverses=inverses)
        with pytest.raises(ValueError, match="the memory has block inverses of shapes"):
            jaxpmi.synthesize(net.network, LABELS, KEY, memory=memory)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "remember got no batch of images; give at least one."),
        (iter([(IMAGES, LABELS)]), "batches can be read only once, but remember reads them twice"),
        ([(IMAGES, LABELS[:3])], "a batch has 4 images and 3 labels; give one each."),
    ],
)
def test_batches_that_cannot_be_remembered(net, batches, message):
    with pytest.raises(ValueError, match=message):
        jaxpmi.remember(net.network, batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.4, 0.4, 0.4)}, r"mean has shape \(3,\), but the images have 1 channel"),
        ({"mean": (102.0,)}, r"mean=\[102.0\] is outside \[0, 1\]; give it of pixels in \[0, 1\]"),
        ({"std": (0.0,)}, r"std=\[0.0\] has a 0; every one must be above 0."),
        ({"std": (float("nan"),)}, r"std=\[nan\] is outside \[0, 1\]"),
        ({"image_shape": (8, 8)}, r"image_shape=\(8, 8\) must be \(height, width, channels\)."),
        ({"head": jnp.zeros((3, 4))}, r"the head's kernel has shape \(3, 4\), but the last block"),
        ({"class_names": ("a", "b")}, "got 2 class_names for a head of 4 classes; give one"),
    ],
)
def test_parts_that_make_no_network(net, changes, message):
    parts = {
        "model": net.network.model, "variables": net.network.variables,
        "head": net.network.head, "mean": (0.4,), "std": (0.3,), "image_shape": small_network.SHAPE,
    } | changes  # fmt: skip
    with pytest.raises(ValueError, match=message):
        jaxpmi.from_blocks(**parts)


def test_variables_of_another_model(net):
    rest = {"mean": (0.4,), "std": (0.3,), "image_shape": small_network.SHAPE}
    variables, head = net.network.variables, net.network.head
    with pytest.raises(ValueError, match=r"variables.params has 5 blocks .*, but the model has 7"):
        deeper = model_of(sized(resnet.resnet32, width=4, depth=2), small_network.SHAPE)
        jaxpmi.from_blocks(deeper, variables, head, **rest)
    blocks = net.network.model.blocks
    with_blocks = functools.partial(dataclasses.replace, net.network.model)
    swapped = with_blocks(blocks=(blocks[1], blocks[0], *blocks[2:]))
    with pytest.raises(
        ValueError, match=r"block00 \(ResidualBlock\) cannot take inputs of \(8, 8,"
    ):
        jaxpmi.from_blocks(swapped, variables, head, **rest)
    with pytest.raises(ValueError, match="the last block returns .* pool inside the last block"):
        short = with_blocks(blocks=blocks[:3])
        few = [
            {name: tree[name] for name in ("block00", "block01", "block02")} for tree in variables
        ]
        jaxpmi.from_blocks(short, type(variables)(*few), head, **rest)


def test_settings_outside_their_range_where_they_are_made():
    with pytest.raises(ValueError, match="DeepInversionConfig.statistics_weight=-1.0 is out of ra"):
        jaxpmi.DeepInversionConfig(statistics_weight=-1.0)


def test_a_student_that_cannot_learn_from_that_teacher(net):
    other = small_network.fresh_network(sized(resnet.resnet_small, width=4), num_classes=3)
    with pytest.raises(ValueError, match="the student has 3 classes and the teacher 4; give"):
        jaxpmi.distill(net.network, other, IMAGES, KEY)
    other = net.network.replace(mean=net.network.mean + 0.1)
    with pytest.raises(ValueError, match="the student normalises pixels by mean="):
        jaxpmi.distill(net.network, other, IMAGES, KEY)
    other = net.network.replace(image_shape=(16, 16, 1))
    with pytest.raises(
        ValueError, match=r"the student takes images of \(16, 16, 1\) and the teach"
    ):
        jaxpmi.distill(net.network, other, IMAGES, KEY)
