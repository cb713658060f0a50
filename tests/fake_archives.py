"""Small archives in the exact layout of the originals, for the tests."""

import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2's cPickle wrote: byte strings, and numpy's names of that time."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_byte_string(self, value):
        value = value.encode("latin1") if isinstance(value, str) else value
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    def save_name(self, value, name=None):
        module = "numpy.core.multiarray" if value.__name__ == "_reconstruct" else value.__module__
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_byte_string
    dispatch[type] = dispatch[type(np.zeros(0).__reduce__()[0])] = save_name
    save_global = save_name


def python2_pickle(value):
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2, fix_imports=True).dump(value)
    return buffer.getvalue()


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            add(tar, name, data)
    return path


def cifar_pixels(num_images, seed):
    """u8[N, 3072] in CIFAR's own order: all red pixels, then green, then blue."""
    return np.random.RandomState(seed).randint(0, 256, (num_images, 3072), np.uint8)


def cifar100_python(path, labels=range(6), train=None):
    names = [f"fine{i}" for i in range(6)]
    coarse = [f"coarse{i}" for i in range(3)]
    members = {
        "cifar-100-python/meta": {"fine_label_names": names, "coarse_label_names": coarse},
    }
    for split, seed in (("train", 0), ("test", 1)):
        members[f"cifar-100-python/{split}"] = {
            "batch_label": f"{split}ing batch 1 of 1",
            "filenames": [f"{split}_{i}.png" for i in labels],
            "fine_labels": list(labels),
            "coarse_labels": [label // 2 for label in labels],
            "data": cifar_pixels(len(labels), seed),
        }
    packed = {name: python2_pickle(value) for name, value in members.items()}
    if train is not None:
        packed["cifar-100-python/train"] = train
    return write_tar(path, packed, "w:gz")


def cifar10_python(path):
    members = {"cifar-10-batches-py/batches.meta": {"label_names": ["plane", "car"]}}
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        members[f"cifar-10-batches-py/{name}"] = {"labels": [0, 1], "data": cifar_pixels(2, i)}
    packed = {name: python2_pickle(value) for name, value in members.items()}
    return write_tar(path, packed, "w:gz")


def cifar100_binary(path):
    members = {
        "cifar-100-binary/fine_label_names.txt": b"f0\nf1\nf2\nf3\nf4\nf5\n",
        "cifar-100-binary/coarse_label_names.txt": b"c0\nc1\nc2\n",
    }
    for split, seed in (("train", 0), ("test", 1)):
        rows = [
            bytes([i // 2, i]) + pixels.tobytes() for i, pixels in enumerate(cifar_pixels(6, seed))
        ]
        members[f"cifar-100-binary/{split}.bin"] = b"".join(rows)
    return write_tar(path, members, "w:gz")


def encoded(color, image_format="JPEG", size=(64, 64), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, image_format)
    return buffer.getvalue()


def tiny_imagenet(path, wnids=("n02", "n01"), val_wnid="n01"):
    root = "tiny-imagenet-200"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/wnids.txt", "\n".join(wnids))
        for label, wnid in enumerate(("n01", "n02")):
            for i in range(3):
                image = (
                    encoded(label * 100 + 50, mode="L") if i == 0 else encoded((label * 200,) * 3)
                )
                archive.writestr(f"{root}/train/{wnid}/images/{wnid}_{i}.JPEG", image)
            archive.writestr(f"{root}/train/{wnid}/{wnid}_boxes.txt", "boxes")
        rows = [("val_0.JPEG", "n02"), ("val_1.JPEG", val_wnid)]
        lines = [f"{name}\t{wnid}\t0\t0\t9\t9\n" for name, wnid in rows]
        archive.writestr(f"{root}/val/val_annotations.txt", "".join(lines))
        for name, wnid in rows:
            archive.writestr(f"{root}/val/images/{name}", encoded((200 * (wnid == "n02"),) * 3))
    return path


def imagenet(folder):
    """Writes the train and val archives of three classes and returns (train, val, val labels)."""
    train = {}
    for label, wnid in enumerate(("n03", "n01", "n02")):  # not sorted, as any archive may be
        images = {f"{wnid}_{i}.JPEG": encoded((label * 90,) * 3, size=(20, 30)) for i in (1, 2)}
        images[f"{wnid}_3.JPEG"] = encoded((9, 9, 9), "PNG", size=(40, 20))
        images[f"{wnid}_4.JPEG"] = encoded((0, 0, 0, 0), "JPEG", size=(20, 20), mode="CMYK")
        train[f"{wnid}.tar"] = write_tar(folder / "class.tar", images).read_bytes()
    (folder / "class.tar").unlink()
    val = {f"ILSVRC2012_val_0000000{i}.JPEG": encoded((i, i, i)) for i in (2, 1, 3)}
    (folder / "val.txt").write_text("n01\nn02\nn03\n")
    return (
        write_tar(folder / "train.tar", train),
        write_tar(folder / "val.tar", val),
        folder / "val.txt",
    )


CUB_FOLDERS = ("001.Black_footed_Albatross", "002.Laysan_Albatross")


def cub200(path, folders=CUB_FOLDERS, **changes):
    """Three images of each bird, every second for training; the first one of the last is grey.

    `changes` are other contents of the two lists, by the file's stem; None leaves it out.
    """
    members, lists = {}, {"images": "", "train_test_split": ""}
    for i in range(3 * len(folders)):
        file = f"{folders[i // 3]}/Bird_000{i}.jpg"
        lists["images"] += f"{i + 1} {file}\n"
        lists["train_test_split"] += f"{i + 1} {1 - i % 2}\n"
        level = 240 * i // (3 * len(folders))
        color, mode = (level, "L") if i == 3 * len(folders) - 3 else ((level,) * 3, "RGB")
        members[f"images/{file}"] = encoded(color, size=(30, 20), mode=mode)
    lists |= changes
    members |= {f"{name}.txt": text.encode() for name, text in lists.items() if text is not None}
    return write_tar(path, {f"CUB_200_2011/{name}": data for name, data in members.items()}, "w:gz")
