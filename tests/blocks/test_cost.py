import jax
import jax.numpy as jnp
import pytest
from rows import chain
from rows import piece
from rows import sized

from jaxpmi.blocks import cost
from jaxpmi.models import MODELS
from jaxpmi.models import inverted_residual
from jaxpmi.models import resnet
from jaxpmi.models import vit
from jaxpmi.models.init_network import abstract_backbone


def count(architecture, image_shape):
    return cost.count_multiply_adds(*abstract_backbone(architecture, image_shape), image_shape)


def test_multiply_adds_of_the_small_resnet_by_hand():
    stem, plain = 64 * 27 * 4, 2 * 64 * 36 * 4  # 8 x 8 pixels
    down = 16 * 36 * 8 + 16 * 72 * 8 + 4 * 72 * 16 + 4 * 144 * 16  # to 4 x 4 and to 2 x 2
    last = 2 * 4 * 144 * 16
    assert count(sized(resnet.resnet_small, width=4), (8, 8, 3)) == stem + plain + down + last


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
def test_multiply_adds_of_cifar_resnet18_are_the_published_ones(name):
    """0.56 G with its classifier, which adds 5,120."""
    assert count(MODELS[name], (32, 32, 3)) == 555_417_600


@pytest.mark.parametrize("depth", [1, 3])
def test_every_block_of_a_stack_and_its_attention_count(depth):
    model = sized(
        vit.vision_transformer, patch_size=4, width=16, depth=depth, num_heads=2, features=8
    )  # 4 patches and a class token
    block = 5 * 12 * 16 * 16 + 2 * 5 * 5 * 16  # projections and MLP, scores and mixture
    assert count(model, (8, 8, 3)) == 4 * 48 * 16 + depth * block + 16 * 8


def test_depthwise_convolutions_written_as_sums_of_products_count():
    block = piece(inverted_residual.InvertedResidual, 6, expansion=3, size=5, stride=2)
    stem = piece(inverted_residual.Stem, 4)  # 16 x 16 pixels to 8 x 8
    model = chain(stem, block, piece(inverted_residual.PooledConv, 10))
    want = 64 * 27 * 4 + 64 * 4 * 12 + 16 * 25 * 12 + 16 * 12 * 6 + 16 * 6 * 10
    assert count(model, (16, 16, 3)) == want


def test_grouped_convolutions_read_only_their_group():
    def apply(kernel, x):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=6,
        )  # fmt: skip

    traced = jax.make_jaxpr(apply)(jnp.zeros((3, 3, 1, 6)), jnp.zeros((1, 5, 5, 6)))
    assert cost._multiply_adds(traced.jaxpr) == 25 * 9 * 6


def test_parameters_are_counted_over_the_tree():
    tree = {"a": jnp.zeros((2, 3)), "b": [jnp.zeros(()), jax.ShapeDtypeStruct((4,), jnp.float32)]}
    assert cost.count_parameters(tree) == 6 + 1 + 4
