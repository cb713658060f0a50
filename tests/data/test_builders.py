"""Original archives to ArrayRecord with launch/prepare.py, read back by open_source and by TFDS."""

import importlib.util
import json
import os
import pickle
import tarfile
from pathlib import Path

import fake_archives
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxpmi.config import DataConfig
from jaxpmi.data import describe_source
from jaxpmi.data import open_source
from jaxpmi.data import tfds_source

tfds.disable_progress_bar()
ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("prepare", ROOT / "launch" / "prepare.py")
prepare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare)


def run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


def opened(name, data_dir, **changes):
    return open_source(DataConfig(source="tfds", name=name, path=str(data_dir), **changes))


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    """A data directory that holds a prepared cifar100 of 6 + 6 images."""
    root = tmp_path_factory.mktemp("cifar100")
    archive = fake_archives.cifar100_python(root / "cifar-100-python.tar.gz")
    assert run("cifar100", "--archive", archive, "--data-dir", root / "data") == 0
    return root / "data"


@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar100(tmp_path, version):
    archive = getattr(fake_archives, f"cifar100_{version}")(tmp_path / "c.tar.gz")
    assert run("cifar100", "--archive", archive, "--data-dir", tmp_path) == 0
    source = opened("cifar100", tmp_path)
    assert source.name == "cifar100" and source.image_shape == (32, 32, 3)
    for split, seed in (("train", 0), ("test", 1)):
        pixels = fake_archives.cifar_pixels(6, seed).reshape(6, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = source.labels[split]
        assert sorted(labels) == list(range(6))
        np.testing.assert_array_equal(source.read(split, np.arange(6)), pixels[labels])


def test_cifar100_has_the_stock_layout(cifar100):
    builder = tfds.builder_from_directory(cifar100 / "cifar100" / "3.0.2")
    stock = tfds.builder("cifar100", data_dir=cifar100.parent).info.features
    ours = builder.info.features
    assert {k: (f.shape, f.np_dtype) for k, f in ours.items()} == {
        k: (f.shape, f.np_dtype) for k, f in stock.items()
    }
    assert builder.info.supervised_keys == ("image", "label")
    assert ours["label"].names[5] == "fine5" and ours["coarse_label"].names[2] == "coarse2"
    rows = {row["id"]: row for row in builder.as_data_source("train", decoders=skip_images())}
    assert sorted(rows) == [f"train_{i:05d}".encode() for i in range(6)]
    assert rows[b"train_00003"]["label"] == 3 and rows[b"train_00003"]["coarse_label"] == 1
    assert rows[b"train_00003"]["image"].startswith(b"\x89PNG")


def skip_images():
    return {"image": tfds.decode.SkipDecoding()}


def test_nothing_but_the_data_set_is_written(cifar100):
    assert [entry.name for entry in cifar100.iterdir()] == ["cifar100"]
    assert [entry.name for entry in (cifar100 / "cifar100").iterdir()] == ["3.0.2"]


def test_cifar10(tmp_path):
    archive = fake_archives.cifar10_python(tmp_path / "c.tar.gz")
    assert run("cifar10", "--archive", archive, "--data-dir", tmp_path / "data") == 0
    source = opened("cifar10", tmp_path / "data", image_size=16)
    assert source.class_names == ("plane", "car") and source.image_shape == (16, 16, 3)
    assert len(source.labels["train"]) == 10 and len(source.labels["test"]) == 2
    assert source.read("train", np.array([9])).shape == (1, 16, 16, 3)


def test_tiny_imagenet(tmp_path):
    archive = fake_archives.tiny_imagenet(tmp_path / "t.zip")
    assert run("tiny_imagenet", "--archive", archive, "--data-dir", tmp_path / "data") == 0
    source = opened("tiny_imagenet", tmp_path / "data")
    assert source.class_names == ("n01", "n02") and source.image_shape == (64, 64, 3)
    assert np.bincount(source.labels["train"]).tolist() == [3, 3]
    images = source.read("test", np.arange(2))
    assert (images.mean((1, 2, 3)) > 100).tolist() == (source.labels["test"] == 1).tolist()
    assert source.read("train", np.arange(6)).shape == (6, 64, 64, 3)  # two are stored grey


@pytest.mark.parametrize("subset", [None, "n03\nn01\n"])
def test_imagenet(tmp_path, subset):
    train, val, labels = fake_archives.imagenet(tmp_path)
    arguments = ["imagenet", "--archive", val, "--archive", train, "--val-labels", labels]
    if subset:  # as some editors write it (V11)
        (tmp_path / "subset.txt").write_text(subset, "utf-8-sig")
        arguments += ["--classes", tmp_path / "subset.txt", "--name", "imagenet2"]
    name = "imagenet2" if subset else "imagenet2012"
    assert run(*arguments, "--data-dir", tmp_path / "data") == 0
    with pytest.raises(ValueError, match="images of differing sizes; set data.image_size"):
        opened(name, tmp_path / "data")
    source = opened(name, tmp_path / "data", image_size=16)
    assert source.class_names == (("n01", "n03") if subset else ("n01", "n02", "n03"))
    assert set(np.bincount(source.labels["train"])) == {4}
    assert source.labels["test"].size == source.num_classes
    images = source.read("train", np.arange(len(source.labels["train"])))
    assert images.shape[1:] == (16, 16, 3) and images.max() == 255  # the CMYK one is white
    folder = tfds_source.find_prepared(name, str(tmp_path / "data"))
    for row in tfds.builder_from_directory(folder).as_data_source(
        "validation", decoders=skip_images()
    ):  # val image i belongs to n0i, though the archive is not in order
        assert source.class_names[row["label"]] == f"n0{row['file_name'].decode()[-6]}"
    rows = tfds.builder_from_directory(folder).as_data_source("train", decoders=skip_images())
    assert all(row["image"].startswith(b"\xff\xd8") for row in rows)  # the png became a jpeg
    assert {row["file_name"].decode().split("_")[0] for row in rows} == set(source.class_names)


def test_cub200_has_its_own_split_and_readable_names(tmp_path):
    archive = fake_archives.cub200(tmp_path / "CUB_200_2011.tgz")
    assert run("cub200", "--archive", archive, "--data-dir", tmp_path / "data") == 0
    source = opened("cub200_2011", tmp_path / "data", image_size=16)
    assert source.class_names == ("Black footed Albatross", "Laysan Albatross")
    assert sorted(source.labels["train"]) == [0, 0, 1] and source.image_shape == (16, 16, 3)
    for split, numbers in (("train", (0, 2, 4)), ("test", (1, 3, 5))):
        pixels = source.read(split, np.arange(3))
        assert sorted(np.rint(pixels.mean((1, 2, 3)) / 40)) == list(numbers)
        np.testing.assert_array_equal(source.labels[split], pixels.mean((1, 2, 3)) > 100)
    folder = tfds_source.find_prepared("cub200_2011", str(tmp_path / "data"))
    names = tfds.builder_from_directory(folder).info.features["label"].names
    assert tuple(names) == fake_archives.CUB_FOLDERS  # as in the archive


def image_folder(root, size=(8, 8), mode="L"):
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(5):
            Image.new(mode, size, i).save(root / name / f"{i}.{'png' if i else 'bmp'}")
    return root


def test_a_prepared_folder_is_what_the_folder_is(tmp_path, capsys):
    """Splits, black shapes on nothing, photographs on their side, files that are no images."""
    root = tmp_path / "set"
    for split, count in (("Train", 3), ("valid", 2), ("more", 1)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGBA", (8, 6), (i, 0, 0, 255 * i)).save(root / split / name / f"{i}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 8), "red").save(root / "Train" / "a" / "turned", "JPEG", exif=exif)
    (root / "Train" / "a" / "notes.txt").write_text("about")
    assert run("folder", "--archive", root, "--data-dir", tmp_path / "data") == 0
    printed = capsys.readouterr().out
    assert "passed over: folders beside the splits (1): 'more'" in printed
    assert "passed over: files that are no images (1): 'Train/a/notes.txt'" in printed
    prepared = opened("set", tmp_path / "data")
    folder = open_source(DataConfig(source="folder", path=str(root)))
    assert prepared.image_shape == folder.image_shape == (6, 8, 3)
    for split, count in (("train", 7), ("test", 4)):
        both = [source.read(split, np.arange(count)) for source in (prepared, folder)]
        assert sorted(map(np.ndarray.tobytes, both[0])) == sorted(map(np.ndarray.tobytes, both[1]))


def test_folder(tmp_path):
    image_folder(tmp_path / "My Set")
    assert run("folder", "--archive", tmp_path / "My Set", "--data-dir", tmp_path / "data") == 0
    source = opened("my_set", tmp_path / "data")
    assert source.class_names == ("a", "b") and source.image_shape == (8, 8, 1)
    assert np.bincount(source.labels["test"]).tolist() == [1, 1]  # held out per class
    both = [source.read(split, np.arange(len(source.labels[split]))) for split in ("train", "test")]
    assert sorted(np.concatenate(both)[:, 0, 0, 0]) == sorted([*range(5), *range(5)])


def write_foreign(tmp_path, splits, *, name="other", label=None, file_format="array_record"):
    """Writes a set as another TFDS user would; `splits` is split -> labels."""

    class Other(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            classes = label or tfds.features.ClassLabel(num_classes=4)
            image = tfds.features.Image(shape=(4, 4, 1))
            features = tfds.features.FeaturesDict({"image": image, "label": classes})
            return tfds.core.DatasetInfo(builder=self, description="x", features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(labels) for split, labels in splits.items()}

        def _generate_examples(self, labels):
            for i, value in enumerate(labels):
                image = fake_archives.encoded(value % 256, "PNG", (4, 4), "L")
                yield i, {"image": image, "label": value}

    Other.name = name
    Other(data_dir=tmp_path, file_format=file_format).download_and_prepare()


def test_unlabelled_test_split_gives_way_to_validation(tmp_path):
    write_foreign(tmp_path, {"train": [0, 1, 2, 3], "test": [-1, -1], "validation": [3, 2, 1, 0]})
    source = opened("other", tmp_path)
    assert sorted(source.labels["test"]) == [0, 1, 2, 3]
    images = source.read("test", np.arange(4))
    np.testing.assert_array_equal(images[:, 0, 0, 0], source.labels["test"])


def test_test_only_set_with_absent_classes_is_split(tmp_path):
    write_foreign(tmp_path, {"test": [1, 3] * 5})
    source = opened("other", tmp_path)
    assert source.class_names == ("1", "3") and set(source.labels["train"]) == {0, 1}
    images = source.read("train", np.arange(8))
    np.testing.assert_array_equal(images[:, 0, 0, 0], 2 * source.labels["train"] + 1)


def test_not_a_classification_set(tmp_path):
    write_foreign(tmp_path, {"train": [0, 1]}, label=tfds.features.Scalar(np.float32))
    with pytest.raises(ValueError, match="expected an image-classification data set"):
        opened("other", tmp_path)


# V4: labels of -1 stand for none.


def test_images_without_a_label_are_passed_over_and_counted(tmp_path):
    labels = {"train": [-1, *(i % 4 for i in range(1, 40))], "test": [i % 4 for i in range(16)]}
    write_foreign(tmp_path, labels)
    source = opened("other", tmp_path)
    assert {split: len(part) for split, part in source.labels.items()} == {"train": 39, "test": 16}
    assert source.passed_over == (("images of train without a label", 1, ()),)
    for split in ("train", "test"):
        pixels = source.read(split, np.arange(len(source.labels[split])))[:, 0, 0, 0]
        np.testing.assert_array_equal(pixels, source.labels[split])


def test_some_unlabelled_test_images_do_not_make_the_split_give_way(tmp_path):
    write_foreign(
        tmp_path, {"train": [0, 1, 2], "test": [-1, 0, 1, 2, -1], "validation": [0, 1, 2]}
    )
    source = opened("other", tmp_path)
    assert sorted(source.labels["test"]) == [0, 1, 2]
    assert source.passed_over == (
        ("splits", 1, ("validation",)),
        ("images of test without a label", 2, ()),
    )


def test_a_training_split_without_labels_is_refused(tmp_path):
    write_foreign(tmp_path, {"train": [-1, -1], "test": [0, 1] * 5})
    with pytest.raises(
        ValueError, match="2 images in its split 'train', none of which has a label"
    ):
        opened("other", tmp_path)


def test_every_record_is_looked_at_once(tmp_path, monkeypatch):
    """V17: what cannot be decoded ends a run at its beginning, not in a later task."""
    encoded = fake_archives.encoded

    def one_of_sixteen_bits(value, image_format, size, mode):
        return encoded(value, image_format, size, "I;16" if value == 3 else mode)

    monkeypatch.setattr(fake_archives, "encoded", one_of_sixteen_bits)
    write_foreign(tmp_path, {"train": [0, 1, 2, 3], "test": [0, 1, 2, 3]})
    with pytest.raises(
        ValueError, match="^record . of split 'train' .* more than 8 bits per pixel"
    ):
        opened("other", tmp_path)


def test_the_fingerprint_of_a_prepared_set_is_of_its_content(cifar100, tmp_path):
    """V3 and V19 for TFDS sets."""
    edited(cifar100, tmp_path / "there")
    first = describe_source(opened("cifar100", tmp_path / "there")).fingerprint
    folder = edited(cifar100, tmp_path)
    assert describe_source(opened("cifar100", tmp_path)).fingerprint == first
    shard = next(folder.glob("*test*array_record*"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert describe_source(opened("cifar100", tmp_path)).fingerprint != first


# V23: which features are read.

NUMBER = tfds.features.Scalar(np.int64)
SOME_CLASSES = tfds.features.ClassLabel(num_classes=4)


def test_whole_numbers_are_labels(tmp_path):
    write_foreign(tmp_path, {"train": [7, 30, 7, 200], "test": [200, 30, 7, -1]}, label=NUMBER)
    source = opened("other", tmp_path)
    assert source.class_names == ("7", "30", "200")
    images = source.read("test", np.arange(3))[:, 0, 0, 0]
    np.testing.assert_array_equal(images, np.array([7, 30, 200])[source.labels["test"]])


@pytest.mark.parametrize(
    ("features", "wanted", "found"),
    [
        ({"img": "image", "fine": SOME_CLASSES}, None, ("img", "fine")),
        ({"img": "image", "fine": SOME_CLASSES, "id": NUMBER}, None, ("img", "fine")),
        ({"img": "image", "id": NUMBER}, None, ("img", "id")),
        ({"image": "image", "label": SOME_CLASSES, "coarse": SOME_CLASSES}, None, None),
        (
            {"image": "image", "label": SOME_CLASSES, "coarse": SOME_CLASSES},
            ("image", "coarse"),
            ("image", "coarse"),
        ),
        (
            {"img": "image", "fine": SOME_CLASSES, "coarse": SOME_CLASSES},
            ("img", "fine"),
            ("img", "fine"),
        ),
        ({"img": "image", "fine": SOME_CLASSES, "id": NUMBER}, ("img", "id"), ("img", "id")),
    ],
)
def test_features_by_name_or_kind(tmp_path, features, wanted, found):
    write_features(tmp_path, features)
    source = opened("other", tmp_path, features=wanted)
    image, label = found or ("image", "label")
    assert source.class_names == ("0", "1", "2", "3")
    place = list(features).index(label)
    first = source.read("train", np.arange(8))[:, 0, 0, 0]
    np.testing.assert_array_equal((first + place) % 4, source.labels["train"])
    other = opened("other", tmp_path, features=(image, label))
    np.testing.assert_array_equal(other.labels["train"], source.labels["train"])


@pytest.mark.parametrize(
    ("features", "wanted", "message"),
    [
        (
            {"img": "image", "fine": SOME_CLASSES, "coarse": SOME_CLASSES},
            None,
            r"the label\(s\) \['coarse', 'fine'\]; .* such as data.features=\('img', ",
        ),
        (
            {"left": "image", "right": "image", "label": SOME_CLASSES},
            None,
            r"the image\(s\) \['left', 'right'\] and the label\(s\) \['label'\]; name",
        ),
        (
            {"img": "image", "fine": SOME_CLASSES},
            ("img", "label"),
            r"data.features=\('img', 'label'\) must be an image and a label of .*; its",
        ),
    ],
)
def test_features_that_are_not_clear(tmp_path, features, wanted, message):
    write_features(tmp_path, features)
    with pytest.raises(ValueError, match=message):
        opened("other", tmp_path, features=wanted)


def write_features(tmp_path, features):
    """Eight grey images, of value i % 4; a label is that plus its place among the features."""

    class Other(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name, VERSION = "other", tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(4, 4, 1))
            kinds = {name: image if f == "image" else f for name, f in features.items()}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kinds))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for i in range(8):
                image = fake_archives.encoded(i % 4, "PNG", (4, 4), "L")
                yield (
                    i,
                    {
                        name: image if f == "image" else (i + place) % 4
                        for place, (name, f) in enumerate(features.items())
                    },
                )

    Other(data_dir=tmp_path, file_format="array_record").download_and_prepare()


def edited(data_dir, tmp_path, **fields):
    """Copies a prepared set with some fields of dataset_info.json changed."""
    old, new = data_dir / "cifar100" / "3.0.2", tmp_path / "cifar100" / "3.0.2"
    new.mkdir(parents=True)
    for file in old.iterdir():
        (new / file.name).write_bytes(file.read_bytes())
    info = json.loads((new / "dataset_info.json").read_text()) | fields
    (new / "dataset_info.json").write_text(json.dumps(info))
    return new


def test_tfrecord_is_refused(cifar100, tmp_path):
    edited(cifar100, tmp_path, fileFormat="tfrecord")
    with pytest.raises(ValueError, match="stored as tfrecord, which needs tensorflow"):
        opened("cifar100", tmp_path)


def test_damaged_folder(cifar100, tmp_path):
    folder = edited(cifar100, tmp_path)
    (folder / "features.json").write_text("{")
    with pytest.raises(ValueError, match="is not a readable TFDS folder .*; prepare it again"):
        opened("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("cifar100", "cifar100 --archive cifar-100-python.tar.gz --data-dir "),
        ("imagenet2012", "imagenet --archive ILSVRC2012_img_train.tar --archive ILSVRC2012_img_"),
        ("imagenet_r", "folder --name imagenet_r --archive imagenet-r --data-dir "),
        ("cub200_2011", "cub200 --archive CUB_200_2011.tgz --data-dir "),
        ("flowers", "folder --name flowers --archive FOLDER_OF_CLASS_FOLDERS --data-dir "),
        ("cifar100:9.9.9", "cifar100 --archive"),
    ],
)
def test_missing_set_names_the_command(tmp_path, name, command):
    with pytest.raises(FileNotFoundError, match=f"`python launch/prepare.py {command}"):
        opened(name, tmp_path)


def test_versions_and_configs(cifar100, tmp_path):
    old = edited(cifar100, tmp_path)
    newer = old.rename(old.with_name("3.0.10"))
    edited(cifar100, tmp_path)
    assert tfds_source.find_prepared("cifar100", str(tmp_path)) == newer
    assert tfds_source.find_prepared("cifar100:3.0.2", str(tmp_path)) == old
    assert tfds_source.find_prepared("whatever", str(old)) == old
    for config in ("small", "large"):
        (tmp_path / "many" / config / "1.0.0").mkdir(parents=True)
        (tmp_path / "many" / config / "1.0.0" / "features.json").touch()
    with pytest.raises(ValueError, match=r"several configs; .* \['many/large', 'many/small'\]"):
        tfds_source.find_prepared("many", str(tmp_path))
    assert tfds_source.find_prepared("many/small", str(tmp_path)).parent.name == "small"


def test_label_cache(cifar100, tmp_path, monkeypatch):
    folder = edited(cifar100, tmp_path)
    expected = opened("cifar100", tmp_path).labels["train"]
    cache = folder / "jaxpmi_labels_train.npz"
    with np.load(cache) as arrays:
        content = dict(arrays)
    np.testing.assert_array_equal(content["labels"], expected)
    assert not list(folder.glob("tmp*"))
    scans = []
    scan = tfds_source._raw_records
    monkeypatch.setattr(tfds_source, "_raw_records", lambda *a: scans.append(a[1]) or scan(*a))
    opened("cifar100", tmp_path)
    assert scans == ["train", "test"]  # opened for reading only: no scan
    damaged = (
        lambda: cache.write_bytes(b"junk"),
        lambda: np.savez(cache, labels=content["labels"]),
        lambda: np.savez(cache, labels=content["labels"][:2], fingerprint=content["fingerprint"]),
        lambda: np.savez(cache, labels=content["labels"], fingerprint=np.asarray("older")),
    )
    for damage in damaged:
        damage()
        scans.clear()
        np.testing.assert_array_equal(opened("cifar100", tmp_path).labels["train"], expected)
        assert scans == ["train", "train", "test"]
    with np.load(cache) as arrays:
        assert str(arrays["fingerprint"]) == str(content["fingerprint"])


def test_read_only_data_dir(cifar100, tmp_path, monkeypatch):
    folder = edited(cifar100, tmp_path)

    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr(tfds_source.tempfile, "NamedTemporaryFile", refuse)
    assert len(opened("cifar100", tmp_path).labels["train"]) == 6
    assert not list(folder.glob("jaxpmi_*"))
    monkeypatch.undo()
    monkeypatch.setattr(tfds_source.os, "replace", refuse)
    opened("cifar100", tmp_path)
    assert not list(folder.glob("jaxpmi_*")) and not list(folder.glob("tmp*"))


def refused(capsys, data_dir, *arguments):
    """Runs prepare.py, expects exit code 2 and an untouched data directory; returns the message."""
    assert run(*arguments, "--data-dir", data_dir) == 2
    assert not data_dir.exists()
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].endswith(".")
    return errors[0]


def test_wrong_archives(tmp_path, capsys):
    data = tmp_path / "new" / "data"
    tar = fake_archives.cifar100_python(tmp_path / "cifar-100-python.tar.gz")
    junk = tmp_path / "junk"
    junk.write_bytes(b"no archive")
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(tar.read_bytes()[:-4000])
    cases = [
        (("cifar100", "--archive", tmp_path / "no"), "no does not exist; check the path"),
        (("cifar100", "--archive", junk), "junk is corrupt, truncated or no archive (ReadError)"),
        (("cifar100", "--archive", cut), "cut.tar.gz is corrupt, truncated"),
        (("cifar100", "--archive", tmp_path), "is a folder; expected the archive cifar-100-python"),
        (("cifar10", "--archive", tar), "holds no 'cifar-10-batches-py/data_batch_1'; expected"),
        (("cifar10", "--archive", tar, "--archive", tar), "got 2 archives; expected one"),
        (("tiny_imagenet", "--archive", tar), "is corrupt, truncated or no archive (BadZipFile)"),
        (("imagenet", "--archive", tar), "neither a tar of one tar per class nor"),
        (("folder", "--archive", tar), "is not a folder"),
        (("cifar100", "--archive", "~/no/such"), "no/such does not exist; check"),
        (("cifar100", "--archive", tar, "--classes", junk), "are for imagenet; leave them out"),
        (("cifar100", "--archive", tar, "--name", "Bad-Name"), "'Bad-Name' must be lower-case"),
    ]
    for arguments, message in cases:
        text = refused(capsys, data, *arguments)
        assert message in text, text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("labels", "train", "message"),
    [
        (range(6), pickle.dumps(os.system, protocol=2), "the pickle asks for posix.system"),
        (range(6), pickle.dumps([1], protocol=2), "a pickle holds a list, not a dict"),
        (range(6), b"junk", "does not hold the CIFAR arrays"),
        (range(6), fake_archives.python2_pickle({"fine_labels": [0]}), "'data'"),
        (
            range(6),
            fake_archives.python2_pickle(
                {"data": np.zeros((2, 9), np.uint8), "fine_labels": [0, 1], "coarse_labels": [0, 0]}
            ),
            "the pixels are uint8 of shape",
        ),
        (range(7), None, "a coarse_label is outside 0..2"),
    ],
)
def test_hostile_or_damaged_cifar(tmp_path, capsys, labels, train, message):
    archive = fake_archives.cifar100_python(tmp_path / "c.tar.gz", labels, train)
    assert message in refused(capsys, tmp_path / "data", "cifar100", "--archive", archive)


def test_members_never_reach_the_disk_by_name(tmp_path):
    archive = fake_archives.cifar100_python(tmp_path / "c.tar.gz")
    with tarfile.open(archive) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    fake_archives.write_tar(archive, {"../escaped": b"x", "/tmp/escaped_jaxpmi": b"x", **members})
    assert run("cifar100", "--archive", archive, "--data-dir", tmp_path / "a" / "b") == 0
    assert not (tmp_path / "escaped").exists() and not (tmp_path / "a" / "escaped").exists()
    assert not Path("/tmp/escaped_jaxpmi").exists()


def test_damaged_tiny_imagenet(tmp_path, capsys):
    data, path = tmp_path / "data", tmp_path / "t.zip"
    fake_archives.tiny_imagenet(path, val_wnid="n09")
    assert "lists no class 'n09'" in refused(capsys, data, "tiny_imagenet", "--archive", path)
    fake_archives.tiny_imagenet(path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"\xff\xd8") + 300] ^= 255  # in the first image: found while writing
    path.write_bytes(damaged)
    assert "corrupt" in refused(capsys, data, "tiny_imagenet", "--archive", path)


def test_damaged_imagenet(tmp_path, capsys):
    data = tmp_path / "data"
    train, val, labels = fake_archives.imagenet(tmp_path)
    both = ("imagenet", "--archive", train, "--archive", val)
    assert "expected --archive twice" in refused(capsys, data, *both[:3])
    text = refused(capsys, data, *both)
    assert "has 3 images but the list that comes with TFDS has 50000 labels" in text
    (tmp_path / "few.txt").write_text("n01\n")
    text = refused(capsys, data, *both, "--val-labels", tmp_path / "few.txt")
    assert "few.txt has 1 labels; give one wnid per image" in text
    assert "no.txt does not exist" in refused(capsys, data, *both, "--val-labels", "no.txt")
    (tmp_path / "classes.txt").write_text("n01 n99")
    text = refused(
        capsys, data, *both, "--val-labels", labels, "--classes", tmp_path / "classes.txt"
    )
    assert "lacks the class(es) 'n99'" in text
    fake_archives.write_tar(tmp_path / "train.tar", {"n01.tar": b"junk", "n02.tar": b"junk"})
    text = refused(capsys, data, *both, "--val-labels", labels)
    assert "train.tar is corrupt, truncated or no archive (ReadError)" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "holds no 'CUB_200_2011/images.txt'; expected the archive CUB_200_2011"),
        ({"images": "1 a/b.jpg"}, "lists 1 images but splits others; expected the archive CUB_200"),
        ({"images": ""}, "images.txt in "),
        ({"train_test_split": "1 1 1"}, "is no list of two columns; expected the archive CUB_200"),
        (
            {"images": "1 a/b.jpg", "train_test_split": "1 1"},
            "holds no 'CUB_200_2011/images/a/b.jpg'; expected",
        ),
    ],
)
def test_damaged_cub200(tmp_path, capsys, changes, message):
    archive = fake_archives.cub200(tmp_path / "c.tgz", **changes)
    assert message in refused(capsys, tmp_path / "data", "cub200", "--archive", archive)


def test_broken_image_while_writing(tmp_path, capsys):
    root = image_folder(tmp_path / "set", mode="RGB")
    (root / "b" / "4.png").write_bytes(b"junk")
    text = refused(capsys, tmp_path / "data", "folder", "--archive", root)
    assert "b/4.png is not a readable image" in text


def test_existing_set_is_kept(cifar100, tmp_path, capsys):
    archive = fake_archives.cifar100_python(tmp_path / "c.tar.gz")
    assert run("cifar100", "--archive", archive, "--data-dir", cifar100) == 2
    assert "3.0.2 exists already; remove it or give another --name." in capsys.readouterr().err
    assert opened("cifar100", cifar100).num_classes == 6
