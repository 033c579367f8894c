"""`pipeline("sequential-recommendation")` of models that know items by their ids alone, which the baselines are.

    pipe = pipeline("sequential-recommendation", model=CHECKPOINT, trust_remote_code=True)
    pipe.add_items([{"item_id": "85123A", "title": "White hanging heart"}, {"item_id": "71053"}])
    pipe({"history": ["71053"]}, top_k=1)

Everything is as with a model that reads, but an item it was not trained on is an error: nothing is known of it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers.dynamic_module_utils import custom_object_save

from .catalogue_seqrec import Snapshot
from .pipeline_catalogue import IDS_FILE, TASK, CataloguePipeline, read_item_ids


class ItemIdPipeline(CataloguePipeline):
    """Recommends by what was learned of each item's id; arguments as `CataloguePipeline`."""

    _load_tokenizer = False

    @property
    def vector_size(self) -> int:
        return self.model.config.hidden_size + (self.model.config.temperature is None)

    def _read_known_items(self) -> dict:
        known = read_item_ids(self.model) if self.model.config.name_or_path else None
        if known is None:
            raise ValueError(
                f"{self.model.config.name_or_path or 'The model'} has no {IDS_FILE}, which says what items it knows: "
                "open the checkpoint of a finished run."
            )
        return known

    def _can_tell(self, item_id: str | None, attributes: Mapping) -> bool:
        return item_id in self._known["rows"]

    @torch.no_grad()
    def _user_vectors(self, histories: Sequence[Sequence[tuple[str | None, Mapping]]], catalogue: Snapshot) -> Tensor:
        vectors = self.model.encode_histories([self._rows([name for name, _ in own]) for own in histories])
        vectors = vectors.float().cpu()
        if self.model.config.temperature is None:
            vectors = torch.nn.functional.pad(vectors, (0, 1))
        return normalize(vectors, dim=1)

    @torch.no_grad()
    def _catalogue_vectors(self, attributes: Sequence[Mapping], ids: Sequence) -> tuple[Tensor, np.ndarray]:
        rows, items = self._rows(ids), self.model.item_vectors().float().cpu()
        vectors = items[rows]
        if self.model.config.temperature is None:
            # One more entry makes all items as long as the longest: cosines then rank as dot products do.
            lengths = items.norm(dim=1)
            rest = (lengths.max() ** 2 - lengths[rows] ** 2).clamp_min(0).sqrt()
            vectors = torch.cat([vectors, rest[:, None]], dim=1)
        return normalize(vectors, dim=1), rows

    @property
    def _looks_again_at(self) -> int:
        return self.model.num_candidates if getattr(self.model.config, "reranks", False) else 0

    def _look_again(self, history: Sequence[tuple[str | None, Mapping]], answers: list[dict]) -> list[dict]:
        """The best answers in the order of the model's second look; the first of them gets the first one's score."""
        again, rest = answers[: self._looks_again_at], answers[self._looks_again_at :]
        if not again:
            return rest
        candidates = torch.from_numpy(self._rows([answer["item_id"] for answer in again]))
        order = self.model.order_candidates([self._rows([name for name, _ in history])], candidates[None])[0].tolist()
        best = zip(order, [answer["score"] for answer in again], strict=True)
        return [{**again[place], "score": score} for place, score in best] + rest

    def _rows(self, ids: Sequence[str | None]) -> np.ndarray:
        rows = self._learned_rows(ids)
        if (rows < 0).any():
            item_id = ids[int(np.argmin(rows))]
            which = "An item without an item_id" if item_id is None else f"Item {item_id!r}"
            known, name = len(self._known["rows"]), type(self.model).__name__
            raise ValueError(
                f"{which} is none of the {known} items that {name} was trained on, and it reads no texts: "
                "leave it out, or take a model that reads."
            )
        return rows


def save_item_checkpoint(model, folder: str | Path) -> None:
    """Weights, configuration and all code of a model of item ids: `AutoModel` and `pipeline` open it."""
    implementation = f"{Path(__file__).stem}.{ItemIdPipeline.__name__}"
    model.config.custom_pipelines = {TASK: {"impl": implementation, "pt": ["AutoModel"]}}
    Path(folder).mkdir(parents=True, exist_ok=True)
    custom_object_save(ItemIdPipeline, folder)  # before the model, which names no pipeline whose code is missing
    model.save_pretrained(folder)
