"""Scenes made of the embedded digits: which digits, where, on what."""

import numpy as np
import pytest

from jaxpmi.config import DataConfig
from jaxpmi.data import digit_scenes
from jaxpmi.data import open_scenes
from jaxpmi.data import open_source
from jaxpmi.data.digit_scenes import STROKE
from jaxpmi.data.digit_scenes import lay_out


def opened(mode="classes", scene_size=(32, 32), num_train=80, num_classes=None, **constants):
    """Scenes of a source whose constants, such as `NUM_TEST`, are others."""
    config = DataConfig(
        source="digit_scenes",
        scene_tasks=mode,
        scene_size=scene_size,
        num_scenes=num_train,
        num_classes=num_classes,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ({"NUM_TEST": 40} | constants).items():
            patch.setattr(digit_scenes, name, value)
        return open_scenes(config)


def every(source, split="train"):
    scenes = source.read(split, np.arange(source.size(split)))
    return scenes[..., 0].astype(int), scenes[..., 1]


def test_what_a_source_of_scenes_says():
    source = opened(scene_size=(32, 48))
    assert source.image_shape == (32, 48, 1) and source.num_classes == 11
    assert source.class_names[:2] == ("background", "zero") and source.has_background
    assert source.size("train") == 80 and source.size("test") == 40
    scenes = source.read("test", np.array([3, 3, 0]))
    assert scenes.shape == (3, 32, 48, 2) and scenes.dtype == np.uint8
    np.testing.assert_array_equal(scenes[0], scenes[1])


def test_scenes_are_the_same_at_every_opening_and_differ_by_split():
    first, second = opened(), opened()
    np.testing.assert_array_equal(every(first)[0], every(second)[0])
    assert (first.shows("train")[:40] != first.shows("test")).any(axis=1).mean() > 0.9


def test_classes_are_equally_frequent():
    source = opened(num_train=2000, NUM_TEST=2000)
    for split in ("train", "test"):
        shares = source.shows(split)[:, 1:].mean(axis=0)
        np.testing.assert_allclose(shares, 1 - 0.9**3, atol=0.05)  # 5 standard deviations


def test_digits_may_be_drawn_from_the_first_few():
    source = opened(num_classes=4)
    assert source.class_names == ("background", "zero", "one", "two", "three")
    for split in ("train", "test"):
        np.testing.assert_array_equal(np.unique(every(source, split)[1]), np.arange(5))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_scene_shows_one_digit_of_its_own_split(split):
    """With one digit that fills the scene, the scene is that digit: it must be one of its split."""
    source = opened(scene_size=(28, 28), NUM_DIGITS=1, DIGIT_SIZE=28)
    digits = open_source(DataConfig())
    known = {
        each: {
            (image.tobytes(), int(label))
            for image, label in zip(digits.read(each, np.arange(len(labels))), labels, strict=True)
        }
        for each, labels in digits.labels.items()
    }
    other = "test" if split == "train" else "train"
    grey, labels = every(source, split)
    for image, own in zip(grey.astype(np.uint8), labels, strict=True):
        drawn = (image.tobytes(), int(own.max()) - 1)
        assert drawn in known[split] and drawn not in known[other]
        np.testing.assert_array_equal(own > 0, image >= STROKE)


def test_labels_are_where_the_strokes_are():
    for split in ("train", "test"):
        grey, labels = every(opened(), split)
        np.testing.assert_array_equal(labels > 0, grey >= STROKE)
        assert labels.max() <= 10 and (labels > 0).any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("scene_size", "num_digits", "side"), [((32, 32), 3, 14), ((28, 45), 6, 14), ((9, 50), 5, 9)]
)
def test_boxes_lie_inside_and_do_not_overlap(scene_size, num_digits, side):
    labels = np.repeat(np.arange(10), 5)
    random = np.random.RandomState(0)
    layout = lay_out(labels, 500, scene_size, random, num_digits=num_digits, side=side)
    covered = np.zeros((500, *scene_size), int)
    for tops, lefts in zip(layout.tops.T, layout.lefts.T, strict=True):
        for scene, (top, left) in enumerate(zip(tops, lefts, strict=True)):
            assert top >= 0 and left >= 0
            covered[scene, top : top + side, left : left + side] += 1
    assert covered.max() == 1
    assert (covered.sum(axis=(1, 2)) == num_digits * side**2).all()
    if side < scene_size[0]:
        assert covered.any(axis=0).all()  # a digit may be anywhere
    used = np.bincount(layout.digits.ravel(), minlength=len(labels))
    assert (used > 0).all()  # every digit of the split has its turn


def test_domains_are_grounds_that_take_turns():
    source, plain = opened("domains"), opened()
    assert source.domain_names == ("black", "white", "noise", "stripes")
    assert plain.domain_names == ("black",) and not plain.domains["train"].any()
    np.testing.assert_array_equal(source.domains["train"], np.arange(80) % 4)
    (grey, labels), (strokes, plain_labels) = every(source), every(plain)
    np.testing.assert_array_equal(labels, plain_labels)
    np.testing.assert_array_equal(grey[0::4], strokes[0::4])
    np.testing.assert_array_equal(grey[1::4], 255 - strokes[1::4])
    for domain in (2, 3):  # strokes stay on the ground, which is nowhere brighter than 100
        own, drawn = grey[domain::4], strokes[domain::4]
        assert (own >= drawn).all() and own[drawn == 0].max() <= 100
        np.testing.assert_array_equal(own[drawn > 100], drawn[drawn > 100])
    assert len(np.unique(grey[2::4][strokes[2::4] == 0])) == 101
    stripes = np.where(strokes[3::4] == 0, grey[3::4], -1)
    assert set(np.unique(stripes)) == {-1, 0, 100}
    free = (stripes[:, 1:, :-1] >= 0) & (stripes[:, :-1, 1:] >= 0)  # both of an anti-diagonal
    np.testing.assert_array_equal(stripes[:, 1:, :-1][free], stripes[:, :-1, 1:][free])


def test_digits_that_do_not_fit_are_an_error():
    assert opened(NUM_DIGITS=4, DIGIT_SIZE=16).size("train") == 80  # fills the scene
    with pytest.raises(ValueError, match="5 digits of 16x16 pixels .* room for 4 without overlap"):
        opened(NUM_DIGITS=5, DIGIT_SIZE=16)
    with pytest.raises(ValueError, match="fit a scene of 32x32, which has room for 0"):
        opened(NUM_DIGITS=1, DIGIT_SIZE=33)
