"""The data of a run: parts of a split in a ratio, and vectors kept on disk."""

import numpy as np
import pytest
import torch

from jepa4rec.datasets_builders.contract import Split, Splits
from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.training.data import in_ratio, kept_vectors


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


def test_vectors_of_one_precision_are_never_taken_for_those_of_another(
    tiny_config, tiny_tokenizer, tiny_items, monkeypatch
):
    model, tokens = Jepa4RecModel(tiny_config), tiny_tokenizer.encode_items(tiny_items)
    ways = (None, torch.bfloat16)
    made = [kept_vectors(model, tiny_tokenizer, tokens, precision=way) for way in ways]
    assert not torch.equal(*made)
    monkeypatch.setattr("jepa4rec.training.data.encode_items", lambda *_: pytest.fail("the items were encoded again"))
    again = [kept_vectors(model, tiny_tokenizer, tokens, precision=way) for way in ways]
    assert torch.equal(made[0], again[0]) and torch.equal(made[1], again[1])
