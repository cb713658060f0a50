"""A run's network in use: on the command line, and by other programs."""

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small_network import blobs
from tiny_run import set_up
from tiny_run import tiny_config

import jaxpmi
from jaxpmi import experiment
from jaxpmi.continual.result import with_first_classes
from jaxpmi.runs import session
from jaxpmi.runs.phases import NonFiniteLossError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    set_up(monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run's config, and what it left after each of its three tasks."""
    folder, left = tmp_path_factory.mktemp("trained"), []
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch)
        save = session.Checkpointer.save

        def spy(self, step, state, progress):
            if int(state.phase) == 0 and int(state.step) == 0 and int(state.task) > 0:
                file = folder / "run" / "network.npz"
                left.append(file.read_bytes() if file.exists() else b"")
            save(self, step, state, progress)

        patch.setattr(session.Checkpointer, "save", spy)
        config = tiny_config(folder, "finetune", train__epochs=4)
        experiment.run(config)
    return config, left


@pytest.fixture
def network_file(trained):
    return Path(trained[0].workdir) / "network.npz"


@pytest.fixture
def photos(tmp_path):
    """Six test images, one of every class: a file, and a folder in a folder."""
    images, labels = blobs(4, 6, seed=4)
    files = []
    for label in range(6):
        folder = tmp_path / "photos" / ("läufe" if label else "")
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{label}.png")
        Image.fromarray(images[labels == label][0].squeeze()).save(files[-1])
    return files


def main(*arguments):
    return importlib.import_module("predict").main([str(argument) for argument in arguments])


def test_a_network_is_left_after_every_task_with_the_classes_seen(trained, tmp_path):
    config, left = trained
    assert len(left) == 3 and left[2] == left[1]  # the last one is written before the summary
    last = Path(config.workdir) / "network.npz"
    order = json.loads((last.parent / "summary.json").read_text())["class_order"]
    for content, seen in ((left[0], 2), (left[1], 4), (last.read_bytes(), 6)):
        path = tmp_path / "network.npz"
        path.write_bytes(content)
        network = jaxpmi.load_network(path)
        assert network.class_names == tuple(str(label) for label in order[:seen])
        assert jaxpmi.network_labels(path) == tuple(order[:seen])
        assert network.num_classes == seen and network.image_shape == (8, 8, 1)


def test_a_network_with_weights_that_are_no_numbers_is_not_left(tmp_path, monkeypatch):
    """The gradient of the very last step may do it, whose loss was still a number."""
    work = session.Session._phase

    def spoilt(self, task, name, phase):
        work(self, task, name, phase)
        if name.startswith("train"):
            kernel = self.state.network.head.kernel.at[0, 0].set(np.nan)
            head = self.state.network.head._replace(kernel=kernel)
            self.state = self.state.replace(network=self.state.network.replace(head=head))

    monkeypatch.setattr(session.Session, "_phase", spoilt)
    config = tiny_config(tmp_path, "finetune")
    with pytest.raises(NonFiniteLossError, match="head/kernel became NaN or infinite; the last"):
        experiment.run(config)
    assert not (Path(config.workdir) / "network.npz").exists()


def test_every_image_gets_its_class_and_probability(network_file, photos, tmp_path, capsys):
    table = tmp_path / "new" / "classes.csv"
    folder = photos[0].parent
    assert main("--network", network_file, photos[0], folder, "--csv", table) == 0
    network = jaxpmi.load_network(network_file)
    images = np.stack([np.asarray(Image.open(file)) for file in photos])[..., None]
    probabilities = np.asarray(jax.nn.softmax(jaxpmi.logits(network, images)))
    with table.open(encoding="utf-8", newline="") as file:
        names, *rows = csv.reader(file)
    assert names == ["file", "class", "probability"]
    assert [row[0] for row in rows] == [str(file) for file in (photos[0], *photos)]
    for row, p in zip(rows[1:], probabilities, strict=True):
        assert row[1] == network.class_names[p.argmax()] and float(row[2]) == pytest.approx(
            p.max(), abs=1e-4
        )
    assert rows[0] == rows[1]
    assert capsys.readouterr().out.splitlines() == ["  ".join(row) for row in rows]


def test_images_are_brought_to_the_size_and_channels(network_file, photos, capsys):
    large = photos[1].with_name("large.jpg")
    image = Image.open(photos[1]).resize((40, 32)).convert("RGB")
    image.save(large)
    assert main("--network", network_file, large) == 0
    assert capsys.readouterr().out.startswith(f"{large}  ")


WRONG = {
    "no.png": "no.png does not exist; give image files or folders.",
    "empty": "empty holds no image; give a folder of images, or files.",
    "broken.png": "broken.png is not a readable image",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_image_is_told(network_file, tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no")
    assert main("--network", network_file, tmp_path / name, "--csv", tmp_path / "a.csv") == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and WRONG[name] in err and err.count("\n") == 1
    assert not (tmp_path / "a.csv").exists()


def test_what_is_no_network_is_told(photos, capsys):
    assert main("--network", photos[0], photos[0]) == 2
    assert "is not a whole PyTorch state dict" in capsys.readouterr().err
    assert main("--network", "no.npz", photos[0]) == 2
    assert "no.npz does not exist or is no file" in capsys.readouterr().err


def test_help_needs_no_jax():
    code = "import sys, predict\ntry: predict.main(['--help'])\nfinally: assert 'jax' not in "
    code += "sys.modules"
    path = {"PYTHONPATH": str(ROOT / "launch")}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True)
    assert done.returncode == 0 and "--network" in done.stdout, done.stderr


def test_other_programs_read_it_as_safetensors(network_file, tmp_path):
    from safetensors import safe_open

    network = jaxpmi.load_network(network_file)
    jaxpmi.export_safetensors(network, tmp_path / "a b[1]" / "network.safetensors")
    with safe_open(tmp_path / "a b[1]" / "network.safetensors", "numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert tuple(json.loads(metadata["class_names"])) == network.class_names
    assert tuple(json.loads(metadata["image_shape"])) == network.image_shape
    np.testing.assert_array_equal(arrays["head/kernel"], network.head.kernel)
    np.testing.assert_array_equal(arrays["mean"], network.mean)
    leaves = jax.tree.leaves(network)
    assert len(arrays) == len(leaves)
    assert {array.shape for array in arrays.values()} == {leaf.shape for leaf in leaves}


def test_the_first_classes_are_judged_as_before(network_file, photos):
    network = jaxpmi.load_network(network_file)
    images = np.stack([np.asarray(Image.open(file)) for file in photos])[..., None]
    few = with_first_classes(jax.device_get(network), 4)
    np.testing.assert_array_equal(jaxpmi.logits(few, images), jaxpmi.logits(network, images)[:, :4])
