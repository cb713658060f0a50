"""The Colab notebook runs top to bottom as it is, offline; it is stored without outputs."""

from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

import jaxpmi

PATH = Path(__file__).parents[1] / "launch/colab_tpu.ipynb"

# The main job with less of everything; the notebook takes its options from the environment.
LESS = """--data.num-classes 4 --data.tasks 2 --data.image-size 14 --model.width 4
  --train.epochs 1 --cfs.num-epochs 1 --inversion.batch-size 48
  --inversion.images-per-task 48
  --inversion.full-model.num-steps 4"""


def test_stored_without_outputs():
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.filterwarnings("default")  # of the notebook client, not ours
def test_runs_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPMI_OPTIONS", f"--workdir {tmp_path} {LESS}")
    # The kernel compiles as the tests do, and keeps its programs where they do.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if cache := jax.config.jax_compilation_cache_dir:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
        monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
        monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    notebook = nbformat.read(PATH, as_version=4)
    resources = {"metadata": {"path": str(PATH.parent)}}
    # "python3" is the interpreter that runs the test.
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3  # before task 2, the accuracy, the own network
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert f"jaxpmi {jaxpmi.__version__}, JAX {jax.__version__}" in printed
    assert "test accuracy" in printed and "agrees with" in printed
    assert (tmp_path / "summary.json").is_file()
