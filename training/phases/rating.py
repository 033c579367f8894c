"""Ratings from vectors: a dense head on [user vector ; item vector] (ST5 thesis, section 5.1.5), or a model of ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...evaluation.ratings import HIGHEST, LOWEST, RatedIds, RatingBatch, RatingIds, RatingVectors, rating_baselines
from ...hub.opening import ENCODERS, open_as_is, open_encoder, read_config
from ...losses_seqrec import normalise, weighted_total, whole_batch_mean
from ...modeling_seqrec import SeqRecTrainingOutput
from ..batches import Batches, LengthGroupedBatchSampler, PrefixDataset
from ..data import RunData
from .phase import Phase, Work

HEAD_FILE = "rating_head.safetensors"


@dataclass(kw_only=True)
class RatingPhase(Phase):
    """A dense head learns ratings from [user vector ; item vector]; the encoder stays as it is (ST5, section 5.1.5).

    An example is a rating of the training part with at least one item before it; `hidden_size` and `dropout` are the
    head's. Weights are chosen by RMSE on the validation ratings; `patience` counts in those.
    """

    kind: Literal["rating"]
    lr: float = 1e-3
    hidden_size: int = 256
    dropout: float = 0.1

    trains_encoder: ClassVar[bool] = False
    own_data: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size < 1 or not 0 <= self.dropout < 1:
            raise ValueError("hidden_size must be at least 1, and dropout at least 0 and below 1")

    def open_model(self, source: Path, data: RunData) -> nn.Module:
        if read_config(source)["model_type"] not in ENCODERS:
            return open_as_is(source)  # a baseline, which has no head
        mean = float(data.ratings["train"].ratings.mean())
        return RatingModel.from_encoder(source, hidden_size=self.hidden_size, dropout=self.dropout, mean=mean)

    def examples(self, work: Work, max_history: int = 1) -> PrefixDataset:
        histories = work.data.ratings["train"].histories
        # A baseline of ids reads no histories, so it learns from first interactions too.
        all_count = bool(work.recipe.model.baseline)
        tasks = len(histories) if all_count else sum(len(history) > 0 for history in histories)
        return PrefixDataset(np.repeat(np.arange(tasks), 2).reshape(-1, 2), "last", seed=work.recipe.run.seed)

    def batches(self, work: Work, process: int = 0, processes: int = 1) -> Batches:
        sampler = LengthGroupedBatchSampler(self.examples(work), None, self.batch_size, seed=work.recipe.run.seed)
        collate = RatingCollator(work.made.part("train"))
        return Batches(sampler, collate, self.gradient_accumulation, process, processes)

    def begin(self, model: nn.Module, work: Work) -> RatingVectors | RatedIds:
        return rated(model, work)

    def validate(self, accelerator, model: nn.Module, work: Work) -> dict[str, float]:
        return work.made.errors(model, "validation")

    @staticmethod
    def score(metrics: dict[str, float]) -> float:
        return -metrics["rmse"]

    def results(self, model: nn.Module, work: Work) -> dict:
        return rating_results(model, work)


def rated(model: nn.Module, work: Work) -> RatingVectors | RatedIds:
    """The run's ratings as its model reads them."""
    if work.recipe.model.baseline:
        return RatedIds(work.data.ratings)
    item_tokens = work.data.item_tokens(work.tokenizer, work.data.own)
    return RatingVectors(work.data.ratings, model, work.tokenizer, item_tokens, work.precision)


def rating_results(model: nn.Module, work: Work) -> dict:
    """Errors on the test ratings, beside those of the baselines."""
    data = work.data
    beside = rating_baselines(data.ratings, data.dataset.num_users, data.num_items, "test")
    return {"ratings": {"this run": rated(model, work).errors(model, "test")} | beside}


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
    def from_encoder(cls, checkpoint: str | Path, **head) -> RatingModel:
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

    def train(self, mode: bool = True) -> RatingModel:
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
    ) -> SeqRecTrainingOutput:
        """Mean squared error as `loss_parts` "squared_error". Vectors (n, d), ratings (n,)."""
        error = (self.stars(user_vectors, item_vectors) - ratings).square()
        loss, reported = weighted_total({"squared_error": whole_batch_mean(error)}, {})
        return SeqRecTrainingOutput(loss=loss, loss_parts=reported, telemetry={})

    @torch.no_grad()
    def predict(self, user_vectors: Tensor, item_vectors: Tensor) -> Tensor:
        """Stars within 1 to 5, (n,)."""
        was_training = self.training
        stars = self.eval().stars(user_vectors, item_vectors).clamp(LOWEST, HIGHEST)
        self.train(was_training)
        return stars


class RatingCollator:
    """Examples whose target is a task -> the arguments of a rating model's `forward`."""

    def __init__(self, tasks: RatingBatch | RatingIds):
        self.tasks = {name: values.cpu() for name, values in tasks._asdict().items()}

    def __call__(self, examples: Sequence) -> dict[str, Tensor]:
        rows = torch.tensor([example.target for example in examples])
        return {name: values[rows] for name, values in self.tasks.items()}
