"""A catalogue to recommend from: ids, texts and vectors of items, searchable, growing and shrinking at any time.

The vectors belong to the weights that made them: a catalogue carries the hash of those weights, is saved with it, and
does not open under others. Search is exact, or approximate with exact re-ranking of `rescore` times the wanted number:
"faiss" (a graph, HNSW), "int8" (vectors of one byte a dimension, FAISS too) or "binary" (one bit a dimension).
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .whole_files_seqrec import written_folder

INDEXES = ("exact", "faiss", "int8", "binary")
FACTORIES = {"faiss": "HNSW32", "int8": "SQ8"}
EF_SEARCH = 512  # nodes of the graph looked at; more find more, later
ITEM_ID = "item_id"
ABOUT_FILE, ITEMS_FILE, VECTORS_FILE = "catalogue.json", "items.jsonl", "vectors.safetensors"
BLOCK_SCORES = 2**26  # scores held at a time
ADDED_AT_ONCE = 2**14  # vectors, by the index of FAISS


class Catalogue:
    """Items with normalised vectors (N, d), float32 on the CPU."""

    def __init__(self, weights_hash: str, width: int, index: str = "exact", rescore: int = 4):
        """An empty catalogue for vectors of `width` made by the weights of this hash.

        Raises:
            ValueError: an unknown index, or `rescore` below 1.
        """
        if index not in INDEXES:
            raise ValueError(f'index is "{index}"; it is one of {", ".join(INDEXES)}.')
        if rescore < 1:
            raise ValueError(f"rescore is {rescore}; at least 1 is needed.")
        self.weights_hash, self.index, self.rescore = weights_hash, index, rescore
        self.ids: list[str] = []
        self.items: list[dict[str, str]] = []
        self.popularity = np.empty(0)  # NaN where unknown
        self.vectors = torch.empty(0, width)
        self._rows: dict[str, int] = {}
        self._candidates: _Faiss | _Binary | None = None  # the approximate search, built when first needed

    def __len__(self) -> int:
        return len(self.ids)

    # ---- growing and shrinking

    def check_new(self, ids: Sequence[str]) -> None:
        """Raises ValueError naming the first id that is here already or given twice."""
        seen = set()
        for item_id in ids:
            if item_id in self._rows or item_id in seen:
                where = "is in the catalogue already" if item_id in self._rows else "is given twice"
                raise ValueError(
                    f"Item {item_id!r} {where}; ids name one item each (remove_items takes the old one out)."
                )
            seen.add(item_id)

    def add(
        self, ids: Sequence[str], items: Sequence[dict], vectors: Tensor, popularity: Sequence[float] | None
    ) -> None:
        """Append items with their vectors (n, d), of any length; `popularity` may be unknown."""
        self.check_new(ids)
        self._append(ids, items, torch.nn.functional.normalize(vectors.detach().float().cpu(), dim=1), popularity)

    def _append(self, ids, items, vectors: Tensor, popularity: Sequence[float] | None) -> None:
        """Append items with vectors that are one long already."""
        if not vectors.isfinite().all():
            row = int((~vectors.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"Item {ids[row]!r} has a vector with NaN or infinity: the weights are broken.")
        known = popularity_counts(ids, popularity)
        self._rows.update((item_id, len(self.ids) + row) for row, item_id in enumerate(ids))
        self.ids += ids
        self.items += items
        self.popularity = np.concatenate([self.popularity, known])
        self.vectors = torch.cat([self.vectors, vectors])
        if self._candidates is not None:
            self._candidates.add(vectors.numpy())

    def remove(self, ids: Sequence[str]) -> None:
        """Take items out. Raises ValueError for an id that is not here."""
        gone = set(self.rows(ids))
        kept = [row for row in range(len(self)) if row not in gone]
        self.ids, self.items = [self.ids[row] for row in kept], [self.items[row] for row in kept]
        self.popularity, self.vectors = self.popularity[kept], self.vectors[kept]
        self._rows = {item_id: row for row, item_id in enumerate(self.ids)}
        self._candidates = None

    def rows(self, ids: Sequence[str]) -> list[int]:
        """Rows of items. Raises ValueError naming the first unknown id and the nearest known one."""
        try:
            return [self._rows[item_id] for item_id in ids]
        except KeyError as error:
            near = difflib.get_close_matches(str(error.args[0]), self.ids[:100_000], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f": it has {len(self)} items."
            raise ValueError(f"Item {error.args[0]!r} is not in the catalogue{hint}") from None

    # ---- searching

    def search(
        self,
        queries: Tensor,
        k: int,
        allowed: np.ndarray | None = None,
        excluded: Sequence[Sequence[int]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of every query (B, d), best first: cosines (B, k) float32 and rows (B, k) int64.

        Args:
            allowed: which items may be given at all, bool (N,).
            excluded: rows that a query may not be given, one list a query.

        Raises:
            ValueError: k below 1 or above the number of items that are left for some query.
        """
        queries = torch.nn.functional.normalize(queries.detach().float().cpu(), dim=1)
        excluded = [set(rows) for rows in excluded] if excluded is not None else [set()] * len(queries)
        self._check_k(k, allowed, excluded)
        if self.index == "exact":
            return self._exact(queries, k, allowed, excluded)
        return self._approximate(queries, k, allowed, excluded)

    def _check_k(self, k: int, allowed: np.ndarray | None, excluded: list[set[int]]) -> None:
        left = len(self) if allowed is None else int(allowed.sum())
        if not left:
            raise ValueError("The catalogue is empty." if allowed is None else "The filter leaves no item.")
        if not 1 <= k <= left:
            what = "has" if allowed is None else "has, after the filter,"
            raise ValueError(f"top_k is {k}, but the catalogue {what} {left} items; choose 1 to {left}.")
        for query, rows in enumerate(excluded):
            rest = left - sum(allowed is None or bool(allowed[row]) for row in rows)
            if k > rest:
                raise ValueError(f"top_k is {k}, but without its history row {query} has {rest} items left.")

    def _exact(
        self, queries: Tensor, k: int, allowed: np.ndarray | None, excluded: list[set[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        step = max(1, BLOCK_SCORES // max(1, len(self)))
        hidden = None if allowed is None else torch.from_numpy(~allowed)
        for start in range(0, len(queries), step):
            block = queries[start : start + step] @ self.vectors.T
            if hidden is not None:
                block.masked_fill_(hidden, -torch.inf)
            for row, gone in zip(block, excluded[start : start + step], strict=True):
                row[list(gone)] = -torch.inf
            best = block.topk(k, dim=1)
            scores[start : start + step], rows[start : start + step] = best.values.numpy(), best.indices.numpy()
        return scores, rows

    def _approximate(
        self, queries: Tensor, k: int, allowed: np.ndarray | None, excluded: list[set[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Candidates of the index, the best by exact score; a query left with too few is searched exactly."""
        if self._candidates is None:
            self._candidates = _Binary() if self.index == "binary" else _Faiss(FACTORIES[self.index], queries.shape[1])
            self._candidates.add(self.vectors.numpy())
        wanted = min(len(self), self.rescore * k + max(map(len, excluded), default=0))
        found = self._candidates.nearest(queries.numpy(), wanted)
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

    # ---- on disk

    def save(self, folder: str | Path) -> None:
        """Write the catalogue into a folder, whole or not at all.

        Raises:
            FileExistsError: the folder holds something that is no catalogue.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / ABOUT_FILE).is_file() and not _is_empty_folder(folder):
            raise FileExistsError(f"{folder} exists and is no catalogue: choose another folder.")
        with written_folder(folder) as fresh:
            self._write(fresh)

    def _write(self, folder: Path) -> None:
        with open(folder / ITEMS_FILE, "w", encoding="utf-8") as file:
            for item_id, item, popularity in zip(self.ids, self.items, self.popularity.tolist(), strict=True):
                row = {ITEM_ID: item_id, "item": item} | ({} if np.isnan(popularity) else {"popularity": popularity})
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        save_file({"vectors": self.vectors.contiguous()}, folder / VECTORS_FILE)
        about = {"weights_hash": self.weights_hash, "items": len(self), "index": self.index, "rescore": self.rescore}
        about["sha256"] = _digests(folder)
        (folder / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

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
        if not (folder / ABOUT_FILE).is_file():
            raise FileNotFoundError(f"{folder} is no catalogue: {ABOUT_FILE} is missing.")
        about, rows, vectors = _read(folder)
        if about["weights_hash"] != weights_hash:
            raise ValueError(
                f"{folder} holds vectors of other weights ({about['weights_hash'][:12]}, this checkpoint is "
                f"{weights_hash[:12]}); add the items again with this checkpoint."
            )
        catalogue = cls(weights_hash, vectors.shape[1], index or about["index"], rescore or about["rescore"])
        popularity = [row.get("popularity", np.nan) for row in rows]
        catalogue._append([row[ITEM_ID] for row in rows], [row["item"] for row in rows], vectors, popularity)
        return catalogue


def _read(folder: Path) -> tuple[dict, list[dict], Tensor]:
    """What `Catalogue.save` wrote: catalogue.json, the items and the vectors (N, d). Raises ValueError if damaged."""
    try:
        about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        if about["sha256"] != _digests(folder):
            raise ValueError("its files are not those that were saved together")
        with open(folder / ITEMS_FILE, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        vectors = load_file(folder / VECTORS_FILE)["vectors"]
        return {name: about[name] for name in ("weights_hash", "index", "rescore")}, rows, vectors
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged ({' '.join(str(error).split())}); save the catalogue again.") from error


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the items' and the vectors' file."""
    digests = {}
    for name in (ITEMS_FILE, VECTORS_FILE):
        with open(folder / name, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        digests[name] = digest.hexdigest()
    return digests


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def split_items(items: Sequence[Mapping]) -> tuple[list[str], list[dict[str, str]]]:
    """Ids and attributes of `{"item_id": ..., attribute: text, ...}`. Raises ValueError for an item without an id."""
    ids = []
    for row, item in enumerate(items):
        if not isinstance(item, Mapping) or item.get(ITEM_ID) in (None, ""):
            raise ValueError(f'Item {row} has no {ITEM_ID}: give {{"{ITEM_ID}": "...", "title": "...", ...}}.')
        ids.append(str(item[ITEM_ID]))
    return ids, [{name: text for name, text in item.items() if name != ITEM_ID} for item in items]


def popularity_counts(ids: Sequence[str], popularity: Sequence[float] | None) -> np.ndarray:
    """Popularity as float64 (n,), NaN where unknown. Raises ValueError for what is no number."""
    if popularity is None:
        return np.full(len(ids), np.nan)
    try:
        counts = np.asarray(popularity, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"popularity holds something that is no number ({error}).") from error
    if counts.shape != (len(ids),):
        raise ValueError(f"{len(ids)} items were given with {counts.size} values of popularity.")
    return counts


# ---- approximate candidates: rows (B, number) for queries (B, d), from vectors (N, d) that came by `add`


class _Faiss:
    """An index of FAISS, in the hands of `datasets`. New vectors join it; nothing is built again."""

    def __init__(self, factory: str, width: int):
        try:
            import faiss
            from datasets.search import FaissIndex
        except ImportError as error:
            raise ValueError(
                'This index needs FAISS: pip install faiss-cpu datasets, or use index="exact" or "binary".'
            ) from error
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
        if factory == FACTORIES["faiss"]:
            index.hnsw.efSearch = EF_SEARCH
        self._index = FaissIndex(custom_index=index)

    def add(self, vectors: np.ndarray) -> None:
        if self._index.faiss_index.ntotal:
            self._index.faiss_index.add(vectors)
        else:  # all there are: this may take a while, and shows how far it is
            self._index.add_vectors(vectors, batch_size=ADDED_AT_ONCE, train_size=len(vectors))

    def nearest(self, queries: np.ndarray, number: int) -> np.ndarray:
        return self._index.search_batch(queries, number).total_indices


class _Binary:
    """Nearest by Hamming distance of the signs, 64 dimensions a comparison."""

    def __init__(self):
        self._codes: np.ndarray | None = None

    def add(self, vectors: np.ndarray) -> None:
        codes = _signs(vectors)
        self._codes = codes if self._codes is None else np.concatenate([self._codes, codes])

    def nearest(self, queries: np.ndarray, number: int) -> np.ndarray:
        rows = np.empty((len(queries), number), np.int64)
        for place, query in enumerate(_signs(queries)):
            distances = np.bitwise_count(self._codes ^ query).sum(axis=1, dtype=np.int32)
            rows[place] = np.argpartition(distances, number - 1)[:number]
        return rows


def _signs(vectors: np.ndarray) -> np.ndarray:
    """Signs as bits, uint64 (rows, d / 64 rounded up)."""
    bits = np.packbits(vectors > 0, axis=1)
    return np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64)
