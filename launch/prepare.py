"""Turns an original data-set archive into TFDS ArrayRecord files, without tensorflow.

  python launch/prepare.py cifar100 --archive cifar-100-python.tar.gz --data-dir DIR
  python launch/prepare.py tiny_imagenet --archive tiny-imagenet-200.zip
  python launch/prepare.py imagenet --classes imagenet100.txt --name imagenet100 \\
      --archive ILSVRC2012_img_train.tar --archive ILSVRC2012_img_val.tar
  python launch/prepare.py cub200 --archive CUB_200_2011.tgz --data-dir DIR
  python launch/prepare.py folder --archive my_images --name my_images
"""

import argparse
import os
import sys
from pathlib import Path

from console import run_command

from jaxpmi.data import builders


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=builders.KINDS)
    parser.add_argument(
        "--archive", action="append", required=True, type=Path, help="archive or folder; repeatable"
    )
    default_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    parser.add_argument("--data-dir", type=Path, default=Path(default_dir), help="%(default)s")
    parser.add_argument("--name", help="data-set name, e.g. imagenet100")
    parser.add_argument("--classes", type=Path, help="imagenet: text file of the wnids to keep")
    parser.add_argument("--val-labels", type=Path, help="imagenet: one wnid per validation image")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prepares one data set; returns the exit code, 2 for anything wrong with the input."""
    args = parse_args(arguments)
    try:
        folder = builders.prepare(
            args.kind,
            args.archive,
            args.data_dir,
            name=args.name,
            val_labels=args.val_labels,
            classes=args.classes,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder} is ready; set data.source='tfds' and data.path='{folder}' to use it.")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
