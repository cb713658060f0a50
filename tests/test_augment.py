"""Normalisation and random views."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
from PIL import Image

from jaxpmi.augment import augment
from jaxpmi.augment import denormalise
from jaxpmi.augment import draw_crop
from jaxpmi.augment import normalise
from jaxpmi.augment import padded_crop
from jaxpmi.augment import pixel_range
from jaxpmi.augment import resized_crop
from jaxpmi.config import AugmentConfig

# jaxpmi's own meshes have automatic axes; explicit ones under vmap need a JAX that knows how.
EXPLICIT = pytest.param(
    AxisType.Explicit,
    marks=pytest.mark.skipif(
        jax.__version_info__ < (0, 8), reason="this JAX has no vmap on explicit axes"
    ),
)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
BOTH = AugmentConfig(crop_padding=2, flip=True)
PHOTO = AugmentConfig(crop_scale=(0.4, 1.0))
augment_jit = jax.jit(augment, static_argnames=("config", "pad_value"))


def pixels(num_images=4, channels=3):
    return np.random.RandomState(0).randint(0, 256, (num_images, 6, 7, channels), np.uint8)


def views(config, num_images=16, **options):
    x = jnp.asarray(pixels(num_images), jnp.float32)
    return x, augment_jit(x, jax.random.key(1), config=config, **options)


def test_normalise_and_back():
    raw = pixels()
    x = normalise(jnp.asarray(raw), MEAN, STD)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, (raw / 255 - np.array(MEAN)) / np.array(STD), atol=1e-5)
    np.testing.assert_array_equal(denormalise(x, MEAN, STD), raw)
    np.testing.assert_allclose(normalise(jnp.asarray(raw, jnp.float32), MEAN, STD), x, atol=1e-6)


def test_denormalise_rounds_and_clips():
    x = jnp.array([-9.0, 0.0, 0.4999, 0.5001, 9.0], jnp.float32).reshape(1, 1, 5, 1)
    levels = denormalise(x * jnp.float32(1 / 255), (0.0,), (1.0,))
    assert levels.dtype == jnp.uint8 and levels.ravel().tolist() == [0, 0, 0, 1, 9]
    assert denormalise(x, (0.0,), (1.0,)).ravel().tolist()[-1] == 255


def test_pixel_range():
    low, high = pixel_range(np.float32(MEAN), np.float32(STD))
    for level, bound in ((0, low), (255, high)):
        pixel = normalise(jnp.full((1, 1, 1, 3), level, jnp.uint8), MEAN, STD)
        np.testing.assert_allclose(pixel.ravel(), bound, rtol=1e-6)


@pytest.mark.parametrize("function", [normalise, denormalise])
def test_channel_mismatch(function):
    message = r"mean has 1 value\(s\) but the images have 3 channel\(s\); give one value"
    with pytest.raises(ValueError, match=message):
        function(jnp.zeros((1, 2, 2, 3)), (0.5,), (0.5,))


def test_defaults_change_nothing():
    x, y = views(AugmentConfig())
    np.testing.assert_array_equal(x, y)


def test_flip_is_fair_and_independent():
    x = jnp.asarray(pixels(1000), jnp.float32)
    y = np.asarray(augment_jit(x, jax.random.key(0), config=AugmentConfig(flip=True)))
    x = np.asarray(x)
    flipped = (y == x[:, :, ::-1]).all((1, 2, 3))
    assert (flipped | (y == x).all((1, 2, 3))).all()
    assert abs(flipped.mean() - 0.5) < 0.06  # 3.8 standard deviations
    repeats = (flipped[1:] == flipped[:-1]).mean()
    assert abs(repeats - 0.5) < 0.06


def test_crops_are_all_windows_of_the_padded_image():
    x = jnp.asarray(np.repeat(pixels(1), 400, 0), jnp.float32)
    config = AugmentConfig(crop_padding=1)
    y = augment_jit(x, jax.random.key(2), config=config, pad_value=(1.0, 2.0, 3.0))
    padded = np.empty((8, 9, 3), np.float32)
    padded[:] = (1, 2, 3)
    padded[1:-1, 1:-1] = x[0]
    windows = {padded[i : i + 6, j : j + 7].tobytes() for i in range(3) for j in range(3)}
    assert {np.asarray(image).tobytes() for image in y} == windows


def test_the_crop_at_the_padding_is_the_image():
    image = np.random.RandomState(0).normal(size=(6, 7, 3)).astype(np.float32)
    same = padded_crop(jnp.asarray(image), jnp.asarray([4, 4]), 4)
    np.testing.assert_array_equal(same, image)
    corner = padded_crop(jnp.asarray(image), jnp.asarray([1, 4]), 4)
    np.testing.assert_array_equal(corner[3:], image[:3])
    np.testing.assert_array_equal(corner[:3], 0.0)


def test_views_are_differentiable_and_linear_ones_stay_in_range():
    x = jnp.asarray(pixels(8), jnp.float32) / 255.0

    def view(x, interpolation="linear"):
        key, config = jax.random.key(3), AugmentConfig(crop_scale=(0.25, 0.5), flip=True)
        return augment(x, key, config, interpolation=interpolation)

    assert 0.0 <= view(x).min() and view(x).max() <= 1.0
    overshoot = view(x, "cubic")
    assert overshoot.min() < 0.0 or overshoot.max() > 1.0
    # Views are linear maps of the pixels.
    change = jnp.ones_like(x).at[:, 2:4].set(-1.0)
    _, tangent = jax.jvp(view, (x,), (change,))
    np.testing.assert_allclose(tangent, view(x + change) - view(x), atol=1e-5)
    assert jnp.isfinite(jax.grad(lambda x: jnp.square(view(x)).sum())(x)).all()


def test_padding_value_default_is_the_mean_colour():
    _, y = views(AugmentConfig(crop_padding=6), num_images=64)
    assert (np.asarray(y) == 0).mean() > 0.2
    with pytest.raises(ValueError, match="pad_value has 2 value"):
        views(AugmentConfig(crop_padding=1), pad_value=(0.0, 1.0))


# Top, left, height, width in an image of 24 x 30 pixels: enlarged, and one row.
BOXES = [(0, 0, 24, 30), (2, 5, 20, 22), (10, 0, 14, 30), (23, 3, 1, 9)]


@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
@pytest.mark.parametrize("box", BOXES)
def test_resized_crop_is_that_of_pillow(box, interpolation):
    image = np.random.RandomState(0).normal(size=(24, 30, 3)).astype(np.float32)
    top, left, height, width = box
    corners = (left, top, left + width, top + height)
    method = {"cubic": Image.Resampling.BICUBIC, "linear": Image.Resampling.BILINEAR}[interpolation]
    expected = [
        Image.fromarray(channel).resize((30, 24), method, corners)
        for channel in image.transpose(2, 0, 1)
    ]
    got = resized_crop(jnp.asarray(image), jnp.asarray(box), interpolation)
    np.testing.assert_allclose(got, np.stack(expected, -1), atol=1e-4)


def test_resized_crop_of_the_whole_image_is_the_image():
    x, y = views(AugmentConfig(crop_scale=(1.0, 1.0)))
    np.testing.assert_allclose(y, x, rtol=1e-6)


def test_crops_have_the_area_and_the_ratio_asked_for():
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.vmap(functools.partial(draw_crop, size=(224, 224), scale=(0.3, 0.6)))
    top, left, height, width = np.asarray(draw(keys)).T
    area, ratio = height * width / 224**2, np.log(width / height)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 224).all() and (left + width <= 224).all()
    assert 0.295 < area.min() < 0.31 and 0.59 < area.max() < 0.605
    assert abs(area.mean() - 0.45) < 0.01 and abs(ratio.mean()) < 0.01
    assert -0.3 < ratio.min() < -0.27 and 0.27 < ratio.max() < 0.3  # log(4 / 3) is 0.288
    # Places are spread evenly over what is left of the image.
    room = top / np.maximum(224 - height, 1)
    assert abs(room.mean() - 0.5) < 0.03 and room.min() < 0.02 and room.max() > 0.98


def test_boxes_that_do_not_fit_are_drawn_again():
    """Of almost the whole area, most boxes of another ratio are too long."""
    keys = jax.random.split(jax.random.key(0), 1000)
    draw = jax.vmap(functools.partial(draw_crop, size=(224, 224), scale=(0.9, 1.0)))
    top, left, height, width = np.asarray(draw(keys)).T
    assert (top + height <= 224).all() and (left + width <= 224).all()
    assert (height * width / 224**2).min() > 0.89
    assert (height * width == 224**2).mean() < 0.2  # in ten tries, not often none fits


@pytest.mark.parametrize(("size", "box"), [((40, 10), (13, 0, 13, 10)), ((9, 9), (0, 0, 9, 9))])
def test_where_no_box_fits_the_centre_is_taken(size, box):
    """No box with all the area of so long an image has the ratio; none of double area fits."""
    scale = (1.0, 1.0) if size == (40, 10) else (2.0, 2.0)
    assert tuple(np.asarray(draw_crop(jax.random.key(0), size, scale))) == box


def test_resized_crops_differ_by_image_and_stay_finite():
    x = jnp.asarray(np.repeat(pixels(1), 64, 0), jnp.float32)
    y = np.asarray(augment_jit(x, jax.random.key(2), config=PHOTO))
    assert y.shape == x.shape and np.isfinite(y).all()
    assert len({image.tobytes() for image in y}) > 16  # of so few pixels not many boxes can be cut
    np.testing.assert_array_equal(augment_jit(x, jax.random.key(2), config=PHOTO), y)


def test_a_key_per_image_makes_its_view_whatever_is_beside_it():
    x, keys = jnp.asarray(pixels(8), jnp.float32), jax.random.split(jax.random.key(3), 8)
    every = augment(x, keys, BOTH)
    some = jnp.asarray([5, 2])
    np.testing.assert_array_equal(augment(x[some], keys[some], BOTH), every[some])
    np.testing.assert_array_equal(augment(x, jax.random.key(3), BOTH), every)  # it is split


@pytest.mark.parametrize("config", [BOTH, PHOTO])
def test_jit_equals_eager_and_key_matters(config):
    x, y = views(config)
    np.testing.assert_allclose(augment(x, jax.random.key(1), config), y, rtol=1e-5, atol=1e-4)
    assert not np.allclose(augment(x, jax.random.key(2), config), y, atol=1.0)


@pytest.mark.parametrize("config", [BOTH, PHOTO])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, EXPLICIT])
def test_same_on_one_and_on_eight_devices(axis_type, config):
    x, expected = views(config)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))

    @jax.jit
    def step(images, key):
        images = normalise(images, MEAN, STD)
        return augment(images, key, config)

    y = step(sharded, jax.random.key(1))
    assert y.sharding.spec[0] == "data" and len(y.sharding.device_set) == 8
    np.testing.assert_array_equal(y, step(x, jax.random.key(1)))
    plain = functools.partial(augment, config=config)
    np.testing.assert_array_equal(jax.jit(plain)(sharded, jax.random.key(1)), expected)
