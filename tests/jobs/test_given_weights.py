"""`model.weights`: every job on a network that comes from a file."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tiny_run import tiny_config

import jaxpmi
from jaxpmi import experiment
from jaxpmi.config import CmiConfig
from jaxpmi.config import DataConfig
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import DistillConfig
from jaxpmi.config import InvertConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import PruneConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "zoo"
SIZE, CLASSES = 32, 4
PIXELS = ({"mean": (0.4,) * 3, "std": (0.3,) * 3}, {})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A narrow VGG in torchvision's names, with a classifier of four classes."""
    spec = importlib.util.spec_from_file_location("drawn", GOLDEN / "drawn.py")
    drawn = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawn)
    with np.load(GOLDEN / "torchvision_vgg11.npz") as golden:
        tensors = drawn.state_dict(golden["names"], golden["shapes"])
    for name in ("weight", "bias"):
        tensors[f"classifier.6.{name}"] = tensors[f"classifier.6.{name}"][:CLASSES]
    path = tmp_path_factory.mktemp("weights") / "vgg.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture
def config(tmp_path, weights):
    """Grey images of other sizes in a folder per class, which the network takes in colour."""

    def make(method, **changes):
        rng = np.random.default_rng(0)
        for name in "abcd":
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            for i in range(6):
                pixels = rng.integers(0, 256, (20, 24), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
        data = DataConfig(
            source="folder", path=str(tmp_path / "data"), image_size=SIZE, tasks=2,
            mean=(0.4,) * 3, std=(0.3,) * 3,
        )  # fmt: skip
        config = tiny_config(tmp_path, method, model=ModelConfig(weights=str(weights)), **changes)
        return dataclasses.replace(config, data=data)

    return make


def small_inversion():
    return DeepInversionConfig(batch_size=8, stage_steps=(2,))


def file_of(config):
    return jaxpmi.load_network(Path(config.workdir) / "network.npz")


def test_pictures(config, capsys):
    settings = config(
        "deep_inversion", job="invert", invert=InvertConfig(images_per_class=2),
        deep_inversion=small_inversion(),
    )  # fmt: skip
    summary = experiment.run(settings)
    assert summary["num_synthesized"] == 2 * CLASSES and summary["network"] == "vgg11"
    said = capsys.readouterr().out
    assert "vgg.safetensors: vgg11, 4 classes (0, ..., 3), images 32 x 32 x 3, mean [0.4, " in said
    saved = file_of(settings)
    assert saved.image_shape == (SIZE, SIZE, 3) and saved.num_classes == CLASSES
    again = jaxpmi.load_weights(Path(settings.workdir) / "network.npz", say=lambda line: None)
    np.testing.assert_array_equal(again.head.kernel, saved.head.kernel)


@pytest.mark.slow
def test_new_classes_are_learnt_beside_its_own(config):
    settings = config(
        "deep_inversion", job="invert", deep_inversion=small_inversion(),
        invert=InvertConfig(images_per_class=2, learn_data=True, trainable="head"),
    )  # fmt: skip
    summary = experiment.run(settings)
    assert summary["new_classes"] == ["a", "b", "c", "d"]
    assert file_of(settings).class_names == ("0", "1", "2", "3", "a", "b", "c", "d")


def test_distillation_into_a_small_network(config):
    settings = config(
        "deep_inversion", job="distill", deep_inversion=small_inversion(),
        distill=DistillConfig(
            student=ModelConfig("resnet_small", 2), rounds=2, steps_per_round=2, batch_size=8
        ),
    )  # fmt: skip
    summary = experiment.run(settings)
    assert "train" not in (Path(settings.workdir) / "metrics.jsonl").read_text()
    assert summary["parameters"]["teacher"] > 10 * summary["parameters"]["student"]


@pytest.mark.slow
def test_what_is_left_of_a_network_is_pruned_again(config, weights):
    settings, network = config("deep_inversion", deep_inversion=small_inversion()), str(weights)
    data = settings.data
    for i in range(2):
        pruned = dataclasses.replace(
            settings, job="prune", model=ModelConfig(weights=network), data=data,
            workdir=f"{settings.workdir}_{i}",
            prune=PruneConfig(
                share=0.2, num_removals=1, num_images=8, tuning_steps=1, final_steps=0, batch_size=8
            ),
        )  # fmt: skip
        before = count(network)
        experiment.run(pruned)
        network = str(Path(pruned.workdir) / "network.npz")
        assert count(network) < before
        data = dataclasses.replace(data, mean=None, std=None)  # the file has its own


def count(path):
    """Parameters of a network in a file."""
    network = jaxpmi.load_weights(path, say=str, **PIXELS[path.endswith(".npz")])
    return sum(leaf.size for leaf in jax.tree.leaves(network.variables.params))


def test_continual_learning_goes_on_with_its_blocks(config):
    settings = config("finetune")
    summary = experiment.run(settings)
    assert np.isfinite(summary["last_accuracy"])
    saved = file_of(settings)
    np.testing.assert_allclose(saved.mean, [0.4] * 3, rtol=1e-6)
    assert set(saved.class_names) == set("abcd")


def test_a_name_that_contradicts_the_weights_is_refused(config, weights):
    settings = dataclasses.replace(
        config("finetune"), model=ModelConfig("resnet32", weights=str(weights))
    )
    with pytest.raises(ValueError, match="model.name='resnet32', but .* is of vgg11; leave the na"):
        experiment.run(settings)
    settings = dataclasses.replace(settings, model=ModelConfig(weights="no/such.pth"))
    with pytest.raises(FileNotFoundError, match="model.weights='no/such.pth' does not exist; give"):
        experiment.run(settings)
    settings = dataclasses.replace(settings, model=ModelConfig(weights="imagenet"))
    with pytest.raises(ValueError, match="model.weights='imagenet' with model.name='resnet_small'"):
        experiment.run(settings)


def test_images_without_preprocessing_are_refused_before_the_data_are_read(config, tmp_path):
    settings = config("finetune")
    data = dataclasses.replace(settings.data, mean=None, std=None, path=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"\(In a run: data.mean, data.std.\)"):
        experiment.run(dataclasses.replace(settings, data=data))


def test_images_are_brought_to_the_size_that_the_weights_say(config):
    """Where nothing else is set; and a network of CMI's method is one as well."""
    settings = config("finetune")
    settings = dataclasses.replace(
        settings, data=dataclasses.replace(settings.data, image_size=None), cmi=CmiConfig()
    )
    from jaxpmi.continual.start import open_images

    inputs = open_images(settings)
    assert inputs.config.data.image_size == 224 and inputs.config.data.rgb
    assert inputs.sources["data"].image_shape == (224, 224, 3)
    assert inputs.config.model == ModelConfig("vgg11", 8)
