import itertools
import types

import jax.numpy as jnp
import pytest
from rows import chain
from rows import piece
from small_network import fresh_network

from jaxpmi.jobs import speed
from jaxpmi.models import resnet
from jaxpmi.network import Head


def classifier(width):
    return fresh_network(
        chain(piece(resnet.Stem, width), piece(resnet.ResidualBlock, width, pool=True))
    )


def script(monkeypatch, rounds):
    """A clock by which every pass takes as long as it says here, in the order of the passes."""
    ticks = (tick for seconds in itertools.chain(*rounds) for tick in (0.0, seconds))
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr(speed, "time", clock)  # not JAX's own


ROUNDS = [(900.0, 0.5), (6.0, 2.0), (5.0, 1.0), (40.0, 2.0)]  # of both; the first is not warm


def test_seconds_are_medians_of_warm_passes_that_take_turns(monkeypatch):
    script(monkeypatch, ROUNDS)
    both = [classifier(4), classifier(2)]
    got = speed.measure_seconds(both, batch_size=2, num_rounds=3)
    assert got == [6.0, 2.0]


def test_speed_up_is_above_one_if_the_second_is_faster(monkeypatch):
    script(monkeypatch, ROUNDS)
    got = speed.measure_speed_up(classifier(4), classifier(2), batch_size=2, num_rounds=3)
    assert got == 3.0


def test_the_clock_is_the_host_s():
    (seconds,) = speed.measure_seconds([classifier(2)], batch_size=1, num_rounds=1)
    assert 0.0 < seconds < 60.0


def test_a_head_of_another_network_does_not_fit():
    other = classifier(4).replace(head=Head(jnp.ones((2, 3))))
    with pytest.raises(TypeError):
        speed.measure_seconds([other], batch_size=1, num_rounds=1)
