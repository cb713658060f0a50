"""The configs of CLIP ViT-B/16: the published numbers, and their whole path on tiny data.

From an archive like the original to a summary, with the weights of a small CLIP on disk. Only sizes
differ from the configs'.
"""

import ast
import dataclasses
import inspect
import math
import re
from pathlib import Path

import fake_archives
import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxpmi import experiment
from jaxpmi.config.check import validate
from jaxpmi.config.load import load_config
from jaxpmi.continual.clip import start as clip_start
from jaxpmi.continual.clip.task import NUM_NEIGHBOURS
from jaxpmi.continual.clip.variants import CLIP_VARIANTS
from jaxpmi.continual.run import num_replay_images
from jaxpmi.data import builders
from jaxpmi.features import cfs
from jaxpmi.features.projection import project_features
from jaxpmi.inversion.variants import inversion_variant
from jaxpmi.models.clip import init_clip_adapters
from jaxpmi.sharding import make_mesh

tfds.disable_progress_bar()
ROOT = Path(__file__).parents[3]
NAMES = ("clip_cifar100", "clip_imagenet_r", "clip_cub")
WEIGHTS = ROOT / "tests/golden/hugging_face_gelu"  # 12 x 12 pixels, texts of 20 tokens
SMALL = f"""--model.weights {WEIGHTS} --data.image-size 12 --data.tasks 2
  --data.class-order None --train.epochs 1 --train.batch-size 4
  --train.replay-batch-size 4 --cfs.num-epochs 1 --inversion.batch-size 8
  --inversion.images-per-task 8 --inversion.per-layer.num-steps 2
  --inversion.per-layer.coarse-to-fine-steps 4 --inversion.full-model.num-steps 2
  --clip.name-only.images-per-class 2 --clip.name-only.epochs 1""".split()


def config_of(name, *options):
    return load_config(ROOT / f"configs/{name}.py", options)


def docstring_of(name):
    return ast.get_docstring(ast.parse((ROOT / f"configs/{name}.py").read_text()))


# The published numbers: epochs, alpha_rf, full rate, hkd, tkd, ft, boost, r, prompt.
TABLE = {
    "clip_cifar100": (3, 0.002, 0.01, 0.1, 0.2, 0.001, 20, 0.5, "a bad photo of a {}."),
    "clip_imagenet_r": (3, 0.002, 0.01, 0.1, 0.2, 0.001, 50, 0.2, "itap of a {}."),
    "clip_cub": (10, 0.2, 0.02, 0.1, 0.1, 0.1, 20, 0.5, "a bad photo of a {}."),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_the_published_ones(name):
    config = config_of(name)
    epochs, alpha, rate, hkd, tkd, ft, boost, keep, prompt = TABLE[name]
    train, weights, inversion, features = config.train, config.losses, config.inversion, config.cfs
    assert (train.epochs, train.batch_size, train.replay_batch_size) == (epochs, 64, 64)
    assert (train.learning_rate, train.weight_decay, train.warmup_steps) == (1e-3, 0.0, 30)
    assert (weights.ce_weight, weights.hkd_weight) == (1.0, hkd)
    assert (weights.tkd_weight, weights.ft_weight, weights.joint_weight) == (tkd, ft, 0.0)
    assert config.clip.templates == (prompt,)
    assert (features.learning_rate, features.num_epochs) == (1e-2, 200)
    assert (features.num_rounds, features.keep_rate, features.oversampling) == (5, keep, boost)
    variant, layers, full = inversion_variant(inversion), inversion.per_layer, inversion.full_model
    assert variant.first_block == 1 and variant.covariance == "diagonal"
    assert (layers.start, layers.num_steps, layers.learning_rate) == ("gaussian", 200, 0.1)
    assert math.isclose(layers.statistics_weight, 15 * alpha)
    assert (layers.coarse_to_fine_steps, variant.iterate) == (1200, "last")
    assert (full.num_steps, full.learning_rate, variant.warmup_steps) == (600, rate, 0)
    assert (variant.schedule, variant.schedule_steps) == ("cosine", 2000)
    assert full.statistics_weight == alpha
    assert (full.total_variation_weight, variant.total_variation_norm) == (0.005, "l2")
    assert not variant.boost_weights and inversion.batch_size == 40


def test_adapters_and_feature_models_are_of_the_published_size():
    """They are no settings."""
    default = {
        name: parameter.default
        for function in (init_clip_adapters, cfs.init, cfs.fit)
        for name, parameter in inspect.signature(function).parameters.items()
    }
    assert (default["num_experts"], default["rank"]) == (2, 64)
    assert (default["num_blocks"], default["batch_size"], default["temperature"]) == (2, 64, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_sound_is_not_taken_over(name):
    """Of what docs/methods/clip.md calls a mistake the configs keep nothing."""
    assert config_of(name).clip.variant == "corrected"
    corrected, published = CLIP_VARIANTS["corrected"], CLIP_VARIANTS["published"]
    same = ("refresh_old_classes", "name_average", "name_pivot", "name_match")
    for field, value in dataclasses.asdict(corrected).items():
        assert (value == getattr(published, field)) == (field in same), field


@pytest.mark.parametrize("name", NAMES)
def test_the_options_of_the_first_lines_are_understood_together(name):
    found = re.findall(r"""(--\w+\.[\w.-]+)(?: ([\w.]+|"[^"]+"))?""", docstring_of(name))
    options = [part.strip('"') for pair in found for part in pair if part]
    validate(load_config(ROOT / f"configs/{name}.py", options))
    assert len(found) == {"clip_cifar100": 6, "clip_imagenet_r": 7, "clip_cub": 2}[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_lines_say_how_much_is_replayed(name):
    config, text = config_of(name), " ".join(docstring_of(name).split())
    per_task = len(config.data.class_order) // config.data.tasks
    counts = {t: num_replay_images(config, t) for t in range(1, config.data.tasks)}
    most = max(math.ceil(count / (per_task * t)) for t, count in counts.items())
    boost = config.cfs.oversampling
    assert re.search(rf"up to {most} \D*, out of {boost * most} drawn by CFS, not 5 out of", text)
    assert f"not 5 out of {5 * boost}." in text
    sample = 14 * 14 * 768 * 4 / 1e6  # MB
    total = max(counts.values()) * sample / 1e3
    assert f"takes {sample:.1f} MB a sample, {total:.1f} GB before the last task" in text


@pytest.mark.parametrize("name", NAMES)
def test_the_classes_are_split_as_published(name):
    data = config_of(name).data
    num_classes = 100 if name == "clip_cifar100" else 200
    assert data.tasks == 10 and data.image_size == 224
    assert data.class_order == tuple(np.random.RandomState(1993).permutation(num_classes))
    assert config_of(name).inversion.images_per_task == 5 * num_classes // 10
    assert data.augment.crop_scale == (0.9, 1.0) and not data.augment.flip


# The open-set columns: per class n, passes over the images.
@pytest.mark.parametrize(
    ("name", "images", "epochs"), [("clip_cifar100", 20, 10), ("clip_imagenet_r", 10, 50)]
)
def test_the_open_set_is_the_published_one(name, images, epochs):
    settings = config_of(name).clip.name_only
    assert (settings.images_per_class, settings.epochs) == (images, epochs)
    variant = CLIP_VARIANTS[config_of(name).clip.variant]
    assert (NUM_NEIGHBOURS, variant.name_average, variant.name_pivot) == (5, True, "text")
    assert (variant.name_match, settings.learning_rate) == ("directions", 5e-4)
    assert inspect.signature(project_features).parameters["text_share"].default == 0.1


def cifar100(folder):
    """Six classes of one training and one test image."""
    return builders.prepare("cifar100", [fake_archives.cifar100_python(folder / "c.tgz")], folder)


def imagenet_r(folder):
    """Four classes of ten photographs of any shape, and a file of names that has a class more."""
    images = folder / "imagenet-r"
    for label, wnid in enumerate(("n01443537", "n01484850", "n01494475", "n01498041")):
        (images / wnid).mkdir(parents=True)
        for i in range(10):
            photo = fake_archives.encoded((60 * label, 20 * i, 90), size=(20 + i, 30))
            (images / wnid / f"art_{i}.jpg").write_bytes(photo)
    lines = ("n01498041 ray", "n01443537 goldfish", "n01440764 tench", "n01494475 shark")
    (folder / "names.txt").write_text("\n".join([*lines, "n01484850 orca"]))
    return builders.prepare("folder", [images], folder, name="imagenet_r")


def cub(folder):
    """Four birds of three photographs."""
    birds = ("001.Red_jay", "002.Owl", "003.Tern", "004.Gull")
    archive = fake_archives.cub200(folder / "CUB_200_2011.tgz", folders=birds)
    return builders.prepare("cub200", [archive], folder)


DATA = {
    "clip_cifar100": (cifar100, {f"fine{i}" for i in range(6)}, ()),
    "clip_imagenet_r": (
        imagenet_r,
        {"goldfish", "orca", "shark", "ray"},
        ("--data.class-names", "names.txt"),
    ),
    "clip_cub": (cub, {"Red jay", "Owl", "Tern", "Gull"}, ()),
}
# Beside two tasks, two classes of which only the name is known: the open-set run.
OPEN = ("--clip.name-only.classes", "2")
# Inversion differs by numbers only, and takes half a minute to compile.
RUNS = [("clip_cifar100", OPEN)]
RUNS += [(name, ("--method", "finetune")) for name in NAMES[1:]]
RUNS += [pytest.param(name, (), marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_the_whole_path_on_tiny_data(name, options, tmp_path, monkeypatch):
    for module in (experiment, clip_start):
        monkeypatch.setattr(module, "make_mesh", lambda: make_mesh(1))
    prepare, class_names, data_options = DATA[name]
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = config_of(name, *SMALL, "--data.path", ".", *data_options, *options)
    assert set(clip_start.open_clip_run(config)[0].stream.class_names) == class_names
    summary = experiment.run(config)
    assert summary["num_tasks"] == 2 and 0 <= summary["last_accuracy"] <= 1
    # Before the second task and, where there are any, before the classes with only a name.
    batches = {(): 1, OPEN: 1 + 2}.get(options, 0)
    assert summary["num_synthesized"] == 8 * batches
    assert ("unseen_classes" in summary) == (options == OPEN)
