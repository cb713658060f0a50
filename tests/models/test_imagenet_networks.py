"""Networks of ImageNet: their sizes as published, and inversion and pruning at their usual size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpmi
from jaxpmi.models import MODELS
from jaxpmi.models.init_network import abstract_backbone
from jaxpmi.types import Moments

SHAPE = (224, 224, 3)
WIDTHS = {"mobilenet_v2": 32, "mobilenet_v2_tf": 32, "vit_patch16": 768, "vit_patch32": 768}
# Parameters without the classifier, and features: those of torchvision less its classifier.
SIZES = {
    "imagenet_resnet18": (11_689_512 - 513_000, 512),
    "imagenet_resnet34": (21_797_672 - 513_000, 512),
    "imagenet_resnet50": (25_557_032 - 2_049_000, 2048),
    "imagenet_resnet101": (44_549_160 - 2_049_000, 2048),
    "imagenet_resnet152": (60_192_808 - 2_049_000, 2048),
    "mobilenet_v2": (3_504_872 - 1_281_000, 1280),
    "mobilenet_v2_tf": (3_504_872 - 1_281_000, 1280),
    "vgg11": (132_868_840 - 4_097_000, 4096),
    "vgg16": (138_365_992 - 4_097_000, 4096),
    "vit_patch16": (86_567_656 - 769_000, 768),
    "vit_patch32": (88_224_232 - 769_000, 768),
}


def sized(name, width=None):
    return functools.partial(MODELS[name], width=width or WIDTHS.get(name, 64))


@pytest.mark.parametrize("name", SIZES)
def test_parameters_and_features_are_the_published_ones(name):
    model, variables = abstract_backbone(sized(name), SHAPE)
    count, features = SIZES[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables.params)) == count
    shapes = jaxpmi.blocks.blockwise.block_input_shapes(model, variables, SHAPE)
    assert shapes[-1] == (features,)


def test_vgg_needs_images_of_some_size():
    with pytest.raises(ValueError, match="24 x 40 pixels are too few; give images of 32 x 32"):
        abstract_backbone(sized("vgg11"), (24, 40, 3))


@pytest.mark.parametrize("name", ["imagenet_resnet50", "imagenet_resnet18"])
def test_moments_are_propagated_without_data(name):
    """Of a stream that is rectified none is negative on average."""
    network = jaxpmi.init_network(
        sized(name, 4), jax.random.key(0), (32, 32, 3), ("a",), mean=(0.5,) * 3, std=(0.5,) * 3
    )
    moments = Moments(jnp.zeros(3), jnp.ones(3))
    for block, own in zip(network.model.blocks, network.variables.params.values(), strict=True):
        moments = block.propagate(own, moments)
        assert (moments.mean >= 0).all() and (moments.var >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_inversion_and_pruning_at_the_usual_size(name):
    """Random weights: a few steps of DeepInversion and of PMI; half of a layer's filters go."""
    network = jaxpmi.init_network(
        sized(name), jax.random.key(0), SHAPE, [str(i) for i in range(10)],
        mean=jaxpmi.IMAGENET_MEAN, std=jaxpmi.IMAGENET_STD,
    )  # fmt: skip
    labels = jnp.arange(1)
    config = jaxpmi.InversionConfig(
        batch_size=1, targets="gaussian",
        per_layer=jaxpmi.PerLayerConfig(start="gaussian", num_steps=1),
        full_model=jaxpmi.FullModelConfig(num_steps=2),
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), np.uint8)
    memory = jaxpmi.remember(network, [(images, np.asarray([0, 1]))], config=config)
    transformer = name.startswith("vit")
    made = jaxpmi.deep_inversion(
        network, labels, jax.random.key(1), memory=memory if transformer else None,
        config=jaxpmi.DeepInversionConfig(batch_size=1, stage_steps=(3,)),
    )  # fmt: skip
    assert bool(made.finite) and made.losses[-1] < made.losses[0]
    made = jaxpmi.synthesize(network, labels, jax.random.key(2), memory=memory, config=config)
    assert bool(made.finite) and np.asarray(made.images).std() > 1
    if transformer:
        with pytest.raises(ValueError, match="from which no filters can be removed"):
            jaxpmi.filter_groups(network)
        return
    groups = jaxpmi.filter_groups(network)
    kept = {key: tuple(range(group.size)) for key, group in groups.items()}
    first = next(iter(groups))
    kept[first] = kept[first][::2]
    small = jaxpmi.remove_filters(network, kept)
    assert np.isfinite(jaxpmi.logits(small, images)).all()
