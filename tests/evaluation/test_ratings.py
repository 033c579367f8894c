"""Ratings: tasks parted as interactions are, a head that learns what vectors know, and clear words for bad ratings."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import TINY_ITEMS

from jepa4rec.datasets_builders.contract import AMAZON_2023_TEST_START, make_dataset, save_dataset
from jepa4rec.evaluation.ratings import rating_tasks
from jepa4rec.training.phases.rating import HEAD_FILE, RatingModel
from tests.training.test_train_accelerate import ST5, log_lines, train, weights, write_recipe  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow("trains rating heads through the loop")

PHASE = {"kind": "rating", "steps": 60, "batch_size": 32, "lr": 1e-2, "evaluate_every_steps": 20, "hidden_size": 16}


def dataset_of(rows: list[list[int]], ratings: list[list[float]], **columns):
    items = pa.table(
        {"item_id": [str(i) for i in range(12)], **{k: [i[k] for i in TINY_ITEMS] for k in TINY_ITEMS[0]}}
    )
    lists = {"items": pa.array(rows, pa.list_(pa.int32())), "ratings": pa.array(ratings, pa.list_(pa.float32()))}
    users = {"user_id": [f"u{u}" for u in range(len(rows))]}
    return make_dataset(items, pa.table({**users, **lists, **columns}), {"name": "rated", "config": "tiny"})


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """60 users; the four items of one half of the catalogue's words are loved, the others are not."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(12)[:7].tolist() for _ in range(60)]
    folder = tmp_path_factory.mktemp("rated") / "shop"
    save_dataset(dataset_of(rows, [[5.0 if item in (0, 1, 4, 5) else 2.0 for item in row] for row in rows]), folder)
    return folder


def test_tasks_are_parted_by_leave_one_out():
    dataset = dataset_of([[3, 4, 5, 6], [1, 2]], [[1, 2, 3, 4], [5, 5]])
    tasks = rating_tasks(dataset, "leave_one_out")
    told = {
        part: [*zip(t.users, t.items, t.ratings, map(list, t.histories), strict=True)] for part, t in tasks.items()
    }
    assert told == {
        "train": [(0, 3, 1, []), (0, 4, 2, [3]), (1, 1, 5, []), (1, 2, 5, [1])],  # two items are too few to test on
        "validation": [(0, 5, 3, [3, 4])],
        "test": [(0, 6, 4, [3, 4, 5])],
    }
    assert len(rating_tasks(dataset, "leave_one_out", train_users=1)["train"].items) == 2


def test_tasks_are_parted_by_time():
    late = AMAZON_2023_TEST_START
    times = pa.array([[1, late - 1, late], [late]], pa.list_(pa.int64()))
    tasks = rating_tasks(dataset_of([[3, 4, 5], [1]], [[1, 2, 3], [5]], timestamps=times), "absolute_timestamp")
    assert [t.items.tolist() for t in tasks.values()] == [[3], [4], [5]]  # the second user has no history


def test_ratings_that_are_missing_or_outside_their_range_are_named():
    with pytest.raises(ValueError, match="rated: user 'u1' has a rating of 6, outside 1 to 5"):
        rating_tasks(dataset_of([[3, 4], [1, 2]], [[1, 2], [5, 6]]), "leave_one_out")
    dataset = dataset_of([[3, 4]], [[1, 2]])
    bare = make_dataset(dataset.items, dataset.sequences.drop(["ratings"]), {"name": "bare"})
    with pytest.raises(ValueError, match="bare has no ratings, which a phase of kind rating learns"):
        rating_tasks(bare, "leave_one_out")


def test_a_rating_phase_learns_what_the_words_say_and_leaves_the_encoder_alone(write_recipe, tmp_path):  # noqa: F811
    record = train(write_recipe([PHASE]), *ST5)
    errors, run = record["ratings"], tmp_path / "run"
    assert set(errors) == {"this run", "rating_mean", "pmf"}
    assert errors["this run"]["rmse"] < 0.8 < 1.4  # 1.4: the spread of the ratings
    assert record["metrics"] == record["zero_shot"]
    scores = [line["validation_rmse"] for line in log_lines(run) if "validation_rmse" in line]
    assert record["validation_metrics"]["rmse"] == min(scores)
    assert f"| this run | {errors['this run']['rmse']:.4f} |" in (run / "checkpoint" / "README.md").read_text()
    assert (run / "checkpoint" / HEAD_FILE).is_file() and "t5.shared.weight" in weights(run)
    model = RatingModel.from_encoder(run / "checkpoint").eval()
    stars = model.predict(torch.randn(5, 16), torch.randn(5, 16))
    assert stars.shape == (5,) and ((stars >= 1) & (stars <= 5)).all()
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
