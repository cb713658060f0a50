from collections import Counter

import pytest

from jaxpmi.config import DataConfig
from jaxpmi.data import open_source
from jaxpmi.data.class_split import split_classes
from jaxpmi.data.coloured_digits import COLOURS
from jaxpmi.data.coloured_digits import DIGITS

NAMES = open_source(DataConfig(source="coloured_digits")).class_names


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("num_pretraining", [10, 16, 20])
def test_pretraining_meets_every_word_about_equally_often(num_pretraining, seed):
    split = split_classes(NAMES, seed, num_pretraining=num_pretraining, num_name_only=8)
    sizes = [len(classes) for classes in split]
    assert sizes == [num_pretraining, 32 - num_pretraining, 8]
    assert sorted(sum(split, ())) == list(range(40))
    uses = Counter(word for label in split.pretraining for word in NAMES[label].split())
    assert len(uses) == 14
    for words in (COLOURS, DIGITS):
        counts = [uses[word] for word in words]
        assert max(counts) - min(counts) <= 2


def test_the_seed_decides():
    splits = [split_classes(NAMES, seed, num_pretraining=16, num_name_only=8) for seed in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert all(set(a) != set(b) for a, b in zip(splits[0], splits[2], strict=True))


def test_too_few_pretraining_classes_name_the_words_that_they_miss():
    with pytest.raises(
        ValueError, match="2 pretraining classes never show 'blue'; .*raise num_pretr"
    ):
        split_classes(("red one", "green two", "blue one"), 3, num_pretraining=2, num_name_only=0)


@pytest.mark.parametrize(("num_pretraining", "num_name_only"), [(0, 8), (16, 24), (16, -1)])
def test_sets_that_leave_nothing_to_learn_are_errors(num_pretraining, num_name_only):
    with pytest.raises(ValueError, match="pretraining and tasks need 1 or more each"):
        split_classes(NAMES, 0, num_pretraining=num_pretraining, num_name_only=num_name_only)
