"""Pictures and learning with them, small: classes, files, what is measured, how it resumes."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from html_page import read_page
from PIL import Image
from rows import short_lite
from tiny_run import NUM_CLASSES
from tiny_run import set_up
from tiny_run import tiny_config

from jaxpmi import experiment
from jaxpmi.config import DataConfig
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import InvertConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config.load import load_config
from jaxpmi.data import imagenet_class_names
from jaxpmi.data import imagenet_labels
from jaxpmi.jobs import bootstrap
from jaxpmi.jobs import invert
from jaxpmi.models import MODELS
from jaxpmi.models.init_network import init_network
from jaxpmi.runs import session
from jaxpmi.weights import given
from jaxpmi.weights import network_file
from jaxpmi.weights.network_file import SavedNetwork

SIZE, BATCH = 16, 4


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    set_up(monkeypatch)


def small_imagenet():
    """A network of 1,000 classes in place of the real one, whose weights are random."""
    network = init_network(
        short_lite, jax.random.key(0), (SIZE, SIZE, 3), imagenet_class_names(),
        mean=(0.5,) * 3, std=(0.5,) * 3, head_std=1.0,
    )  # fmt: skip
    bias = jax.random.normal(jax.random.key(1), (1000,))
    network = network.replace(head=network.head._replace(bias=bias))
    return SavedNetwork(network, ModelConfig("short_lite"), None)


def pictures_config(folder, method="deep_inversion", **changes):
    """Three classes of the tiny network, two pictures each, in batches of four."""
    return tiny_config(
        folder,
        method,
        job="invert",
        data__tasks=1,
        deep_inversion=DeepInversionConfig(batch_size=BATCH, stage_steps=(2,), jitter_pixels=1),
        invert=InvertConfig(classes=("0", "2", "5"), images_per_class=2),
        **changes,
    )


def learning_config(folder, **changes):
    """Four pictures of two classes of ImageNet, then six new classes."""
    config = pictures_config(folder, **changes)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, image_size=SIZE),
        model=ModelConfig(name="efficientnet_lite0", weights="imagenet"),
        invert=InvertConfig(
            classes=("goldfish", "207"),
            images_per_class=4,
            learn_data=True,
        ),
    )


@pytest.fixture
def pretrained(monkeypatch):
    monkeypatch.setattr(given, "read_efficientnet_lite0", small_imagenet)
    short = lambda image_shape, width, *, rngs: short_lite(image_shape, rngs=rngs)  # noqa: E731
    monkeypatch.setitem(MODELS, "short_lite", short)

    def make(image_shape, width, *, rngs):
        return short_lite(image_shape, rngs=rngs)

    monkeypatch.setitem(MODELS, "efficientnet_lite0", make)


@pytest.mark.parametrize("method", ["deep_inversion", "pmi"])
def test_every_picture_is_a_file_in_the_folder_of_its_class(method, tmp_path):
    changes = {"inversion__per_layer__start": "gaussian"}
    changes["inversion__per_layer__block_statistics"] = "propagated"
    config = pictures_config(tmp_path, method, **changes)
    summary = experiment.run(config)
    images = Path(config.workdir) / "images"
    assert sorted(f.name for f in images.iterdir() if f.is_dir()) == ["0_0", "2_2", "5_5"]
    files = sorted(images.glob("*/*.png"))
    assert len(files) == summary["num_synthesized"] == 8  # six wanted, two whole batches
    assert files[0].name == "000.png" and (images / "grid.png").is_file()
    assert np.asarray(Image.open(files[0])).shape == (8, 8)
    assert summary["classes"] == {"0": "0", "2": "2", "5": "5"}
    assert summary["own_accuracy_measured_on"] == invert.REAL_IMAGES
    assert set(summary["inversion"][0]) >= {"agreement", "final_statistics", "final_loss"}
    page = read_page(Path(config.workdir) / "report.html")
    assert len(page.images) == 3 and summary["own_accuracy_before"] in page.numbers["numbers"]


def test_new_classes_are_learnt_with_the_pictures_as_replay(pretrained, tmp_path, monkeypatch):
    begun, train = [], invert.tasks.train_phase

    def record(run, state, phase):
        begun.append((phase, jax.device_get(state.replay)))
        yield from train(run, state, phase)

    monkeypatch.setattr(invert.tasks, "train_phase", record)
    summary = experiment.run(learning_config(tmp_path))
    (phase, replay), *_ = begun
    assert phase.replay and int(replay.count) == 6  # of eight, a quarter is held out
    assert set(replay.labels.tolist()) == {1, 207} and replay.samples.any(axis=(1, 2, 3)).all()
    assert summary["own_accuracy_measured_on"] == invert.HELD_OUT
    assert len(summary["new_classes"]) == NUM_CLASSES
    for name in ("own_accuracy_before", "own_accuracy_after", "new_accuracy"):
        assert 0.0 <= summary[name] <= 1.0, name
    assert summary["classes"] == {"1": "goldfish", "207": "golden retriever"}
    learnt = network_file.load_network(tmp_path / "run" / summary["network_file"])
    page = read_page(tmp_path / "run" / "report.html")
    assert summary["new_accuracy"] in page.numbers["numbers"]
    assert learnt.class_names[1] == "goldfish" and learnt.num_classes == 1000 + NUM_CLASSES
    assert learnt.head.bias.shape == (1000 + NUM_CLASSES,)  # that of the new ones is learnt too
    assert jnp.abs(learnt.head.bias[1000:]).min() > 0
    folders = sorted(f.name for f in (tmp_path / "run" / "images").iterdir() if f.is_dir())
    assert folders == ["001_goldfish", "207_golden_retriever"]


def test_a_stopped_run_goes_on_to_the_same_numbers(pretrained, tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = experiment.run(learning_config(tmp_path / "a", checkpoint_every=1))
    again = learning_config(tmp_path / "b", checkpoint_every=1)
    log, seen = session.Session._log, []

    def stop(self, task, name, tick, number):
        log(self, task, name, tick, number)
        seen.append(name)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session.Session, "_log", stop)
        experiment.run(again)
    resumed = experiment.run(again)
    assert seen == ["invert", "invert"]
    for name in ("own_accuracy_before", "own_accuracy_after", "new_accuracy"):
        assert resumed[name] == whole[name]


def test_real_images_are_measured_where_they_are_given(pretrained, tmp_path, monkeypatch):
    config = learning_config(tmp_path)
    opened, rows, sizes, open_source = [], [], [], invert.open_source
    evaluate_by_five = functools.partial(invert.evaluate, batch_size=5)

    def open_any(data):
        opened.append(data.name)
        source = open_source(dataclasses.replace(data, source="npz", path=config.data.path))
        if data.name != "imagenette":
            return source
        wordnet = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916")

        def read(split, indices):
            sizes.append(len(indices))
            rows.extend(indices.tolist())
            return source.reader(split, indices)

        return dataclasses.replace(source, class_names=wordnet, reader=read)

    monkeypatch.setattr(invert, "open_source", open_any)
    settings = dataclasses.replace(config.invert, test_name="imagenette", test_path="somewhere")
    monkeypatch.setattr(invert, "evaluate", evaluate_by_five)
    summary = experiment.run(dataclasses.replace(config, invert=settings))
    assert "imagenette" in opened
    facts = summary["data"], summary["test_data"]
    assert [len(each["classes"]) for each in facts] == [NUM_CLASSES, 6]
    # Twice, before and after learning: never more than a batch, and every image once.
    assert rows == [*range(24)] * 2 and max(sizes) == 5
    assert summary["own_accuracy_measured_on"] == invert.REAL_IMAGES


def test_classes_are_found_by_name_and_by_number():
    names = imagenet_class_names()
    assert invert.find_classes(("Goldfish", "207"), names) == (1, 207)
    assert invert.find_classes((), ("a", "b")) == (0, 1)
    with pytest.raises(ValueError, match="names '1000', which is none of the 1000 classes"):
        invert.find_classes(("1000",), names)
    with pytest.raises(ValueError, match="names 'gold fish', which is none"):
        invert.find_classes(("gold fish",), names)
    with pytest.raises(ValueError, match="class 1 twice"):
        invert.find_classes(("1", "goldfish"), names)


def test_labels_of_imagenet_by_wordnet_id_or_name():
    np.testing.assert_array_equal(imagenet_labels(["n02099601", "goldfish"]), [207, 1])
    with pytest.raises(ValueError, match="'unicorn' is no class of ImageNet"):
        imagenet_labels(["unicorn"])


def test_pictures_know_only_the_classes_of_the_network(pretrained, tmp_path):
    run, state = invert.begin(learning_config(tmp_path))
    assert run.stream.num_classes == 1000 + NUM_CLASSES == state.network.num_classes
    assert int(invert._known(run).sum()) == 1000
    (kernel, bias), own = state.network.head, small_imagenet().network.head
    np.testing.assert_array_equal(kernel[:, :1000], own.kernel)
    np.testing.assert_array_equal(bias[:1000], own.bias)
    assert 0 < jnp.abs(kernel[:, 1000:]).max() < 0.1 and not bias[1000:].any()
    assert run.config.data == dataclasses.replace(
        DataConfig(source="npz", path=run.config.data.path, tasks=1), image_size=SIZE, rgb=True
    )


def bootstrapped_config(folder, **changes):
    """Six batches of four pictures, the first three of which are made from noise."""
    config = pictures_config(
        folder,
        "bootstrapped_pmi",
        inversion__full_model__num_steps=1,
        checkpoint_every=1,
        **changes,
    )
    return dataclasses.replace(
        config, invert=InvertConfig(classes=("0", "2", "5"), images_per_class=8)
    )


def pixels(config):
    """All pictures of a run, by file."""
    files = sorted((Path(config.workdir) / "images").glob("*/*.png"))
    return {str(f.relative_to(config.workdir)): np.asarray(Image.open(f)) for f in files}


def test_later_pictures_start_from_those_before(tmp_path, monkeypatch):
    made, fitted = [], []
    invert_all, remember = bootstrap.deep_inversion, bootstrap.remember_pictures

    def record(network, labels, key, *, config, start, variant, **rest):
        made.append((config.stage_steps, variant.warmup_steps, start, labels))
        return invert_all(network, labels, key, config=config, start=start, variant=variant, **rest)

    def record_fit(network, pictures, labels, key, **rest):
        fitted.append(len(pictures))
        return remember(network, pictures, labels, key, **rest)

    monkeypatch.setattr(bootstrap, "deep_inversion", record)
    monkeypatch.setattr(bootstrap, "remember_pictures", record_fit)
    config = bootstrapped_config(tmp_path)
    summary = experiment.run(config)
    assert (summary["num_synthesized"], summary["num_from_earlier_pictures"]) == (24, 12)
    assert [m[:2] for m in made] == [((1,), 0)] * 3 and fitted == [12]
    starts = np.stack([m[2] for m in made])
    assert starts.std() > 0.1 and np.abs(starts[0] - starts[1]).mean() > 0.05
    counts = {folder: 0 for folder in ("0_0", "2_2", "5_5")}
    for name in pixels(config):
        counts[Path(name).parent.name] += 1
    assert set(counts.values()) == {8}
    other = dataclasses.replace(config, seed=1, workdir=str(tmp_path / "other"))
    experiment.run(other)
    a, b = pixels(config), pixels(other)
    assert all((a[name] != b[name]).any() for name in a)


@pytest.mark.parametrize("after", [3, 4, 5])
def test_a_stopped_run_remembers_the_same(after, tmp_path, monkeypatch):
    """Stopped before the memory is fitted, or between two batches that start from it."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole, again = (bootstrapped_config(tmp_path / name, seed=3) for name in ("a", "b"))
    experiment.run(whole)
    log, seen = session.Session._log, []

    def stop(self, task, name, tick, number):
        log(self, task, name, tick, number)
        seen.append(name)
        if seen.count("invert") == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session.Session, "_log", stop)
        experiment.run(again)
    experiment.run(again)
    a, b = pixels(whole), pixels(again)
    assert len(a) == 24 and a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_memory_that_nothing_would_start_from_is_refused(tmp_path):
    config = pictures_config(tmp_path, "bootstrapped_pmi")
    with pytest.raises(ValueError, match="makes 12 pictures from noise, 3 or more of each of 3"):
        experiment.run(config)


def test_a_memory_is_of_ever_more_pictures(tmp_path):
    config = bootstrapped_config(tmp_path)
    assert bootstrap.batches_from_noise(config, 3) == 3
    found = []
    for index in range(3, 50):
        found.append(bootstrap.remembered_batches(index, 3))
    assert found == [3] * 9 + [12] * 36 + [48] * 2


@pytest.mark.slow
def test_the_real_network_makes_pictures_and_learns(tmp_path):
    """configs/imagenet_subset.py as it is, but for fewer pictures, steps and new classes."""
    small = """--deep-inversion.stage-steps 80 --train.epochs 2 --data.num-classes 2
      --invert.classes goldfish castle --deep-inversion.batch-size 8"""
    path = Path(__file__).parents[2] / "configs" / "imagenet_subset.py"
    config = load_config(path, [*small.split(), "--workdir", str(tmp_path / "run")])
    summary = experiment.run(config)
    assert summary["inversion"][0]["final_loss"] < 0.5 * summary["inversion"][0]["initial_loss"]
    assert summary["new_accuracy"] > 0.8
    assert len(list((tmp_path / "run" / "images").glob("001_goldfish/*.png"))) == 4
