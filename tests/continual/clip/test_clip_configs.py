"""The configs of CLIP ViT-B/16: the published numbers, and their whole path on tiny data.

From an archive like the original to a summary, with the weights of a small CLIP on disk. Only sizes
differ from the configs'.
"""

import ast
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
from jaxpmi.continual.run import num_replay_images
from jaxpmi.data import builders
from jaxpmi.sharding import make_mesh

tfds.disable_progress_bar()
ROOT = Path(__file__).parents[3]
NAMES = ("clip_cifar100", "clip_imagenet_r", "clip_cub")
WEIGHTS = ROOT / "tests/golden/hugging_face_gelu"  # 12 x 12 pixels, texts of 20 tokens
SMALL = f"""--clip.weights {WEIGHTS} --clip.adapter-rank 4 --data.image-size 12 --data.num-tasks 2
  --data.class-order None --clip.train.epochs 1 --clip.train.batch-size 4
  --clip.train.replay-batch-size 4 --cfs.num-epochs 1 --inversion.batch-size 8
  --inversion.images-per-task 8 --inversion.per-layer.num-steps 2
  --inversion.per-layer.coarse-to-fine-steps 4 --inversion.full-model.num-steps 2
  --clip.name-only.images-per-class 2 --clip.name-only.epochs 1
  --clip.name-only.num-neighbours 2""".split()


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
    train, inversion, features = config.clip.train, config.inversion, config.cfs
    assert (train.epochs, train.batch_size, train.replay_batch_size) == (epochs, 64, 64)
    assert (train.learning_rate, train.weight_decay, train.warmup_steps) == (1e-3, 0.0, 30)
    assert (train.ce_weight, train.hkd_weight) == (1.0, hkd)
    assert (train.tkd_weight, train.ft_weight) == (tkd, ft)
    assert config.clip.templates == (prompt,)
    assert (config.clip.num_experts, config.clip.adapter_rank) == (2, 64)
    assert (features.num_blocks, features.learning_rate, features.num_epochs) == (2, 1e-2, 200)
    assert (features.temperature, features.num_rounds, features.keep_rate) == (1.0, 5, keep)
    assert features.oversampling == boost
    assert inversion.space == "patch_embeddings"
    layers, full = inversion.per_layer, inversion.full_model
    assert (layers.start, layers.num_steps, layers.learning_rate) == ("gaussian", 200, 0.1)
    assert math.isclose(layers.statistics_weight, 15 * alpha)
    assert (layers.coarse_to_fine_steps, layers.coarse_to_fine_iterate) == (1200, "last")
    assert (full.num_steps, full.learning_rate, full.warmup_steps) == (600, rate, 0)
    assert (full.schedule, full.schedule_steps, full.iterate) == ("cosine", 2000, "last")
    assert full.statistics_weight == alpha
    assert (full.total_variation_weight, full.total_variation_norm) == (0.005, "l2")
    assert not (layers.boost_weights or full.boost_weights) and inversion.batch_size == 40


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_sound_is_not_taken_over(name):
    """Of what docs/methods/clip.md calls a mistake the configs keep the defaults."""
    config, default = config_of(name), load_config(None)
    for field in ("statistics_axis", "layer_statistics", "merge_head_statistics"):
        assert getattr(config.clip, field) == getattr(default.clip, field)
    for field in ("schedule", "schedule_epochs", "teacher_texts"):
        assert getattr(config.clip.train, field) == getattr(default.clip.train, field)
    assert config.cfs.moment_match == "sound" and not config.clip.refresh_old_classes


@pytest.mark.parametrize("name", NAMES)
def test_the_options_of_the_first_lines_are_understood_together(name):
    found = re.findall(r"""(--\w+\.[\w.-]+)(?: ([\w.]+|"[^"]+"))?""", docstring_of(name))
    options = [part.strip('"') for pair in found for part in pair if part]
    validate(load_config(ROOT / f"configs/{name}.py", options))
    assert len(found) == {"clip_cifar100": 11, "clip_imagenet_r": 7, "clip_cub": 2}[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_lines_say_how_much_is_replayed(name):
    config, text = config_of(name), " ".join(docstring_of(name).split())
    per_task = len(config.data.class_order) // config.data.num_tasks
    counts = {t: num_replay_images(config, t) for t in range(1, config.data.num_tasks)}
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
    assert data.num_tasks == 10 and data.image_size == 224
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
    assert (settings.num_neighbours, settings.average, settings.text_share) == (5, True, 0.1)
    assert (settings.match, settings.learning_rate) == ("directions", 5e-4)


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
OPEN = ("--continual.num-unseen-classes", "2")
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
