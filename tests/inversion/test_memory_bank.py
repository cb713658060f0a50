import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.inversion import memory_bank

push = jax.jit(memory_bank.push)
draw = jax.jit(memory_bank.draw, static_argnames="number")


def filled(num_pushes, capacity=8):
    """After pushes of 4 rows, the first 0..3, the second 4..7 and so on."""
    bank = memory_bank.init_bank(capacity, 2)
    for i in range(num_pushes):
        bank = push(bank, jnp.full((4, 2), 4.0 * i) + jnp.arange(4.0)[:, None])
    return bank


def test_the_newest_rows_take_the_place_of_the_oldest():
    bank = filled(3)
    np.testing.assert_array_equal(bank.rows[:, 0], [8, 9, 10, 11, 4, 5, 6, 7])
    assert bank.count == 8 and bank.position == 4
    np.testing.assert_array_equal(push(bank, -jnp.ones((4, 2))).rows[4:], -1.0)


@pytest.mark.parametrize(("num_pushes", "number"), [(1, 4), (2, 8), (2, 5), (5, 8), (1, 3)])
def test_rows_are_drawn_without_replacement_from_those_held(num_pushes, number):
    """Among them the bank that has just become full, of which nothing is to be left out."""
    held = {0.0, 1.0, 2.0, 3.0} if num_pushes == 1 else set(filled(num_pushes).rows[:, 0].tolist())
    seen = set()
    for seed in range(10):
        rows, valid = draw(filled(num_pushes), jax.random.key(seed), number)
        assert rows.shape == (number, 2) and valid.all()
        values = rows[:, 0].tolist()
        assert len(set(values)) == number and set(values) <= held
        seen.add(tuple(values))
    assert len(seen) > 2  # the draws differ


def test_every_row_is_drawn_as_often_as_any_other():
    keys = jax.random.split(jax.random.key(0), 2000)
    rows, _ = jax.vmap(lambda key: memory_bank.draw(filled(2), key, 2))(keys)
    counts = np.bincount(np.asarray(rows)[..., 0].astype(int).ravel(), minlength=8)
    np.testing.assert_allclose(counts, 500, atol=90)  # 4 standard deviations


def test_what_is_not_held_is_said_not_to_be():
    _, valid = draw(filled(0), jax.random.key(0), 6)
    assert not valid.any()
    rows, valid = draw(filled(1), jax.random.key(0), 6)
    np.testing.assert_array_equal(valid, [True] * 4 + [False] * 2)
    assert sorted(rows[:4, 0].tolist()) == [0, 1, 2, 3]


def test_sizes_that_do_not_fit_are_errors():
    bank = memory_bank.init_bank(8, 2)
    with pytest.raises(ValueError, match="bank of 8 rows is not filled by pushes of 3; use a cap"):
        memory_bank.push(bank, jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="9 rows cannot be drawn from a bank of 8"):
        memory_bank.draw(bank, jax.random.key(0), 9)
