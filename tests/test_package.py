"""The package as it is installed: its version, its configs by name, its command."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import jaxpmi
from jaxpmi import __main__ as command
from jaxpmi.config import places
from jaxpmi.config.load import find_config

ROOT = Path(__file__).parents[1]


def test_the_version_stands_in_one_place():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in settings["project"] and "version" in settings["project"]["dynamic"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "jaxpmi.__version__"}
    assert f"\n## [{jaxpmi.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()
    assert "version:" not in (ROOT / "CITATION.cff").read_text().replace("cff-version:", "")


def test_a_config_of_ours_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("jaxpmi:mnist") == ROOT / "configs" / "mnist.py"
    found = jaxpmi.load_config("jaxpmi:mnist", ["--seed", "3"])
    assert found == jaxpmi.load_config(ROOT / "configs" / "mnist.py", ["--seed", "3"])
    assert find_config("mine:mnist.py") == Path("mine:mnist.py")  # a file of that name


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("mnits", "did you mean 'jaxpmi:mnist'?"),
        ("", "there are cifar100, clip_"),
        ("../configs/mnist", "there are cifar100, clip_"),
    ],
)
def test_a_config_that_is_not_there(name, advice):
    with pytest.raises(ValueError) as caught:
        jaxpmi.load_config(f"jaxpmi:{name}")
    assert str(caught.value).startswith(f"--config jaxpmi:{name} is no config of jaxpmi; {advice}")


def test_folders_are_inside_the_package_where_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "PACKAGE", tmp_path / "jaxpmi")
    assert places.shipped_folder("configs") == tmp_path / "configs"
    (tmp_path / "jaxpmi" / "configs").mkdir(parents=True)
    assert places.shipped_folder("configs") == tmp_path / "jaxpmi" / "configs"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 0, "usage: jaxpmi {run,sweep,"),
        (["--help"], 0, "usage: jaxpmi {run,sweep,"),
        (["rum"], 2, "usage: jaxpmi {run,sweep,"),
        (["run", "--config", "jaxpmi:x"], 2, "error: --config jaxpmi:x is no config of jaxpmi"),
        (["predict", "--help"], 0, "usage: jaxpmi predict "),
        (["sweep", "--help"], 0, "usage: jaxpmi sweep "),
    ],
)
def test_the_command_is_the_programs(words, code, text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaxpmi", *words])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as stop:
        command.main()
    printed = capsys.readouterr()
    assert stop.value.code == code
    assert (printed.err if code else printed.out).startswith(text)


def test_every_program_of_the_command_is_there():
    assert {f"{name}.py" for name in command.PROGRAMS} <= {p.name for p in ROOT.glob("launch/*.py")}


SHORT = """--data.num-classes 4 --data.tasks 2 --train.epochs 1 --method finetune""".split()


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(tmp_path):
    """Needs a network connection, for setuptools; what jaxpmi needs is that of this environment."""
    source, venv = tmp_path / "source", tmp_path / "venv"
    for name in ("jaxpmi", "configs", "launch"):  # a copy, for a build leaves files behind
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    (tmp_path / "elsewhere").mkdir()

    def run(*words):
        done = subprocess.run(
            list(map(str, words)), cwd=tmp_path / "elsewhere", env=environment, text=True,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("jaxpmi-*.whl")
    run(sys.executable, "-m", "venv", venv)
    bin_, site = venv / "bin", next(venv.glob("lib/*/site-packages"))
    run(bin_ / "pip", "install", "--no-deps", wheel)
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = "import jaxpmi; print(jaxpmi.__file__, jaxpmi.__version__)"
    file, version = run(bin_ / "python", "-c", code).split()
    assert Path(file).parent == site / "jaxpmi" and version == jaxpmi.__version__
    (found,) = importlib.metadata.distributions(name="jaxpmi", path=[str(site)])
    assert found.version == version
    shipped = {str(path) for path in found.files}
    ours = [path for path in (ROOT / "jaxpmi").rglob("*") if path.is_file()]
    ours = {str(path.relative_to(ROOT)) for path in ours if path.suffix != ".pyc"}
    configs = {f"jaxpmi/configs/{path.name}" for path in ROOT.glob("configs/*.py")}
    assert ours | configs <= shipped and "jaxpmi/py.typed" in ours
    assert "last accuracy" in run(bin_ / "jaxpmi", "run", "--config", "jaxpmi:mnist", *SHORT)
    out = run(bin_ / "jaxpmi", "sweep", "--config", "jaxpmi:mnist", *SHORT, "--seeds", 0, 1)
    assert "| `finetune` | 0-1 |" in out
