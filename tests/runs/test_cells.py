"""The product of methods, settings and seeds, as runs with names and commands of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxpmi.config.load import config_to_dict
from jaxpmi.config.load import load_config
from jaxpmi.runs.cells import plan_cells

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs" / "mnist.py")


def plan(*overrides, **axes):
    return plan_cells(DIGITS, overrides, workdir="w", **axes)


def test_a_cell_for_every_combination_seed_by_seed():
    steps = {"inversion.full-model.num-steps": ["30", "60"]}
    cells = plan(methods=["pmi", "finetune"], seeds=[2, 0], settings=steps)
    names = [cell.name for cell in cells]
    assert names == [
        f"{method}-inversion.full_model.num_steps={steps}-seed{seed}"
        for seed in (2, 0)
        for method in ("pmi", "finetune")
        for steps in (30, 60)
    ]
    assert cells[1].settings == {"inversion.full_model.num_steps": 60}
    assert [cell.config.workdir for cell in cells] == [f"w/{name}" for name in names]


def test_the_command_of_a_cell_gives_its_config():
    settings = {"data.tasks": ["4 3 3", "5"], "train.augment-replay": ["True", "False"]}
    cells = plan("--train.epochs", "3", methods=["pmi", "lwf"], seeds=[1], settings=settings)
    for cell in cells:
        assert cell.arguments[:2] == ("--config", DIGITS)
        assert load_config(DIGITS, cell.arguments[2:]) == cell.config
    assert cells[1].name == "pmi-data.tasks=4,3,3-train.augment_replay=False-seed1"
    assert cells[1].config.data.tasks == (4, 3, 3) and cells[1].config.train.epochs == 3
    assert len({cell.config for cell in cells}) == len(cells) == 8


def test_what_is_not_varied_is_the_config_s_own():
    (cell,) = plan_cells(DIGITS, ["--seed", "7", "--method", "lwf"])
    assert (cell.name, cell.config.workdir) == ("lwf-seed7", "runs/mnist_sweep/lwf-seed7")


def test_odd_and_long_names_are_told_apart():
    paths = ["a/b", "a b", "a_b", "x" * 300, "x" * 301]
    quoted = [f"'{path}'" for path in paths]
    names = [cell.name for cell in plan("--data.source", "npz", settings={"data.path": quoted})]
    assert len(set(names)) == 5 and all("/" not in n and len(n) < 200 for n in names)
    assert names[2] == "pmi-data.path=a_b-seed0"


@pytest.mark.parametrize(
    ("overrides", "axes", "message"),
    [
        ([], {"methods": ["pmi", "finetun"]}, "method='finetun' is unknown; did you mean"),
        ([], {"methods": ["pmi", "cmi"]}, "method='cmi' is unknown"),
        ([], {"seeds": [0, -1]}, "seed=-1 is out of range"),
        ([], {"seeds": [3, 3]}, "the cell pmi-seed3 is there twice"),
        ([], {"settings": {"train.epochs": ["3", "3"]}}, "train.epochs=3-seed0 is there twice"),
        ([], {"settings": {"train.epoch": ["3"]}}, "unknown config field 'epoch'"),
        ([], {"settings": {"train.epochs": ["x"]}}, "--train.epochs got 'x'; expected a whole"),
        ([], {"settings": {"save_images": ["yes"]}}, "save_images got 'yes'; expected True or"),
        ([], {"settings": {"seed": ["1"]}}, "--set seed is not for this; use --seeds"),
        ([], {"settings": {"workdir": ["a"]}}, "--set workdir is not for this; use --workdir"),
        (["--method", "lwf"], {"methods": ["pmi"]}, "method is given for all cells and varied"),
        (["--seed=1"], {"seeds": [0, 1]}, "seed is given for all cells and varied"),
        (["--no-save-images"], {"settings": {"save-images": ["True"]}}, "save_images is given for"),
        ([], {"settings": {"inversion.targets": ["cfs", "label"]}}, "'label' has no target"),
    ],
)  # fmt: skip
def test_bad_input_is_told_before_anything_runs(overrides, axes, message):
    with pytest.raises(ValueError) as caught:
        plan(*overrides, **axes)
    assert message in str(caught.value)


def test_a_folder_with_another_config_is_refused(tmp_path):
    (tmp_path / "pmi-seed1").mkdir()
    other = config_to_dict(load_config(DIGITS, ["--seed", "1", "--train.epochs", "3"]))
    (tmp_path / "pmi-seed1" / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"another config: train\.epochs \(3 there, 15 now\)"):
        plan_cells(DIGITS, seeds=[0, 1], workdir=str(tmp_path))


def test_planning_takes_no_device():
    """A process that has asked JAX for its devices would keep the memory of a GPU from its runs."""
    code = (
        f"from jaxpmi.runs import cells, sweep; cells.plan_cells({DIGITS!r}, workdir='w')\n"
        "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
