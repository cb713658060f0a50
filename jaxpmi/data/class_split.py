"""Which classes a model is pretrained on, which it learns later, and which it only hears of."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ClassSplit(NamedTuple):
    """Three sets of class ids that together are all classes; each is in random order."""

    pretraining: tuple[int, ...]
    tasks: tuple[int, ...]
    name_only: tuple[int, ...]


def split_classes(
    class_names: Sequence[str], seed: int, *, num_pretraining: int, num_name_only: int
) -> ClassSplit:
    """Splits classes so that pretraining meets every word of all the names.

    Whoever knows "red" and "three" from other classes can recognise "red three". Pretraining
    takes, one by one, a class with most new words; of these, one whose words are rarest so far;
    of these, a random one. So it also meets all words about equally often. The other two sets are
    drawn from the rest.

    Args:
      class_names: C names of words divided by spaces.
      seed: of the draw, 0 or more.
      num_pretraining: classes for pretraining.
      num_name_only: classes known by name only; those that are left are for the tasks.

    Raises:
      ValueError: no class is left for the tasks, or pretraining gets too few to meet every word.
    """
    words = [name.lower().split() for name in class_names]
    num_tasks = len(words) - num_pretraining - num_name_only
    if min(num_pretraining, num_tasks) < 1 or num_name_only < 0:
        raise ValueError(
            f"{num_pretraining} pretraining and {num_name_only} name-only classes of {len(words)} "
            f"leave {num_tasks} for the tasks; pretraining and tasks need 1 or more each."
        )
    uses = Counter()

    def rank(label: int) -> tuple[int, int]:
        counts = [uses[word] for word in words[label]]
        return -counts.count(0), sum(counts)

    rest = np.random.RandomState(seed).permutation(len(words)).tolist()
    pretraining = []
    for _ in range(num_pretraining):
        best = min(rest, key=rank)  # the first of equals, and the order is random
        rest.remove(best)
        pretraining.append(best)
        uses.update(words[best])
    missing = sorted({word for name in words for word in name} - set(uses))
    if missing:
        raise ValueError(
            f"{num_pretraining} pretraining classes never show {', '.join(map(repr, missing))}; "
            "every word of a class name must be met, so raise num_pretraining."
        )
    return ClassSplit(tuple(pretraining), tuple(rest[num_name_only:]), tuple(rest[:num_name_only]))
