"""The golden files are made by tests/golden/zoo/make.py; no test needs the libraries it uses."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxpmi
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.blocks.blockwise import forward
from jaxpmi.models import MODELS
from jaxpmi.weights import zoo
from jaxpmi.weights.preprocessing import Preprocessing
from jaxpmi.weights.stored_tensors import StoredTensors
from jaxpmi.weights.zoo_names import all_names

GOLDEN = Path(__file__).parents[1] / "golden" / "zoo"
HALF = (0.5,) * 3
EVERY = sorted(path.stem for path in GOLDEN.glob("*.npz"))
# The rest take longer; each of their blocks is in one of these.
FAST = [
    "torchvision_resnet18",
    "timm_resnet50",
    "torchvision_vgg11",
    "timm_deit_small",
    "transformers_mobilenet_v2",
]


@functools.cache
def drawn():
    spec = importlib.util.spec_from_file_location("drawn", GOLDEN / "drawn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden(name):
    """What a library computed, and the state dict that it computed with."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        expected = dict(arrays)
    return expected, drawn().state_dict(expected["names"], expected["shapes"])


def in_memory(tensors):
    shapes = {name: np.shape(tensor) for name, tensor in tensors.items()}
    return StoredTensors(Path("model.safetensors"), shapes, tensors.__getitem__, "")


def read(tensors, size=64):
    """As `load_weights` does once the file is open."""
    stored = in_memory(tensors)
    names = zoo._choose(stored, None).names
    images = Preprocessing(HALF, HALF, size)
    network, config = zoo._read(stored, names, images, lambda line: None)
    return network, config, names


def difference(got, want):
    return np.max(np.abs(np.asarray(got) - want)) / max(np.max(np.abs(want)), 1e-3)


def check_parity(name):
    expected, tensors = golden(name)
    network, _, names = read(tensors)
    images = drawn().images(int(expected["size"]), int(expected["seed"])).transpose(0, 2, 3, 1)

    def loss(x):
        out = forward(network.model, network.variables, x)
        logits = network.head(out.features)
        return (logits * drawn().cotangent(logits.shape)).sum(), (logits, out.moments)

    (_, (logits, moments)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(images)
    assert difference(logits, expected["logits"]) < 1e-4
    assert difference(np.asarray(gradient).ravel()[::37], expected["input_gradient"]) < 1e-4
    layers = {
        stored: (block_name(i), ours)
        for i, block in enumerate(names.blocks)
        for ours, stored in block.items()
    }
    kept = [key.removeprefix("moments/") for key in expected if key.startswith("moments/")]
    for key in kept:
        block, layer = layers[key]
        got = np.stack(moments[block][layer])[:, : expected[f"moments/{key}"].shape[1]]
        assert difference(got, expected[f"moments/{key}"]) < 1e-4, key
    num_norms = sum(len(own) for own in moments.values())
    assert len(kept) == (0 if names.architecture.startswith("vit") else num_norms)


@pytest.mark.parametrize("name", FAST)
def test_logits_moments_and_input_gradients_are_those_of_the_library(name):
    check_parity(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(EVERY) - set(FAST)))
def test_they_are_of_every_other_network_too(name):
    check_parity(name)


@pytest.mark.parametrize("name", EVERY)
def test_every_network_is_recognised_by_its_names(name):
    expected, tensors = golden(name)
    del expected
    choice = zoo._choose(in_memory(tensors), None)
    library, _, kind = name.partition("_")
    kind = kind.removesuffix("_in_memory").replace("mobilenet_v2", "mobilenet")
    assert library in choice.names.library and choice.share == 1.0
    wanted = {"deit_small": "vit_patch16", "vit_base": "vit_patch16", "vit_small": "vit_patch16"}
    wanted |= {"vit_base_patch32": "vit_patch32"}
    assert wanted.get(kind, kind) in choice.names.architecture


def test_every_table_names_a_built_in_network_once():
    tables = all_names()
    assert {names.architecture for names in tables} <= set(MODELS)
    assert len({frozenset(names.layers()) | {names.patch} for names in tables}) == len(tables)


# Files and folders.


@functools.cache
def small():
    """MobileNetV2's weights, the smallest."""
    return golden("torchvision_mobilenet_v2")[1]


@pytest.fixture
def folder(tmp_path):
    """Writes a folder as Hugging Face and timm have them."""

    def write(tensors, **files):
        save_file(tensors, tmp_path / "model.safetensors")
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


IMAGENET = {"mean": jaxpmi.IMAGENET_MEAN, "std": jaxpmi.IMAGENET_STD}


def equal(network, other):
    for got, want in zip(jax.tree.leaves(network), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_lone_file_needs_its_preprocessing_to_be_given(folder):
    path, said = folder(small()) / "model.safetensors", []
    with pytest.raises(ValueError, match=r"how its images are normalised; give mean and std .*485"):
        jaxpmi.load_weights(path)
    network = jaxpmi.load_weights(path, **IMAGENET, say=said.append)
    assert network.image_shape == (224, 224, 3) and network.class_names == tuple("0123456789")
    np.testing.assert_allclose(network.mean, jaxpmi.IMAGENET_MEAN)
    (line,) = said
    assert "mobilenet_v2, 10 classes (0, ..., 9), images 224 x 224 x 3, mean [0.485, " in line
    assert "(as given)" in line
    equal(network, read(small(), 224)[0].replace(mean=network.mean, std=network.std))


def test_what_a_folder_of_transformers_says_is_taken(folder):
    images = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "do_center_crop": True}
    images |= {"crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 72}}
    labels = {str(i): f"class {i}" for i in range(10)}
    path = folder(small(), preprocessor_config=images, config={"id2label": labels})
    network = jaxpmi.load_weights(path, say=lambda line: None)
    assert network.image_shape == (64, 64, 3) and network.class_names == tuple(labels.values())
    np.testing.assert_allclose(network.mean, [0.5, 0.4, 0.3])
    given = jaxpmi.load_weights(path, mean=HALF, std=HALF, image_size=96, say=lambda line: None)
    assert given.image_shape == (96, 96, 3)
    np.testing.assert_allclose(given.mean, HALF)


def test_what_lies_beside_a_file_of_another_name_is_not_taken(folder):
    images = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    path = folder(small(), preprocessor_config=images) / "model.safetensors"
    with pytest.raises(ValueError, match="how its images are normalised"):
        jaxpmi.load_weights(path.rename(path.with_name("mobilenet.safetensors")))


def test_what_timm_says_is_taken(folder):
    timm = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 32, 32]}
    path = folder(small(), config={"architecture": "mobilenetv2_100", "pretrained_cfg": timm})
    network = jaxpmi.load_weights(path, say=lambda line: None)
    assert network.image_shape == (32, 32, 3)
    np.testing.assert_allclose(network.std, [0.4, 0.5, 0.6])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.backbone."])
def test_a_prefix_of_all_names_is_taken_off_and_said(folder, prefix):
    said = []
    path = folder({prefix + name: tensor for name, tensor in small().items()})
    network = jaxpmi.load_weights(path, **IMAGENET, say=said.append)
    assert f"all names without '{prefix}'" in said[0]
    equal(network, jaxpmi.load_weights(folder(small()), **IMAGENET, say=said.append))


def test_half_precision_is_read_as_f32(folder):
    half = {n: t if t.ndim == 0 else t.astype(np.float16) for n, t in small().items()}
    network = jaxpmi.load_weights(folder(half), **IMAGENET, say=lambda line: None)
    assert {leaf.dtype for leaf in jax.tree.leaves(network)} == {np.dtype(np.float32)}


def test_a_thousand_classes_are_those_of_imagenet(folder):
    tensors = dict(small())
    tensors["classifier.1.weight"] = np.zeros((1000, 1280), np.float32)
    tensors["classifier.1.bias"] = np.zeros(1000, np.float32)
    network = jaxpmi.load_weights(folder(tensors), **IMAGENET, say=lambda line: None)
    assert network.class_names == jaxpmi.imagenet_class_names()
    with pytest.raises(ValueError, match="a classifier of 1000 classes, but 2 class names are"):
        jaxpmi.load_weights(folder(tensors), **IMAGENET, class_names=["a", "b"])


def test_the_nearest_architecture_is_named_in_a_short_sentence(folder):
    tensors = {n: t for n, t in small().items() if not n.startswith("features.17.")}
    with pytest.raises(ValueError) as caught:
        jaxpmi.load_weights(folder(tensors), **IMAGENET)
    message = str(caught.value)
    assert "no network that is known; the nearest is mobilenet_v2 in torchvision's names" in message
    assert "it lacks features.17.conv.0.0, " in message and len(message) < 400
    with pytest.raises(ValueError, match="is of no vgg16; the nearest is vgg16|tensors .* are not"):
        jaxpmi.load_weights(folder(small()), "vgg16", **IMAGENET)
    with pytest.raises(ValueError, match=r"its 300 tensors \(a0.weight, .* with set_tensors"):
        jaxpmi.load_weights(
            folder({f"a{i}.weight": np.zeros(2, np.float32) for i in range(300)}), **IMAGENET
        )
    with pytest.raises(ValueError, match="architecture='vgg19' is unknown; did you mean 'vgg1"):
        jaxpmi.load_weights(folder(small()), "vgg19", **IMAGENET)
    with pytest.raises(ValueError, match="plain_cnn has no table of names"):
        jaxpmi.load_weights(folder(small()), "plain_cnn", **IMAGENET)


def test_a_distilled_deit_is_refused_by_its_second_token(folder):
    _, tensors = golden("timm_deit_small")
    tensors |= {"dist_token": np.zeros((1, 1, 384), np.float32)}
    with pytest.raises(ValueError, match="nearest is vit_patch16 in timm's .* also has dist_token"):
        jaxpmi.load_weights(folder(tensors), mean=HALF, std=HALF)


def test_a_config_that_computes_otherwise_is_refused(folder):
    path = folder(small(), config={"model_type": "resnet", "downsample_in_bottleneck": True})
    with pytest.raises(ValueError, match="downsample_in_bottleneck = True, but only False is"):
        jaxpmi.load_weights(path, **IMAGENET)
    path = folder(
        small(), config={"model_type": "vit", "hidden_size": 64, "num_attention_heads": 4}
    )
    with pytest.raises(ValueError, match="4 heads for a width of 64, but only heads of 64"):
        jaxpmi.load_weights(path, **IMAGENET)


def test_positions_are_interpolated_for_images_of_another_size_and_that_is_said(folder):
    _, tensors = golden("timm_deit_small")
    said = []
    network = jaxpmi.load_weights(
        folder(tensors), mean=HALF, std=HALF, image_size=96, say=said.append
    )
    assert said[0] == "positions of 4 x 4 patches are interpolated to 6 x 6"
    positions = np.asarray(network.variables.params["block01"]["positions"])
    stored = tensors["pos_embed"][0]
    np.testing.assert_array_equal(positions[0], stored[0])
    # The mean over the image stays where it was, and a plane stays a plane but at its rims.
    np.testing.assert_allclose(positions[1:].mean(0), stored[1:].mean(0), atol=0.03)
    same = jaxpmi.load_weights(folder(tensors), mean=HALF, std=HALF, image_size=64, say=said.append)
    np.testing.assert_array_equal(same.variables.params["block01"]["positions"], stored)


def test_a_network_of_ours_is_read_too_and_keeps_its_own_images(tmp_path):
    small_resnet = functools.partial(MODELS["resnet_small"], width=4)
    network = jaxpmi.init_network(
        small_resnet, jax.random.key(0), (8, 8, 1), ("a", "b"), mean=(0.5,), std=(0.5,)
    )
    path, said = tmp_path / "network.npz", []
    jaxpmi.save_network(path, network, jaxpmi.ModelConfig("resnet_small", 4))
    equal(jaxpmi.load_weights(path, say=said.append), network)
    assert "resnet_small, 2 classes (a, ..., b), images 8 x 8 x 1" in said[0]
    with pytest.raises(ValueError, match="is of resnet_small, not of vgg11"):
        jaxpmi.load_weights(path, "vgg11")
    with pytest.raises(ValueError, match="has its own mean, std; leave them out"):
        jaxpmi.load_weights(path, **IMAGENET)
