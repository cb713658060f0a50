import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.blocks.blockwise import input_moments
from jaxpmi.config import PerLayerConfig
from jaxpmi.flax_networks.nnx_model import as_block
from jaxpmi.inversion.coarse_to_fine import grid_schedule
from jaxpmi.inversion.coarse_to_fine import invert_coarse_to_fine
from jaxpmi.inversion.coarse_to_fine import resize_grid
from jaxpmi.models import vit
from jaxpmi.models.layers import OneKey


def token_embedding(height, width, dim):
    module = vit.TokenEmbedding(height * width, dim, rngs=OneKey(jax.random.key(0)))
    return as_block(module)


BLOCK, _, _ = token_embedding(1, 1, 8)  # equal for all sizes, which are those of its parameters


def config_of(num_steps, learning_rate=0.1):
    return PerLayerConfig(
        start="gaussian", learning_rate=learning_rate, statistics_weight=0.01,
        coarse_to_fine_steps=num_steps,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("height", "width", "steps", "want"),
    [
        (14, 14, 1200, ((0, 2, 2), (300, 4, 4), (600, 8, 8), (900, 14, 14))),
        (7, 7, 90, ((0, 2, 2), (30, 4, 4), (60, 7, 7))),
        (2, 2, 5, ((0, 2, 2),)),
        (1, 4, 5, ((0, 1, 2), (2, 1, 4))),
        (16, 3, 8, ((0, 2, 2), (2, 4, 3), (4, 8, 3), (6, 16, 3))),
    ],
)
def test_the_grids_double(height, width, steps, want):
    """Those of docs/methods/clip.md, and others."""
    assert grid_schedule(height, width, steps) == want


def test_fewer_steps_than_grids_are_an_error():
    with pytest.raises(ValueError, match="3 steps are too few for 4 grids up to 14 x 14; give 4"):
        grid_schedule(14, 14, 3)


def problem(height, width, dim=8):
    """Smooth patch embeddings, as photographs have."""
    rng = np.random.default_rng(0)
    block, params, _ = token_embedding(height, width, dim)
    assert block == BLOCK
    coarse = jnp.asarray(rng.standard_normal((6, 2, 2, dim), np.float32))
    truth = resize_grid(coarse, height, width)
    start = jnp.asarray(rng.standard_normal(truth.shape, np.float32))
    target, _ = BLOCK.apply(params, {}, truth)
    return params, truth, start, target


def solve(height, width, num_steps, iterate="best", **options):
    params, truth, start, target = problem(height, width)
    moments = input_moments(BLOCK, truth)
    config = config_of(num_steps, **options)
    solution = invert_coarse_to_fine(
        params,
        {},
        start,
        target,
        moments,
        jax.random.key(1),
        block=BLOCK,
        config=config,
        iterate=iterate,
    )
    return solution, params, truth, target


@pytest.mark.parametrize(("height", "width"), [(7, 7), (4, 6)])
def test_a_smooth_input_is_found(height, width):
    solution, params, truth, target = solve(height, width, 300)
    assert solution.x.shape == truth.shape and solution.losses.shape == (300,)
    assert bool(solution.finite)
    assert float(solution.loss) < 0.05 * float(solution.losses[0])
    output, _ = BLOCK.apply(params, {}, solution.x)
    error = float(jnp.square(output - target).mean() / jnp.square(target - target.mean()).mean())
    assert error < 0.05


def test_a_finer_grid_starts_where_the_coarser_one_ended():
    """Bicubic resizing of a grid to itself is exact, so the loss cannot jump on the last grid."""
    solution, *_ = solve(4, 4, 200)
    losses = np.asarray(solution.losses)
    assert losses[100] < 1.5 * losses[:100].min()
    assert losses[100:].min() <= losses[:100].min() * 1.01
    np.testing.assert_allclose(float(solution.loss), losses[100:].min(), rtol=1e-5)


def test_the_last_iterate_of_every_grid_goes_on_if_asked():
    """With steps so large that the last iterates are not the best."""
    best, *_ = solve(4, 4, 40, learning_rate=2.0)
    last, params, truth, target = solve(4, 4, 40, learning_rate=2.0, iterate="last")
    np.testing.assert_array_equal(last.losses[:20], best.losses[:20])
    assert abs(float(last.losses[20] - best.losses[20])) > 0.01 * float(best.losses[20])
    output, _ = BLOCK.apply(params, {}, last.x)
    match = float(jnp.square(output - target).mean())
    np.testing.assert_allclose(last.terms["feature_match"], match, rtol=1e-4)
    assert np.abs(last.loss / np.asarray(last.losses) - 1.0).min() > 1e-4  # none of those before


def test_the_coarse_phase_cannot_show_detail():
    """With all steps on the coarsest grid the input is a resized 2 x 2 grid."""
    params, truth, start, target = problem(2, 2)
    solution = invert_coarse_to_fine(
        params, {}, start, target, input_moments(BLOCK, truth), jax.random.key(1), block=BLOCK,
        config=config_of(1),
    )  # fmt: skip
    np.testing.assert_array_equal(solution.x, start)
