"""What a run says and keeps of its data, and what it refuses; V3, V12 and V19 of the reports."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import NUM_CLASSES
from tiny_run import set_up
from tiny_run import tiny_config

from jaxpmi import experiment
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import InvertConfig
from jaxpmi.config import load
from jaxpmi.config.load import load_config
from jaxpmi.config.settings import leaves
from jaxpmi.data import describe_source
from jaxpmi.data import open_scenes
from jaxpmi.data import open_source


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    set_up(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The config of a finished run, and what it printed; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch)
        config = tiny_config(folder, "finetune")
        experiment.run(config)
    return config


@pytest.fixture
def again(finished, tmp_path):
    """The same run in another place, to be changed and gone on with."""
    shutil.copytree(finished.workdir, tmp_path / "run")
    shutil.copy(finished.data.path, tmp_path / "moved.npz")
    data = dataclasses.replace(finished.data, path=str(tmp_path / "moved.npz"))
    return dataclasses.replace(finished, workdir=str(tmp_path / "run"), data=data)


def unfinish(config):
    Path(config.workdir, "summary.json").unlink()


def summary_of(config):
    return json.loads(Path(config.workdir, "summary.json").read_text())


def change_npz(config, **changes):
    with np.load(config.data.path) as stored:
        arrays = dict(stored)
    np.savez(config.data.path, **{k: changes.get(k, lambda a: a)(v) for k, v in arrays.items()})


def one_pixel(x):
    x = x.copy()
    x[0, 0, 0, 0] ^= 1
    return x


def test_the_summary_tells_what_was_read(finished):
    facts, summary = json.loads(Path(finished.workdir, "data.json").read_text()), None
    summary = summary_of(finished)
    assert summary["data"] == facts["data"]
    assert summary["data"]["classes"] == [*map(str, range(NUM_CLASSES))]
    assert summary["data"]["images"] == {"train": 48, "test": 24}
    assert summary["data"]["images_of_classes"] == {"train": [8] * 6, "test": [4] * 6}
    assert summary["data"]["channels"] == 1 and len(summary["data"]["image_size"]) == 2
    assert len(summary["data"]["mean"]) == len(summary["data"]["std"]) == 1
    assert summary["data"]["passed_over"] == [] and len(summary["data"]["fingerprint"]) == 32


@pytest.mark.parametrize("finish", [True, False])
def test_the_same_data_elsewhere_are_the_same(again, capsys, finish):
    """V19; so does a file that was written anew, with something beside its arrays."""
    with np.load(again.data.path) as stored:
        np.savez_compressed(again.data.path, **stored, about=np.array("these arrays"))
    if not finish:
        unfinish(again)
    before = summary_of(again) if finish else None
    summary = experiment.run(again)
    out = capsys.readouterr().out
    assert ("this run has finished" in out) == finish and ("resuming at" in out) != finish
    assert "data: passed over: arrays (1): 'about'" in out
    assert before is None or summary == before
    assert "data: 6 classes of " in out and "classes: 0, 1, 2, 3, 4, 5" in out
    assert "48 for training (8 of each class) and 24 for testing (4 of each class)" in out


CHANGES = {
    "more images": dict(
        x_train=lambda x: np.concatenate([x, x]), y_train=lambda y: np.concatenate([y, y])
    ),
    "one pixel": dict(x_train=one_pixel),
    "one pixel of a test image": dict(x_test=one_pixel),
    "two labels": dict(y_train=lambda y: np.concatenate([y[1:2], y[:1], y[2:]])),
}


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_other_data_are_refused(again, name, finish):
    """V3: neither the old summary, nor half a run on each."""
    change_npz(again, **CHANGES[name])
    if not finish:
        unfinish(again)
    before = Path(again.workdir, "data.json").read_bytes()
    with pytest.raises(ValueError) as caught:
        experiment.run(again)
    sentence = str(caught.value)
    assert sentence.startswith("the data are not those that this run began with: workdir ")
    assert sentence.endswith("give it the same data, or choose another --workdir.")
    assert Path(again.workdir, "data.json").read_bytes() == before


def test_other_names_are_other_data(again, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\nf\n")
    data = dataclasses.replace(again.data, class_names=str(tmp_path / "names.txt"))
    with pytest.raises(ValueError, match="^the data are not those that this run began with"):
        experiment.run(dataclasses.replace(again, data=data))


def test_a_summary_without_its_data_is_shown(again, capsys):
    Path(again.data.path).unlink()
    assert experiment.run(again) == summary_of(again)
    assert "the data could not be compared with those of the run: " in capsys.readouterr().out
    unfinish(again)
    with pytest.raises(FileNotFoundError, match="moved.npz does not exist"):
        experiment.run(again)


def test_settings_are_compared_before_the_data_are_read(again, monkeypatch):
    monkeypatch.setattr(experiment, "_open_inputs", None)
    other = dataclasses.replace(again, train=dataclasses.replace(again.train, epochs=2))
    with pytest.raises(ValueError, match="holds a run with another config: train.epochs"):
        experiment.run(other)


# The fingerprint of folders and scenes.


def save(path, value, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def folder(root, names=("cat", "dog"), split=""):
    for label, name in enumerate(names):
        for i in range(4):
            save(root / split / name / f"{i}.png", 10 * label + i)
    return root


def facts_of(root, **changes):
    return describe_source(open_source(DataConfig(source="folder", path=str(root), **changes)))


def added_class(root):
    folder(root, ("owl",))


def other_pixels(root):
    save(root / "cat" / "0.png", 200)


def renamed_class(root):
    (root / "cat").rename(root / "cow")


def moved_image(root):
    (root / "cat" / "3.png").rename(root / "dog" / "9.png")


def test_the_fingerprint_of_a_folder_is_of_its_content(tmp_path):
    first = facts_of(folder(tmp_path / "a")).fingerprint
    assert facts_of(folder(tmp_path / "b" / "c")).fingerprint == first
    other = folder(tmp_path / "d")
    (other / "cat" / "notes.txt").write_text("passed over")
    facts = facts_of(other)
    assert facts.fingerprint == first
    assert facts.lines()[-1] == "passed over: files that are no images (1): 'cat/notes.txt'"
    splits = [folder(folder(tmp_path / n, split=n), split="test") for n in ("Train", "training")]
    assert facts_of(splits[0]).fingerprint == facts_of(splits[1]).fingerprint != first


@pytest.mark.parametrize("change", [added_class, other_pixels, renamed_class, moved_image])
def test_another_folder_has_another_fingerprint(tmp_path, change):
    root = folder(tmp_path / "a")
    first = facts_of(root).fingerprint
    change(root)
    assert facts_of(root).fingerprint != first


def test_the_console_is_told_of_few_classes_and_the_summary_of_all(tmp_path):
    folder(tmp_path, map(str, range(30)))
    save(tmp_path / "29" / "more.png", 1)
    facts = facts_of(tmp_path)
    numbers, names = facts.lines()
    assert numbers.startswith("30 classes of 8x8 grey images, 91 for training (3 to 4 of a class)")
    assert names == "classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more"
    told = facts.to_dict()
    assert (
        told["classes"] == [*map(str, range(30))] and len(told["images_of_classes"]["test"]) == 30
    )


def test_scenes_are_counted_by_domain():
    config = DataConfig(source="digit_scenes", scene_tasks="domains", num_scenes=10)
    facts = describe_source(open_scenes(config))
    assert facts.counts["train"] == (3, 3, 2, 2) and facts.groups[0] == "black"
    assert facts.to_dict()["domains"] == ["black", "white", "noise", "stripes"]
    assert "for training" in facts.lines()[0] and "of a domain" in facts.lines()[0]
    other = describe_source(open_scenes(dataclasses.replace(config, num_scenes=11)))
    assert other.fingerprint != facts.fingerprint


# V12: a home in a path.


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_every_path_of_a_config_is_expanded(home):
    paths = "workdir data.path data.class_names invert.test_path model.weights".split()
    paths.append("distill.student.weights")
    options = [word for path in paths for word in (f"--{path.replace('_', '-')}", "~/x")]
    values = {leaf.path: leaf.value for leaf in leaves(load_config(None, options))}
    assert {values[path] for path in paths} == {f"{home}/x"}
    assert [path for path, value in values.items() if "~" in str(value)] == []
    made = Config(workdir="~/y", data=DataConfig(path="~/z"), invert=InvertConfig(test_path="~"))
    assert (made.workdir, made.data.path, made.invert.test_path) == (
        f"{home}/y",
        f"{home}/z",
        str(home),
    )
    again = load.config_from_dict({"data": {"path": "~/z"}})
    assert again.data.path == f"{home}/z" and dataclasses.replace(
        again, workdir="~"
    ).workdir == str(home)


def test_a_home_in_every_source(home):
    folder(home / "images")
    (home / "names.txt").write_text("a cat\na dog\n")
    for config in (
        DataConfig(source="folder", path="~/images", class_names="~/names.txt"),
        DataConfig(source="folder", path=str(home / "images"), class_names=f"{home}/names.txt"),
    ):
        assert open_source(config).class_names == ("a cat", "a dog")
    with pytest.raises(FileNotFoundError, match=f"^{home}/no is not a folder"):
        open_source(DataConfig(source="folder", path="~/no"))
    assert DataConfig(path="a/~/b").path == "a/~/b"  # only at the beginning
