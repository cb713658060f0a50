import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.models import adapters
from jaxpmi.models import vit
from jaxpmi.models.blockwise import Stack
from jaxpmi.models.cost import count_parameters

DIM, EXPERTS, RANK = 8, 2, 4
STACK = Stack(vit.transformer_block(DIM, 3, 2), 3)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def random_adapters(seed=0):
    fresh = adapters.init_adapters(jax.random.key(0), 3, DIM, num_experts=EXPERTS, rank=RANK)
    leaves, treedef = jax.tree.flatten(fresh)
    noisy = [jnp.asarray(normal(seed + i, *leaf.shape)) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, noisy)


def run(params, x, **options):
    return STACK.trace(params, jax.tree.map(jnp.zeros_like, {}), x, train=False, **options)[0]


def base():
    return STACK.init(jax.random.key(1), (5, DIM))[0]


def test_fresh_adapters_change_nothing_not_even_in_training():
    """The adapted model is the pretrained one at the start, bit by bit."""
    x, params = jnp.asarray(normal(0, 4, 5, DIM)), base()
    fresh = adapters.init_adapters(jax.random.key(2), 3, DIM)
    assert fresh["down"].shape == (3, 2, DIM, 64) and bool(fresh["down"].any())
    adapted = adapters.with_adapters(params, fresh)
    want = run(params, x)
    np.testing.assert_array_equal(run(adapted, x), want)
    np.testing.assert_array_equal(run(adapted, x, key=jax.random.key(3)), want)


def test_down_projections_have_the_variance_of_the_published_uniform_draw():
    fresh = adapters.init_adapters(jax.random.key(2), 4, 64)
    np.testing.assert_allclose(np.std(fresh["down"]), 1 / np.sqrt(3 * 64), rtol=0.02)


def test_experts_are_mixed_by_the_gate_of_the_first_token():
    params = jax.tree.map(lambda leaf: leaf[0], random_adapters())
    x = normal(9, 3, 5, DIM)
    got = adapters.apply_adapters(params, jnp.asarray(x))
    p = jax.tree.map(np.asarray, params)
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
    params = {**params, "gate": 0 * params["gate"], "noise": 0 * params["noise"]}
    x = jnp.asarray(normal(9, 1, 5, DIM))
    draw = jax.vmap(lambda key: adapters.apply_adapters(params, x, key))
    draws = draw(jax.random.split(jax.random.key(0), 4000))
    assert float(draws.std(0).min()) > 0
    # Gates of equal logits are 1/2 on average, and dropout keeps the mean.
    want = adapters.apply_adapters(params, x)
    error = (draws.mean(0) - want) / (draws.std(0) / np.sqrt(4000))
    assert float(jnp.abs(error).max()) < 5.0


def test_every_block_of_a_stack_draws_for_itself():
    """With equal parameters in all blocks, two blocks of one stack still differ in their masks."""
    params = jax.tree.map(lambda leaf: leaf[0], random_adapters())
    same = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), params)
    quiet = jax.tree.map(jnp.zeros_like, base())  # only adapters act
    x = jnp.asarray(normal(9, 2, 5, DIM))
    got = run({**quiet, "adapters": same}, x, key=jax.random.key(4))
    keys = jax.random.split(jax.random.key(4), 3)
    want = x
    for key in keys:
        want = want + adapters.apply_adapters(params, want, key)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    repeated = x
    for _ in keys:
        repeated = repeated + adapters.apply_adapters(params, repeated, keys[0])
    assert float(jnp.abs(got - repeated).max()) > 1e-3


def test_adapters_can_be_put_on_and_taken_off_without_copies():
    params, fresh = base(), random_adapters()
    on = adapters.with_adapters(params, fresh)
    assert on["adapters"] is fresh and on["mlp"] is params["mlp"]
    assert adapters.with_adapters(on, None) == params
    assert count_parameters(fresh) == 3 * (
        EXPERTS * (2 * DIM * RANK + RANK + DIM) + 2 * DIM * EXPERTS
    )


def test_gradients_reach_every_adapter_and_only_through_training_the_noise_map():
    x, params, own = jnp.asarray(normal(0, 4, 5, DIM)), base(), random_adapters()

    def loss(own, key):
        return jnp.square(run(adapters.with_adapters(params, own), x, key=key)).sum()

    quiet, noisy = (jax.grad(loss)(own, key) for key in (None, jax.random.key(0)))
    assert not quiet["noise"].any()
    for name, grad in noisy.items():
        assert bool(jnp.abs(grad).reshape(3, -1).max(1).min() > 0), name
