"""Rank each user's target among the whole catalogue: vectors or scores in, one rank per user out.

A *scorer* is anything with `num_items` and `score(histories) -> (B, N)` scores, higher is better; the baselines and
`DualEncoderScorer` are scorers, and everything here works with all of them. The rules of the ranks:

- rank = 1 + items scored higher + half of the *other* items scored equal, so a constant scorer gets the middle of the
  catalogue. `ties="official"` counts no equal item, as RecFormer's evaluation does; comparable with its numbers only.
- A score that is NaN or infinite is an error that names the user's row; it never becomes a rank.
- Items of the history stay candidates. Where they are excluded, a target that repeats one is a miss: rank infinity.

Memory: one block of scores (users of the block x items) and never anything of size users x items x width.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..serving.encoding_seqrec import (
    Histories,
    check_histories,
    check_items,
    progress_bar,
)

Ties = Literal["mean", "official"]
Similarity = Literal["cosine", "dot"]

BLOCK_BYTES = 256 * 2**20  # size of one block of scores
BLOCK_USERS = 1024  # more users at once is no faster, and the progress bar would stand still


class Scorer(Protocol):
    """Gives each history a score for every item of the catalogue."""

    num_items: int

    def score(self, histories: Histories) -> Tensor:
        """B histories -> (B, num_items) floating-point scores, higher is better."""


class SplitLike(Protocol):
    """Ranking tasks, as `datasets_builders.contract.Split`."""

    user_ids: np.ndarray
    histories: Histories
    targets: np.ndarray


# Ranks


class Ranks(NamedTuple):
    """Ranks of the same targets by both ways to count ties, float64 (U,) each."""

    mean: np.ndarray
    official: np.ndarray

    def by(self, ties: Ties) -> np.ndarray:
        """The ranks of one way. Raises ValueError for an unknown one."""
        if ties not in self._fields:
            raise ValueError(f'ties is "{ties}"; it is "mean" or "official".')
        return getattr(self, ties)


def rank_split(
    scorer: Scorer,
    split: SplitLike,
    exclude_history: bool = False,
    ties: Ties = "mean",
    progress: bool | None = None,
) -> np.ndarray:
    """Rank of the target of every row of a split, float64 (U,).

    Arguments and errors as `rank_split_both_ways`; ties: "mean" or "official", see above.
    """
    return rank_split_both_ways(scorer, split, exclude_history, progress).by(ties)


def rank_split_both_ways(
    scorer: Scorer, split: SplitLike, exclude_history: bool = False, progress: bool | None = None
) -> Ranks:
    """Rank of the target of every row of a split, ties counted by their mean and as RecFormer's code does.

    Args:
        scorer: scores the histories a block at a time, blocks sorted by history length.
        split: `histories` and `targets`, one a row.
        exclude_history: take history items out of the candidates; a target among them ranks infinity.
        progress: show a bar; None shows one on a terminal.

    Raises:
        ValueError: an item outside the catalogue, or a score that is NaN or infinite; both name the row.
    """
    check_histories(split.histories, scorer.num_items)
    targets = _check_targets(split.targets, len(split.histories), scorer.num_items)
    ranks = np.empty((2, len(targets)))
    by_length = np.argsort([len(history) for history in split.histories], kind="stable")
    with progress_bar(len(targets), "rank", "user", progress) as bar:
        for rows in _blocks(by_length, scorer.num_items):
            histories = [split.histories[row] for row in rows]
            excluded = histories if exclude_history else None
            ranks[:, rows] = _rank_block(scorer.score(histories), targets[rows], excluded, rows)
            bar.update(len(rows))
    return Ranks(*ranks)


def rank_targets(
    user_vectors: Tensor,
    item_vectors: Tensor,
    targets: np.ndarray | Tensor,
    excluded: Histories | None = None,
    similarity: Similarity = "cosine",
    ties: Ties = "mean",
    progress: bool | None = False,
) -> np.ndarray:
    """Rank of each user's target by the similarity of vectors, float64 (U,).

    Args:
        user_vectors: (U, d); item_vectors: (N, d), on the same device. Neither needs to be normalised.
        targets: (U,) item indices.
        excluded: item indices a user must not be shown, one array a user.

    Raises:
        ValueError: as `rank_split`; also an item vector that is NaN or infinite.
    """
    index = ItemIndex(item_vectors, similarity)
    targets = _check_targets(targets, len(user_vectors), index.num_items)
    _check_excluded(excluded, len(targets), index.num_items)
    ranks = np.empty((2, len(targets)))
    with progress_bar(len(targets), "rank", "user", progress) as bar:
        for rows in _blocks(np.arange(len(targets)), index.num_items):
            block_excluded = None if excluded is None else [excluded[row] for row in rows]
            scores = index.scores(user_vectors[rows[0] : rows[-1] + 1])
            ranks[:, rows] = _rank_block(scores, targets[rows], block_excluded, rows)
            bar.update(len(rows))
    return Ranks(*ranks).by(ties)


def rank_scores(
    scores: Tensor, targets: np.ndarray | Tensor, excluded: Histories | None = None, ties: Ties = "mean"
) -> np.ndarray:
    """Rank of each row's target in (B, N) scores, float64 (B,). Arguments and errors as `rank_targets`."""
    targets = _check_targets(targets, *scores.shape)
    _check_excluded(excluded, *scores.shape)
    return _rank_block(scores, targets, excluded, np.arange(len(targets))).by(ties)


def _rank_block(scores: Tensor, targets: np.ndarray, excluded: Histories | None, rows: np.ndarray) -> Ranks:
    """`rank_scores` on checked items, both ways; `rows` are the names of the rows in errors."""
    _check_finite(scores, rows)
    # The target's score is read out of the block: computed apart it could differ from its equals in the last bit.
    target_scores = scores.gather(1, torch.as_tensor(targets, device=scores.device)[:, None])
    higher = _count(scores > target_scores)
    equal = _count(scores >= target_scores) - higher - 1
    missed = np.zeros(len(targets), dtype=bool)
    if excluded is not None:
        users, items = _excluded_pairs(excluded, scores.shape[1])
        gone, bound = scores[_to(users, scores), _to(items, scores)], target_scores[_to(users, scores), 0]
        higher -= np.bincount(users, (gone > bound).cpu().numpy(), len(targets)).astype(np.int64)
        equal -= np.bincount(users, (gone == bound).cpu().numpy(), len(targets)).astype(np.int64)
        missed[users[items == targets[users]]] = True
    official = higher + 1.0
    return Ranks(*(np.where(missed, np.inf, ranks) for ranks in (official + equal / 2, official)))


def _excluded_pairs(excluded: Histories, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Ragged item lists -> (row, item) of every distinct pair."""
    lengths = [len(items) for items in excluded]
    flat = np.concatenate([np.asarray(items, dtype=np.int64) for items in excluded] or [np.empty(0, np.int64)])
    return np.divmod(np.unique(np.repeat(np.arange(len(excluded)), lengths) * num_items + flat), num_items)


def _count(mask: Tensor) -> np.ndarray:
    """Number of true entries of each row, int64 (B,). NumPy counts booleans ten times as fast as torch on a CPU."""
    if mask.device.type == "cpu":
        return np.count_nonzero(mask.numpy(), axis=1)
    return mask.sum(1).cpu().numpy()


def _to(indices: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(indices).to(like.device)


# Recommendations


def top_k(
    scorer: Scorer, histories: Histories, k: int, exclude_history: bool = False, progress: bool | None = False
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each history, best first.

    Returns:
        Item indices, int64 (U, k), and their scores, (U, k).

    Raises:
        ValueError: k below 1 or above the number of candidates, an item outside the catalogue, NaN scores.
    """
    check_k(k, scorer.num_items)
    check_histories(histories, scorer.num_items)
    items, scores = np.empty((len(histories), k), np.int64), np.empty((len(histories), k))
    with progress_bar(len(histories), "recommend", "user", progress) as bar:
        for rows in _blocks(np.arange(len(histories)), scorer.num_items):
            block = scorer.score([histories[row] for row in rows])
            _check_finite(block, rows)
            if exclude_history:
                block = _without([histories[row] for row in rows], block, k, rows)
            best = block.topk(k, dim=1)
            items[rows], scores[rows] = best.indices.cpu().numpy(), best.values.cpu().numpy()
            bar.update(len(rows))
    return items, scores


def _without(excluded: Histories, scores: Tensor, k: int, rows: np.ndarray) -> Tensor:
    """Scores with the excluded items at -infinity."""
    users, items = _excluded_pairs(excluded, scores.shape[1])
    left = scores.shape[1] - np.bincount(users, minlength=len(rows))
    if left.min() < k:
        row = int(left.argmin())
        raise ValueError(f"User row {rows[row]} has {left[row]} items left without its history, fewer than k = {k}.")
    return scores.index_put((_to(users, scores), _to(items, scores)), scores.new_tensor(-torch.inf))


# Vectors -> scores


class ItemIndex:
    """Exact similarity search over item vectors.

    Items with equal vectors get bitwise equal scores: matrix multiplication rounds columns differently depending on
    where they stand, so every repeated vector takes the score of its first occurrence.
    """

    def __init__(self, item_vectors: Tensor, similarity: Similarity = "cosine"):
        """Take (N, d) vectors, unnormalised; float32 ones are not copied.

        Raises:
            ValueError: an unknown similarity, no vectors, or a vector that is NaN or infinite.
        """
        if similarity not in ("cosine", "dot"):
            raise ValueError(f'similarity is "{similarity}"; it is "cosine" or "dot".')
        if item_vectors.dim() != 2 or not item_vectors.numel():
            raise ValueError(f"item_vectors must be (items, width) and not empty, got {tuple(item_vectors.shape)}.")
        self.vectors = item_vectors.detach().float()
        norms = torch.linalg.vector_norm(self.vectors, dim=1)
        _check_item_norms(norms)
        self.inverse_norms = norms.clamp_min(torch.finfo(norms.dtype).tiny).reciprocal_()
        self.cosine = similarity == "cosine"
        self.copies, self.originals = find_repeated_rows(self.vectors)

    @property
    def num_items(self) -> int:
        return len(self.vectors)

    def scores(self, user_vectors: Tensor) -> Tensor:
        """(B, d) -> (B, N) float32 similarities."""
        users = user_vectors.detach().to(self.vectors.device).float()
        if self.cosine:
            users = torch.nn.functional.normalize(users, dim=1)
        scores = users @ self.vectors.T
        if self.cosine:
            scores *= self.inverse_norms
        if len(self.copies):
            scores[:, self.copies] = scores[:, self.originals]
        return scores


def find_repeated_rows(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a float32 (N, d) tensor that equal an earlier one: their indices, and those of the first occurrences."""
    unique, group = torch.unique(_hash_rows(vectors), return_inverse=True)
    rows = torch.arange(len(vectors), device=vectors.device)
    first = torch.full_like(unique, len(vectors)).scatter_reduce_(0, group, rows, "amin")[group]
    copies = torch.nonzero(first != rows).flatten()
    # Two rows may share a hash without being equal; such a row just stays its own original.
    equal = [(vectors[part] == vectors[first[part]]).all(1) for part in copies.split(65536)]
    copies = copies[torch.cat(equal)] if equal else copies
    return copies, first[copies]


def _hash_rows(vectors: Tensor) -> Tensor:
    """A 64-bit hash of each row's bits, int64 (N,); 0.0 and -0.0 hash alike."""
    generator = np.random.default_rng(0)
    factors = torch.from_numpy(generator.integers(-(2**63), 2**63 - 1, vectors.shape[1]) | 1).to(vectors.device)
    hashes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    # Written into one tensor: a list of small results between large temporaries keeps the heap from being reused.
    for part, out in zip(vectors.split(4096), hashes.split(4096), strict=True):
        torch.sum((part + 0.0).view(torch.int32) * factors, 1, out=out)
    return hashes


# Checks


def length_groups(lengths: np.ndarray, edges: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """Masks (U,) of the users of every group of history lengths (U,), by a name such as "4-9 items".

    `edges` are the first lengths of all groups but the shortest; without any the groups are quartiles. A group nobody
    is in is left out.
    """
    if not len(edges):
        edges = (np.quantile(lengths, [0.25, 0.5, 0.75]).astype(int) + 1).tolist()
    bounds = [1, *sorted(set(edges)), int(lengths.max()) + 1]
    groups = {}
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        members = (lengths >= low) & (lengths < high)
        if members.any():
            name = f"{low}-{high - 1} items" if high - low > 1 else f"{low} item{'s' if low > 1 else ''}"
            groups[name] = members
    return groups


def check_k(k: int, num_items: int) -> None:
    """Raises ValueError unless 1 <= k <= num_items."""
    if not 1 <= k <= num_items:
        raise ValueError(f"k = {k} is outside 1..{num_items}: the catalogue has {num_items} items.")


def _check_targets(targets: np.ndarray | Tensor, num_rows: int, num_items: int) -> np.ndarray:
    """Targets as int64 (num_rows,), each an item."""
    targets = np.asarray(targets.cpu() if isinstance(targets, Tensor) else targets, dtype=np.int64)
    if targets.shape != (num_rows,):
        raise ValueError(f"{num_rows} users need one target each, got targets of shape {targets.shape}.")
    check_items(targets[:, None], num_items, "target")
    return targets


def _check_excluded(excluded: Histories | None, num_rows: int, num_items: int) -> None:
    if excluded is None:
        return
    if len(excluded) != num_rows:
        raise ValueError(f"{num_rows} users need one list of excluded items each, got {len(excluded)}.")
    check_items(excluded, num_items, "excluded list")


def _check_finite(scores: Tensor, rows: np.ndarray) -> None:
    # A sum is many times cheaper than isfinite on every score, and it is not finite where any score is not.
    suspects = torch.nonzero(~scores.sum(1).isfinite()).flatten()
    for row in suspects.tolist():
        if not scores[row].isfinite().all():
            raise ValueError(f"User row {rows[row]} has scores that are NaN or infinite; there is nothing to rank.")


def _check_item_norms(norms: Tensor) -> None:
    wrong = torch.nonzero(~norms.isfinite()).flatten()
    if len(wrong):
        raise ValueError(f"The vector of item {int(wrong[0])} is NaN or infinite: weights or inputs are broken.")


def _blocks(rows: np.ndarray, num_items: int) -> Iterator[np.ndarray]:
    """Rows in blocks whose (rows, items) float32 scores fit in BLOCK_BYTES."""
    size = max(1, min(BLOCK_USERS, BLOCK_BYTES // (4 * num_items)))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
