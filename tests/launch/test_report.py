"""The command that makes pages of runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import report
from html_page import read_page

from jaxpmi.config import Config
from jaxpmi.config.load import config_to_dict
from jaxpmi.runs.writers import write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs that have only begun, by names relative to where the reader is."""
    for seed, name in enumerate("ab"):
        write_json(tmp_path / name / "config.json", config_to_dict(Config(seed=seed)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_run_or_several(runs, capsys):
    assert report.main(["a"]) == 0 and capsys.readouterr().out == "a/report.html\n"
    assert "seed 0" in read_page(runs / "a" / "report.html").title
    assert report.main(["a", "--out", "one.html"]) == 0
    assert (runs / "one.html").read_bytes() == (runs / "a" / "report.html").read_bytes()
    assert report.main(["a", "b"]) == 0 and (runs / "comparison.html").is_file()
    assert report.main(["a", "b", "--out", "new/two.html"]) == 0
    assert read_page(runs / "new" / "two.html").title == "2 runs on mnist5k"


def test_what_is_wrong_is_one_sentence(runs, capsys):
    (runs / "a" / "summary.json").write_text("{")
    for arguments in (["nowhere"], ["a"], ["a", "b"], ["b", "--out", "."]):
        assert report.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


def test_it_works_from_anywhere(runs):
    command = [sys.executable, str(ROOT / "launch" / "report.py"), "b"]
    subprocess.run(command, cwd=runs, check=True, capture_output=True)
    assert (runs / "b" / "report.html").is_file()
