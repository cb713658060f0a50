"""Wrong inputs, through the command line: exit code 2, one sentence, nothing lost.

Every test runs `main` of launch/run.py in this process.
"""

import errno
import importlib.util
import io
import json
import shutil
from collections import namedtuple
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxpmi.runs.checkpoint import Checkpointer
from jaxpmi.runs.writers import write_json

ROOT = Path(__file__).parents[1]

# A run of seconds: 4 classes in 2 tasks, 8 x 8 images, the smallest network, one epoch.
TINY = """
from jaxpmi.config import *

def get_config():
    return Config(
        method="finetune",
        workdir="{workdir}",
        data=DataConfig(source="npz", path="{data}", tasks=2),
        model=ModelConfig(name="resnet_small", width=4),
        train=TrainConfig(batch_size=8, replay_batch_size=8, epochs=1),
    )
"""


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("launch_run", ROOT / "launch" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def make_arrays(num_images=32, num_classes=4, size=8):
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (num_images, size, size, 1), np.uint8)
    return {"x": x, "y": np.arange(num_images) % num_classes}


@pytest.fixture
def config_file(tmp_path):
    """A correct tiny config over a correct tiny data set; its workdir does not exist yet."""
    np.savez(tmp_path / "data.npz", **make_arrays())
    path = tmp_path / "tiny.py"
    path.write_text(TINY.format(workdir=tmp_path / "run", data=tmp_path / "data.npz"))
    return path


def snapshot(folder):
    """Content of every file below a folder, and its folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refused(main, capfd, arguments, unchanged):
    """Runs `main`; returns its one sentence after checking that nothing else happened."""
    before = snapshot(unchanged)
    code = main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    assert code == 2, out + err
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in out + err and len(err) < 700
    assert err.rstrip().endswith((".", "?", ")"))
    after = snapshot(unchanged)
    assert {name: after.get(name) for name in before} == before
    return err.removeprefix("error: ").rstrip("\n")


# The command line and the config file.

COMMANDS = [
    ("", "--config FILE is missing; give a config file, e.g. configs/mnist.py."),
    ("--config", "--config FILE is missing; give a config file"),
    ("--config --seed 3", "--config FILE is missing"),
    ("--seed 3", "--config FILE is missing"),
    ("--config=no.py", "config file no.py does not exist"),
    ("CONFIG --num-step 3", "unknown config field 'num_step' in Config; its fields are"),
    ("CONFIG --train.epoch 3", "unknown config field 'epoch' in TrainConfig; did you mean"),
    ("CONFIG --train.epochs two", "--train.epochs got 'two'; expected a whole number."),
    ("CONFIG --train.epochs", "--train.epochs got no value"),
    ("CONFIG --method ewc", "method='ewc' is unknown; use one of joint, finetune, lwf"),
    ("CONFIG --save-images=maybe", "unrecognized arguments: maybe"),
    ("CONFIG extra", "unrecognized arguments: extra"),
    ("CONFIG --train.epochs 0", "train.epochs=0 is out of range; expected 1 or more."),
    ("CONFIG --train.batch-size -8", "train.batch_size=-8 is out of range"),
    ("CONFIG --train.batch-size 12", "train.batch_size=12 is not divisible by 8 devices; use 8 or"),
    ("CONFIG --train.learning-rate nan", "train.learning_rate=nan is not a finite number"),
    ("CONFIG --train.weight-decay -1", "train.weight_decay=-1.0 is out of range"),
    ("CONFIG --losses.lwf-weight -1", "losses.lwf_weight=-1.0 is out of range; expected 0 or more"),
    ("CONFIG --inversion.full-model.num-steps 0", "num_steps=0 is out of range"),
    ("CONFIG --cfs.keep-rate 0", "keep_rate=0.0 is out of range; expected in (0, 1]."),
    ("CONFIG --train.milestones 0.5 0.2", "train.milestones=(0.5, 0.2) must ascend"),
    ("CONFIG --train.milestone-factor 2", "milestone_factor=2.0 is out of range"),
    ("CONFIG --losses.vdfd.rank 0", "losses.vdfd.rank=0 is out of range; expected 1 or more."),
    (
        "CONFIG --method vdfd --model.name clip",
        "method='vdfd' is not made for model.name='clip'; use one of joint, finetune, pmi.",
    ),
    ("CONFIG --model.name zzz", "model.name='zzz' is unknown; use one of resnet_small"),
    ("CONFIG --method pmi --inversion.targets label", "inversion.targets='label' has no target"),
    ("CONFIG --data.source embedded", "is not read by data.source='embedded'"),
    ("CONFIG --data.source folder --data.path None", "data.source='folder' needs data.path"),
    ("CONFIG --data.class-order 0 1 1 2", "data.class_order names class 1 more than once"),
    ("CONFIG --data.class-order 0 1 2", "class_order lacks 3; it must hold each of 0..3 once"),
    ("CONFIG --data.class-order 0 1 2 3 4", "class_order has the unknown class(es) 4"),
    ("CONFIG --data.tasks 3", "4 classes cannot be split into 3 tasks"),
    ("CONFIG --data.tasks 4", "4 classes cannot be split into 4 tasks of equal size and at"),
    ("CONFIG --data.tasks 3 2", "data.tasks=(3, 2) is of 5 classes, but there are 4; give sizes"),
    ("CONFIG --data.tasks 3 1", "gives task 2 1 of the classes; expected 2 or more, as one class"),
    ("CONFIG --data.tasks", "data.tasks=() has no task; give the number of tasks, or of the"),
    ("CONFIG --data.class-order 0 1 2 cat", "names 'cat', which is none of the 4 classes ('0',"),
    ("CONFIG --data.num-classes 9", "num_classes=9 does not fit data set 'data'"),
    ("CONFIG --data.augment.crop-scale 1 0.9", "crop_scale=(1.0, 0.9) must ascend; give the"),
    (
        "CONFIG --job distill --method cmi --cmi.bank-size 1000",
        "bank_size=1000 is not a multiple of batch_size=256; use 768 or 1024.",
    ),
    (
        "CONFIG --job distill --method cmi --distill.warmup-steps 100 --distill.rounds 1",
        "distill.warmup_steps=100 leaves none of the student's rounds * steps_per_round = 100",
    ),
    (
        "CONFIG --job distill --method fast_dfkd --cmi.statistics-weight 0 "
        "--cmi.cross-entropy-weight 0",
        "cross_entropy_weight of 0 would make any images; raise one of them.",
    ),
    ("CONFIG --data.class-names no.txt", "no.txt does not exist or is no file; data.class_names"),
    ("CONFIG --data.test-fraction 1.5", "data.test_fraction=1.5 is out of range"),
    ("CONFIG --data.mean 0.5 0.5 0.5 --data.std 1 1 1", "data.mean has 3 and data.std 3 value(s)"),
    ("CONFIG --data.path no.npz", "no.npz does not exist or is no file"),
    ("CONFIG --data.source folder --data.path no", "no is not a folder"),
    ("CONFIG --data.source tfds --data.name x --data.path no", "data set 'x' was not found under"),
]


@pytest.mark.parametrize(("command", "sentence"), COMMANDS)
def test_wrong_command(main, capfd, tmp_path, config_file, command, sentence):
    arguments = command.replace("CONFIG", f"--config {config_file}").split()
    assert sentence in refused(main, capfd, arguments, tmp_path)
    assert not (tmp_path / "run").exists()  # else the corrected command would find it taken


CONFIG_FILES = {
    "def get_config(": "SyntaxError",
    "x = 1": "defines no function get_config()",
    "def get_config():\n  return 3": "returns a int; it must return a Config",
    "def get_config():\n  raise KeyError('a')": "line 3: KeyError: 'a'; correct the config file",
    "def get_config():\n  return Config(seed='a')": "seed='a' is of type str; expected a whole",
    "def get_config():\n  return Config(sed=1)": "unknown config field 'sed' in Config; did you",
}


@pytest.mark.parametrize("body", CONFIG_FILES)
def test_wrong_config_file(main, capfd, tmp_path, body):
    path = tmp_path / "wrong.py"
    path.write_text("from jaxpmi.config import *\n" + body)
    assert CONFIG_FILES[body] in refused(main, capfd, ["--config", path], tmp_path)


# Data.


def truncated(path):
    path.write_bytes(path.read_bytes()[:1000])


def npy_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def save_with(**changes):
    return lambda path: np.savez(path, **{**make_arrays(), **changes})


X = make_arrays()["x"]
NPZ_FILES = [
    (truncated, "cannot be read as a .npz of plain arrays"),
    (lambda path: path.write_bytes(b"hello"), "cannot be read as a .npz"),
    (lambda path: path.write_bytes(b""), "cannot be read as a .npz"),
    (lambda path: path.write_bytes(npy_bytes(X)), "is not a .npz file"),
    (lambda path: np.savez(path, images=X), "lacks the array(s) x, y (it holds 'images')"),
    (save_with(x=X / np.float32(255)), "x in"),
    (save_with(x=np.where(X > 9, X, np.nan)), "is float64 with NaN values; expected uint8"),
    (save_with(x=X.astype(np.int16) - 300), "is int16; expected uint8 pixels 0..255"),
    (save_with(x=X[:, :, :, [0, 0]]), "has shape (32, 8, 8, 2); expected [N, H, W]"),
    (save_with(x=X[:5]), "has 5 images in x but 32 labels in y"),
    (save_with(y=np.arange(32) % 4 * 2), "renumber them 0..3 without gaps"),
    (save_with(y=np.arange(32) % 4 - 1), "has the label -1; labels start at 0"),
    (save_with(y=np.arange(32) % 4 / 1.0), "is float64 of shape (32,); expected integer labels"),
    (save_with(y=np.zeros(32, int)), "has 1 class(es); at least 2 are needed"),
    (save_with(y=np.array([0] * 30 + [1, 2])), "class"),
    (save_with(y=np.array(["a", "b"] * 16)), "expected integer labels"),
]


@pytest.mark.parametrize("case", range(len(NPZ_FILES)))
def test_wrong_npz(main, capfd, tmp_path, config_file, case):
    damage, sentence = NPZ_FILES[case]
    damage(tmp_path / "data.npz")
    assert sentence in refused(main, capfd, ["--config", config_file], tmp_path)


@pytest.fixture
def image_folder(tmp_path):
    """Four classes of eight 8 x 8 png images each."""
    random = np.random.default_rng(0)
    for label in range(4):
        (tmp_path / "images" / f"class{label}").mkdir(parents=True)
        for i in range(8):
            pixels = random.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"class{label}" / f"{i}.png")
    return tmp_path / "images"


def one_size_differs(folder):
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(folder / "class3" / "7.png")


def one_class_empty(folder):
    shutil.rmtree(folder / "class2")
    (folder / "class2").mkdir()


FOLDERS = [
    (one_size_differs, "set data.image_size to bring all images to one size"),
    (one_class_empty, "class2 holds no image; add images to it or remove the folder"),
    (lambda folder: (folder / "class1" / "0.png").write_bytes(b"no"), "is not a readable image"),
    (lambda folder: [shutil.rmtree(path) for path in folder.iterdir()], "has no sub-folders"),
]


@pytest.mark.parametrize("case", range(len(FOLDERS)))
def test_wrong_folder(main, capfd, tmp_path, config_file, image_folder, case):
    damage, sentence = FOLDERS[case]
    damage(image_folder)
    arguments = ["--config", config_file, "--data.source", "folder", "--data.path", image_folder]
    assert sentence in refused(main, capfd, arguments, tmp_path)


# Classes of CLIP.

CLIP = """
from jaxpmi.config import *

def get_config():
    return Config(
        workdir="{folder}/run",
        data=DataConfig(source="npz", path="{folder}/data.npz", tasks=2),
        model=ModelConfig(name="clip", weights="{weights}"), train=TrainConfig(optimiser="adamw"),
    )
"""
NAMES = "--data.class-names names.txt"
CLASSES = [
    ("", "", "the class name '0' is a number, which says nothing to CLIP; give data.class_names"),
    ("n01443537\na\nb\nc", NAMES, "the class name 'n01443537' is a WordNet id, which says nothing"),
    ("cat\ndog\nCat\ncow", NAMES, "there more than once, upper case and spaces aside: 'cat' (clas"),
    ("red_owl\ndog\nRed owl\ncow", NAMES, "more than once, upper case and spaces aside: 'red owl'"),
    ("cat\ndog\ncow", NAMES, "names.txt has 3 name(s) for 4 classes; give one name per line"),
    ("cat\ndog\ncow\nblack-footed albatross", NAMES, "but the model reads at most 20; shorten it."),
    ("a\nb\nc\nd", f"{NAMES} --clip.name-only.classes e", "names 'e', which is no class of the"),
    (
        "a\nb\nc\nd",
        f"{NAMES} --data.image-size 10",
        "10 x 10 pixels do not divide into patches of 4",
    ),
    ("a\nb\nc\nd", f"{NAMES} --model.weights no", "no does not exist; expected a folder of Hugg"),
]


@pytest.mark.parametrize("case", range(len(CLASSES)))
def test_wrong_classes_of_clip(main, capfd, tmp_path, monkeypatch, case):
    names, options, sentence = CLASSES[case]
    weights = ROOT / "tests/golden/hugging_face_gelu"
    arrays = make_arrays(size=12)
    np.savez(tmp_path / "data.npz", x=arrays["x"].repeat(3, -1), y=arrays["y"])
    (tmp_path / "names.txt").write_text(names)
    (tmp_path / "clip.py").write_text(CLIP.format(folder=tmp_path, weights=weights))
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(main, capfd, ["--config", "clip.py", *options.split()], tmp_path)
    assert not (tmp_path / "run").exists()


# The workdir. Root may write anywhere, so a file stands in place of a folder.


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_workdir_that_cannot_be_made(main, capfd, tmp_path, config_file, below):
    (tmp_path / "file").write_text("mine")
    arguments = ["--config", config_file, "--workdir", tmp_path / "file" / below]
    sentence = refused(main, capfd, arguments, tmp_path)
    assert str(tmp_path / "file") in sentence


@pytest.fixture(scope="module")
def finished(main, tmp_path_factory):
    """A finished tiny run; to be copied, not changed."""
    root = tmp_path_factory.mktemp("finished")
    np.savez(root / "data.npz", **make_arrays())
    (root / "tiny.py").write_text(TINY.format(workdir=root / "run", data=root / "data.npz"))
    assert main(["--config", str(root / "tiny.py")]) == 0
    return root


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run that a test may damage, with the arguments to go on with it."""
    shutil.copytree(finished / "run", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    write_json(tmp_path / "run" / "config.json", {**config, "workdir": str(tmp_path / "run")})
    arguments = ["--config", finished / "tiny.py", "--workdir", tmp_path / "run"]
    return tmp_path / "run", arguments


def unfinish(workdir):
    """Makes a finished run one to be resumed."""
    (workdir / "summary.json").unlink()


def test_finished_run_prints_its_summary_again(main, capfd, run):
    workdir, arguments = run
    before = snapshot(workdir)
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capfd.readouterr()
    assert err == "" and "last accuracy" in out
    assert snapshot(workdir) == before


@pytest.mark.parametrize("finish", [True, False])
def test_workdir_of_another_config(main, capfd, run, finish):
    workdir, arguments = run
    if not finish:
        unfinish(workdir)
    changes = ["--train.epochs", "2", "--method", "lwf", "--save-images"]
    sentence = refused(main, capfd, arguments + changes, workdir)
    assert "train.epochs" in sentence and "method" in sentence and "save_images" not in sentence


def test_resumes_from_its_checkpoint(main, capfd, run):
    """The tests below damage this very situation."""
    workdir, arguments = run
    unfinish(workdir)
    assert main([str(argument) for argument in arguments]) == 0
    assert json.loads((workdir / "summary.json").read_text())["method"] == "finetune"
    assert capfd.readouterr().err == ""


def latest(workdir):
    folders = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    return max(folders, key=lambda path: int(path.name))


def other_version(workdir):
    file = latest(workdir) / "progress" / "metadata"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 0}))


def truncate_progress(workdir):
    (latest(workdir) / "progress" / "metadata").write_text('{"vers')


def truncate_state(workdir):
    for file in latest(workdir).glob("state/ocdbt.process_0/d/*"):
        file.write_bytes(file.read_bytes()[:100])


def remove_state(workdir):
    shutil.rmtree(latest(workdir) / "state")


def other_network(workdir):
    step = int(latest(workdir).name)
    checkpointer = Checkpointer(workdir / "checkpoints")
    checkpointer.save(step + 1, {"w": np.zeros(3)}, {})
    checkpointer.close()


WORKDIRS = [
    (other_version, "has format version 0 but this jaxpmi reads version"),
    (truncate_progress, "is damaged (JSONDecodeError"),
    (truncate_state, "is damaged ("),
    (remove_state, "is damaged (FileNotFoundError"),
    (other_network, "it is of another network, data set or version"),
    (lambda workdir: (workdir / "config.json").write_text('{"seed'), "config.json"),
    (lambda workdir: (workdir / "config.json").write_text("[1]"), "config.json"),
]


@pytest.mark.parametrize("case", range(len(WORKDIRS)))
def test_damaged_workdir(main, capfd, run, case):
    damage, sentence = WORKDIRS[case]
    workdir, arguments = run
    unfinish(workdir)
    damage(workdir)
    assert sentence in refused(main, capfd, arguments, workdir)


def test_truncated_summary(main, capfd, run):
    workdir, arguments = run
    (workdir / "summary.json").write_text('{"method": "fi')
    assert "summary.json" in refused(main, capfd, arguments, workdir)


# A full disk.


def test_no_room_for_a_checkpoint(main, capfd, tmp_path, config_file, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9, 9, 0))
    sentence = refused(main, capfd, ["--config", config_file], tmp_path)
    assert "does not fit into the 0.0 MB left for" in sentence and "resumes" in sentence


def test_disk_fills_up_while_checkpointing(main, capfd, tmp_path, config_file, monkeypatch):
    import orbax.checkpoint as ocp

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    sentence = refused(main, capfd, ["--config", config_file], tmp_path)
    assert "no checkpoint can be written to" in sentence and "No space left on device" in sentence


def test_disk_fills_up_at_the_end(main, capfd, run, monkeypatch):
    from jaxpmi.runs.writers import files

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    workdir, arguments = run
    unfinish(workdir)
    monkeypatch.setattr(files.os, "replace", full)
    sentence = refused(main, capfd, arguments, workdir)
    assert sentence.endswith("No space left on device.")


# What stops a run that is going on.


def test_loss_that_is_not_finite_names_term_task_and_step(main, capfd, tmp_path, config_file):
    arguments = ["--config", config_file, "--train.learning-rate", "1e30", "--train.epochs", "3"]
    sentence = refused(main, capfd, arguments, tmp_path)
    assert "cross_entropy" in sentence and "task" in sentence and "step" in sentence


def test_interrupt_says_how_to_resume(main, capfd, config_file, monkeypatch):
    from jaxpmi import experiment

    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", interrupt)
    assert main(["--config", str(config_file)]) == 130
    out, err = capfd.readouterr()
    assert (
        out == "" and err.strip() == "stopped; the same command resumes from the last checkpoint."
    )


def test_developers_can_have_the_traceback(main, config_file, monkeypatch):
    monkeypatch.setenv("JAXPMI_TRACEBACK", "1")
    with pytest.raises(ValueError, match="train.epochs=0"):
        main(["--config", str(config_file), "--train.epochs", "0"])


def test_help_needs_no_config(main, capfd):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code and "--inversion.per-layer.num-steps" in capfd.readouterr().out


def test_eight_devices_are_in_use():
    assert jax.device_count() == 8  # else the test of divisibility above tests nothing
