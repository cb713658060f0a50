"""A network in a file: what comes back is what was written, and bad files are told of."""

import json
import zipfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import set_up

import jaxpmi
from jaxpmi.config import ModelConfig
from jaxpmi.models import architecture
from jaxpmi.weights import network_file

SHAPE, NAMES = (8, 8, 1), ("zero", "eins", "dvě")
CONFIG = ModelConfig(name="tiny", width=4)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    set_up(monkeypatch)


def network(kept=None, config=CONFIG, *, with_bias=False):
    """Random parameters and moments; pruned, if `kept` is given."""
    rng = np.random.default_rng(1)
    fresh = jaxpmi.init_network(
        architecture(config.name, config.width), jax.random.key(0), SHAPE, NAMES,
        mean=(0.1,), std=(0.3,), head_std=1.0,
    )  # fmt: skip
    draw = lambda a: jnp.asarray(rng.random(a.shape, np.float32))  # noqa: E731
    head = fresh.head._replace(bias=draw(np.zeros(len(NAMES))) if with_bias else None)
    whole = fresh.replace(variables=jax.tree.map(draw, fresh.variables), head=head)
    return jaxpmi.remove_filters(whole, kept) if kept else whole


KEPT = {"block00/out": (0, 3), "block01/hidden": (1, 2, 5), "block01/out": (0, 1, 3)}


def logits(net):
    images = np.random.default_rng(2).integers(0, 256, (4, *SHAPE), np.uint8)
    return np.asarray(jaxpmi.logits(net, images))


def assert_equal(found, saved):
    """Static parts are of the tree's structure: these are compared too."""
    chex.assert_trees_all_equal(found, saved)
    assert (found.model, found.image_shape, found.class_names) == (saved.model, SHAPE, NAMES)
    np.testing.assert_array_equal(logits(found), logits(saved))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("config", [CONFIG, ModelConfig(name="tiny_vit", width=4)])
def test_a_whole_network_comes_back_bit_by_bit(config, with_bias, tmp_path):
    saved = network(config=config, with_bias=with_bias)
    jaxpmi.save_network(tmp_path / "new" / "network.npz", saved, config)
    found = jaxpmi.load_network(tmp_path / "new" / "network.npz")
    assert (found.head.bias is not None) == with_bias
    assert_equal(found, saved)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["network.npz"]


def test_a_pruned_network_comes_back_bit_by_bit(tmp_path):
    saved = network(KEPT)
    jaxpmi.save_network(tmp_path / "network.npz", saved, CONFIG, KEPT)
    found = jaxpmi.load_network(tmp_path / "network.npz")
    assert found.model == saved.model != network().model
    assert_equal(found, saved)
    assert np.ptp(logits(found)) > 0


def test_nothing_of_the_file_is_a_pickle(tmp_path):
    path = tmp_path / "network.npz"
    jaxpmi.save_network(path, network(), CONFIG)
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "fU" for name in file.files)
        assert {"variables/params/block00/conv/kernel", "head/kernel", "mean", "std"} < {
            *file.files
        }
        assert json.loads(str(file["about"]))["model"]["name"] == "tiny"


def test_only_what_can_be_built_again_is_written(tmp_path):
    path = tmp_path / "network.npz"
    with pytest.raises(ValueError, match="the network is no tiny of width 8 with the given"):
        jaxpmi.save_network(path, network(), ModelConfig(name="tiny", width=8))
    with pytest.raises(ValueError, match="the network is no tiny of width 4 with the given"):
        jaxpmi.save_network(path, network(KEPT), CONFIG)
    with pytest.raises(ValueError, match=r"head/kernel is \(8, 3\), not \(8, 2\)"):
        jaxpmi.save_network(path, network().replace(class_names=NAMES[:2]), CONFIG)
    half = jaxpmi.Head(network().head.kernel.astype(jnp.bfloat16))
    rounded = network().replace(head=half)
    with pytest.raises(ValueError, match="head/kernel is bfloat16, but the model has float32"):
        jaxpmi.save_network(path, rounded, CONFIG)
    assert not path.exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "network.npz"
    jaxpmi.save_network(path, network(), CONFIG)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(network_file.np, "savez", fail)
    with pytest.raises(OSError, match="full"):
        jaxpmi.save_network(path, network(), CONFIG)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_no_file():
    with pytest.raises(FileNotFoundError, match="no/network.npz does not exist or is no file"):
        jaxpmi.load_network("no/network.npz")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    """Changes one weight where the archive keeps it, so that its checksum is wrong."""
    content = path.read_bytes()
    place = content.index(b"variables/params/block01/conv1/kernel") + 250
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def empty(path):
    path.write_bytes(b"")


def other_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def pickled(path):
    np.savez(path, about=np.asarray([{}], object))


def no_json(path):
    np.savez(path, about=np.asarray("{"))


def no_about(path):
    np.savez(path, x=np.zeros(3))


@pytest.mark.parametrize("harm", [cut, flip, empty, other_array, pickled, no_json, no_about])
def test_a_damaged_file_is_told_of_in_one_sentence(harm, tmp_path):
    path = tmp_path / "network.npz"
    jaxpmi.save_network(path, network(), CONFIG)
    harm(path)
    with pytest.raises(ValueError, match=r"network.npz is damaged or no file of a network") as got:
        jaxpmi.load_network(path)
    assert "\n" not in str(got.value)


def rewrite(path, **changes):
    with np.load(path) as file:
        arrays = dict(file)
    about = json.loads(str(arrays.pop("about"))) | changes
    np.savez(path, about=np.asarray(json.dumps(about)), **arrays)


def test_files_of_others_are_told_of(tmp_path):
    path = tmp_path / "network.npz"
    jaxpmi.save_network(path, network(), CONFIG)
    rewrite(path, version=4)
    with pytest.raises(ValueError, match="version 4, but this jaxpmi reads versions 1 to 3"):
        jaxpmi.load_network(path)
    rewrite(path, version=3, model={"name": "tiny", "depth": 3})
    with pytest.raises(ValueError, match="is damaged or no file .*unexpected keyword"):
        jaxpmi.load_network(path)
    rewrite(path, model={"name": "tiny", "width": 5})
    with pytest.raises(ValueError, match=r"does not fit the model: .*bn/bias is \(4,\)"):
        jaxpmi.load_network(path)
    rewrite(path, model={"name": "mine", "width": 5})
    with pytest.raises(ValueError, match="model.name='mine' is unknown; .* name your own as"):
        jaxpmi.load_network(path)


@pytest.mark.parametrize("kept", [None, KEPT])
def test_a_file_of_version_1_is_read(kept, tmp_path):
    """Its head was one array, `head`."""
    path, saved = tmp_path / "network.npz", network(kept)
    jaxpmi.save_network(path, saved, CONFIG, kept)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, head=arrays.pop("head/kernel"), **arrays)
    rewrite(path, version=1)
    with np.load(path) as file:
        assert "head" in file.files and "head/kernel" not in file.files
    assert_equal(jaxpmi.load_network(path), saved)


def test_in_version_1_the_last_row_of_imagenets_head_was_its_bias(tmp_path):
    """A feature that is always 1 stood in for it."""
    path, saved = tmp_path / "network.npz", network(with_bias=True)
    jaxpmi.save_network(path, saved, CONFIG)
    with np.load(path) as file:
        arrays = dict(file)
    kernel, bias = arrays.pop("head/kernel"), arrays.pop("head/bias")
    np.savez(path, head=np.concatenate([kernel, bias[None]]), **arrays)
    rewrite(path, version=1, model={"name": "tiny", "width": 4, "weights": "imagenet"})
    assert_equal(jaxpmi.load_network(path), saved)
    rewrite(path, model={"name": "tiny", "width": 4})  # a row too many for any other network
    with pytest.raises(ValueError, match=r"head/kernel is \(9, 3\), not \(8, 3\)"):
        jaxpmi.load_network(path)


def test_a_file_that_names_weights_and_factory_apart_is_read(tmp_path):
    path, saved = tmp_path / "network.npz", network()
    jaxpmi.save_network(path, saved, CONFIG)
    model = {"name": "tiny", "width": 4, "weights": None, "factory": None}
    rewrite(path, model=model)
    assert_equal(jaxpmi.load_network(path), saved)
    rewrite(path, model={**model, "factory": "no_such:network"})
    with pytest.raises(ValueError, match="model.weights='no_such:network': there is no module"):
        jaxpmi.load_network(path)


def test_an_array_that_is_missing_is_named(tmp_path):
    path, less = tmp_path / "network.npz", tmp_path / "less.npz"
    jaxpmi.save_network(path, network(), CONFIG)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(less, "w") as new:
        for name in old.namelist():
            if name != "std.npy":
                new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match="does not fit the model: it lacks std"):
        jaxpmi.load_network(less)
