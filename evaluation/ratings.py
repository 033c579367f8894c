"""Rating tasks (ST5 thesis, section 5.1.5), the errors of what predicts them, and the baselines beside it.

A task is an interaction with a history. For a model of texts the user is the history's text, and the item is read by
its text too; the encoder stays as it is, so vectors are made once.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..baselines.pmf import Pmf
from ..baselines.rating_mean import RatingMean
from ..datasets_builders.contract import (
    TEST,
    TRAIN,
    VALIDATION,
    SeqRecDataset,
    interaction_parts,
    list_column,
    list_lengths,
)
from ..serving.encoding_seqrec import encode_histories, encode_items
from .metrics.rating_error.rating_errors import rating_errors

LOWEST, HIGHEST = 1.0, 5.0


class RatingTasks(NamedTuple):
    """n ratings: who (row of the dataset's sequences), what, how many stars, and what came before."""

    users: np.ndarray  # (n,) int64
    items: np.ndarray  # (n,) int64
    ratings: np.ndarray  # (n,) float32
    histories: list[np.ndarray]  # oldest first; empty for a user's first interaction

    def take(self, rows: np.ndarray) -> "RatingTasks":
        return RatingTasks(*(part[rows] for part in self[:3]), [self.histories[row] for row in rows])


def rating_tasks(dataset: SeqRecDataset, protocol: str, train_users: int | None = None) -> dict[str, RatingTasks]:
    """Every rating as a task of "train", "validation" or "test", parted as the ranking protocol parts interactions.

    Args:
        train_users: training ratings of the first n users only.

    Raises:
        ValueError: the dataset has no ratings, or one outside 1 to 5.
    """
    name = dataset.info.get("name")
    if "ratings" not in dataset.sequences.column_names:
        raise ValueError(f"{name} has no ratings, which a phase of kind rating learns: use a dataset with ratings")
    sequences, lengths = list_column(dataset.sequences, "items"), list_lengths(dataset.sequences, "items")
    ratings = np.concatenate(list_column(dataset.sequences, "ratings"))
    users = np.repeat(np.arange(len(lengths)), lengths)
    wrong = np.flatnonzero(~((ratings >= LOWEST) & (ratings <= HIGHEST)))
    if len(wrong):
        user = dataset.sequences["user_id"][int(users[wrong[0]])].as_py()
        raise ValueError(f"{name}: user {user!r} has a rating of {ratings[wrong[0]]:g}, outside 1 to 5")
    positions = np.arange(len(users)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    histories = [sequences[user][:position] for user, position in zip(users.tolist(), positions.tolist(), strict=True)]
    tasks = RatingTasks(users, np.concatenate(sequences).astype(np.int64), ratings, histories)
    parts = interaction_parts(dataset.sequences, protocol)
    parts[(parts == TRAIN) & (users >= (train_users or len(lengths)))] = -1
    numbered = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    split = {part: tasks.take(np.flatnonzero(parts == number)) for part, number in numbered.items()}
    return {part: own if part == "train" else _with_history(own) for part, own in split.items()}


def _with_history(tasks: RatingTasks) -> RatingTasks:
    return tasks.take(np.flatnonzero([len(history) > 0 for history in tasks.histories]))


# ------------------------------------------------------------------------------------------------ as models read them


class RatingBatch(NamedTuple):
    """Tasks as vectors: users and items (n, d), ratings (n,)."""

    user_vectors: Tensor
    item_vectors: Tensor
    ratings: Tensor


@dataclass
class RatingVectors:
    """The tasks of each part, and their vectors by one frozen encoder, made when first asked for."""

    tasks: dict[str, RatingTasks]
    model: nn.Module
    tokenizer: object
    item_tokens: object
    precision: torch.dtype | None = None  # as in `encode_items`
    _made: dict = field(default_factory=dict)

    def part(self, name: str) -> RatingBatch:
        """The part's tasks that have a history."""
        if name not in self._made:
            tasks = _with_history(self.tasks[name])
            options = (self.model, self.tokenizer, self.item_tokens)
            if "items" not in self._made:
                self._made["items"] = encode_items(*options, precision=self.precision)
            users = encode_histories(*options, tasks.histories, precision=self.precision)
            items = self._made["items"][torch.from_numpy(tasks.items).to(users.device)]
            self._made[name] = RatingBatch(users, items, torch.from_numpy(tasks.ratings).to(users.device))
        return self._made[name]

    def errors(self, model: nn.Module, name: str) -> dict[str, float]:
        """RMSE and MAE of a model with this encoder."""
        users, items, ratings = self.part(name)
        return rating_errors(model.predict(users, items).cpu().numpy(), ratings.cpu().numpy())


class RatingIds(NamedTuple):
    """Tasks as rows of tables: user_ids and item_ids (n,), ratings (n,)."""

    user_ids: Tensor
    item_ids: Tensor
    ratings: Tensor


class RatedIds:
    """The tasks of each part as a model of ids (PMF, means) reads them; `part` and `errors` as in `RatingVectors`."""

    def __init__(self, tasks: dict[str, RatingTasks]):
        self.tasks = tasks

    def part(self, name: str) -> RatingIds:
        """All the part's tasks, in training first interactions too: no history is read."""
        return RatingIds(*(torch.from_numpy(values) for values in self.tasks[name][:3]))

    @torch.no_grad()
    def errors(self, model: RatingMean | Pmf, name: str) -> dict[str, float]:
        users, items, ratings = self.part(name)
        stars = model.predict(users.to(model.device), items.to(model.device))
        return rating_errors(stars.cpu().numpy(), ratings.numpy())


# ------------------------------------------------------------------------------------------------ beside it


def rating_baselines(tasks: dict[str, RatingTasks], num_users: int, num_items: int, part: str) -> dict[str, dict]:
    """RMSE and MAE of the damped means and of PMF, fitted on the training ratings (first interactions included)."""
    rated = RatedIds(tasks)
    train = rated.part("train")
    with torch.no_grad():
        mean = RatingMean.fit(*train, num_users, num_items)
    fitted = {"rating_mean": mean, "pmf": Pmf.fit(*train, num_users, num_items)}
    return {name: rated.errors(model, part) for name, model in fitted.items()}
