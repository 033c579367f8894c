"""A catalogue to recommend from: ids, texts and vectors of items, searchable, growing and shrinking at any time.

The vectors belong to the weights that made them: a catalogue carries the hash of those weights, is saved with it, and
does not open under others. Search is exact, or approximate with exact re-ranking of `rescore` times the wanted number:
"faiss" (a graph, HNSW) or "binary" (one bit a dimension).

Readers hold a `Snapshot`, which never changes: a writer builds the next one beside it and swaps one reference, so that
whoever is asking meanwhile gets ids, texts and scores of one and the same catalogue.
"""

import difflib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import logging

from .whitening_seqrec import CATALOGUE_PRIOR, Whitening
from .whole_files_seqrec import digest, written_folder

logger = logging.get_logger(__name__)

NO_LONGER = ("int8",)  # in catalogues saved before; exact search is as fast in batches and needs less memory
EF_SEARCH = 512  # nodes of the graph looked at; more find more, later
NEIGHBOURS = 32  # of a node of the graph
ITEM_ID = "item_id"
ABOUT_FILE, ITEMS_FILE, VECTORS_FILE = "catalogue.json", "items.jsonl", "vectors.safetensors"
# Scored at a time at most. No power of two: rows of scores whole pages apart displace each other in the cache.
BLOCK_QUERIES, BLOCK_ITEMS = 512, 250_000
BLOCK_SCORES = BLOCK_QUERIES * 10_000
KEPT_SCORES = 2**18
FEW_QUERIES = 12  # whose scores are sorted whole
GROUP = 8  # scores under one maximum
ADDED_AT_ONCE = 2**14  # vectors, by the index of FAISS
MOST_OUTSIDE = 0.1  # share of items outside an index, or gone from it, before it is built anew
SWAP_SECONDS = 2.0  # a folder that another process is just replacing is tried again for so long

_KEPT = threading.local()


class Index:
    """The approximate search of some snapshot, built when first needed, and what became of its items since.

    Items that came later stand behind the others in a snapshot and are searched exactly.
    """

    def __init__(self, kind: str, built: "tuple[Any, np.ndarray] | None" = None):
        self._kind, self._built, self._lock = kind, built, threading.Lock()

    def __reduce__(self):  # copies and pickles have a lock of their own
        return Index, (self._kind, self._built)

    def of(self, vectors: Tensor) -> "tuple[Any, np.ndarray]":
        """What finds neighbours, and the row (M,) in the snapshot of each of its vectors, -1 for one that is gone."""
        with self._lock:
            if self._built is None:
                search = INDEXES[self._kind](vectors)
                self._built = search, np.arange(len(vectors))
            return self._built

    def after(self, kept: np.ndarray | None, vectors: Tensor) -> "Index":
        """The index of the next snapshot, in which only the `kept` rows of this one are left (None: all) and `vectors`
        are all there are. Where too many came or went it is built anew, by the writer, while readers go on."""
        with self._lock:
            built = self._built
        if built is None:
            return Index(self._kind)
        search, rows = built
        if kept is not None:
            places = np.full(int(rows.max(initial=-1)) + 2, -1)  # the last one stands for -1
            inside = kept[kept < len(places) - 1]
            places[inside] = np.arange(len(inside))
            rows = places[rows]
        known = int((rows >= 0).sum())
        if len(rows) - known + len(vectors) - known > MOST_OUTSIDE * len(rows):
            fresh = Index(self._kind)
            fresh.of(vectors)
            return fresh
        return Index(self._kind, (search, rows))


@dataclass(frozen=True)
class Snapshot:
    """One state of a catalogue of N items, which never changes.

    `by_dimension` (d, N) holds the vectors so that one query reads them in long runs; `vectors` (N, d) is a view.
    Where there is a `whitening` they have passed it, and so must what they are compared with.
    """

    ids: list[str]
    items: list[dict[str, Any]]
    popularity: np.ndarray  # (N,), NaN where unknown
    by_dimension: Tensor
    places: dict[str, int]  # row of each id
    index: str
    rescore: int
    whitening: Whitening | None = field(default=None, compare=False)
    learned_from: int = 0  # how many items, the first ones, the whitening was learned from
    _index: Index | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def vectors(self) -> Tensor:
        return self.by_dimension.T

    def as_held(self, vectors: Tensor) -> Tensor:
        """Vectors (n, d) that a model made, as comparable with those that the catalogue holds."""
        return vectors if self.whitening is None else self.whitening(vectors)

    def whitened_by(self, vectors: Tensor, power: float) -> "Snapshot":
        """The same items under a whitening that is learned from them and from vectors (n, d) that are to come."""
        own = self.vectors if self.whitening is None else self.whitening.undo(self.vectors)
        whitening = Whitening.fit(torch.cat([own, vectors]), power, CATALOGUE_PRIOR)
        table = whitening(own).T.contiguous()
        index = None if self._index is None else Index(self.index)
        number = len(self) + len(vectors)
        return replace(self, by_dimension=table, whitening=whitening, learned_from=number, _index=index)

    def check_new(self, ids: Sequence[str]) -> None:
        """Raises ValueError naming the first id that is here already or given twice."""
        seen = set()
        for item_id in ids:
            if item_id in self.places or item_id in seen:
                where = "is in the catalogue already" if item_id in self.places else "is given twice"
                raise ValueError(
                    f"Item {item_id!r} {where}; ids name one item each (remove_items takes the old one out)."
                )
            seen.add(item_id)

    def rows(self, ids: Sequence[str | int]) -> list[int]:
        """Rows of items. Raises ValueError naming the first unknown id and the nearest known one."""
        names = [item_id_of(item_id) for item_id in ids]
        try:
            return [self.places[name] for name in names]
        except KeyError as error:
            near = difflib.get_close_matches(error.args[0], self.ids[:100_000], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f": it has {len(self)} items."
            raise ValueError(f"Item {error.args[0]!r} is not in the catalogue{hint}") from None

    # ---- the next snapshots

    def with_items(
        self, ids: Sequence[str], items: Sequence[dict], vectors: Tensor, popularity: np.ndarray
    ) -> "Snapshot":
        """This one and more items, whose vectors (n, d) are one long."""
        self.check_new(ids)
        if not vectors.isfinite().all():
            row = int((~vectors.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"Item {ids[row]!r} has a vector with NaN or infinity: the weights are broken.")
        places = self.places | {item_id: len(self) + row for row, item_id in enumerate(ids)}
        counts = np.concatenate([self.popularity, popularity])
        return self._next([*self.ids, *ids], [*self.items, *items], counts, places, None, vectors)

    def without_items(self, ids: Sequence[str | int]) -> "Snapshot":
        """This one without some items. Raises ValueError for an id that is not here."""
        gone = np.zeros(len(self), bool)
        gone[self.rows(ids)] = True
        kept = np.flatnonzero(~gone)
        own, items = [self.ids[row] for row in kept], [self.items[row] for row in kept]
        places = {item_id: row for row, item_id in enumerate(own)}
        left = replace(self, learned_from=int((kept < self.learned_from).sum()))
        return left._next(own, items, self.popularity[kept], places, kept, None)

    def _next(self, ids, items, popularity, places, kept: np.ndarray | None, new: Tensor | None) -> "Snapshot":
        table = self.by_dimension if kept is None else self.by_dimension[:, torch.from_numpy(kept)]
        table = table if new is None else torch.cat([table, new.T], dim=1)
        index = None if self._index is None else self._index.after(kept, table.T)
        return replace(
            self, ids=ids, items=items, popularity=popularity, by_dimension=table, places=places, _index=index
        )

    # ---- searching

    def search(
        self,
        queries: Tensor,
        k: int,
        allowed: np.ndarray | None = None,
        excluded: Sequence[Sequence[int]] | None = None,
        boosts: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items of every query (B, d), best first: scores (B, n) float32 and rows (B, n) int64.

        n is k, or the number of items there are to choose from where that is less; a query whose own exclusions leave
        fewer has row -1 and score -inf at its end.

        Args:
            allowed: which items may be given at all, bool (N,).
            excluded: rows that a query may not be given, one list a query.
            boosts: added to the cosine of each item, (N,); the search is then exact.

        Raises:
            ValueError: k below 1.
        """
        if k < 1:
            raise ValueError(f"top_k is {k}; at least 1 is needed.")
        queries = torch.nn.functional.normalize(queries.detach().float().cpu(), dim=1)
        excluded = [set(rows) for rows in excluded] if excluded is not None else [set()] * len(queries)
        k = min(k, len(self) if allowed is None else int(allowed.sum()))
        if not k:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        if self.index == "exact" or boosts is not None:
            return self._exact(queries, k, allowed, excluded, boosts)
        return self._approximate(queries, k, allowed, excluded)

    def _exact(
        self, queries: Tensor, k: int, allowed=None, excluded=None, boosts=None, first: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Over the rows from `first` on, of which there are at least k, a block of scores at a time."""
        hidden = None if allowed is None else torch.from_numpy(~allowed)
        added = None if boosts is None else torch.from_numpy(boosts).float()
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), BLOCK_QUERIES):
            asked = slice(start, start + BLOCK_QUERIES)
            part, best = queries[asked], None
            gone = [(row, query) for query, own in enumerate(excluded[asked] if excluded else ()) for row in own]
            gone = np.array(sorted(gone), np.int64).reshape(-1, 2)
            step = min(len(self) - first, max(k, min(BLOCK_ITEMS, BLOCK_SCORES // len(part))))
            room = _room(len(part) * step)
            for begin in range(first, len(self), step):
                table = self.by_dimension[:, begin : begin + step].numpy()
                # By NumPy: on AMD processors its product takes as little as half the time of torch's.
                block = room[: len(part) * table.shape[1]].reshape(len(part), -1)
                block = torch.from_numpy(np.matmul(part.numpy(), table, out=block))
                if added is not None:
                    block += added[begin : begin + step]
                if hidden is not None:
                    block.masked_fill_(hidden[begin : begin + step], -torch.inf)
                inside = gone[slice(*gone[:, 0].searchsorted((begin, begin + step)))]
                block[inside[:, 1], inside[:, 0] - begin] = -torch.inf
                best = _best(block, begin, k) if best is None else _better(*best, block, begin)
            scores[asked], rows[asked] = (own.numpy() for own in best)
        rows[scores == -np.inf] = -1
        return scores, rows

    def _approximate(
        self, queries: Tensor, k: int, allowed: np.ndarray | None, excluded: list[set[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Candidates of the index, the best by exact score; a query left with too few is searched exactly."""
        search, places = self._index.of(self.vectors)
        known = int((places >= 0).sum())
        wanted = min(len(places), self.rescore * k + max(map(len, excluded), default=0) + len(places) - known)
        nearest = search.nearest(queries.numpy(), wanted)
        found = np.where(nearest >= 0, places[nearest], -1)
        if known < len(self):  # items that came after the index was built
            number = min(k, len(self) - known)
            found = np.concatenate([found, self._exact(queries, number, allowed, excluded, first=known)[1]], axis=1)
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for query, candidates in enumerate(found):
            usable = [row for row in candidates.tolist() if row >= 0 and row not in excluded[query]]
            usable = [row for row in usable if allowed is None or allowed[row]]
            if len(usable) < k:
                one = self._exact(queries[query : query + 1], k, allowed, [excluded[query]])
                scores[query], rows[query] = one[0][0], one[1][0]
                continue
            best = (self.vectors[usable] @ queries[query]).topk(k)
            scores[query], rows[query] = best.values.numpy(), np.array(usable)[best.indices.numpy()]
        return scores, rows


def _room(number: int) -> np.ndarray:
    """Room for so many scores. A thread keeps it for the next query, where it is small: fresh pages took a tenth of a
    search of 100,000 items."""
    if number > KEPT_SCORES:
        return np.empty(number, np.float32)
    if len(getattr(_KEPT, "room", ())) < number:
        _KEPT.room = np.empty(number, np.float32)
    return _KEPT.room


def _best(scores: Tensor, begin: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best of a block (B, n) and their rows, where its first item is row `begin`.

    They are in the k groups of the highest maxima: no other group has more than the least of these, and each of these
    has one as good. PyTorch's `topk` is fast where it looks for one in 64, so that maxima must be that many.
    """
    if scores.shape[1] < 64 * k * GROUP:
        values, places = scores.topk(k, dim=1)
        return values, places + begin
    groups = _in_groups(scores)
    near = groups.amax(1).topk(k, dim=1, sorted=False).indices
    places = (near[:, None] + groups.shape[2] * torch.arange(GROUP)[:, None]).flatten(1)
    values, chosen = groups.flatten(1).gather(1, places).topk(k, dim=1)
    return values, places.gather(1, chosen) + begin


def _better(values: Tensor, rows: Tensor, scores: Tensor, begin: int) -> tuple[Tensor, Tensor]:
    """The best (B, k) of earlier blocks and their rows, or what is above them in this one.

    Few items of a later block are, and looking at the maxima of groups of items finds them at a tenth of what sorting
    the block costs.
    """
    groups = _in_groups(scores)
    query, group = (groups.amax(1) > values[:, -1:]).numpy().nonzero()
    near = groups[query, :, group]
    hit, member = (near > values[query, -1:]).numpy().nonzero()
    query, items = query[hit], begin + group[hit] + groups.shape[2] * member
    column = np.arange(len(query)) - np.searchsorted(query, query)  # the n-th of each query's items in column n
    found = values.new_full((len(values), 1 + column.max(initial=-1)), -torch.inf)
    places = rows.new_zeros(found.shape)
    found[query, column], places[query, column] = near[hit, member], torch.from_numpy(items)
    values, chosen = torch.cat([values, found], dim=1).topk(values.shape[1], dim=1)
    return values, torch.cat([rows, places], dim=1).gather(1, chosen)


def _in_groups(scores: Tensor) -> Tensor:
    """A block (B, n) as (B, GROUP, groups), item g of member m being column m * groups + g."""
    if missing := -scores.shape[1] % GROUP:
        scores = nn.functional.pad(scores, (0, missing), value=-torch.inf)
    return scores.view(len(scores), GROUP, -1)


class Catalogue:
    """Items with normalised vectors (N, d), float32 on the CPU. Any number of threads may read, and write."""

    def __init__(
        self, weights_hash: str, width: int, index: str = "exact", rescore: int = 4, whitening: float | None = None
    ):
        """An empty catalogue for vectors of `width` made by the weights of this hash.

        Args:
            whitening: the power of a `Whitening` that is learned from the items, and anew whenever they are twice
                as many as it was learned from.

        Raises:
            ValueError: an unknown index, or `rescore` below 1.
        """
        if index not in INDEXES:
            raise ValueError(f'index is "{index}"; it is one of {", ".join(INDEXES)}.')
        if not isinstance(rescore, int) or isinstance(rescore, bool) or rescore < 1:
            raise ValueError(f"rescore is {rescore!r}; a whole number of at least 1 is needed.")
        self.weights_hash, self._writing, self._power = weights_hash, threading.RLock(), whitening
        kept = None if index == "exact" else Index(index)
        self._now = Snapshot([], [], np.empty(0), torch.empty(width, 0), {}, index, rescore, _index=kept)

    def __getstate__(self) -> dict:  # copies and pickles have a lock of their own
        return {name: value for name, value in vars(self).items() if name != "_writing"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _writing=threading.RLock())

    def snapshot(self) -> Snapshot:
        """All there is now, as one; ask it and nothing else until an answer is whole."""
        return self._now

    def __len__(self) -> int:
        return len(self._now)

    ids = property(lambda self: self._now.ids)
    items = property(lambda self: self._now.items)
    popularity = property(lambda self: self._now.popularity)
    vectors = property(lambda self: self._now.vectors)
    index = property(lambda self: self._now.index)
    rescore = property(lambda self: self._now.rescore)

    def check_new(self, ids: Sequence[str]) -> None:
        """As `Snapshot.check_new`."""
        self._now.check_new(ids)

    def rows(self, ids: Sequence[str | int]) -> list[int]:
        """As `Snapshot.rows`."""
        return self._now.rows(ids)

    def search(self, queries: Tensor, k: int, *args, **kwargs) -> tuple[np.ndarray, np.ndarray]:
        """As `Snapshot.search`."""
        return self._now.search(queries, k, *args, **kwargs)

    def add(
        self, ids: Sequence[str], items: Sequence[dict], vectors: Tensor, popularity: Sequence[float] | None
    ) -> None:
        """Append items with their vectors (n, d), of any length; `popularity` may be unknown."""
        vectors = torch.nn.functional.normalize(vectors.detach().float().cpu(), dim=1)
        known = popularity_counts(ids, popularity)
        with self._writing:
            now = self._now
            now.check_new(ids)
            doubled = len(vectors) and len(now) + len(vectors) >= 2 * now.learned_from
            if self._power is not None and doubled and vectors.isfinite().all():
                now = now.whitened_by(vectors, self._power)
            self._now = now.with_items(ids, items, now.as_held(vectors), known)

    def remove(self, ids: Sequence[str | int]) -> None:
        """Take items out. Raises ValueError for an id that is not here."""
        with self._writing:
            self._now = self._now.without_items(ids)

    # ---- on disk

    def save(self, folder: str | Path) -> None:
        """Write the catalogue into a folder, whole or not at all.

        Raises:
            FileExistsError: the folder holds something that is no catalogue.
            ValueError: an item with a value that JSON does not know.
        """
        folder, now = Path(folder), self._now
        if folder.exists() and not (folder / ABOUT_FILE).is_file() and not _is_empty_folder(folder):
            raise FileExistsError(f"{folder} exists and is no catalogue: choose another folder.")
        with self._writing, written_folder(folder) as fresh:
            _write(now, self.weights_hash, self._power, fresh)

    @classmethod
    def load(
        cls, folder: str | Path, weights_hash: str, index: str | None = None, rescore: int | None = None
    ) -> "Catalogue":
        """A saved catalogue, searched as it was when saved unless `index` or `rescore` say otherwise.

        Raises:
            FileNotFoundError: no catalogue there.
            ValueError: a damaged one, or one whose vectors were made by other weights.
        """
        folder = Path(folder)
        about, rows, vectors, whitening = _read_whole(folder)
        if about["weights_hash"] != weights_hash:
            raise ValueError(
                f"{folder} holds vectors of other weights ({about['weights_hash'][:12]!r}, this checkpoint is "
                f"{weights_hash[:12]}); add the items again with this checkpoint."
            )
        kept = about["index"]
        if kept in NO_LONGER and index is None:
            logger.warning(f'{folder} was searched by "{kept}", which is no longer offered: it is searched exactly.')
            kept = "exact"
        power = about.get("whitening")
        catalogue = cls(weights_hash, vectors.shape[1], index or kept, rescore or about["rescore"], power)
        ids, popularity = [row[ITEM_ID] for row in rows], [row.get("popularity", np.nan) for row in rows]
        # A catalogue that was saved before does not say how many: it learns anew with the next items.
        empty = replace(catalogue._now, whitening=whitening, learned_from=about.get("learned_from", 0))
        known = popularity_counts(ids, popularity)
        catalogue._now = empty.with_items(ids, [row["item"] for row in rows], vectors, known)
        if catalogue._now._index is not None and len(catalogue):
            catalogue._now._index.of(catalogue.vectors)  # now, and not while the first to ask is waiting
        return catalogue


def _write(snapshot: Snapshot, weights_hash: str, power: float | None, folder: Path) -> None:
    with open(folder / ITEMS_FILE, "w", encoding="utf-8") as file:
        for item_id, item, popularity in zip(snapshot.ids, snapshot.items, snapshot.popularity.tolist(), strict=True):
            row = {ITEM_ID: item_id, "item": item} | ({} if np.isnan(popularity) else {"popularity": popularity})
            file.write(_json_line(row) + "\n")
    tensors = {"vectors": snapshot.vectors.contiguous()}
    about = {"weights_hash": weights_hash, "items": len(snapshot)}
    if snapshot.whitening is not None:
        tensors |= {f"whitening_{name}": part for name, part in snapshot.whitening._asdict().items()}
        about |= {"whitening": power, "learned_from": snapshot.learned_from}
    save_file(tensors, folder / VECTORS_FILE)
    about |= {"index": snapshot.index, "rescore": snapshot.rescore, "sha256": _digests(folder)}
    (folder / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _json_line(row: dict) -> str:
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"Item {row[ITEM_ID]!r} cannot be saved as JSON: {error}.") from error
    # Half a surrogate pair, as broken emoji leave behind, has no UTF-8; escaped it is kept.
    return line if line.isascii() or line.encode("utf-8", "ignore").decode("utf-8") == line else json.dumps(row)


def _read_whole(folder: Path) -> tuple[dict, list[dict], Tensor, Whitening | None]:
    """`_read`, again where the folder was replaced by another process meanwhile."""
    started = time.monotonic()
    while True:
        before = _identity(folder)
        try:
            if not (folder / ABOUT_FILE).is_file():
                raise FileNotFoundError(f"{folder} is no catalogue: {ABOUT_FILE} is missing.")
            return _read(folder)
        except (ValueError, FileNotFoundError):
            # The pause is for a folder that is not there between the two renames of a swap.
            time.sleep(0.01)
            if _identity(folder) == before or time.monotonic() - started > SWAP_SECONDS:
                raise


def _identity(folder: Path) -> tuple[int, ...] | None:
    """What tells two folders of one name apart; a number alone may be given again, to the next but one."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _read(folder: Path) -> tuple[dict, list[dict], Tensor, Whitening | None]:
    """What `Catalogue.save` wrote: catalogue.json, the items, the vectors (N, d) and what they have passed.

    Raises ValueError if damaged.
    """
    try:
        with ExitStack() as opened:  # all at once: another process may replace the folder and remove this one
            files = [
                opened.enter_context(open(folder / name, "rb")) for name in (ABOUT_FILE, ITEMS_FILE, VECTORS_FILE)
            ]
            about_path, items, vectors_path = map(_lasting, files)
            about = json.loads(about_path.read_text(encoding="utf-8"))
            if about["sha256"] != {ITEMS_FILE: digest(items), VECTORS_FILE: digest(vectors_path)}:
                raise ValueError("its files are not those that were saved together")
            with open(items, encoding="utf-8") as lines:
                rows = [_row_of(line) for line in lines]
            tensors = load_file(vectors_path)
        vectors = tensors["vectors"]
        whitening = None
        if about.get("whitening") is not None:
            whitening = Whitening(tensors["whitening_mean"], tensors["whitening_matrix"])
        _check_read(about, rows, vectors, whitening)
        return about, rows, vectors, whitening
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError, SafetensorError,
    ) as error:  # fmt: skip
        raise ValueError(f"{folder} is damaged ({' '.join(str(error).split())}); save the catalogue again.") from error


def _row_of(line: str) -> dict:
    row = json.loads(line)
    # As catalogues were saved before. To look at every item would take as long as reading them.
    if any(mark in line for mark in ("NaN", "Infinity", "\\ud")):
        row["item"] = attributes_of(row["item"])
    return row


def _check_read(about: dict, rows: list, vectors: Tensor, whitening: Whitening | None) -> None:
    """Raises ValueError for what `Catalogue.save` never writes."""
    rescore = about["rescore"]
    if not isinstance(about["weights_hash"], str) or about["index"] not in (*INDEXES, *NO_LONGER):
        raise ValueError(f"{ABOUT_FILE} names no weights or no index: {about['index']!r}")
    if not isinstance(rescore, int) or isinstance(rescore, bool) or rescore < 1:
        raise ValueError(f"rescore in {ABOUT_FILE} is {rescore!r}")
    if vectors.dtype != torch.float32 or vectors.dim() != 2 or len(vectors) != len(rows):
        raise ValueError(f"{len(rows)} items with {vectors.dtype} vectors {tuple(vectors.shape)}")
    if not isinstance(about.get("whitening"), float | None):
        raise ValueError(f"whitening in {ABOUT_FILE} is {about['whitening']!r}")
    if whitening and [tuple(part.shape) for part in whitening] != [vectors.shape[1:], 2 * vectors.shape[1:]]:
        raise ValueError(f"a whitening of another width than the vectors' {vectors.shape[1]}")
    if type(learned := about.get("learned_from", 0)) is not int or not 0 <= learned <= len(rows):
        raise ValueError(f"learned_from in {ABOUT_FILE} is {learned!r}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row[ITEM_ID], str) or not isinstance(row["item"], dict):
            raise ValueError(f"line {number} of {ITEMS_FILE} is no item")
        float(row.get("popularity", 0))


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the items' and the vectors' file."""
    return {name: digest(folder / name) for name in (ITEMS_FILE, VECTORS_FILE)}


def _lasting(file: BinaryIO) -> Path:
    """A path to an open file that leads to it also when another has its name by now; only Linux has one."""
    by_handle = Path(f"/proc/self/fd/{file.fileno()}")
    return by_handle if by_handle.exists() else Path(file.name)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def split_items(items: Sequence[Mapping]) -> tuple[list[str], list[dict[str, str]]]:
    """Ids and attributes of `{"item_id": ..., attribute: text, ...}`. Raises ValueError for an item without an id."""
    ids = []
    for row, item in enumerate(_listed(items, "items")):
        item_id = item.get(ITEM_ID) if isinstance(item, Mapping) else None
        if item_id is None or (isinstance(item_id, str) and not item_id):
            raise ValueError(f'Item {row} has no {ITEM_ID}: give {{"{ITEM_ID}": "...", "title": "...", ...}}.')
        ids.append(item_id_of(item_id))
        if _sound(ids[-1]) != ids[-1]:
            raise ValueError(f"Item {row} has the {ITEM_ID} {_short(item_id)}, half a surrogate pair: give another.")
    return ids, [attributes_of(item) for item in items]


def attributes_of(item: Mapping) -> dict:
    """An item's texts, as JSON has them: NaN, NaT and NA, a data frame's marks for a missing one, and infinity are
    left out, also of lists and objects, and half a surrogate pair, as broken emoji leave behind, becomes a question
    mark.

    Raises ValueError for what is no attribute dict.
    """
    if not isinstance(item, Mapping):
        raise ValueError(f"An item is {{attribute: text}}, not {_short(item)}.")
    try:
        return _sound({name: text for name, text in item.items() if name != ITEM_ID})
    except RecursionError:
        raise ValueError("An item holds lists or objects in themselves without end: give text.") from None


def _sound(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_sound(str(name)): _sound(own) for name, own in value.items() if not _is_missing(own)}
    if isinstance(value, list | tuple):
        return [_sound(part) for part in value if not _is_missing(part)]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and not value.isascii() else value


def _is_missing(value: Any) -> bool:
    """NaN and NaT differ from themselves, and pandas' NA answers <NA> to that; JSON has no infinity either."""
    if isinstance(value, float | np.floating):
        return not np.isfinite(value)
    return not isinstance(value, str | np.ndarray) and str(value != value) in ("True", "<NA>")


def item_id_of(value: Any) -> str:
    """An item's id as the catalogue has it: text, or the digits of a whole number. Raises ValueError for the rest."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    raise ValueError(f"An item id is text or a whole number, not {_short(value)}.")


def _listed(values: Any, name: str) -> Sequence:
    """Values that come one after the other. Raises ValueError for what is no list."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence | np.ndarray):
        raise ValueError(f"{name} is {_short(values)}; it is a list.")
    return values


def shortened(text: str) -> str:
    """What a message found; a whole file that was read as one text would bury the message."""
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text):,} letters)"


def _short(value: Any) -> str:
    """A value in a message, and its kind."""
    return f"{shortened(' '.join(repr(value).split()))} ({type(value).__name__})"


def popularity_counts(ids: Sequence[str], popularity: Sequence[float] | None) -> np.ndarray:
    """Popularity as float64 (n,), NaN where unknown or infinite. Raises ValueError for what is no number."""
    if popularity is None:
        return np.full(len(ids), np.nan)
    try:
        counts = np.asarray(list(popularity), np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"popularity holds something that is no number ({error}).") from error
    if counts.shape != (len(ids),):
        raise ValueError(f"{len(ids)} items were given with {counts.size} values of popularity.")
    counts[np.isinf(counts)] = np.nan
    return counts


# ---- approximate candidates: rows (B, number) for queries (B, d), among vectors (N, d)


class _Faiss:
    """A graph of FAISS (HNSW, Malkov and Yashunin 2018), by inner product."""

    def __init__(self, vectors: Tensor):
        try:
            import faiss
        except ImportError as error:
            raise ValueError(
                'This index needs FAISS: pip install faiss-cpu, or use index="exact" or "binary".'
            ) from error
        self._graph = faiss.IndexHNSWFlat(vectors.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efSearch = EF_SEARCH
        for block in vectors.split(ADDED_AT_ONCE):
            self._graph.add(block.contiguous().numpy())

    def nearest(self, queries: np.ndarray, number: int) -> np.ndarray:
        return self._graph.search(queries, number)[1]


class _Binary:
    """Nearest by Hamming distance of the signs, 64 dimensions a comparison."""

    def __init__(self, vectors: Tensor):
        self._codes = np.concatenate([_signs(block.numpy()) for block in vectors.split(ADDED_AT_ONCE)])

    def nearest(self, queries: np.ndarray, number: int) -> np.ndarray:
        rows = np.empty((len(queries), number), np.int64)
        for place, query in enumerate(_signs(queries)):
            distances = np.bitwise_count(self._codes ^ query).sum(axis=1, dtype=np.int32)
            rows[place] = np.argpartition(distances, number - 1)[:number]
        return rows


def _signs(vectors: np.ndarray) -> np.ndarray:
    """Signs as bits, uint64 (rows, d / 64 rounded up)."""
    bits = np.packbits(np.ascontiguousarray(vectors) > 0, axis=1)
    return np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64)


# What "exact" searches by is `Snapshot._exact`; every other kind is a class made of vectors (N, d), with `nearest`.
INDEXES = {
    "exact": None,
    "faiss": _Faiss,
    "binary": _Binary,
}
