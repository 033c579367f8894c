"""Ratings: the mean by hand, PMF finds a planted structure, and the errors are right."""

import evaluate
import numpy as np
import pytest
import torch

from jepa4rec.baselines.pmf import Pmf
from jepa4rec.baselines.rating_mean import RatingMean
from jepa4rec.evaluation.metrics.rating_error.rating_errors import rating_errors
from tests.conftest import ROOT


def planted(seed=0):
    """3,000 of 60 × 50 ratings of rank two with a little noise: (users, items, ratings), shuffled."""
    rng = np.random.default_rng(seed)
    truth = 3 + rng.normal(size=(60, 2)) @ rng.normal(size=(2, 50)) * 0.7
    users, items = np.divmod(rng.permutation(3000), 50)
    ratings = truth[users, items] + rng.normal(scale=0.1, size=3000)
    return torch.from_numpy(users), torch.from_numpy(items), torch.from_numpy(ratings)


def test_the_mean_by_hand():
    users, items, ratings = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), torch.tensor([5.0, 3.0, 1.0])
    model = RatingMean.fit(users, items, ratings, 3, 3, damping=1.0)
    # mean 3; item 0: (2 - 2) / 3 = 0, item 1: 0; user 0: (2 + 0) / 3, user 1: -2 / 2
    assert model.mean.item() == 3
    assert model.user_bias.tolist() == pytest.approx([2 / 3, -1, 0, 0])
    assert model.predict(torch.tensor([0, 1, 2, -1]), torch.tensor([1, 0, 2, -1])).tolist() == pytest.approx(
        [3 + 2 / 3, 2, 3, 3]
    )


def test_the_thesis_mean_is_each_items_own():
    users, items, ratings = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), torch.tensor([5.0, 3.0, 2.0])
    model = RatingMean.fit(users, items, ratings, 2, 3, damping=0.0, user_biases=False)
    stars = model.predict(torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, 1, 2]))
    assert stars.tolist() == pytest.approx([3.5, 3.5, 3, 10 / 3])  # nobody rated item 2


def test_pmf_without_biases_is_the_dot_product_alone():
    users, items, ratings = planted()
    model = Pmf.fit(users, items, ratings, 60, 50, epochs=2, hidden_size=3, biases=False, batch_size=128)
    p, q = (table.weight.detach()[:, :-1] for table in (model.users, model.items))
    by_hand = [model.config.mean + float(p[u] @ q[i]) for u, i in ((3, 4), (7, 0))]
    wanted = np.clip(by_hand, model.config.lowest, model.config.highest)
    with torch.no_grad():
        assert model.predict(torch.tensor([3, 7]), torch.tensor([4, 0])).tolist() == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(model.score([[0]]), torch.zeros(1, 50))


def test_predictions_stay_in_the_range_of_the_ratings():
    users, items, ratings = planted()
    for model in (RatingMean.fit(users, items, ratings, 60, 50), Pmf.fit(users, items, ratings, 60, 50, epochs=2)):
        with torch.no_grad():
            predicted = model.predict(users, items)
        assert ratings.min() - 1e-5 <= predicted.min() and predicted.max() <= ratings.max() + 1e-5


def test_pmf_finds_a_planted_structure_that_the_mean_cannot():
    users, items, ratings = planted()
    train, test = slice(0, 2400), slice(2400, None)
    mean = RatingMean.fit(users[train], items[train], ratings[train], 60, 50)
    pmf = Pmf.fit(users[train], items[train], ratings[train], 60, 50, batch_size=128, hidden_size=4, l2=0.005)
    with torch.no_grad():
        errors = [rating_errors(m.predict(users[test], items[test]), ratings[test])["rmse"] for m in (mean, pmf)]
    assert errors[1] < 0.3 < 0.7 < errors[0]


def test_the_same_seed_gives_the_same_pmf():
    first, second = (Pmf.fit(*planted(), 60, 50, epochs=1, seed=3) for _ in range(2))
    assert torch.equal(first.users.weight, second.users.weight)


@pytest.mark.parametrize("model_class", [RatingMean, Pmf])
@pytest.mark.parametrize("ratings", [[], [1.0, float("nan")]])
def test_no_ratings_and_broken_ones_are_refused(model_class, ratings):
    ids = torch.zeros(len(ratings), dtype=torch.int64)
    with pytest.raises(ValueError, match="ratings must be finite numbers, at least one"):
        model_class.fit(ids, ids, torch.tensor(ratings), 1, 1)


# ---- the metric


def test_errors_by_hand_and_through_evaluate():
    wanted = {"rmse": 0.5**0.5, "mae": 0.5}
    assert rating_errors([4.0, 2.0], [5.0, 2.0]) == pytest.approx(wanted)
    metric = evaluate.load(str(ROOT / "evaluation" / "metrics" / "rating_error"))
    assert metric.compute(predictions=[4.0, 2.0], references=[5.0, 2.0]) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([1.0], [1.0, 2.0], "must be lists of one length"),
        ([], [], "There are no ratings"),
        ([1.0, float("nan")], [1.0, 2.0], "Row 1 has prediction nan"),
    ],
)
def test_bad_ratings_are_named(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        rating_errors(predictions, references)
