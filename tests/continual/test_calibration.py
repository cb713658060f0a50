"""New classes against old ones: how new an image looks, and what of it is that it is real."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from small_network import trained
from tiny_run import set_up
from tiny_run import tiny_config

from jaxpmi import experiment
from jaxpmi.blocks.blockwise import forward
from jaxpmi.continual import calibration
from jaxpmi.continual.loop import task_plan
from jaxpmi.continual.start import open_run


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    set_up(monkeypatch)


def test_newness_is_the_mean_log_odds_of_new_classes_against_old_ones():
    network = trained().network
    images = np.random.default_rng(0).integers(0, 256, (5, *network.image_shape), np.uint8)
    new, old = jnp.asarray([0.0, 0, 1, 0]), jnp.asarray([1.0, 1, 0, 0])  # the last is not yet seen
    x = (images / 255 - np.asarray(network.mean)) / np.asarray(network.std)
    features = forward(network.model, network.variables, jnp.asarray(x, jnp.float32)).features
    p = np.exp(np.asarray(network.head(features), np.float64))
    wanted = np.log(p[:, 2] / (p[:, 0] + p[:, 1])).mean()
    found = calibration.mean_newness(network, images, new_mask=new, old_mask=old)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "calibrates"),
    [
        ({}, True),
        ({"losses__recipe": "stagewise"}, False),
        ({"inversion__per_layer__start": "inverse"}, False),
        ({"inversion__variant": "published_clip", "model__name": "tiny_vit"}, False),
        ({"method": "pixel_gaussian"}, False),
        ({"method": "deep_inversion"}, False),
    ],
)
def test_later_tasks_of_pmi_are_calibrated_where_images_have_layouts(tmp_path, changes, calibrates):
    """Published recipes and other methods are as published: no bias, no phase."""
    method = changes.pop("method", "pmi")
    run, _ = open_run(tiny_config(tmp_path, method, **changes))
    assert calibration.has_calibration(run) == calibrates
    assert ("calibrate" in dict(task_plan(run, 1))) == calibrates
    assert "calibrate" not in dict(task_plan(run, 0))


def test_half_of_what_being_real_adds_is_taken_off_new_classes_alone(tmp_path, monkeypatch):
    """Newness of reconstructions falls short of that of their originals by twice the offset."""
    seen = []

    def spy(run, state):
        newness = []
        with pytest.MonkeyPatch.context() as patch:
            record = functools.partial(_recorded, newness, calibration.mean_newness)
            patch.setattr(calibration, "mean_newness", record)
            (tick,) = calibrate(run, state)
        seen.append((state, newness, tick))
        yield tick

    calibrate = calibration.calibrate_phase
    monkeypatch.setattr(calibration, "calibrate_phase", spy)
    experiment.run(tiny_config(tmp_path, train__epochs=2))
    assert len(seen) == 2
    for task, (before, (real, made), tick) in enumerate(seen, 1):
        # Training has moved no bias: there is what calibrations before it have decided.
        last = np.zeros(6) if task == 1 else np.asarray(seen[0][2].state.network.head.bias)
        np.testing.assert_array_equal(before.network.head.bias, last)
        moved = np.asarray(tick.state.network.head.bias - before.network.head.bias)
        new = np.arange(2 * task, 2 * task + 2)
        np.testing.assert_allclose(moved[new], -(real - made) / 2, rtol=1e-5, atol=1e-6)
        assert not np.delete(moved, new).any()
        np.testing.assert_array_equal(tick.state.network.head.kernel, before.network.head.kernel)
        np.testing.assert_allclose(tick.scalars["offset"], (real - made) / 2, rtol=1e-5)
        assert tick.num_images == 8  # one batch


def _recorded(values, function, *args, **options):
    value = function(*args, **options)
    values.append(float(value))
    return value
