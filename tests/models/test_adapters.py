import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.blocks.cost import count_parameters
from jaxpmi.flax_networks.nnx_model import as_block
from jaxpmi.models import adapters
from jaxpmi.models import vit
from jaxpmi.models.layers import OneKey

DIM, EXPERTS, RANK = 8, 2, 4


def tower(with_adapters):
    rngs = OneKey(jax.random.key(1))
    return as_block(vit.transformer_blocks(DIM, 3, 2, with_adapters=with_adapters, rngs=rngs))


STACK, BASE, _ = tower(False)
ADAPTED, _, _ = tower(True)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def random_adapters(seed=0):
    fresh = adapters.init_adapters(jax.random.key(0), 3, DIM, num_experts=EXPERTS, rank=RANK)
    leaves, treedef = jax.tree.flatten(fresh)
    noisy = [jnp.asarray(normal(seed + i, *leaf.shape)) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, noisy)


def run(params, x, **options):
    return ADAPTED.trace(params, {}, x, train=False, **options)[0]


def apply_adapters(params, x, key=None):
    """What the adapters of one block add."""
    module = adapters.Adapters(DIM, num_experts=EXPERTS, rank=RANK, rngs=OneKey(jax.random.key(0)))
    block, _, _ = as_block(module)
    params = {name.removeprefix("adapters/"): leaf for name, leaf in params.items()}
    return block.apply(params, {}, x, key=key)[0]


def test_fresh_adapters_change_nothing_not_even_in_training():
    """The adapted model is the pretrained one at the start, bit by bit."""
    x, params = jnp.asarray(normal(0, 4, 5, DIM)), BASE
    fresh = adapters.init_adapters(jax.random.key(2), 3, DIM)
    assert fresh["adapters/down"].shape == (3, 2, DIM, 64) and bool(fresh["adapters/down"].any())
    adapted = {**params, **fresh}
    want = STACK.trace(params, {}, x, train=False)[0]
    np.testing.assert_array_equal(run(adapted, x), want)
    np.testing.assert_array_equal(run(adapted, x, key=jax.random.key(3)), want)


def test_down_projections_have_the_variance_of_the_published_uniform_draw():
    fresh = adapters.init_adapters(jax.random.key(2), 4, 64)
    np.testing.assert_allclose(np.std(fresh["adapters/down"]), 1 / np.sqrt(3 * 64), rtol=0.02)


def test_experts_are_mixed_by_the_gate_of_the_first_token():
    params = jax.tree.map(lambda leaf: leaf[0], random_adapters())
    x = normal(9, 3, 5, DIM)
    got = apply_adapters(params, jnp.asarray(x))
    p = {name.removeprefix("adapters/"): np.asarray(leaf) for name, leaf in params.items()}
    for image in range(3):
        logits = x[image, 0] @ p["gate"]
        gates = np.exp(logits) / np.exp(logits).sum()
        want = 0
        for e in range(EXPERTS):
            hidden = np.maximum(x[image] @ p["down"][e] + p["down_bias"][e], 0)
            want = want + 0.1 * gates[e] * (hidden @ p["up"][e] + p["up_bias"][e])
        np.testing.assert_allclose(got[image], want, rtol=1e-4, atol=1e-4)


def test_training_is_random_with_the_right_mean():
    params = jax.tree.map(lambda leaf: leaf[0], random_adapters())
    params |= {name: 0 * params[name] for name in ("adapters/gate", "adapters/noise")}
    x = jnp.asarray(normal(9, 1, 5, DIM))
    draw = jax.vmap(lambda key: apply_adapters(params, x, key))
    draws = draw(jax.random.split(jax.random.key(0), 4000))
    assert float(draws.std(0).min()) > 0
    # Gates of equal logits are 1/2 on average, and dropout keeps the mean.
    want = apply_adapters(params, x)
    error = (draws.mean(0) - want) / (draws.std(0) / np.sqrt(4000))
    assert float(jnp.abs(error).max()) < 5.0


def test_every_block_of_a_stack_draws_for_itself():
    """With equal parameters in all blocks, two blocks of one stack still differ in their masks."""
    params = jax.tree.map(lambda leaf: leaf[0], random_adapters())
    same = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), params)
    quiet = jax.tree.map(jnp.zeros_like, BASE)  # only adapters act
    x = jnp.asarray(normal(9, 2, 5, DIM))
    got = run({**quiet, **same}, x, key=jax.random.key(4))
    keys = jax.random.split(jax.random.key(4), 3)
    want = x
    for key in keys:
        want = want + apply_adapters(params, want, key)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    repeated = x
    for _ in keys:
        repeated = repeated + apply_adapters(params, repeated, keys[0])
    assert float(jnp.abs(got - repeated).max()) > 1e-3


def test_adapters_are_named_as_in_their_blocks():
    fresh = random_adapters()
    assert set(ADAPTED.block.params) - set(STACK.block.params) == {
        tuple(name.split("/")) for name in fresh
    }
    assert count_parameters(fresh) == 3 * (
        EXPERTS * (2 * DIM * RANK + RANK + DIM) + 2 * DIM * EXPERTS
    )


def test_gradients_reach_every_adapter_and_only_through_training_the_noise_map():
    x, own = jnp.asarray(normal(0, 4, 5, DIM)), random_adapters()

    def loss(own, key):
        return jnp.square(run({**BASE, **own}, x, key=key)).sum()

    quiet, noisy = (jax.grad(loss)(own, key) for key in (None, jax.random.key(0)))
    assert not quiet["adapters/noise"].any()
    for name, grad in noisy.items():
        assert bool(jnp.abs(grad).reshape(3, -1).max(1).min() > 0), name
