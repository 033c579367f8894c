"""The data of a run: parts of a split in a ratio."""

import numpy as np
import pytest

from jepa4rec.datasets_builders.contract import Split, Splits
from jepa4rec.training.data import in_ratio


def splits_of(train: int, validation: int, test: int) -> Splits:
    def part(users: int) -> Split:
        names = np.array([f"u{user}" for user in range(users)], dtype=object)
        return Split(names, [np.array([user]) for user in range(users)], np.arange(users))

    return Splits([np.array([user]) for user in range(train)], part(validation), part(test))


@pytest.mark.parametrize(
    "sizes, kept",
    [((100, 100, 100), (100, 28, 14)), ((700, 20, 50), (70, 20, 10)), ((70, 20, 10), (70, 20, 10))],
)
def test_parts_are_as_large_as_the_ratio_lets_them_be(sizes, kept):
    splits = in_ratio(splits_of(*sizes), [7, 2, 1])
    assert (len(splits.train), len(splits.validation.targets), len(splits.test.targets)) == kept
    assert len({int(sequence[0]) for sequence in splits.train}) == kept[0]
    assert [int(history[0]) for history in splits.test.histories] == splits.test.targets.tolist()  # rows stay together


def test_the_sample_is_fixed_and_nothing_is_left_out_without_a_ratio():
    splits = splits_of(50, 50, 50)
    assert in_ratio(splits, None) is splits
    first, second = (in_ratio(splits, [7, 2, 1]).test.targets.tolist() for _ in range(2))
    assert first == second and in_ratio(splits, [7, 2, 1], seed=1).test.targets.tolist() != first


def test_too_few_users_for_a_ratio_are_named():
    with pytest.raises(ValueError, match=r"data.ratio \[7, 2, 1\]: the split has \(3, 3, 3\) users"):
        in_ratio(splits_of(3, 3, 3), [7, 2, 1])
