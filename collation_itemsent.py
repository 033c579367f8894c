"""Sequences of item indices -> batches whose keys are the argument names of `forward`.

A training example is a prefix of a user's sequence and the item after it. Items are tokenised once (`ItemTokens`);
a batch is cut out of those arrays. Everything random here depends on (seed, epoch, example) alone, never on the
worker, the process or the batch an example falls into: a resumed run sees what the uninterrupted one would have.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from .tokenization_itemsent import ItemSentTokenizer, ItemTokens

IGNORED_LABEL = -100
_PREFIX_STREAM, _SHUFFLE_STREAM, _MASK_STREAM = range(3)  # independent random numbers under one seed


class Example(NamedTuple):
    history: np.ndarray  # item indices, oldest first
    target: int  # index of the next item
    index: int  # of the example in its dataset, with the epoch the key of its randomness
    epoch: int


# ---- examples


def prefix_examples(
    lengths: np.ndarray, mode: str = "all", min_history: int = 1, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which prefixes of sequences with `lengths` items are examples: (sequence, position of the target), int32 each.

    Args:
        mode: "all" prefixes with at least `min_history` items before the target, one "random" of them per sequence
            (RecFormer's sampling; needs `rng`), or the "last".
    """
    usable = np.flatnonzero(lengths > min_history)
    if mode == "all":
        counts = lengths[usable] - min_history
        starts = np.cumsum(counts) - counts
        positions = np.arange(counts.sum()) - np.repeat(starts, counts) + min_history
        return np.repeat(usable, counts).astype(np.int32), positions.astype(np.int32)
    if mode == "random":
        return usable.astype(np.int32), rng.integers(min_history, lengths[usable]).astype(np.int32)
    if mode == "last":
        return usable.astype(np.int32), (lengths[usable] - 1).astype(np.int32)
    raise ValueError(f"unknown prefix mode {mode!r}: use 'all', 'random' or 'last'")


class PrefixDataset(Dataset):
    """Prefixes of training sequences as `Example`s, stored as two integers each.

    `set_epoch` is the one clock of a training run: the random prefixes, the masks and the order of the batches
    (`LengthGroupedBatchSampler`) follow it. accelerate calls it with its own count of epochs, so set the epoch of a
    prepared loader with `loader.set_epoch(epoch)`. Persistent workers see it too (shared memory).

    Args:
        sequences: item indices of every user, oldest first.
        mode, min_history: see `prefix_examples`.
        max_history: items of a history that are handed out, the most recent ones.

    Raises:
        ValueError: no sequence is long enough for an example.
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        mode: str = "all",
        min_history: int = 1,
        max_history: int = 50,
        seed: int = 0,
    ):
        if min_history < 1:
            raise ValueError(f"min_history is {min_history}: an example needs at least one item before its target")
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        if not (lengths > min_history).any():
            raise ValueError(f"no training sequence has {min_history + 1} items: there is nothing to train on")
        self.items = np.concatenate(sequences).astype(np.int32)
        self.lengths = lengths
        self.starts = np.cumsum(lengths) - lengths
        self.mode, self.min_history, self.max_history, self.seed = mode, min_history, max_history, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._drawn_epoch = 0
        self._examples = self._draw()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    @property
    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """(sequence, position of the target) of every example in this epoch."""
        if self.mode == "random" and self._drawn_epoch != self.epoch:
            self._drawn_epoch = self.epoch
            self._examples = self._draw()
        return self._examples

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((_PREFIX_STREAM, self.seed, self._drawn_epoch))
        return prefix_examples(self.lengths, self.mode, self.min_history, rng)

    def __len__(self) -> int:
        return len(self._examples[0])

    def __getitem__(self, index: int) -> Example:
        sequences, positions = self.examples
        start = self.starts[sequences[index]]
        end = start + positions[index]
        history = self.items[max(start, end - self.max_history) : end]
        return Example(history, int(self.items[end]), int(index), self.epoch)

    def token_lengths(self, item_tokens: ItemTokens, max_items: int, max_tokens: int) -> np.ndarray:
        """Tokens of every example's history with its CLS, (n,) int64; nothing is materialised."""
        sequences, positions = self.examples
        starts = self.starts[sequences]
        ends = starts + positions
        before = np.concatenate([[0], np.cumsum(item_tokens.lengths[self.items])])
        read = min(max_items, self.max_history)
        return np.minimum(1 + before[ends] - before[np.maximum(starts, ends - read)], max_tokens)


def concatenate_domains(
    domains: Sequence[tuple[ItemTokens, Sequence[np.ndarray]]],
) -> tuple[ItemTokens, list[np.ndarray]]:
    """One catalogue and one list of sequences out of several datasets, for pre-training on all of them.

    The items of each domain follow those of the one before it; sequences are shifted to match, so a batch may mix
    domains.
    """
    catalogues = [item_tokens for item_tokens, _ in domains]
    first_items = np.cumsum([0] + [catalogue.num_items for catalogue in catalogues])
    first_tokens = np.cumsum([0] + [len(catalogue.input_ids) for catalogue in catalogues])
    joined = ItemTokens(
        np.concatenate([catalogue.input_ids for catalogue in catalogues]),
        np.concatenate([catalogue.token_type_ids for catalogue in catalogues]),
        np.concatenate([[0]] + [c.offsets[1:] + first for c, first in zip(catalogues, first_tokens, strict=False)]),
    )
    shifted = zip(domains, first_items, strict=False)
    return joined, [np.asarray(sequence) + first for (_, sequences), first in shifted for sequence in sequences]


# ---- order


class LengthGroupedBatchSampler:
    """Batches of fixed size whose histories have similar lengths in tokens, in an order fixed by (seed, epoch).

    The epoch's examples are shuffled and cut into pools; each pool is sorted by length and cut into batches; the
    batches are shuffled. The epoch is the dataset's, so there is nothing else to set. Resume with
    `accelerate.skip_first_batches`.

    On several processes a global batch of num_processes * batch_size examples of similar lengths is dealt out as
    num_processes consecutive batches, which is how accelerate hands them to the processes (`split_batches=False`):
    all processes work on equal lengths, and the global batches are those of one process with the whole batch size.

    Args:
        batch_size: examples of one batch on one process.
        pool_batches: global batches in a pool; more means less padding and less mixing.
        drop_last: leave out the examples that do not fill a global batch (others in each epoch). Otherwise they come
            last, in a smaller batch, which accelerate fills up when processes would get none.
    """

    def __init__(
        self,
        dataset: PrefixDataset,
        item_tokens: ItemTokens,
        batch_size: int,
        max_items: int = 50,
        max_tokens: int = 1024,
        num_processes: int = 1,
        pool_batches: int = 64,
        drop_last: bool = False,
        seed: int = 0,
    ):
        self.dataset, self.item_tokens = dataset, item_tokens
        self.max_items, self.max_tokens = max_items, max_tokens
        self.batch_size, self.num_processes = batch_size, num_processes
        self.pool_batches, self.drop_last, self.seed = pool_batches, drop_last, seed
        if drop_last and len(dataset) < self.global_batch_size:
            raise ValueError(
                f"{len(dataset)} examples do not fill one batch of {self.global_batch_size}: use a smaller batch"
            )

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.num_processes

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.global_batch_size)
        return full * self.num_processes + (0 if self.drop_last else -(-rest // self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((_SHUFFLE_STREAM, self.seed, self.dataset.epoch))
        order = rng.permutation(len(self.dataset))
        full = len(order) // self.global_batch_size * self.global_batch_size
        for batch in rng.permutation(self._grouped(order[:full])):
            for process in range(self.num_processes):
                yield batch[process :: self.num_processes].tolist()
        if not self.drop_last:
            for start in range(full, len(order), self.batch_size):
                yield order[start : start + self.batch_size].tolist()

    def _grouped(self, order: np.ndarray) -> np.ndarray:
        """Global batches of similar lengths, (batches, global_batch_size)."""
        lengths = self.dataset.token_lengths(self.item_tokens, self.max_items, self.max_tokens)[order]
        pools = np.arange(len(order)) // (self.pool_batches * self.global_batch_size)
        return order[np.lexsort((lengths, pools))].reshape(-1, self.global_batch_size)


# ---- batches


class HistoryCollator:
    """Histories (item indices, oldest first) -> model inputs (B, L), for inference.

    Args:
        history_items: also give `history_item_ids` (B, history_items), the newest item first, padded with -1; None
            leaves them out.
    """

    def __init__(self, tokenizer: ItemSentTokenizer, item_tokens: ItemTokens, history_items: int | None = None):
        self.tokenizer, self.item_tokens, self.history_items = tokenizer, item_tokens, history_items

    def __call__(self, histories: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        batch = dict(self.tokenizer.batch_histories(self.item_tokens, histories))
        if self.history_items is not None:
            batch["history_item_ids"] = newest_item_ids(histories, self.history_items)
        return batch


class FineTuningCollator:
    """Examples -> model inputs, history_item_ids (B, history_items) and target_item_ids (B,)."""

    def __init__(self, tokenizer: ItemSentTokenizer, item_tokens: ItemTokens, history_items: int = 0):
        self.collate_histories = HistoryCollator(tokenizer, item_tokens, history_items)

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        batch = self.collate_histories([example.history for example in examples])
        return batch | {"target_item_ids": torch.tensor([example.target for example in examples])}


def newest_item_ids(histories: Sequence[np.ndarray], count: int) -> torch.Tensor:
    """The `count` newest items of every history, newest first, padded with -1: (B, count) int64."""
    newest = np.full((len(histories), count), -1, np.int64)
    for row, history in zip(newest, histories, strict=True):
        items = np.asarray(history)[::-1][:count]
        row[: len(items)] = items
    return torch.from_numpy(newest)


class PreTrainingCollator:
    """Examples -> the batch of JEPA4Rec's pre-training (section 3.3 of the paper).

    Tokens are chosen independently, 15 % in the history and 50 % in the next item; of the chosen ones 80 % become the
    mask token, 10 % a random token, 10 % stay. At least one token of the next item is always chosen: an untouched
    next item would give away what is to be predicted. The history may stay untouched, for which the model has a
    learnable vector. One of the history items with a chosen token, each equally likely, is the item to reconstruct.

    Gives (B = batch, L, Ln, Li = longest history, next item, sampled item):
        input_ids (masked), labels, attention_mask, token_type_ids, item_position_ids (B, L); with `clean_history`
        also clean_input_ids; next_input_ids (masked), next_labels, clean_next_input_ids, next_attention_mask,
        next_token_type_ids, next_item_position_ids (B, Ln); item_input_ids, item_attention_mask,
        item_token_type_ids, item_item_position_ids (B, Li): the sampled history item, untouched and alone;
        masked_item_positions (B,): its item position in the history, 0 = no history token was chosen, the item is
        then the newest one; next_item_ids (B,).

    Raises:
        ValueError: the tokenizer has no mask token.
    """

    def __init__(
        self,
        tokenizer: ItemSentTokenizer,
        item_tokens: ItemTokens,
        history_mask_rate: float = 0.15,
        next_mask_rate: float = 0.5,
        seed: int = 0,
        clean_history: bool = False,
    ):
        if tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask_token, which pre-training needs: add one to the tokenizer")
        self.tokenizer, self.item_tokens = tokenizer, item_tokens
        self.history_mask_rate, self.next_mask_rate = history_mask_rate, next_mask_rate
        self.seed, self.clean_history = seed, clean_history
        self.replacements = np.array(sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)))

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        histories = [example.history for example in examples]
        targets = np.array([example.target for example in examples])
        history, next_item = self._encode(histories), self._encode(targets[:, None])
        history_draws, next_draws, item_draws = self._draws(examples, _maskable(history), _maskable(next_item))
        clean_history, clean_next = history["input_ids"], next_item["input_ids"]
        history |= self._mask(history, history_draws, self.history_mask_rate)
        next_item |= self._mask(next_item, next_draws, self.next_mask_rate, at_least_one=True)
        positions = sample_masked_item(history["labels"] != IGNORED_LABEL, history["item_position_ids"], item_draws)
        newest_or_sampled = np.maximum(positions, 1)
        sampled = np.array([items[-k] for items, k in zip(histories, newest_or_sampled, strict=True)])
        batch = history | ({"clean_input_ids": clean_history} if self.clean_history else {})
        batch |= {f"next_{name}": array for name, array in next_item.items()} | {"clean_next_input_ids": clean_next}
        batch |= {f"item_{name}": array for name, array in self._encode(sampled[:, None]).items()}
        batch |= {"masked_item_positions": positions, "next_item_ids": targets}
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _encode(self, histories) -> dict[str, np.ndarray]:
        return dict(self.tokenizer.batch_histories(self.item_tokens, histories, return_tensors="np"))

    def _draws(self, examples, history_tokens, next_tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Uniform numbers: (3, B, L) for the history and (3, B, Ln) for the next item, where maskable, and (B,)."""
        history_draws = np.ones((3, *history_tokens.shape), np.float32)
        next_draws = np.ones((3, *next_tokens.shape), np.float32)
        item_draws = np.empty(len(examples))
        for i, example in enumerate(examples):
            rng = np.random.default_rng((_MASK_STREAM, self.seed, example.epoch, example.index))
            item_draws[i] = rng.random()
            for tokens, draws in ((next_tokens, next_draws), (history_tokens, history_draws)):
                draws[:, i, tokens[i]] = rng.random((3, tokens[i].sum()), np.float32)
        return history_draws, next_draws, item_draws

    def _mask(self, batch, draws, rate, at_least_one=False) -> dict[str, np.ndarray]:
        chosen = draws[0] < rate
        if at_least_one:
            chosen |= ~chosen.any(1, keepdims=True) & (draws[0] == draws[0].min(1, keepdims=True))
        mask_token_id = self.tokenizer.mask_token_id
        return mask_tokens(batch["input_ids"], chosen, draws[1], draws[2], mask_token_id, self.replacements)


def _maskable(batch: dict[str, np.ndarray]) -> np.ndarray:
    """All tokens but CLS and padding, (B, L) bool; CLS is the only real token at item position 0."""
    return (batch["attention_mask"] == 1) & (batch["item_position_ids"] > 0)


def mask_tokens(
    input_ids: np.ndarray,
    chosen: np.ndarray,
    kind: np.ndarray,
    word: np.ndarray,
    mask_token_id: int,
    replacements: np.ndarray,
) -> dict[str, np.ndarray]:
    """BERT's corruption of the `chosen` tokens: 80 % mask, 10 % random, 10 % kept. All arrays (B, L).

    Args:
        kind, word: uniform numbers that decide what happens to a token and which random token it becomes.
        replacements: token ids a random token is taken from.
    """
    random_ids = replacements[(word * len(replacements)).astype(np.int64).clip(max=len(replacements) - 1)]
    masked = np.where(chosen & (kind < 0.8), mask_token_id, input_ids)
    masked = np.where(chosen & (kind >= 0.8) & (kind < 0.9), random_ids, masked)
    return {"input_ids": masked, "labels": np.where(chosen, input_ids, IGNORED_LABEL)}


def sample_masked_item(chosen: np.ndarray, item_position_ids: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Item position of one of the items with a chosen token, by `draws` (B,) in [0, 1); 0 where there is none."""
    rows, columns = np.nonzero(chosen)
    hit = np.zeros((len(chosen), item_position_ids.max() + 1), bool)
    hit[rows, item_position_ids[rows, columns]] = True
    rank = np.floor(draws * hit.sum(1))
    positions = np.argmax(hit.cumsum(1) > rank[:, None], 1)
    return np.where(hit.any(1), positions, 0)
