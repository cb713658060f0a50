"""DataFacts: what was read of a data set, to be said before training and to be kept with a run."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.image_source import PassedOver
from jaxpmi.data.scene_source import SceneSource

MOST_CLASSES = 10  # named on the console


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """What was read of a data set.

    Attributes:
      class_names: of the labels 0..C-1.
      groups: what images are counted by: the class names, or the domains of scenes.
      counts: split -> images of each group.
      image_shape: H, W, C.
      passed_over: what was found beside the data.
      fingerprint: of class names, labels and pixels, or of what stands for these: names and sizes
        of files, their headers and first bytes. It does not depend on where the data lie.
    """

    class_names: tuple[str, ...]
    groups: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    image_shape: tuple[int, int, int]
    passed_over: tuple[PassedOver, ...]
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as what JSON can hold."""
        height, width, channels = self.image_shape
        counted = "images_of_classes" if self.groups is self.class_names else "images_of_domains"
        domains = {} if self.groups is self.class_names else {"domains": list(self.groups)}
        return {
            "classes": list(self.class_names),
            **domains,
            "images": {split: sum(of_groups) for split, of_groups in self.counts.items()},
            counted: {split: list(of_groups) for split, of_groups in self.counts.items()},
            "image_size": [height, width],
            "channels": channels,
            "passed_over": [entry._asdict() for entry in self.passed_over],
            "fingerprint": self.fingerprint,
        }

    def lines(self) -> list[str]:
        """Returns what the console says: a line of numbers, the classes, what was passed over."""
        height, width, channels = self.image_shape
        colour = "grey" if channels == 1 else "colour"
        unit = "class" if self.groups is self.class_names else "domain"
        parts = [_said(counts, f"{split}ing", unit) for split, counts in self.counts.items()]
        names, more = self.class_names[:MOST_CLASSES], len(self.class_names) - MOST_CLASSES
        return [
            f"{len(self.class_names)} classes of {width}x{height} {colour} images, "
            f"{' and '.join(parts)}; fingerprint {self.fingerprint}",
            f"classes: {', '.join(names)}" + (f" and {more} more" if more > 0 else ""),
            *(f"passed over: {entry}" for entry in self.passed_over),
        ]


def describe_source(source: ImageSource | SceneSource) -> DataFacts:
    """Says what was read of a data set; no pixel is decoded for it."""
    scenes = isinstance(source, SceneSource)
    labels = source.domains if scenes else source.labels
    groups = source.domain_names if scenes else source.class_names
    counts = {
        split: tuple(np.bincount(labels[split], minlength=len(groups)).tolist())
        for split in ("train", "test")
    }
    return DataFacts(
        source.class_names, groups, counts, source.image_shape, source.passed_over,
        _fingerprint(source, groups, labels),
    )  # fmt: skip


def _fingerprint(source, groups: Sequence[str], labels: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    named = [list(source.class_names), list(groups), source.digest]
    digest.update(json.dumps(named).encode())
    for split in ("train", "test"):
        digest.update(np.ascontiguousarray(labels[split], np.dtype("<i4")).data)
    return digest.hexdigest()


def _said(counts: Sequence[int], purpose: str, unit: str) -> str:
    """Such as `40 for training (10 of each class)`, or `7 for testing (3 to 4 of a class)`."""
    low, high = min(counts, default=0), max(counts, default=0)
    each = f"{low} of each {unit}" if low == high else f"{low} to {high} of a {unit}"
    return f"{sum(counts)} for {purpose} ({each})"
