"""What every pipeline("sequential-recommendation") does: it keeps a catalogue, searches it, and answers.

How items and histories become vectors is the affair of its kinds: `pipeline_seqrec` reads texts, `pipeline_item_ids`
knows items by their ids.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Pipeline, PreTrainedConfig
from transformers.utils import cached_file

from .catalogue_seqrec import ITEM_ID, Catalogue, popularity_counts, split_items

TASK = "sequential-recommendation"
IDS_FILE = "item_ids.json"
Item = str | Mapping[str, Any]
Filter = Callable[[dict], bool] | Sequence[str]


class CataloguePipeline(Pipeline):
    """Recommends items of its catalogue, which starts empty. A kind brings `user_vectors` and `_catalogue_vectors`.

    Args (beside those of every pipeline):
        index, rescore: how the catalogue is searched, see `Catalogue`; unless given, a loaded catalogue keeps its own.
    """

    _load_processor = _load_image_processor = _load_feature_extractor = False

    def __init__(self, model, *args, index: str | None = None, rescore: int | None = None, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.model.eval()
        self._known = self._read_known_items()
        self._weights_hash: str | None = None
        given = {"index": index, "rescore": rescore}
        self._settings = {name: value for name, value in given.items() if value is not None}
        Catalogue("", 0, **self._settings)  # what cannot be is said now, not with the first item
        self._catalogue: Catalogue | None = None

    # ---- what a kind brings

    @property
    def vector_size(self) -> int:
        """Width d of the catalogue's vectors."""
        raise NotImplementedError

    def user_vectors(self, histories: Sequence[Sequence[Item]]) -> Tensor:
        """What the search is asked with: vectors of histories (ids or attribute dicts, oldest first), (B, d).

        Raises:
            ValueError: an empty history, an id that is not in the catalogue, an item that cannot be encoded.
        """
        raise NotImplementedError

    def _catalogue_vectors(self, attributes: Sequence[Mapping], ids: Sequence) -> tuple[Tensor, np.ndarray]:
        """Vectors (n, d) and the items' rows in the model's own item matrix, -1 for those it was not trained on."""
        raise NotImplementedError

    def _read_known_items(self) -> dict | None:
        raise NotImplementedError

    def _reading(self) -> list:
        """What vectors depend on beside the model and its ids, to be written as JSON."""
        return []

    # ---- the catalogue

    @property
    def weights_hash(self) -> str:
        """Hash of everything the vectors depend on: weights, the model's shape, its items' ids, how texts are read."""
        if self._weights_hash is None:
            reading = [_shape(self.model.config), self._known, *self._reading()]
            digest = hashlib.sha256(json.dumps(reading, sort_keys=True).encode())
            for name, weights in sorted(self.model.state_dict().items()):
                digest.update(name.encode())
                digest.update(weights.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
            self._weights_hash = digest.hexdigest()
        return self._weights_hash

    @property
    def known_items(self) -> dict | None:
        """Items the model was trained on by id: `{"rows": {id: row}, "popularity": [...]}`; None for an encoder."""
        return self._known

    @property
    def catalogue(self) -> Catalogue:
        if self._catalogue is None:
            self._catalogue = Catalogue(self.weights_hash, self.vector_size, **self._settings)
        return self._catalogue

    def add_items(self, items: Sequence[Mapping], popularity: Sequence[float] | None = None) -> None:
        """Encode items and append them to the catalogue: `[{"item_id": ..., attribute: text, ...}, ...]`.

        Args:
            popularity: a count per item, for histories that are empty; those a checkpoint was trained on have theirs.

        Raises:
            ValueError: no items, one without id or text, an id that is there already or given twice.
        """
        ids, attributes = split_items(items)
        popularity = None if popularity is None else popularity_counts(ids, popularity)
        self.catalogue.check_new(ids)
        vectors, learned = self._catalogue_vectors(attributes, ids)
        if popularity is None and self._known and self._known.get("popularity"):
            counts = np.array([*self._known["popularity"], np.nan])
            popularity = counts[learned]
        self.catalogue.add(ids, attributes, vectors, popularity)

    def remove_items(self, ids: Sequence[str]) -> None:
        """Take items out of the catalogue. Raises ValueError for one that is not there."""
        self.catalogue.remove(ids)

    def save_catalogue(self, folder: str | Path) -> None:
        """Write items and vectors into a folder. Raises ValueError for an empty catalogue."""
        if not len(self.catalogue):
            raise ValueError("The catalogue is empty: add_items first.")
        self.catalogue.save(folder)

    def load_catalogue(self, folder: str | Path) -> None:
        """Read what `save_catalogue` wrote; vectors of other weights are refused."""
        self._catalogue = Catalogue.load(folder, self.weights_hash, **self._settings)

    # ---- vectors

    def item_vectors(self, items: Sequence[Mapping]) -> Tensor:
        """Vectors of items, `{attribute: text}`, as a catalogue holds them, one long: (n, d) float32 on the CPU.

        An item with an `item_id` that the model was trained on has its learned vector; any other has that of its text,
        or is an error where the model reads none.
        """
        attributes = [attributes_of(item) for item in items]
        return self._catalogue_vectors(attributes, [item.get(ITEM_ID) for item in items])[0]

    def _items_of(self, histories: Sequence[Sequence[Item]]) -> tuple[list[list[dict]], list[list[str | None]]]:
        """Attributes of every history's items, and their ids (None for an attribute dict without one).

        Raises ValueError for an empty history and for an id that is not in the catalogue.
        """
        items, ids = [], []
        for row, history in enumerate(histories):
            if not len(history):
                raise ValueError(f"History {row} is empty: there is nothing to read.")
            rows = iter(self.catalogue.rows([item for item in history if isinstance(item, str)]))
            known = (
                self.catalogue.items[next(rows)] if isinstance(item, str) else attributes_of(item) for item in history
            )
            items.append(list(known))
            ids.append([item if isinstance(item, str) else item.get(ITEM_ID) for item in history])
        return items, ids

    def _learned_rows(self, ids: Sequence[str | None]) -> np.ndarray:
        """Rows of the model's own item matrix, -1 for an item it was not trained on."""
        known = self._known["rows"] if self._known else {}
        return np.array([known.get(item_id, -1) for item_id in ids], dtype=np.int64)

    # ---- recommending

    def __call__(self, inputs: Mapping | Sequence[Mapping], **kwargs) -> list:
        """Recommend for one `{"history": [...]}` or a list of them.

        Args:
            top_k: how many items, 10 unless said.
            exclude_history: leave out what the history holds already (false).
            filter: which items may be given: a function of an item's attributes, or a list of allowed ids.

        Returns:
            For one history a list of `{"item_id", "score", "item"}`, best first; for several a list of such lists. An
            empty history gets the most popular items, with their counts as scores.

        Raises:
            ValueError: an empty catalogue, an unknown id, top_k over what is left, an empty history where no
                popularity is known.
        """
        rows = [inputs] if isinstance(inputs, Mapping) else list(inputs)
        before, within, after = self._sanitize_parameters(**kwargs)
        found = self.postprocess(self._forward(self.preprocess(rows, **before), **within), **after)
        return found[0] if isinstance(inputs, Mapping) else found

    def _sanitize_parameters(
        self, top_k: int = 10, exclude_history: bool = False, filter: Filter | None = None, **unknown
    ) -> tuple[dict, dict, dict]:
        if unknown:
            raise ValueError(f"{next(iter(unknown))} is no parameter; there are top_k, exclude_history, filter.")
        if not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k is {top_k!r}; a whole number of at least 1 is needed.")
        if isinstance(filter, str):
            raise ValueError(f"filter is {filter!r}; it is a function of an item's attributes or a list of ids.")
        return {}, {}, {"top_k": top_k, "exclude_history": exclude_history, "filter": filter}

    def preprocess(self, rows: Sequence[Mapping]) -> list[list[Item]]:
        """The histories of a batch, checked."""
        if not len(self.catalogue):
            raise ValueError("The catalogue is empty: add_items or load_catalogue first.")
        for place, row in enumerate(rows):
            if not isinstance(row, Mapping) or not isinstance(row.get("history"), list | tuple):
                raise ValueError(f'Input {place} is not {{"history": [item ids or attribute dicts, oldest first]}}.')
        return [list(row["history"]) for row in rows]

    def _forward(self, histories: list[list[Item]]) -> tuple[list[list[Item]], Tensor]:
        """Histories and their vectors; zeros for an empty one."""
        vectors = torch.zeros(len(histories), self.vector_size)
        told = [place for place, history in enumerate(histories) if history]
        if told:
            vectors[told] = self.user_vectors([histories[place] for place in told])
        return histories, vectors

    def postprocess(
        self, outputs: tuple[list[list[Item]], Tensor], top_k: int, exclude_history: bool, filter: Filter | None
    ) -> list[list[dict]]:
        histories, vectors = outputs
        allowed = self._allowed(filter)
        results: list[list[dict]] = [[] for _ in histories]
        told = [place for place, history in enumerate(histories) if history]
        for place in (place for place, history in enumerate(histories) if not history):
            results[place] = self._popular(top_k, allowed)
        if told:
            excluded = [self._rows_in(histories[place]) for place in told] if exclude_history else None
            scores, rows = self.catalogue.search(vectors[told], top_k, allowed, excluded)
            for place, own_scores, own_rows in zip(told, scores.tolist(), rows.tolist(), strict=True):
                results[place] = [self._answer(row, score) for row, score in zip(own_rows, own_scores, strict=True)]
        return results

    def _allowed(self, filter: Filter | None) -> np.ndarray | None:
        if filter is None:
            return None
        if callable(filter):
            return np.array([bool(filter(item)) for item in self.catalogue.items])
        allowed = np.zeros(len(self.catalogue), bool)
        allowed[self.catalogue.rows(list(filter))] = True
        return allowed

    def _rows_in(self, history: list[Item]) -> list[int]:
        """Rows of the history's items that are in the catalogue."""
        ids = [item if isinstance(item, str) else item.get(ITEM_ID) for item in history]
        return [self.catalogue._rows[item_id] for item_id in ids if item_id in self.catalogue._rows]

    def _popular(self, top_k: int, allowed: np.ndarray | None) -> list[dict]:
        counts = self.catalogue.popularity
        known = ~np.isnan(counts) if allowed is None else ~np.isnan(counts) & allowed
        if not known.any():
            raise ValueError(
                "The history is empty and no popularity is known: give a history, or popularity to add_items."
            )
        if top_k > known.sum():
            raise ValueError(f"top_k is {top_k}, but popularity is known of {known.sum()} items only.")
        best = np.argsort(-np.where(known, counts, -np.inf), kind="stable")[:top_k]
        return [self._answer(row, float(counts[row])) for row in best.tolist()]

    def _answer(self, row: int, score: float) -> dict:
        return {"item_id": self.catalogue.ids[row], "score": score, "item": self.catalogue.items[row]}


def attributes_of(item: Item) -> dict:
    """An item's texts. Raises ValueError for what is no attribute dict."""
    if not isinstance(item, Mapping):
        raise ValueError(f"A history holds item ids (text) and attribute dicts, not {type(item).__name__}.")
    return {name: text for name, text in item.items() if name != ITEM_ID}


def hub_options(model) -> dict:
    """How the model's checkpoint was reached (token, cache, ...), for other files of the same commit."""
    options = dict(getattr(model, "hub_options", {}))
    options.pop("force_download", None)
    return options | {"revision": getattr(model.config, "_commit_hash", None) or options.get("revision") or "main"}


def _shape(config) -> dict:
    """The fields of a configuration that say what is computed; not its name, its place or a version."""
    own = {field.name for field in fields(config)} - {field.name for field in fields(PreTrainedConfig)}
    return {name: value for name, value in sorted(config.to_dict().items()) if name in own}


def read_item_ids(model) -> dict | None:
    """What `save_item_ids` wrote: {"rows": {id: row}, "popularity": [...]}; None where it is missing.

    Raises ValueError when it names another number of items than the model has.
    """
    path = cached_file(
        model.config.name_or_path, IDS_FILE, _raise_exceptions_for_missing_entries=False, **hub_options(model)
    )
    if path is None:
        return None
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if len(content["item_ids"]) != model.config.num_items:
        raise ValueError(
            f"{path} names {len(content['item_ids'])} items, the model has {model.config.num_items}: fetch it again."
        )
    return {
        "rows": {item_id: row for row, item_id in enumerate(content["item_ids"])},
        "popularity": content["popularity"],
    }


def save_item_ids(folder: str | Path, item_ids: Sequence[str], counts: Sequence[float]) -> None:
    """Write which items the rows of a trained model's item matrix are, and how often each was bought in training."""
    content = {"item_ids": list(item_ids), "popularity": [float(count) for count in counts]}
    (Path(folder) / IDS_FILE).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
