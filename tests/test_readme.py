"""What the README says is run: its Python blocks, its commands, the files that it names."""

import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpmi
from jaxpmi.config.settings import leaves

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()

# The README's run is the whole job of minutes; here it is the same calls with less of everything.
LESS = """--train.epochs 1 --data.num-tasks 2 --cfs.num-epochs 1 --inversion.batch-size 16
  --inversion.images-per-task 16 --inversion.full-model.num-steps 2""".split()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands():
    """Every command of the README as a list of words, continued lines joined."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def write_pruned_network(path):
    """As the job leaves it, but untrained: `test_prune.py` tests that it does."""
    model, shape = jaxpmi.MODELS["resnet_small"](8), (28, 28, 1)
    variables = jaxpmi.init_variables(model, jax.random.key(0), shape)
    moments, names = jnp.full(1, 0.2), tuple("0123456789")
    network = jaxpmi.SavedNetwork(
        model, variables, jnp.ones((32, 10)), moments, moments, shape, names
    )
    jaxpmi.save_network(path, network, jaxpmi.ModelConfig())


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    load_config = jaxpmi.load_config

    def load_less(path, overrides):
        return load_config(ROOT / path, [*overrides, *LESS, "--workdir", str(tmp_path)])

    monkeypatch.setattr(jaxpmi, "load_config", load_less)
    load_clip = jaxpmi.load_clip
    small = ROOT / "tests/golden/hugging_face_gelu"
    monkeypatch.setattr(jaxpmi, "load_clip", lambda path: load_clip(small))
    monkeypatch.setattr(jaxpmi, "MODELS", jaxpmi.MODELS)
    monkeypatch.chdir(tmp_path)  # files are written where the reader is
    write_pruned_network(Path("runs/mnist_prune/network.npz"))
    names = {"__name__": "readme"}
    assert len(blocks("python")) == 7
    try:
        for code in blocks("python"):
            exec(compile(code, "README.md", "exec"), names)
    finally:
        jaxpmi.MODELS.pop("convnet", None)
    assert 0 <= names["summary"]["last_accuracy"] <= 1
    assert names["digits"].shape == (80, 28, 28, 1) and np.ptp(names["digits"]) > 100
    assert bool(names["result"].finite)
    assert names["result"].final_loss < names["result"].initial_loss
    for made in (names["dreams"].images, names["contrasted"].x, names["fast"].x):
        assert made.shape == (80, 28, 28, 1) and bool(np.isfinite(made).all())
    assert names["dreams"].losses[0][-1] < names["dreams"].losses[0][0]
    assert names["spread"] > 0.0 and float(names["metrics"].terms["distillation"]) > 0.0
    loaded = jaxpmi.load_network("part.npz")
    assert loaded.model == names["part"] != names["whole"]
    np.testing.assert_array_equal(loaded.head, names["student"].network.head)
    assert names["logits"].shape == (2, 2) and bool(np.isfinite(names["logits"]).all())


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words):
    if words[:2] == ["python", "launch/run.py"]:
        assert words[2] == "--config"
        jaxpmi.load_config(ROOT / words[3], words[4:])
    elif words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[:2] in (["pip", "install"], ["python", "-m"])


def test_named_files_exist():
    named = re.findall(r"`((?:launch|configs|jaxpmi|\.ci)/[\w./-]*\w)`", TEXT)
    assert len(named) > 4
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_named_options_exist():
    """Options in running text and tables, with the value that is given beside them."""
    paths = {leaf.path for leaf in leaves(jaxpmi.Config())}
    for name, value in re.findall(r"`(--[\w.-]+)(?: ([\w.]+))?`", TEXT):
        if name != "--help":
            assert name.removeprefix("--").replace("-", "_").replace(".no_", ".") in paths
            jaxpmi.load_config(None, [name, value] if value else [])
