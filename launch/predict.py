"""Asks a trained network for the class of images.

  python launch/predict.py --network runs/mnist_pmi/network.npz photos/ one.png --csv classes.csv

prints a line for each image: file, class, probability. The network is whatever `load_weights` reads
with its preprocessing beside it. Folders are searched to their depths for images. Images are
brought to the network's size and channels as those it was trained on: the short side is resized,
the centre cropped.
"""

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from console import one_sentence
from console import run_command

BATCH = 64  # images decoded and judged at once


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", type=Path, help="files and folders")
    parser.add_argument(
        "--network", required=True, type=Path, help="network.npz of a run, or a folder of weights"
    )
    parser.add_argument("--csv", type=Path, help="also write file, class, probability here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Predicts; returns the exit code, 2 for anything wrong with the input."""
    args = parse_args(arguments)
    try:
        return predict(args)
    except (ValueError, OSError) as error:
        if os.environ.get("JAXPMI_TRACEBACK"):
            raise
        print(f"error: {one_sentence(error)}", file=sys.stderr)
        return 2


def predict(args: argparse.Namespace) -> int:
    """Prints, and writes if asked for, the class of every image; 0 in the end.

    Raises:
      ValueError, OSError: the network or an image cannot be read, or does not fit the other.
    """
    import jaxpmi  # imports JAX, so --help and typos need not wait for it
    from jaxpmi.runs.machine import check_platform
    from jaxpmi.runs.machine import own_settings
    from jaxpmi.runs.writers.console import tell

    check_platform()
    files = list(find_images(args.images))
    rows = []
    with own_settings():
        network = jaxpmi.load_weights(args.network, say=lambda line: None)
        for start in range(0, len(files), BATCH):
            part = files[start : start + BATCH]
            for file, (name, probability) in zip(part, classify(network, part), strict=True):
                rows.append((str(file), name, f"{probability:.4f}"))
                tell("  ".join(rows[-1]))
    if args.csv is not None:
        write_csv(args.csv.expanduser(), rows)
    return 0


def find_images(paths: Sequence[Path]) -> Iterator[Path]:
    """The files that are named, and of folders the images, sorted."""
    from jaxpmi.data import image_files

    for path in map(Path.expanduser, paths):
        if not path.is_dir():
            if not path.is_file():
                raise FileNotFoundError(f"{path} does not exist; give image files or folders.")
            yield path
            continue
        found, _ = image_files.find_images(path)
        if not found:
            raise ValueError(f"{path} holds no image; give a folder of images, or files.")
        yield from found


def classify(network: Any, files: Sequence[Path]) -> list[tuple[str, float]]:
    """The most probable class of each image, and its probability."""
    import jax
    import numpy as np

    import jaxpmi
    from jaxpmi.data.decoding import decode_images

    height, width, _ = network.image_shape
    encoded = [file.read_bytes() for file in files]
    images = decode_images(encoded, network.image_shape, height == width, list(map(str, files)))
    rest = np.zeros((BATCH - len(images), *network.image_shape), np.uint8)  # one program for all
    logits = jaxpmi.logits(network, np.concatenate([images, rest]))
    if logits.ndim != 2:
        raise ValueError("the network labels pixels, not images; see docs/segmentation.md.")
    probabilities = np.asarray(jax.nn.softmax(logits))[: len(files)]
    best = probabilities.argmax(1)
    names = network.class_names
    return [(names[c], float(p[c])) for c, p in zip(best, probabilities, strict=True)]


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Writes the rows below a line of names; the file is complete or as it was."""
    from jaxpmi.runs.writers.files import replace_file

    text = io.StringIO(newline="")
    csv.writer(text).writerows([("file", "class", "probability"), *rows])
    with replace_file(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    sys.exit(run_command(main))
