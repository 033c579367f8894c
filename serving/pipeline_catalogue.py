"""What every pipeline("sequential-recommendation") does: it keeps a catalogue, searches it, and answers.

How items and histories become vectors is the affair of its kinds: `pipeline_seqrec` reads texts, `pipeline_item_ids`
knows items by their ids.
"""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Pipeline, PreTrainedConfig
from transformers.utils import cached_file

from .catalogue_seqrec import ITEM_ID, Catalogue, Snapshot, attributes_of, item_id_of, popularity_counts, split_items

TASK = "sequential-recommendation"
IDS_FILE = "item_ids.json"
MOST_BOOST = torch.finfo(torch.float32).max
LATER_FIELDS = ("history_projection", "item_projection", "repeat_items")
POOL = 10  # candidates for each wanted item where the best alone are not asked for
Item = str | int | Mapping[str, Any]
Filter = Callable[[dict], bool] | Sequence[str | int]
Boosts = Callable[[dict], float] | Mapping[str | int, float]


@dataclass(frozen=True)
class Wishes:
    """What a call may ask for, see `CataloguePipeline.__call__`.

    Raises:
        ValueError: a value that cannot be, in a sentence.
    """

    top_k: int = 10
    exclude_history: bool = False
    filter: Filter | None = None
    unknown: str = "error"
    strict: bool = False
    boosts: Boosts | None = None
    diversity: float = 0.0
    most_per: Mapping[str, int] | None = None

    def __post_init__(self):
        if not _is_count(self.top_k):
            raise ValueError(f"top_k is {self.top_k!r}; a whole number of at least 1 is needed.")
        for name in ("exclude_history", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is true or false.")
        if self.unknown not in ("error", "ignore"):
            raise ValueError(f'unknown is {self.unknown!r}; it is "error" or "ignore".')
        lists_ids = isinstance(self.filter, Iterable) and not isinstance(self.filter, str | bytes)
        if not (self.filter is None or callable(self.filter) or lists_ids):
            raise ValueError(f"filter is {self.filter!r}; it is a function of an item's attributes or a list of ids.")
        if not isinstance(self.boosts, Mapping) and not callable(self.boosts) and self.boosts is not None:
            raise ValueError(f"boosts is {self.boosts!r}; it is {{id: number}} or a function of an item's attributes.")
        if isinstance(self.diversity, bool) or not isinstance(self.diversity, int | float | np.number):
            raise ValueError(f"diversity is {self.diversity!r}; it is a number from 0 to 1.")
        if not 0 <= self.diversity <= 1:
            raise ValueError(f"diversity is {self.diversity!r}; it is a number from 0 to 1.")
        if self.most_per is not None and not isinstance(self.most_per, Mapping):
            raise ValueError(
                f'most_per is {self.most_per!r}; it is {{attribute: number}}, {{"brand": 2}} for example.'
            )
        for name, most in (self.most_per or {}).items():
            if not _is_count(most):
                raise ValueError(f"most_per of {name!r} is {most!r}; a whole number of at least 1 is needed.")

    @property
    def choosy(self) -> bool:
        """Whether the best items are not simply those with the highest scores."""
        return bool(self.diversity or self.most_per)


class CataloguePipeline(Pipeline):
    """Recommends items of its catalogue, which starts empty. A kind brings `_user_vectors` and `_catalogue_vectors`.

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

    @property
    def _whitening_power(self) -> float | None:
        """Of the `Whitening` that a catalogue learns from its items."""
        return None

    def _user_vectors(self, histories: Sequence[Sequence[tuple[str | None, Mapping]]], catalogue: Snapshot) -> Tensor:
        """Vectors (B, d) of histories, none empty, whose items come as their ids (or None) and attributes, to be
        compared with those of a catalogue.

        Raises:
            ValueError: an item that cannot be encoded.
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
            own = {"whitening": self._whitening_power, **self._settings}
            self._catalogue = Catalogue(self.weights_hash, self.vector_size, **own)
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
        if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
            raise ValueError(f"remove_items takes a list of ids, not one {_kind_of(ids)}.")
        self.catalogue.remove(list(ids))

    def save_catalogue(self, folder: str | Path) -> None:
        """Write items and vectors into a folder. Raises ValueError for an empty catalogue."""
        if not len(self.catalogue):
            raise ValueError("The catalogue is empty: add_items first.")
        self.catalogue.save(folder)

    def load_catalogue(self, folder: str | Path) -> None:
        """Read what `save_catalogue` wrote; vectors of other weights are refused."""
        self._catalogue = Catalogue.load(folder, self.weights_hash, **self._settings)

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Write the checkpoint this pipeline works with: it opens as the one that it came from. The catalogue has a
        folder of its own (`save_catalogue`)."""
        self.model.save_pretrained(save_directory)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)
        if self._known:
            save_item_ids(save_directory, list(self._known["rows"]), self._known["popularity"])
        if kwargs.pop("push_to_hub", False):
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    # ---- vectors

    def item_vectors(self, items: Sequence[Mapping]) -> Tensor:
        """Vectors of items, `{attribute: text}`, as a catalogue holds them, one long: (n, d) float32 on the CPU.

        An item with an `item_id` that the model was trained on has its learned vector; any other has that of its text,
        or is an error where the model reads none.
        """
        attributes = [attributes_of(item) for item in items]
        vectors = self._catalogue_vectors(attributes, [_id_in(item) for item in items])[0]
        return self.catalogue.snapshot().as_held(vectors)

    def user_vectors(self, histories: Sequence[Sequence[Item]]) -> Tensor:
        """What the search is asked with: vectors of histories (ids or attribute dicts, oldest first), (B, d).

        Raises:
            ValueError: an empty history, an id that is not in the catalogue, an item that cannot be encoded.
        """
        catalogue, told = self.catalogue.snapshot(), []
        for row, history in enumerate(histories):
            if not len(history):
                raise ValueError(f"History {row} is empty: there is nothing to read.")
            told.append(_told(history, catalogue, "error"))
        return self._user_vectors(told, catalogue)

    def _learned_rows(self, ids: Sequence[str | None]) -> np.ndarray:
        """Rows of the model's own item matrix, -1 for an item it was not trained on."""
        known = self._known["rows"] if self._known else {}
        return np.array([known.get(item_id, -1) for item_id in ids], dtype=np.int64)

    # ---- recommending

    def __call__(self, inputs: Mapping | Sequence[Mapping], **kwargs) -> list:
        """Recommend for one `{"history": [...]}` or a list of them: ids of the catalogue (text or whole numbers) and
        attribute dicts, oldest first.

        Args:
            top_k: how many items, 10 unless said; fewer where there are no more.
            exclude_history: leave out what the history holds already (false).
            filter: which items may be given: a function of an item's attributes, or a list of allowed ids.
            unknown: what to do with ids that are not in the catalogue: "error", or "ignore" to go by the others.
            strict: an error instead of fewer items than top_k, or of one answer that is missing from a list.
            boosts: what is added to an item's cosine, `{id: number}` or a function of its attributes; not to counts.
            diversity: from 0 to 1, how much an item loses for being near to those before it: the next one has the
                highest (1 - diversity) * score - diversity * (cosine with the nearest of those before), the maximal
                marginal relevance of Carbonell and Goldstein (1998), among the 10 * top_k best. Not for counts.
            most_per: `{"brand": 2}` gives at most two items of one brand; items without one are not counted.

        Returns:
            For one history a list of `{"item_id", "score", "item"}`, best first; for several a list of such lists. An
            empty history gets the most popular items, with their counts as scores. In a list of several, a history
            that cannot be answered has `{"error": sentence}` in its place, and loses no other.

        Raises:
            ValueError: an empty catalogue or an impossible argument; where one history was given or `strict` is set
                also an unknown id, an item without text, an empty history where no popularity is known.
        """
        alone = isinstance(inputs, Mapping)
        wishes = self._sanitize_parameters(**self._postprocess_params | kwargs)[2]
        if not alone and (isinstance(inputs, str | bytes) or not isinstance(inputs, Iterable)):
            raise ValueError(f'An input {_kind_of(inputs)} is not {{"history": [...]}}, nor a list of such.')
        rows = [inputs] if alone else list(inputs)
        found = self.postprocess(self._forward(self.preprocess(rows, **wishes)), **wishes)
        failed = next((answer for answer in found if isinstance(answer, Mapping)), None)
        if failed and (alone or wishes.get("strict")):
            raise ValueError(failed["error"].removeprefix("Input 0: ") if alone else failed["error"])
        return found[0] if alone else found

    def _sanitize_parameters(self, **wishes) -> tuple[dict, dict, dict]:
        known = [field.name for field in fields(Wishes)]
        for name in wishes:
            if name not in known:
                raise ValueError(f"{name} is no parameter; there are {', '.join(known)}.")
        Wishes(**wishes)
        return {}, {}, wishes

    def preprocess(self, rows: Sequence[Mapping], **wishes) -> tuple[Snapshot, list]:
        """The catalogue as it is now, and each row's history: its items with their ids, or the error it is."""
        catalogue = self.catalogue.snapshot()
        if not len(catalogue):
            raise ValueError("The catalogue is empty: add_items or load_catalogue first.")
        told: list[list[tuple[str | None, Mapping]] | ValueError] = []
        for place, row in enumerate(rows):
            try:
                told.append(_told(_history_in(row), catalogue, Wishes(**wishes).unknown, self._can_tell))
            except ValueError as error:
                told.append(ValueError(f"Input {place}: {error}"))
        return catalogue, told

    @property
    def _looks_again_at(self) -> int:
        """How many of the best items a kind puts in order by a second look."""
        return 0

    def _look_again(self, history: list[tuple[str | None, Mapping]], answers: list[dict]) -> list[dict]:
        return answers

    def _repeat_amounts(self, history: list[tuple[str | None, Mapping]]) -> dict[str, float]:
        """What is added to the cosines of items that a history holds, by their ids."""
        return {}

    def repeat_amounts(self, history: Sequence[Item]) -> dict[int, float]:
        """What is added to the cosines of the catalogue's items that a history (ids or attribute dicts) holds, by
        their rows: what a model has learned of buying again."""
        catalogue = self.catalogue.snapshot()
        return self._added(_told(history, catalogue, "ignore", self._can_tell), catalogue)

    def _added(self, history: list[tuple[str | None, Mapping]], catalogue: Snapshot) -> dict[int, float]:
        """`_repeat_amounts` by rows of the catalogue."""
        amounts = self._repeat_amounts(history)
        return {catalogue.places[name]: amount for name, amount in amounts.items() if name in catalogue.places}

    def _can_tell(self, item_id: str | None, attributes: Mapping) -> bool:
        """Whether the model knows or can read an item, if its texts are sound."""
        return True

    def _forward(self, inputs: tuple[Snapshot, list]) -> tuple[Snapshot, list, Tensor]:
        """Histories and their vectors (B, d); zeros for one that is empty or an error."""
        catalogue, told = inputs
        vectors, told = torch.zeros(len(told), self.vector_size), list(told)
        places = [place for place, history in enumerate(told) if isinstance(history, list) and history]
        self._encode(places, told, catalogue, vectors)
        return catalogue, told, vectors

    def _encode(self, places: list[int], told: list, catalogue: Snapshot, vectors: Tensor) -> None:
        """Fill in the vectors of some rows. Where a batch holds a row that cannot be encoded, halves of it are tried,
        down to that row, which becomes its error."""
        if not places:
            return
        try:
            vectors[places] = self._user_vectors([told[place] for place in places], catalogue)
        except ValueError as error:
            if len(places) == 1:
                told[places[0]] = ValueError(f"Input {places[0]}: {error}")
                return
            middle = len(places) // 2
            self._encode(places[:middle], told, catalogue, vectors)
            self._encode(places[middle:], told, catalogue, vectors)

    def postprocess(self, outputs: tuple[Snapshot, list, Tensor], **wishes) -> list[list[dict] | dict]:
        """Answers of a batch; `{"error": sentence}` for a row that has none."""
        (catalogue, told, vectors), asked = outputs, Wishes(**wishes)
        choice = _Choice(catalogue, replace(asked, top_k=max(asked.top_k, self._looks_again_at)))
        answers: list[list[dict] | dict | None] = [None] * len(told)
        search = []
        for place, history in enumerate(told):
            try:
                if isinstance(history, ValueError):
                    raise history
                if history:
                    search.append(place)
                else:
                    answers[place] = choice.popular(place)[: asked.top_k]
            except ValueError as error:
                answers[place] = {"error": str(error)}
        if asked.exclude_history:
            rows = [[catalogue.places[own] for own, _ in told[place] if own in catalogue.places] for place in search]
            known = {"excluded": rows}
        else:
            known = {"added": [self._added(told[place], catalogue) for place in search]}
        found = choice.nearest(vectors[search], **known) if search else []
        for place, answer in zip(search, found, strict=True):
            answers[place] = self._look_again(told[place], answer)[: asked.top_k]
        for place, answer in enumerate(answers):
            if asked.strict and isinstance(answer, list) and len(answer) < asked.top_k:
                answers[place] = {
                    "error": f"Input {place}: top_k is {asked.top_k}, but {len(answer)} items are left to give."
                }
        return answers


class _Choice:
    """Which items of a catalogue one call's histories get."""

    def __init__(self, catalogue: Snapshot, wishes: Wishes):
        self.catalogue, self.wishes = catalogue, wishes
        self.allowed = self._allowed()
        self.boosts = self._boosts()
        for name in wishes.most_per or ():
            self._check_attribute(name)

    def _allowed(self) -> np.ndarray | None:
        """Which items may be given, bool (N,); None for all."""
        wanted = self.wishes.filter
        if wanted is None:
            return None
        if callable(wanted):
            return np.array([bool(wanted(item)) for item in self.catalogue.items], bool)
        allowed = np.zeros(len(self.catalogue), bool)
        allowed[self._rows(wanted)] = True
        return allowed

    def _boosts(self) -> np.ndarray | None:
        """What is added to each item's cosine, float64 (N,); None for nothing."""
        wanted = self.wishes.boosts
        if not wanted:
            return None
        if callable(wanted):
            values = [wanted(item) for item in self.catalogue.items]
            boosts = np.array([_boost(*pair) for pair in zip(self.catalogue.ids, values, strict=True)])
        else:
            known = {item_id: number for item_id, number in wanted.items() if self._rows([item_id])}
            boosts = np.zeros(len(self.catalogue))
            boosts[self._rows(known)] = [_boost(*pair) for pair in known.items()]
        return boosts

    def _rows(self, ids: Iterable) -> list[int]:
        ids = [item_id_of(item_id) for item_id in ids]
        if self.wishes.unknown == "ignore":
            ids = [item_id for item_id in ids if item_id in self.catalogue.places]
        return self.catalogue.rows(ids)

    def _check_attribute(self, name: str) -> None:
        if not any(name in item for item in self.catalogue.items):
            names = {str(own) for item in self.catalogue.items for own in item}
            near = difflib.get_close_matches(str(name), sorted(names), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"most_per names {name!r}, which no item of the catalogue has{hint}")

    def popular(self, place: int) -> list[dict]:
        """The items with the highest counts."""
        counts = self.catalogue.popularity
        known = ~np.isnan(counts)
        if not known.any():
            raise ValueError(
                f"Input {place}: the history is empty and no popularity is known: give a history, or popularity to "
                "add_items."
            )
        known = known if self.allowed is None else known & self.allowed
        order = np.argsort(-np.where(known, counts, -np.inf), kind="stable")[: known.sum()]
        if not self.wishes.most_per:
            order = order[: self.wishes.top_k]
        return self._answers(counts[order].tolist(), order.tolist(), 0.0)

    def nearest(
        self,
        vectors: Tensor,
        excluded: list[list[int]] | None = None,
        added: list[dict[int, float]] | None = None,
    ) -> list[list[dict]]:
        """The items nearest to every vector (B, d), by the rules of the call; what is `added` to the cosines of some
        rows is as exact as the search is."""
        wanted, left = self.wishes.top_k, len(self.catalogue)
        pool = min(left, wanted * POOL) if self.wishes.choosy else wanted
        scores, rows = self._search(vectors, pool, excluded, added)
        found = [self._answers(*pair, self.wishes.diversity) for pair in zip(scores, rows, strict=True)]
        # Where a rule left too few of the pool, all items are looked at; such rows are rare.
        short = [place for place, own in enumerate(found) if len(own) < wanted and pool < left]
        if self.wishes.choosy and short:
            own = [None if known is None else [known[place] for place in short] for known in (excluded, added)]
            scores, rows = self._search(vectors[short], left, *own)
            for place, *pair in zip(short, scores, rows, strict=True):
                found[place] = self._answers(*pair, self.wishes.diversity)
        return found

    def _search(
        self,
        vectors: Tensor,
        pool: int,
        excluded: list[list[int]] | None,
        added: list[dict[int, float]] | None,
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Scores and rows of the `pool` best items; looked at are as many more as what is added could put behind."""
        most = max(map(len, added)) if added else 0
        options = (self.allowed, excluded, self.boosts)
        scores, rows = self.catalogue.search(vectors, min(pool + most, len(self.catalogue)), *options)
        scores, rows = scores.tolist(), rows.tolist()
        for place, amounts in enumerate(added or ()):
            if amounts:
                scores[place], rows[place] = self._with_added(vectors[place], scores[place], rows[place], amounts)
        return [own[:pool] for own in scores], [own[:pool] for own in rows]

    def _with_added(
        self, vector: Tensor, scores: list[float], rows: list[int], amounts: dict[int, float]
    ) -> tuple[list[float], list[int]]:
        """One history's candidates in their new order; those that only what is added brings in among them."""
        found = {row: score for row, score in zip(rows, scores, strict=True) if row >= 0}
        late = [row for row in amounts if row not in found and (self.allowed is None or self.allowed[row])]
        cosines = self.catalogue.vectors[late].float() @ torch.nn.functional.normalize(vector, dim=0)
        for row, cosine in zip(late, cosines.tolist(), strict=True):
            found[row] = cosine + (0.0 if self.boosts is None else float(self.boosts[row]))
        found = {row: score + amounts.get(row, 0.0) for row, score in found.items()}
        order = sorted(found, key=lambda row: -found[row])
        return [found[row] for row in order], order

    def _answers(self, scores: list[float], rows: list[int], diversity: float) -> list[dict]:
        """The first of the candidates (best first; row -1 is none) that the rules allow."""
        candidates = [(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
        chosen = self._diverse(candidates, diversity) if diversity else self._first(candidates)
        ids, items = self.catalogue.ids, self.catalogue.items
        return [{"item_id": ids[row], "score": score, "item": items[row]} for row, score in chosen]

    def _first(self, candidates: list[tuple[int, float]]) -> list[tuple[int, float]]:
        taken, chosen = Counter(), []
        for row, score in candidates:
            if len(chosen) == self.wishes.top_k:
                break
            if self._may_follow(row, taken):
                taken.update(self._groups(row))
                chosen.append((row, score))
        return chosen

    def _diverse(self, candidates: list[tuple[int, float]], diversity: float) -> list[tuple[int, float]]:
        """Greedy maximal marginal relevance."""
        if not candidates:
            return []
        vectors = self.catalogue.vectors[[row for row, _ in candidates]].numpy()
        relevance = np.array([score for _, score in candidates])
        nearest, open_ = np.zeros(len(candidates)), np.ones(len(candidates), bool)
        taken, chosen = Counter(), []
        while open_.any() and len(chosen) < self.wishes.top_k:
            place = int(np.argmax(np.where(open_, (1 - diversity) * relevance - diversity * nearest, -np.inf)))
            open_[place] = False
            if not self._may_follow(candidates[place][0], taken):
                continue
            similar = vectors @ vectors[place]
            nearest = np.maximum(nearest, similar) if chosen else similar
            taken.update(self._groups(candidates[place][0]))
            chosen.append(candidates[place])
        return chosen

    def _groups(self, row: int) -> list[tuple[str, str]]:
        """The (attribute, text) pairs that `most_per` counts of an item."""
        item = self.catalogue.items[row]
        values = [(name, item.get(name)) for name in self.wishes.most_per or ()]
        return [(name, str(value)) for name, value in values if value is not None and value != ""]

    def _may_follow(self, row: int, taken: Counter) -> bool:
        return all(taken[group] < self.wishes.most_per[group[0]] for group in self._groups(row))


def _history_in(row: Any) -> list:
    history = row.get("history") if isinstance(row, Mapping) else None
    if isinstance(history, np.ndarray):
        history = history.tolist()
    if not isinstance(history, list | tuple):
        found = f"a history {_kind_of(history)}" if isinstance(row, Mapping) else f"an input {_kind_of(row)}"
        raise ValueError(f'{found} is not {{"history": [item ids or attribute dicts, oldest first]}}.')
    return list(history)


def _told(
    history: Sequence[Item],
    catalogue: Snapshot,
    unknown: str,
    can_tell: Callable[[str | None, Mapping], bool] | None = None,
) -> list[tuple[str | None, Mapping]]:
    """A history's items: their ids, None for an attribute dict without one, and their attributes.

    Raises:
        ValueError: what is no item; an id that is not in the catalogue, unless unknown ones are ignored.
    """
    told = []
    for item in history:
        if isinstance(item, Mapping):
            own = _id_in(item), attributes_of(item)
            if not own[1] and own[0] in catalogue.places:
                own = own[0], catalogue.items[catalogue.places[own[0]]]
        else:
            name = _history_id(item)
            place = catalogue.places.get(name)
            if place is None and unknown == "ignore":
                continue
            own = name, catalogue.items[catalogue.rows([name])[0] if place is None else place]
        if unknown == "error" or can_tell(*own):
            told.append(own)
    return told


def _history_id(item: Any) -> str:
    try:
        return item_id_of(item)
    except ValueError:
        raise ValueError(
            f"A history holds item ids (text or whole numbers) and attribute dicts, not one {_kind_of(item)}."
        ) from None


def _id_in(item: Mapping) -> str | None:
    return None if item.get(ITEM_ID) is None else item_id_of(item[ITEM_ID])


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1


def _boost(item_id: str | int, value: Any) -> float:
    numeric = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not numeric or not abs(value) < MOST_BOOST:
        raise ValueError(f"The boost of item {item_id!r} is {value!r}; it is a number, {MOST_BOOST:.1g} at most.")
    return float(value)


def _kind_of(value: Any) -> str:
    return "of None" if value is None else f"of type {type(value).__name__}"


def hub_options(model) -> dict:
    """How the model's checkpoint was reached (token, cache, ...), for other files of the same commit."""
    options = dict(getattr(model, "hub_options", {}))
    options.pop("force_download", None)
    return options | {"revision": getattr(model.config, "_commit_hash", None) or options.get("revision") or "main"}


def _shape(config) -> dict:
    """The fields of a configuration that say what is computed; not its name, its place or a version. What came later
    counts where it is used: catalogues that were saved before stay those of their weights."""
    own = {field.name for field in fields(config)} - {field.name for field in fields(PreTrainedConfig)}
    own -= {name for name in LATER_FIELDS if not getattr(config, name, None)}
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
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        ids, popularity = [item_id_of(own) for own in content["item_ids"]], content["popularity"]
        popularity_counts(ids, popularity)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): fetch it again.") from error
    if len(ids) != model.config.num_items:
        raise ValueError(f"{path} names {len(ids)} items, the model has {model.config.num_items}: fetch it again.")
    return {"rows": {item_id: row for row, item_id in enumerate(ids)}, "popularity": popularity}


def save_item_ids(folder: str | Path, item_ids: Sequence[str], counts: Sequence[float]) -> None:
    """Write which items the rows of a trained model's item matrix are, and how often each was bought in training."""
    content = {"item_ids": list(item_ids), "popularity": [float(count) for count in counts]}
    (Path(folder) / IDS_FILE).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
