"""The golden files are made by tests/golden/make_torch_checkpoints.py; no test needs PyTorch."""

import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxpmi.weights import torch_checkpoint
from jaxpmi.weights.torch_checkpoint import read_torch_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "torch_checkpoint"
BASE = np.arange(6, dtype=np.float32).reshape(2, 3)
EXPECTED = {
    "base": BASE,
    "transposed": BASE.T,
    "column": BASE[:, 1],
    "strided": BASE[1:, ::2],
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "f16": np.arange(5, dtype=np.float16),
    "bf16": np.arange(5).astype(ml_dtypes.bfloat16),
    "f64": np.arange(5.0),
    "i64": np.arange(5) - 2**40,
    "u8": np.arange(5, dtype=np.uint8),
    "bool": np.array([True, False, True]),
}
SHAPE = b"K\x02K\x03\x86q\tK\x03K\x01\x86"  # (2, 3), and the strides (3, 1)


@pytest.fixture
def changed(tmp_path):
    """Writes the golden zip with entries replaced (None: left out) or edited; returns its path."""

    def write(**replaced):
        path = tmp_path / "changed.pt"
        with zipfile.ZipFile(GOLDEN / "zip.pt") as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                key = re.sub(r"[/.]", "_", name.removeprefix("zip/"))
                if key in replaced:
                    change = replaced.pop(key)
                    content = change(content) if callable(change) else change
                if content is not None:
                    new.writestr(name, content)
        assert not replaced
        return path

    return write


def check_error(path, reason):
    sentence = (
        f"{path} is not a whole PyTorch state dict that can be read safely ({reason}); fetch it "
        "once more, or save one with torch.save(model.state_dict(), path)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        read_torch_checkpoint(path)


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_tensors_are_those_that_pytorch_saved(name):
    tensors = read_torch_checkpoint(str(GOLDEN / f"{name}.pt"))
    assert list(tensors) == list(EXPECTED)
    for key, want in EXPECTED.items():
        got = tensors[key]
        assert got.dtype == want.dtype and got.shape == want.shape
        assert got.flags.c_contiguous and got.flags.writeable
        np.testing.assert_array_equal(got, want, err_msg=key)


# Nothing is run.


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.mkdir, f"{os.mkdir.__module__}.mkdir"), (eval, "builtins.eval"), (exec, "builtins.exec")],
)
def test_a_call_is_refused_and_not_made(changed, tmp_path, protocol, function, name):
    victim = tmp_path / "made"
    code = str(victim) if function is os.mkdir else f"__import__('os').mkdir({str(victim)!r})"
    exploit = pickle.dumps({"weight": Call(function, code)}, protocol)
    name = name.replace("builtins", "__builtin__") if protocol < 3 else name
    check_error(changed(data_pkl=exploit), f"it names {name}")
    (tmp_path / "legacy.pt").write_bytes(exploit)
    check_error(tmp_path / "legacy.pt", f"it names {name}")
    assert not victim.exists()
    pickle.loads(exploit)  # what a careless reader would have done
    assert victim.exists()


@pytest.mark.parametrize(
    "name", ["torch.load", "torch.serialization.FloatStorage", "collections.Counter", "numpy.array"]
)
def test_other_names_are_refused(changed, name):
    module, _, attribute = name.rpartition(".")
    content = f"c{module}\n{attribute}\n.".encode()
    check_error(changed(data_pkl=content), f"it names {name}")


def test_nothing_that_outlives_the_reading_can_be_changed(changed):
    """Opcode `b` sets attributes of the object below it on the stack."""
    content = b"ctorch._utils\n_rebuild_tensor_v2\n(dX\x04\x00\x00\x00evilI1\nsb."
    check_error(changed(data_pkl=content), "it holds a function, not tensors by name")
    functions = [part for part in vars(torch_checkpoint).values() if callable(part)]
    assert len(functions) > 10 and not any(hasattr(part, "evil") for part in functions)
    content = b"ccollections\nOrderedDict\n(dX\x04\x00\x00\x00evilI1\nsb."
    with pytest.raises(ValueError, match="does not support item assignment"):
        read_torch_checkpoint(changed(data_pkl=content))


# Damaged and other files.


@pytest.mark.parametrize(
    ("replaced", "reason"),
    [
        ({"data_0": None}, "the entry zip/data/0 is missing"),
        ({"data_0": bytes(20)}, "the entry zip/data/0 has 20 bytes, not 24"),
        ({"data_0": bytes(28)}, "the entry zip/data/0 has 28 bytes, not 24"),
        ({"data_pkl": None}, "it has 0 entries data.pkl, not 1"),
        ({"data_pkl": pickle.dumps([1])}, "it holds a list, not tensors by name"),
        ({"data_pkl": pickle.dumps({"epoch": 3})}, "'epoch' in it is no tensor"),
        ({"data_pkl": pickle.dumps({"model": 3})}, "'model' in it is no tensor"),
        ({"data_pkl": b""}, "pickle exhausted before seeing STOP"),
        ({"byteorder": b"big"}, "its numbers are not little-endian"),
    ],
)
def test_a_damaged_archive_is_an_error(changed, replaced, reason):
    check_error(changed(**replaced), reason)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((3, 3), (3, 1)),
        ((2, 3), (4, 1)),
        ((2, 3), (-1, 1)),
        ((100, 100), (0, 0)),  # would be larger than its storage
        ((2,), (3, 1)),
    ],
)
def test_a_tensor_outside_its_storage_is_an_error(changed, shape, strides):
    def edit(content):
        assert SHAPE in content
        tuples = ["(" + "".join(f"I{n}\n" for n in numbers) + "t" for numbers in (shape, strides)]
        return content.replace(SHAPE, "q\t".join(tuples).encode(), 1)

    path = changed(data_pkl=edit)
    check_error(path, f"a tensor of shape {shape} and strides {strides} is not in its storage")


def test_a_storage_of_two_sizes_is_an_error(tmp_path):
    """The second use of storage 0 says that it has 127 numbers."""
    content = (GOLDEN / "legacy.pt").read_bytes()
    size = re.search(rb"transposed.*?K(\x06)Nt", content, re.DOTALL).start(1)
    path = tmp_path / "legacy.pt"
    path.write_bytes(content[:size] + b"\x7f" + content[size + 1 :])
    with pytest.raises(ValueError, match=r"\(the storage \d+ is given two sizes\)"):
        read_torch_checkpoint(path)


def test_a_truncated_file_is_an_error(tmp_path):
    for name in ("zip", "legacy"):
        content = (GOLDEN / f"{name}.pt").read_bytes()
        path = tmp_path / f"{name}.pt"
        for size in range(0, len(content), 97):
            path.write_bytes(content[:size])
            with pytest.raises(ValueError, match=r"is not a whole PyTorch state dict that can be"):
                read_torch_checkpoint(path)


def test_changed_numbers_of_an_archive_are_an_error(tmp_path):
    content = (GOLDEN / "zip.pt").read_bytes()
    number = struct.pack("<6f", *range(6))
    assert content.count(number) == 1
    (tmp_path / "zip.pt").write_bytes(content.replace(number, number[::-1]))
    with pytest.raises(ValueError, match="Bad CRC-32 for file 'zip/data/0'"):
        read_torch_checkpoint(tmp_path / "zip.pt")


def test_an_old_file_of_a_big_endian_machine_is_an_error(tmp_path):
    content = (GOLDEN / "legacy.pt").read_bytes()
    little = b"little_endianq\x02\x88"
    assert little in content
    path = tmp_path / "legacy.pt"
    path.write_bytes(content.replace(little, little[:-1] + b"\x89"))
    check_error(path, "its numbers are not little-endian")


def test_a_file_that_starts_with_another_pickle_is_an_error(tmp_path):
    path = tmp_path / "other.pt"
    path.write_bytes(pickle.dumps({}))
    check_error(path, "it starts with something else")


def test_a_missing_file_is_an_error(tmp_path):
    sentence = f"{tmp_path} does not exist or is no file; give a PyTorch state dict."
    with pytest.raises(FileNotFoundError, match=re.escape(sentence)):
        read_torch_checkpoint(tmp_path)
