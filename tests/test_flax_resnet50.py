"""A ResNet-50 as users of NNX write it, at 224 pixels: 17 blocks, 53 BatchNorms, its own logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxpmi
from jaxpmi.blocks.blockwise import forward
from jaxpmi.flax_networks.containers import ModuleList


class Stem(nnx.Module):
    def __init__(self, *, rngs):
        self.conv = nnx.Conv(3, 64, (7, 7), 2, padding=3, use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(64, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn(self.conv(x)))
        return nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class Bottleneck(nnx.Module):
    def __init__(self, inputs, width, stride, *, rngs):
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv1, self.bn1 = conv(inputs, width, (1, 1)), nnx.BatchNorm(width, rngs=rngs)
        self.conv2 = conv(width, width, (3, 3), stride, padding=1)
        self.bn2 = nnx.BatchNorm(width, rngs=rngs)
        self.conv3 = conv(width, 4 * width, (1, 1))
        self.bn3 = nnx.BatchNorm(4 * width, rngs=rngs)
        self.projects = stride != 1 or inputs != 4 * width
        if self.projects:
            self.conv4 = conv(inputs, 4 * width, (1, 1), stride)
            self.bn4 = nnx.BatchNorm(4 * width, rngs=rngs)

    def __call__(self, x):
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(nnx.relu(self.bn2(self.conv2(y)))))
        return nnx.relu(y + (self.bn4(self.conv4(x)) if self.projects else x))


class ResNet50(nnx.Module):
    def __init__(self, *, rngs):
        blocks, inputs = [], 64
        for stage, count in enumerate((3, 4, 6, 3)):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Bottleneck(inputs, 64 * 2**stage, stride, rngs=rngs))
                inputs = 256 * 2**stage
        self.stem, self.blocks = Stem(rngs=rngs), ModuleList(blocks)
        self.fc = nnx.Linear(2048, 1000, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((1, 2)))


@pytest.mark.slow
def test_a_resnet50_goes_in_untouched():
    module = ResNet50(rngs=nnx.Rngs(0))
    module.eval()
    pool = functools.partial(jnp.mean, axis=(1, 2))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network = jaxpmi.from_nnx(
        module,
        blocks=[module.stem, *module.blocks, pool],
        head=module.fc,
        mean=mean,
        std=std,
        image_shape=(224, 224, 3),
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    expected = nnx.jit(lambda m, x: m(x))(module, jaxpmi.normalise(images, mean, std))
    jaxpmi.check_network(network, images, expected, tolerance=1e-5)
    x = jaxpmi.normalise(images, mean, std)
    seen = jax.jit(forward, static_argnums=0)(network.model, network.variables, x)
    # The stem, two kinds of block in each of four stages, and one that pools.
    assert len(network.model.blocks) == 17 and len(set(network.model.blocks)) == 10
    assert len(jax.tree.leaves(seen.moments)) == 2 * 53
    config = jaxpmi.DeepInversionConfig(stage_steps=(2,))
    labels = jnp.asarray([1, 7])
    made = jaxpmi.deep_inversion(network, labels, jax.random.key(0), config=config)
    assert bool(made.finite) and made.losses[1] < made.losses[0]
