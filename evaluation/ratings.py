"""Ratings from vectors: a dense head on [user vector ; item vector] (ST5 thesis, section 5.1.5), and its baselines.

The encoder stays as it is: the question is what its vectors know. So vectors are made once and the head learns on
them. A task is an interaction with a history: the user is the history's text, and the item is read by its text too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..baselines.pmf import Pmf
from ..baselines.rating_mean import RatingMean
from ..datasets_builders.contract import (
    AMAZON_2023_TEST_START,
    AMAZON_2023_VALIDATION_START,
    SeqRecDataset,
    list_column,
    list_lengths,
)
from ..hub.opening import ENCODERS, open_encoder
from ..losses_seqrec import normalise, weighted_total, whole_batch_mean
from .metrics.rating_error.rating_error import rating_errors
from ..modeling_jepa4rec import Jepa4RecTrainingOutput
from .ranking import encode_histories, encode_items

HEAD_FILE = "rating_head.safetensors"
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
    parts = _parts(dataset, protocol, positions, lengths[users])
    parts[(parts == 0) & (users >= (train_users or len(lengths)))] = -1
    split = {part: tasks.take(np.flatnonzero(parts == number)) for number, part in enumerate(_PARTS)}
    return {part: own if part == "train" else _with_history(own) for part, own in split.items()}


_PARTS = ("train", "validation", "test")


def _parts(dataset: SeqRecDataset, protocol: str, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Index into _PARTS of every interaction."""
    if protocol == "leave_one_out":
        left = lengths - positions  # 1 for a user's last
        return np.where(lengths < 3, 0, np.where(left == 1, 2, np.where(left == 2, 1, 0)))
    times = np.concatenate(list_column(dataset.sequences, "timestamps"))
    return (times >= AMAZON_2023_VALIDATION_START).astype(int) + (times >= AMAZON_2023_TEST_START)


def _with_history(tasks: RatingTasks) -> RatingTasks:
    return tasks.take(np.flatnonzero([len(history) > 0 for history in tasks.histories]))


# ------------------------------------------------------------------------------------------------ the head


class RatingModel(PreTrainedModel):
    """A frozen encoder and a head that learns: [user ; item] -> Linear, ReLU, dropout, Linear -> stars.

    Saved as its encoder, with the head's weights in a file beside it; `from_encoder` finds both.
    """

    base_model_prefix = "encoder"
    _supports_sdpa = True  # where the encoder does

    def __init__(self, config: PreTrainedConfig, hidden_size: int = 256, dropout: float = 0.1, mean: float = 3.0):
        encoder = ENCODERS[config.model_type](config)
        super().__init__(encoder.config)
        self.encoder = encoder.requires_grad_(False)
        layers = (nn.Linear(2 * config.vector_size, hidden_size), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Sequential(*layers, nn.Linear(hidden_size, 1))
        self.register_buffer("mean", torch.tensor(mean))

    @classmethod
    def from_encoder(cls, checkpoint: str | Path, **head) -> "RatingModel":
        """Around a checkpoint's encoder; with its head where it has one, else with a new one of these settings."""
        encoder, path = open_encoder(checkpoint), Path(checkpoint) / HEAD_FILE
        saved = load_file(path) if path.is_file() else {}
        size = {"hidden_size": len(saved["head.0.bias"])} if saved else {}
        model = cls(encoder.config, **{**head, **size})
        model.encoder = encoder.requires_grad_(False)
        if saved:
            model.load_state_dict(saved, strict=False)
        return model

    def save_pretrained(self, folder: str | Path, *args, **kwargs) -> None:
        self.encoder.save_pretrained(folder, *args, **kwargs)
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("encoder.")}
        save_file({name: value.detach().cpu().contiguous() for name, value in own.items()}, Path(folder) / HEAD_FILE)

    def train(self, mode: bool = True) -> "RatingModel":
        super().train(mode)
        self.encoder.eval()
        return self

    def stars(self, user_vectors: Tensor, item_vectors: Tensor) -> Tensor:
        """(n, d) each -> (n,), unbounded."""
        pair = torch.cat([normalise(user_vectors), normalise(item_vectors)], dim=1)
        # Entries of a vector of length one are small; the layers begin as for entries of size one.
        return self.mean + self.head(pair * user_vectors.shape[1] ** 0.5).squeeze(1)

    def forward(
        self, user_vectors: Tensor, item_vectors: Tensor, ratings: Tensor, telemetry: bool = False
    ) -> Jepa4RecTrainingOutput:
        """Mean squared error as `loss_parts` "squared_error". Vectors (n, d), ratings (n,)."""
        error = (self.stars(user_vectors, item_vectors) - ratings).square()
        loss, reported = weighted_total({"squared_error": whole_batch_mean(error)}, {})
        return Jepa4RecTrainingOutput(loss=loss, loss_parts=reported, telemetry={})

    @torch.no_grad()
    def predict(self, user_vectors: Tensor, item_vectors: Tensor) -> Tensor:
        """Stars within 1 to 5, (n,)."""
        was_training = self.training
        stars = self.eval().stars(user_vectors, item_vectors).clamp(LOWEST, HIGHEST)
        self.train(was_training)
        return stars


class RatingBatch(NamedTuple):
    """Tasks as vectors: users and items (n, d), ratings (n,)."""

    user_vectors: Tensor
    item_vectors: Tensor
    ratings: Tensor


@dataclass
class RatingVectors:
    """The tasks of each part, and their vectors by one frozen encoder, made when first asked for."""

    tasks: dict[str, RatingTasks]
    model: RatingModel
    tokenizer: object
    item_tokens: object
    batch_tokens: int
    _made: dict = field(default_factory=dict)

    def part(self, name: str) -> RatingBatch:
        """The part's tasks that have a history."""
        if name not in self._made:
            tasks = _with_history(self.tasks[name])
            options = (self.model, self.tokenizer, self.item_tokens)
            if "items" not in self._made:
                self._made["items"] = encode_items(*options, self.batch_tokens, progress=False)
            users = encode_histories(*options, tasks.histories, self.batch_tokens, progress=False)
            items = self._made["items"][torch.from_numpy(tasks.items).to(users.device)]
            self._made[name] = RatingBatch(users, items, torch.from_numpy(tasks.ratings).to(users.device))
        return self._made[name]

    def errors(self, model: RatingModel, name: str) -> dict[str, float]:
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


class RatingCollator:
    """Examples whose target is a task -> the arguments of a rating model's `forward`."""

    def __init__(self, tasks: RatingBatch | RatingIds):
        self.tasks = {name: values.cpu() for name, values in tasks._asdict().items()}

    def __call__(self, examples: Sequence) -> dict[str, Tensor]:
        rows = torch.tensor([example.target for example in examples])
        return {name: values[rows] for name, values in self.tasks.items()}


# ------------------------------------------------------------------------------------------------ beside it


def rating_baselines(tasks: dict[str, RatingTasks], num_users: int, num_items: int, part: str) -> dict[str, dict]:
    """RMSE and MAE of the damped means and of PMF, fitted on the training ratings (first interactions included)."""
    rated = RatedIds(tasks)
    train = rated.part("train")
    with torch.no_grad():
        mean = RatingMean.fit(*train, num_users, num_items)
    fitted = {"rating_mean": mean, "pmf": Pmf.fit(*train, num_users, num_items)}
    return {name: rated.errors(model, part) for name, model in fitted.items()}
