import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rows import block_of
from rows import sized

import jaxpmi
from jaxpmi.blocks import blockwise
from jaxpmi.blocks.blockwise import Stack
from jaxpmi.models import MODELS
from jaxpmi.models import vit
from jaxpmi.models.clip import with_unit_features
from jaxpmi.models.init_network import abstract_backbone
from jaxpmi.models.init_network import init_backbone

SHAPE, RNGS = (8, 12, 3), nnx.Rngs(0)


def random_network(seed=0, **changes):
    """Random numbers everywhere, so that no scale is 1 and no bias 0."""
    sizes = {"patch_size": 4, "width": 8, "depth": 3, "num_heads": 2, "features": 6} | changes
    architecture = sized(vit.vision_transformer, **sizes)
    model, variables = init_backbone(architecture, jax.random.key(seed), SHAPE)
    leaves, treedef = jax.tree.flatten(variables.params)
    rng = np.random.default_rng(seed)
    noisy = [leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return model, blockwise.Variables(jax.tree.unflatten(treedef, noisy), variables.batch_stats)


def images(count=5, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((count, *SHAPE), np.float32))


def num_units(model):
    """Blocks, with those of a stack counted one by one."""
    return sum(block.depth if isinstance(block, Stack) else 1 for block in model.blocks)


def layer_norm(params, name, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * np.asarray(params[f"{name}/scale"]) + np.asarray(params[f"{name}/bias"])


def reference_block(params, x, num_heads, *, causal=False, gelu=None):
    """A transformer block in numpy, one image, one head and one query at a time."""
    y = layer_norm(params, "norm1", x)
    dim = x.shape[1]
    size = dim // num_heads

    def linear(name, x):
        return x @ np.asarray(params[f"{name}/kernel"]) + np.asarray(params[f"{name}/bias"])

    query, key, value = np.split(linear("attention/qkv", y), 3, axis=1)
    mixed = np.zeros_like(y)
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        for n in range(len(x)):
            seen = slice(0, n + 1 if causal else len(x))
            scores = np.exp(query[n, part] @ key[seen, part].T / np.sqrt(size))
            mixed[n, part] = scores / scores.sum() @ value[seen, part]
    x = x + linear("attention/out", mixed)
    hidden = linear("mlp/up", layer_norm(params, "norm2", x))
    return x + linear("mlp/down", gelu(hidden))


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def gelu(x):
    from scipy.special import erf

    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("name", "function"), [("quick_gelu", quick_gelu), ("gelu", gelu)])
def test_a_block_is_that_of_the_textbook(causal, name, function):
    module = vit.TransformerBlock(8, 2, activation=name, causal=causal, rngs=RNGS)
    block, params, _ = block_of(module)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    x = np.random.default_rng(1).standard_normal((3, 5, 8), np.float32)
    got, _ = block.apply(params, {}, jnp.asarray(x))
    want = [reference_block(params, one, 2, causal=causal, gelu=function) for one in x]
    np.testing.assert_allclose(got, np.stack(want), atol=2e-5)


def test_patches_are_rows_of_the_kernel_in_row_column_channel_order():
    block, params, _ = block_of(vit.PatchEmbedding(4, 3, 8, rngs=RNGS))
    x = images()
    out, _ = block.apply(params, {}, x)
    assert out.shape == (5, 2, 3, 8)
    patch = np.asarray(x[1, 4:8, 8:12]).reshape(-1)
    np.testing.assert_allclose(out[1, 1, 2], patch @ np.asarray(params["linear/kernel"]), atol=1e-5)


def test_the_class_token_comes_first_and_positions_are_added_before_the_norm():
    block, params, _ = block_of(vit.TokenEmbedding(6, 8, rngs=RNGS))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2, 3, 8), np.float32))
    out, _ = block.apply(params, {}, x)
    assert out.shape == (4, 7, 8)
    positions = np.asarray(params["positions"])
    first = layer_norm(params, "norm", np.asarray(params["class_token"]) + positions[0])
    np.testing.assert_allclose(out[2, 0], first, atol=1e-5)
    last = layer_norm(params, "norm", np.asarray(x[2, 1, 2]) + positions[6])
    np.testing.assert_allclose(out[2, 6], last, atol=1e-5)


def test_blocks_in_sequence_are_the_forward_pass():
    """With the stack's blocks applied one by one."""
    (model, variables), x = random_network(), images()
    whole = blockwise.forward(model, variables, x)
    assert num_units(model) == 6 and len(whole.block_inputs) == 4
    for i, block in enumerate(model.blocks):
        name = blockwise.block_name(i)
        own, seen = (variables.params[name], variables.batch_stats[name]), whole.block_inputs[i]
        depth = block.depth if isinstance(block, Stack) else 1
        for layer in range(depth):
            one, params, moments = block, own, seen
            if isinstance(block, Stack):
                one = block.block
                params, moments = jax.tree.map(lambda leaf: leaf[layer], (own, seen))  # noqa: B023
            rows = np.asarray(x).reshape(-1, x.shape[-1])
            np.testing.assert_allclose(moments.mean, rows.mean(0), atol=1e-5)
            np.testing.assert_allclose(moments.var, rows.var(0), atol=1e-5)
            x, shown = one.apply(*params, x, train=False)
            if isinstance(block, Stack):
                stored = jax.tree.map(lambda leaf: leaf[layer], whole.moments[name])  # noqa: B023
                for got, want in zip(jax.tree.leaves(shown), jax.tree.leaves(stored), strict=True):
                    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(whole.features, x, atol=1e-5)


def test_positions_of_the_small_transformer_begin_as_large_as_its_patches():
    shape, x = (28, 28, 1), jax.random.normal(jax.random.key(1), (20, 28, 28, 1))
    for name, grid in (("vit_small", 7), ("vit_small_patch7", 4)):
        architecture = sized(MODELS[name], width=48)
        model, (params, _) = init_backbone(architecture, jax.random.key(0), shape)
        patches, _ = model.blocks[0].apply(params["block00"], {}, x)
        assert patches.shape == (20, grid, grid, 48)
        positions = params["block01"]["positions"]
        assert positions.std() == pytest.approx(float(patches.std()), rel=0.1)
    _, clip, _ = block_of(vit.TokenEmbedding(49, 48, rngs=RNGS))
    assert clip["positions"].std() == pytest.approx(48**-0.5, rel=0.1)


def test_vit_b16_has_15_units():
    sizes = {"patch_size": 16, "width": 768, "depth": 12, "num_heads": 12, "features": 512}
    model, _ = abstract_backbone(sized(vit.vision_transformer, **sizes), (224, 224, 3))
    assert num_units(model) == 15


@pytest.mark.parametrize("axis", ["channel", "token"])
def test_the_statistics_axis(axis):
    (model, variables), x = random_network(statistics_axis=axis), images()
    seen = blockwise.forward(model, variables, x)
    per = (7, 1) if axis == "token" else (8,)
    assert seen.block_inputs[2].mean.shape == (3, *per)
    assert seen.block_inputs[3].mean.shape == per
    assert seen.block_inputs[1].mean.shape == (8,)  # a map of patches has channels only
    shown = seen.moments["block02"]
    assert jax.tree.map(jnp.shape, shown) == jax.tree.map(
        jnp.shape, variables.batch_stats["block02"]
    )
    y = x
    for i in range(2):
        name = blockwise.block_name(i)
        y, _ = model.blocks[i].apply(variables.params[name], {}, y)
    mean = np.asarray(y).mean((0, 2))[:, None] if axis == "token" else np.asarray(y).mean((0, 1))
    np.testing.assert_allclose(seen.block_inputs[2].mean[0], mean, atol=1e-5)


def test_weights_leave_padding_out_of_the_moments():
    (model, variables), x = random_network(), images()
    weights = jnp.asarray([1.0, 1.0, 0.0, 1.0, 0.0])
    got = blockwise.forward(model, variables, x, weights=weights).block_inputs
    want = blockwise.forward(model, variables, x[jnp.asarray([0, 1, 3])]).block_inputs
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_same_program_serves_every_depth_of_the_stack():
    """The jaxpr of the forward pass does not grow with depth."""
    sizes = []
    for depth in (2, 12):
        model, variables = random_network(depth=depth)
        jaxpr = jax.make_jaxpr(lambda v, x: jaxpmi.forward(model, v, x))(variables, images())  # noqa: B023
        sizes.append(len(jaxpr.eqns))
    assert sizes[0] == sizes[1]


def test_sizes_that_do_not_divide_are_errors():
    with pytest.raises(ValueError, match="images of 9 x 12 pixels do not divide into patches of 4"):
        MODELS["vit_small"]((9, 12, 3), rngs=RNGS)
    with pytest.raises(ValueError, match="a width of 8 does not divide into 3 heads"):
        vit.TransformerBlock(8, 3, rngs=RNGS)


def test_a_tower_of_unit_features_takes_the_same_variables():
    (model, variables), x = random_network(), images()
    unit = blockwise.forward(with_unit_features(model), variables, x)
    plain = blockwise.forward(model, variables, x)
    lengths = np.linalg.norm(plain.features, axis=1)
    assert np.abs(lengths - 1.0).min() > 0.1
    np.testing.assert_allclose(unit.features, plain.features / lengths[:, None], rtol=1e-5)
    chex.assert_trees_all_equal(unit.block_inputs, plain.block_inputs)
