"""Texts -> vectors, by any model with a text encoder: items alone, histories, in batches of similar lengths."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

Histories = Sequence[np.ndarray]  # item indices of each user, oldest first
# Tokens encoded at once, padding included: on a CPU what stays in its caches, elsewhere what keeps it busy (measured).
BATCH_TOKENS = {"cpu": 4096}
MOST_BATCH_TOKENS = 16384
HISTORY_BLOCK = 1024  # histories that are looked up at once


class HistoryCollator:
    """Histories (item indices, oldest first) -> model inputs (B, L), for inference.

    Args:
        history_items: also give `history_item_ids` (B, history_items), the newest item first, padded with -1; None
            leaves them out.
        allow_empty: take an empty history for `[CLS]` alone instead of an error.
    """

    def __init__(
        self,
        tokenizer,
        item_tokens,
        history_items: int | None = None,
        allow_empty: bool = False,
    ):
        self.tokenizer, self.item_tokens = tokenizer, item_tokens
        self.history_items, self.allow_empty = history_items, allow_empty

    def __call__(self, histories: Sequence[np.ndarray]) -> dict[str, Tensor]:
        batch = dict(self.tokenizer.batch_histories(self.item_tokens, histories, allow_empty=self.allow_empty))
        if self.history_items is not None:
            batch["history_item_ids"] = newest_item_ids(histories, self.history_items)
        return batch


class ItemCollator:
    """Item indices -> model inputs (B, L), every item read alone."""

    def __init__(self, tokenizer, item_tokens):
        self.tokenizer, self.item_tokens = tokenizer, item_tokens

    def __call__(self, items: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        return dict(self.tokenizer.batch_items(self.item_tokens, items))


@torch.no_grad()
def encode_items(
    model,
    tokenizer,
    item_tokens,
    batch_tokens: int | None = None,
    progress: bool | None = None,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Vector of every item of a catalogue, each read alone: float32 (N, d) on the model's device.

    Items with equal text are encoded once, so their vectors are equal to the last bit and they tie.

    Args:
        model: with a text encoder (`base_model.embed`), alone or under heads.
        tokenizer: the `ItemSentTokenizer` of the model.
        item_tokens: the catalogue, as `tokenizer.encode_items` gives it.
        batch_tokens: tokens encoded at once, padding included; None chooses by the device.
        progress: show a bar; None shows one on a terminal.
        precision: what the model computes in (autocast); None leaves that to its weights.
    """
    distinct, place = _distinct_items(item_tokens)
    collate, lengths = ItemCollator(tokenizer, item_tokens), 1 + item_tokens.lengths[distinct]
    batches = token_budget_batches(np.minimum(lengths, tokenizer.max_tokens), batch_tokens or best_tokens(model))
    batches = ((rows, collate(distinct[rows])) for rows in batches)
    with progress_bar(len(distinct), "encode items", "item", progress) as bar:
        vectors = _encode(model, model.base_model.embed, len(distinct), batches, bar, precision)
    return vectors if len(distinct) == item_tokens.num_items else vectors[torch.from_numpy(place).to(vectors.device)]


@torch.no_grad()
def encode_histories(
    model,
    tokenizer,
    item_tokens,
    histories: Histories,
    batch_tokens: int | None = None,
    progress: bool | None = None,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Vector of every user's history (item indices, oldest first): float32 (U, d) on the model's device.

    A fine-tuned model adds what it has learned about the newest items; any other reads their text only. Other
    arguments as `encode_items`.

    Raises:
        ValueError: an empty history or an item outside the catalogue.
    """
    check_histories(histories, item_tokens.num_items)
    fine_tuned = hasattr(model, "user_vectors")
    if fine_tuned and reads_items(model):
        return _means_of_items(model, histories)
    history_items = model.config.history_items if fine_tuned else 0
    collate = HistoryCollator(tokenizer, item_tokens, history_items if fine_tuned else None)
    distinct, place = _distinct_histories(histories, max(tokenizer.max_items, history_items))
    batches = _batches(distinct, collate, batch_tokens or best_tokens(model))
    embed = model.user_vectors if fine_tuned else model.base_model.embed
    with progress_bar(len(distinct), "encode histories", "user", progress) as bar:
        vectors = _encode(model, embed, len(distinct), batches, bar, precision)
    return vectors if len(distinct) == len(histories) else vectors[torch.from_numpy(place).to(vectors.device)]


def _means_of_items(model, histories: Histories) -> Tensor:
    """User vectors of a model that reads items, which are rows of its item matrix."""
    blocks = [histories[start : start + HISTORY_BLOCK] for start in range(0, len(histories), HISTORY_BLOCK)]
    ids = (newest_item_ids(block, max(map(len, block))).to(model.device) for block in blocks)
    vectors = [model.user_vectors(history_item_ids=block).float() for block in ids]
    return torch.cat(vectors) if vectors else torch.empty(0, model.config.vector_size)


def reads_items(model) -> bool:
    """Whether a history is the mean of its items' vectors and not one text: what was fine-tuned for a catalogue says
    how in `history_reading`, any other model by its `history_decay`."""
    if hasattr(model, "item_matrix"):
        return model.config.history_reading == "items"
    return model.config.history_decay is not None


def _distinct_histories(histories: Histories, read: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Histories that differ in their `read` newest items, and for each of all histories its place among those, (U,).

    Users who bought the same items lately are many in any shop; each distinct text is encoded once.
    """
    places: dict[bytes, int] = {}
    newest = [np.ascontiguousarray(history[-read:], dtype=np.int64) for history in histories]
    place = np.array([places.setdefault(history.tobytes(), len(places)) for history in newest], dtype=np.int64)
    return [np.frombuffer(key, np.int64) for key in places], place


def _distinct_items(item_tokens) -> tuple[np.ndarray, np.ndarray]:
    """First item of every distinct text, (M,), and for each item the place of its text among those, (N,)."""
    offsets, places, first = item_tokens.offsets.tolist(), {}, []
    place = np.empty(item_tokens.num_items, dtype=np.int64)
    for item, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        key = (item_tokens.input_ids[start:end].tobytes(), item_tokens.token_type_ids[start:end].tobytes())
        place[item] = places.setdefault(key, len(places))
        if place[item] == len(first):
            first.append(item)
    return np.array(first), place


def _batches(
    histories: Histories, collate: HistoryCollator, batch_tokens: int
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Rows and their model inputs, in batches of similar length."""
    tokenizer, item_lengths = collate.tokenizer, collate.item_tokens.lengths
    lengths = np.array([1 + item_lengths[history[-tokenizer.max_items :]].sum() for history in histories])
    for rows in token_budget_batches(np.minimum(lengths, tokenizer.max_tokens), batch_tokens):
        yield rows, collate([histories[row] for row in rows])


def best_tokens(model) -> int:
    return BATCH_TOKENS.get(model.device.type, MOST_BATCH_TOKENS)


def token_budget_batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Rows in batches of similar length, the longest first, each of at most `batch_tokens` slots (or one row)."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _encode(
    model, embed: Callable[..., Tensor], num_rows: int, batches: Iterator, bar: tqdm, precision: torch.dtype | None
) -> Tensor:
    """`embed` on every batch: float32 (num_rows, d), in the order of the rows."""
    vectors = torch.empty(num_rows, model.config.vector_size, device=model.device)
    # Not `enabled=False`, which would switch off a caller's own autocast.
    autocast = nullcontext() if precision is None else torch.autocast(model.device.type, precision)
    with _evaluating(model), autocast:
        for rows, batch in batches:
            # Encoders count tokens by the mask on the host: no batch then waits for a GPU to be done with the last.
            inputs = {name: batch[name].to(model.device) for name in batch if name != "attention_mask"}
            inputs["attention_mask"] = batch["attention_mask"]
            vectors[torch.from_numpy(rows).to(vectors.device)] = embed(**inputs).float()
            bar.update(len(rows))
    return vectors


@contextmanager
def _evaluating(model):
    """No dropout inside; the model's mode is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def newest_item_ids(histories: Sequence[np.ndarray], count: int) -> Tensor:
    """The `count` newest items of every history, newest first, padded with -1: (B, count) int64."""
    newest = np.full((len(histories), count), -1, np.int64)
    for row, history in zip(newest, histories, strict=True):
        items = np.asarray(history)[::-1][:count]
        row[: len(items)] = items
    return torch.from_numpy(newest)


# Checks


def check_histories(histories: Histories, num_items: int) -> None:
    """Raises ValueError naming the first row that is empty or holds an item outside the catalogue."""
    empty = next((row for row, history in enumerate(histories) if not len(history)), None)
    if empty is not None:
        raise ValueError(f"The history of user row {empty} is empty; it needs at least one item.")
    check_items(histories, num_items, "history")


def check_items(lists: Histories, num_items: int, role: str) -> None:
    flat = np.concatenate([np.asarray(items) for items in lists] or [np.empty(0, np.int64)])
    wrong = np.flatnonzero((flat < 0) | (flat >= num_items))
    if len(wrong):
        row = int(np.searchsorted(np.cumsum([len(items) for items in lists]), wrong[0], side="right"))
        raise ValueError(
            f"The {role} of user row {row} has item {int(flat[wrong[0]])}, "
            f"but the catalogue has items 0..{num_items - 1}."
        )


def progress_bar(total: int, description: str, unit: str, progress: bool | None) -> tqdm:
    disable = None if progress is None else not progress
    # What is done in a second needs no bar; a second between two looks keeps a log file readable.
    return tqdm(total=total, desc=description, unit=unit, leave=False, disable=disable, delay=1.0, mininterval=1.0)
