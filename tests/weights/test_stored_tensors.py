import json
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxpmi
from jaxpmi.weights.stored_tensors import common_prefix

GOLDEN = Path(__file__).parents[1] / "golden" / "torch_checkpoint"


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["module.a.weight", "module.b"], "module."),
        (["model.backbone.a.weight", "model.backbone.b.bias"], "model.backbone."),
        (["a.weight", "b.weight"], ""),
        (["layers.0.weight", "layers.1.weight"], "layers."),
        (["layers.0.weight", "layers.0.bias"], "layers."),
        (["module.weight", "module.bias"], "module."),
        (["module.weight"], ""),
        (["weight", "module.bias"], ""),
    ],
)
def test_what_all_names_begin_with(names, prefix):
    assert common_prefix(names) == prefix


def test_a_folder_and_its_file_hold_the_same(tmp_path):
    save_file(
        {"a.b": np.ones(2), "c": np.zeros((2, 3), np.float16)}, tmp_path / "model.safetensors"
    )
    for path in (tmp_path, tmp_path / "model.safetensors"):
        tensors = jaxpmi.read_tensors(path)
        assert {name: x.dtype.name for name, x in tensors.items()} == {
            "a.b": "float64",
            "c": "float16",
        }


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "is no index of safetensors files"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "names files outside of its folder"),
        ('{"weight_map": {"a": 3}}', "names files outside|is no index"),
        ('{"weight_map": {}}', "holds no tensor"),
    ],
)
def test_a_wrong_index_is_told(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        jaxpmi.read_tensors(tmp_path)


def test_a_folder_without_weights_and_a_path_that_is_not_there(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds none of model.safetensors, "):
        jaxpmi.read_tensors(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist; give a file of weights"):
        jaxpmi.read_tensors(tmp_path / "none")


def test_shards_in_another_order_of_names(tmp_path):
    save_file({"b": np.ones(2)}, tmp_path / "x-2.safetensors")
    save_file({"a": np.zeros(2)}, tmp_path / "x-1.safetensors")
    index = {"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
    tensors = jaxpmi.read_tensors(tmp_path / "x.safetensors.index.json")
    assert sorted(tensors) == ["a", "b"] and tensors["b"].all()


class Call:
    def __reduce__(self):
        return Path.touch, (Path("mark"),)


def rewritten(tmp_path, edit):
    """The zip file of the golden state dict, with another object around its tensors."""
    content = (GOLDEN / "zip.pt").read_bytes()
    (tmp_path / "old.pt").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "old.pt") as old:
        (name,) = (n for n in old.namelist() if n.endswith("/data.pkl"))
        entries = {n: old.read(n) for n in old.namelist()}
    entries[name] = edit(entries[name])
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as new:
        for entry, data in entries.items():
            new.writestr(entry, data)
    return tmp_path / "new.pth"


def wrapped(name, **others):
    """A pickle of a dict that holds another pickle's object under a name."""

    def edit(content):
        # Without their first and last instruction: a protocol, and the stop.
        body = content[2:-1]
        rest = pickle.dumps(others, 2)[2:-1]
        key = pickle.dumps(name, 2)[2:-1].split(b"q\x00")[0]
        # Places in the memo are set anew by the body before it reads them.
        return b"\x80\x02" + rest + key + body + b"s."

    return edit


@pytest.mark.parametrize("name", ["state_dict", "model", "model_ema", "state_dict_ema"])
def test_checkpoints_of_training_scripts(tmp_path, name):
    plain = jaxpmi.read_tensors(GOLDEN / "zip.pt")
    others = {"epoch": 3, "args": Namespace(lr=0.1, data="x"), "best": 0.5}
    path = rewritten(tmp_path, wrapped(name, **others))
    tensors = jaxpmi.read_tensors(path)
    assert tensors.keys() == plain.keys()
    for key, value in plain.items():
        np.testing.assert_array_equal(tensors[key], value)


def test_a_call_beside_the_weights_is_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = rewritten(tmp_path, wrapped("model", args=Call()))
    with pytest.raises(ValueError, match="it names (pathlib|__builtin__)"):
        jaxpmi.read_tensors(path)
    assert not (tmp_path / "mark").exists()
