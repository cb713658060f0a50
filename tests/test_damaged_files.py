"""Two thousand damaged files: each is refused by one sentence or read, and nothing else happens."""

import io
import json
import resource
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

import jaxpmi
from jaxpmi.data.class_names import read_class_names
from jaxpmi.data.decoding import decode_image
from jaxpmi.models import MODELS
from jaxpmi.runs.checkpoint import Checkpointer
from jaxpmi.weights.preprocessing import read_preprocessing

GOLDEN = Path(__file__).parent / "golden"
SECONDS, BYTES = 30.0, 300e6  # for one kind of file; most take a second


def damaged(content, count, seed):
    """Versions of a file: cut off, with other bits, with parts written twice, moved or zeroed."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        data = bytearray(content)
        start, stop = sorted(int(n) for n in rng.integers(0, len(data) + 1, 2))
        kind = i % 6
        if kind == 0:
            data = data[:stop]
        elif kind in (1, 2):  # half of these among the first bytes, where headers are
            most = len(data) if kind == 1 else min(len(data), 200)
            for place in rng.integers(0, most, rng.integers(1, 6)):
                data[place] = int(rng.integers(0, 256))
        elif kind == 3:
            data[start:start] = data[start : min(stop, start + 64)]
        elif kind == 4:
            data[start:stop] = bytes(stop - start)
        else:
            del data[start : min(stop, start + 8)]
        yield bytes(data)


def check_all(contents, read):
    """Reads each; returns how many were refused."""
    before, begun, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic(), 0
    for content in contents:
        try:
            read(content)
        except (ValueError, OSError) as error:
            text = str(error)
            assert len(text) < 1500 and text.count("\n") == 0, text
            refused += 1
    assert time.monotonic() - begun < SECONDS
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < BYTES
    return refused


@pytest.fixture
def written(tmp_path):
    """Writes a content and gives the path to a reader."""

    def through(name, read):
        def of(content):
            (tmp_path / name).write_bytes(content)
            return read(tmp_path / name)

        return of

    return through


def network_file(folder):
    small = lambda shape, *, rngs: MODELS["resnet_small"](shape, 4, rngs=rngs)  # noqa: E731
    network = jaxpmi.init_network(
        small, jax.random.key(0), (8, 8, 1), ("a", "b"), mean=(0.5,), std=(0.5,)
    )
    jaxpmi.save_network(folder / "network.npz", network, jaxpmi.ModelConfig("resnet_small", 4))
    return (folder / "network.npz").read_bytes()


def test_safetensors(written):
    content = save({"layer.weight": np.ones((4, 3), np.float32), "layer.bias": np.ones(4)})
    read = written("model.safetensors", jaxpmi.read_tensors)
    assert check_all(damaged(content, 500, 0), read) > 200


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt"])
def test_torch_files(written, name):
    content = (GOLDEN / "torch_checkpoint" / name).read_bytes()
    assert check_all(damaged(content, 300, 1), written(name, jaxpmi.read_tensors)) > 150


def test_network_files(written, tmp_path):
    content = network_file(tmp_path)
    assert check_all(damaged(content, 200, 2), written("network.npz", jaxpmi.load_network)) > 150


@pytest.mark.parametrize("format", ["png", "jpeg", "gif", "bmp", "webp", "tiff"])
def test_images(format):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    read = lambda content: decode_image(content, 3, 8, "picture")  # noqa: E731
    assert check_all(damaged(stream.getvalue(), 80, 3), read) > 5


def test_names_and_descriptions(written, tmp_path):
    names = [f"n{i:08d}" for i in range(5)]
    text = "\n".join(f"{name} thing {i}" for i, name in enumerate(names)).encode()
    read = written("names.txt", lambda path: read_class_names(str(path), names))
    assert check_all(damaged(text, 120, 4), read) > 30
    config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": {"height": 8}}
    read = written("preprocessor_config.json", lambda path: read_preprocessing(path.parent))
    assert check_all(damaged(json.dumps(config).encode(), 120, 5), read) > 60


def test_checkpoints(tmp_path):
    state = {"x": jax.numpy.arange(6.0), "step": jax.numpy.zeros((), jax.numpy.int32)}
    checkpoints = Checkpointer(tmp_path / "checkpoints")
    checkpoints.save(1, state, {"at": 1})
    checkpoints.wait()
    files = sorted(path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
    originals = {path: path.read_bytes() for path in files}
    jobs = [
        (path, content)
        for i, path in enumerate(files)
        for content in damaged(originals[path], 6, 10 + i)
    ]

    def read(job):
        path, content = job
        path.write_bytes(content)
        try:
            return checkpoints.restore(state)
        finally:
            path.write_bytes(originals[path])

    assert check_all(jobs, read) > len(jobs) // 4
    np.testing.assert_array_equal(checkpoints.restore(state)[0]["x"], state["x"])
    checkpoints.close()


# What damage by chance does not hit.


def npz_of(header_shape):
    """An archive whose array is said to be of a shape, and holds four numbers."""
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": header_shape}
    np.lib.format.write_array_header_1_0(stream, header)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("about.npy", stream.getvalue() + bytes(16))
    return archive.getvalue()


def test_an_array_that_says_to_be_huge_is_refused(written):
    read = written("network.npz", jaxpmi.load_network)
    assert check_all([npz_of((10**13,)), npz_of((10**6, 10**6))], read) == 2


def torch_zip(data_pkl, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr("archive/data.pkl", data_pkl)
    return stream.getvalue()


def test_a_pickle_that_asks_for_memory_is_refused(written):
    read = written("model.pth", jaxpmi.read_tensors)
    far = b"\x80\x02}r" + (2**31).to_bytes(4, "little") + b"."  # kept at a place far away
    long = b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"abc."  # a text said to be long
    packed = torch_zip(b"\x80\x02}X" + (10**7).to_bytes(4, "little") + bytes(10**7) + b".",
                       zipfile.ZIP_DEFLATED)  # fmt: skip
    assert check_all([torch_zip(far), torch_zip(long), packed], read) == 3


def test_a_safetensors_header_that_says_to_be_long_is_refused(written):
    read = written("model.safetensors", jaxpmi.read_tensors)
    assert check_all([(2**62).to_bytes(8, "little") + b"{}", b"\xff" * 8], read) == 2
