import json

import numpy as np
import pytest

from jaxpmi.weights.preprocessing import Preprocessing
from jaxpmi.weights.preprocessing import read_preprocessing

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def read(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return read_preprocessing(folder)


def normalised(images, pixel):
    """As the network is given a pixel of 0 to 255."""
    return (pixel / 255 - images.mean[0]) / images.std[0]


def test_nothing_is_known_of_an_empty_folder(tmp_path):
    assert read_preprocessing(tmp_path) == Preprocessing()


@pytest.mark.parametrize(
    ("fields", "of_black", "of_white"),
    [
        (HALF, -1.0, 1.0),
        ({**HALF, "rescale_factor": 1 / 127.5}, -1.0, 3.0),
        ({**HALF, "rescale_factor": 1 / 127.5, "rescale_offset": True}, -3.0, 1.0),
        ({**HALF, "do_normalize": False}, 0.0, 1.0),
        ({"image_mean": [127.5] * 3, "image_std": [127.5] * 3, "do_rescale": False}, -1.0, 1.0),
    ],
)
def test_pixels_are_what_transformers_would_make_of_them(tmp_path, fields, of_black, of_white):
    images = read(tmp_path, preprocessor_config=fields)
    np.testing.assert_allclose([normalised(images, p) for p in (0, 255)], [of_black, of_white])


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"size": 224}, 224),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 224),
        ({"size": 256, "crop_size": 224, "do_center_crop": False}, 256),
        ({"size": {"height": 384, "width": 384}}, 384),
        ({}, None),
    ],
)
def test_the_size_is_that_of_the_crop(tmp_path, fields, size):
    assert read(tmp_path, preprocessor_config={**HALF, **fields}).image_size == size


def test_files_fill_each_other_up(tmp_path):
    timm = {"mean": [0.1] * 3, "std": [0.2] * 3, "input_size": [3, 160, 160]}
    config = {"architecture": "resnet50", "pretrained_cfg": timm, "id2label": {"1": "b", "0": "a"}}
    images = read(tmp_path, preprocessor_config=HALF, config=config)
    assert (images.mean, images.image_size, images.class_names) == ((0.5,) * 3, 160, ("a", "b"))
    assert images.architecture == "resnet50"
    assert images.source == "preprocessor_config.json and config.json"
    timm |= {"label_names": ["n1", "n2"], "label_descriptions": {"n2": "a dog"}}
    assert read(tmp_path, config={"pretrained_cfg": timm}).class_names == ("n1", "a dog")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config", "[]", "config.json holds a list, not a JSON object"),
        ("config", "{", "config.json is no JSON file"),
        ("preprocessor_config", '{"image_mean": [1, 2], "image_std": 1}', "2 values per pixel"),
        (
            "preprocessor_config",
            '{"image_mean": [0], "image_std": [1], "size": {"height": 1, "width": 2}}',
            "not square",
        ),
        ("config", '{"pretrained_cfg": {"input_size": [3, 2, 4]}}', "images of 2 x 4 pixels"),
        ("config", '{"id2label": {"a": "b"}}', "in a way that is not known"),
    ],
)
def test_what_cannot_be_followed_is_told(tmp_path, name, content, message):
    (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_preprocessing(tmp_path)


def test_a_byte_order_mark_is_no_letter(tmp_path):
    (tmp_path / "preprocessor_config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(HALF).encode())
    assert read_preprocessing(tmp_path).mean == (0.5,) * 3
