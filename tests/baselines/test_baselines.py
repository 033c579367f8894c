"""Baselines by hand, against the slow way, and on real data."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from processes import ask_stranger

from jepa4rec.baselines import BASELINES, ItemTransition, Popularity, fit_baseline
from jepa4rec.baselines.pmf import Pmf
from jepa4rec.baselines.rating_mean import RatingMean
from jepa4rec.evaluation.metrics.seqrec_ranking.ranking_metrics import ranking_metrics
from jepa4rec.evaluation.ranking import rank_split
from tests.conftest import WITHOUT_PACKAGE

STRANGER = (
    WITHOUT_PACKAGE
    + """
import json, sys
import numpy as np
import torch
from transformers import AutoModel

histories = [np.array(items) for items in json.loads(sys.argv[1])]
for checkpoint in sys.argv[2:]:
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
    asked = torch.tensor([0, 1, -1]), torch.tensor([2, -1, 3])
    stars = model.predict(*asked).tolist() if model.predicts_ratings else []
    print(json.dumps([model.score(histories).tolist(), stars]))
"""
)


def sequences(*lists):
    return [np.array(items, dtype=np.int32) for items in lists]


TRAIN = sequences([0, 1, 2, 1], [0, 1], [3, 1, 2], [4])


def test_popularity_counts_training_items():
    scores = Popularity.fit(TRAIN, 6).score(sequences([0], [5, 2]))
    assert scores.tolist() == [[2, 4, 2, 1, 1, 0]] * 2


def test_first_order_counts_what_followed_the_last_item():
    model = ItemTransition.fit(TRAIN, 6)
    scores = model.score(sequences([2, 1], [1, 0], [3, 4]))
    assert scores.round().tolist() == [[0, 0, 2, 0, 0, 0], [0, 2, 0, 0, 0, 0], [0] * 6]


def test_popularity_breaks_ties_and_nothing_else():
    scores = ItemTransition.fit(TRAIN, 6).score(sequences([4]))[0]
    assert scores.argsort(descending=True)[0] == 1 and 0 < scores.max() < 1e-5
    assert scores[0] == scores[2] and scores[5] == 0  # equally popular items still tie


def test_one_users_last_item_is_not_followed_by_the_next_users_first():
    model = ItemTransition.fit(sequences([0, 1], [], [2, 3], []), 4)
    assert model.score(sequences([1], [0], [2])).round().tolist() == [[0] * 4, [0, 1, 0, 0], [0, 0, 0, 1]]


def test_decayed_votes_are_probabilities_weighed_by_age():
    model = ItemTransition.fit(TRAIN, 6, order="decayed", decay=0.5, window=2)
    scores = model.score(sequences([4, 0, 1]))[0]
    # after 1 (age 0): 2 twice of two; after 0 (age 1): 1 twice of two; 4 is beyond the window
    assert scores.numpy().round(4).tolist() == [0, 0.5, 1, 0, 0, 0]


def slow_transition_scores(train, history, num_items, decay, window):
    follows = {item: Counter() for item in range(num_items)}
    for sequence in train:
        for before, after in zip(sequence[:-1], sequence[1:], strict=True):
            follows[before][after] += 1
    scores = [0.0] * num_items
    for age, item in enumerate(history[::-1][:window]):
        for after, count in follows[item].items():
            vote = count if window == 1 else decay**age * count / sum(follows[item].values())
            scores[after] += vote
    popularity = Counter(item for sequence in train for item in sequence)
    top = max(popularity.values())
    return [score + 1e-6 * popularity[item] / top for item, score in enumerate(scores)]


@pytest.mark.parametrize(("order", "window"), [("first", 1), ("decayed", 2), ("decayed", 20)])
def test_transition_scores_equal_the_slow_way(order, window):
    rng = np.random.default_rng(0)
    train = sequences(*(rng.integers(0, 15, rng.integers(0, 12)) for _ in range(30)))
    histories = sequences(*(rng.integers(0, 15, rng.integers(1, 30)) for _ in range(20)))
    scores = ItemTransition.fit(train, 15, order=order, decay=0.7, window=window).score(histories)
    for row, history in zip(scores, histories, strict=True):
        assert row.tolist() == pytest.approx(slow_transition_scores(train, history, 15, 0.7, window), abs=1e-12)


@pytest.mark.parametrize("fit", [Popularity.fit, ItemTransition.fit])
def test_a_training_item_outside_the_catalogue_is_an_error(fit):
    with pytest.raises(ValueError, match=r"has item 9, but the catalogue has items 0\.\.5"):
        fit(sequences([0, 9]), 6)


@pytest.mark.slow("opens it in a process of a stranger")
def test_what_was_counted_is_saved_and_opened_again(tmp_path):
    ratings = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 3, 1, 2]), torch.tensor([5.0, 3.0, 1.0, 4.0])
    fitted = {
        "popularity": Popularity.fit(TRAIN, 6),
        "first": ItemTransition.fit(TRAIN, 6),
        "decayed": ItemTransition.fit(TRAIN, 6, order="decayed", decay=0.5, window=2),
        "mean": RatingMean.fit(*ratings, 2, 4),
        "pmf": Pmf.fit(*ratings, 2, 4, epochs=1),
    }
    histories = [[4, 0, 1], [2], [5, 3]]
    for name, model in fitted.items():
        model.save_pretrained(tmp_path / name)
    away = tmp_path / "away"
    away.mkdir()
    said = ask_stranger("-c", STRANGER, json.dumps(histories), *(tmp_path / name for name in fitted), home=away)
    told = [json.loads(line) for line in said.splitlines()]
    asked, wanted = (torch.tensor([0, 1, -1]), torch.tensor([2, -1, 3])), []
    for model in fitted.values():
        stars = model.predict(*asked).tolist() if model.predicts_ratings else []
        wanted.append([model.score(sequences(*histories)).tolist(), stars])
    assert told == wanted


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match='"markov" is no baseline; there are popularity, item_transition'):
        fit_baseline("markov", None, "test", 3)
    with pytest.raises(StrictDataclassError, match='order is "second"'):
        ItemTransition.fit(TRAIN, 6, order="second")


def leave_one_out(users):
    """Splits as the data contract makes them."""

    def split(cut):
        return SimpleNamespace(histories=[u[:-cut] for u in users], targets=np.array([u[-cut] for u in users]))

    return SimpleNamespace(train=[user[:-2] for user in users], validation=split(2), test=split(1))


def test_for_the_test_split_transitions_into_validation_items_are_known_and_test_targets_are_not():
    splits = leave_one_out(sequences([0, 1, 2, 3]))
    after = {split: fit_baseline("item_transition", splits, split, 5) for split in ("validation", "test")}
    assert after["validation"].score(sequences([1])).round().tolist() == [[0, 0, 0, 0, 0]]
    assert after["test"].score(sequences([1], [2])).round().tolist() == [[0, 0, 1, 0, 0], [0] * 5]
    for split in ("validation", "test"):
        assert fit_baseline("popularity", splits, split, 5).score(sequences([1])).tolist() == [[1, 1, 0, 0, 0]]


# Real data: the numbers that stand beside every result

REAL = {
    "online_retail": {
        "popularity": (0.0399, 0.0211, 0.0249),
        "item_transition": (0.2760, 0.1883, 0.1689),
        "item_transition_decayed": (0.2784, 0.1802, 0.1607),
    },
    "scientific": {
        "popularity": (0.0309, 0.0171, 0.0174),
        "item_transition": (0.0875, 0.0593, 0.0550),
        "item_transition_decayed": (0.1005, 0.0674, 0.0626),
    },
}


def build_real(dataset, real_file):
    from jepa4rec import datasets_builders

    if dataset == "online_retail":
        files = [str(real_file("online_retail/OnlineRetail.csv.gz"))]
        return datasets_builders.build("online_retail", "jepa4rec", files)
    return datasets_builders.build("amazon_2018", "unisrec", [str(real_file("amazon_2018/scientific_unisrec"))])


@pytest.mark.parametrize("dataset", REAL)
def test_baselines_on_real_data(dataset, real_file):
    from jepa4rec.datasets_builders import contract

    built = build_real(dataset, real_file)
    splits = contract.leave_one_out(built.sequences)
    for name in BASELINES:
        ranks = rank_split(fit_baseline(name, splits, "test", built.num_items), splits.test, progress=False)
        metrics = ranking_metrics(ranks)
        seen = tuple(metrics[metric] for metric in ("recall@10", "ndcg@10", "mrr"))
        assert seen == pytest.approx(REAL[dataset][name], abs=5e-5), name
