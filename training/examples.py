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

from ..tokenization_itemsent import ItemSentTokenizer, ItemTokens

IGNORED_LABEL = -100
DRAWN_MODES = ("random", "late")  # prefixes that are drawn anew each epoch
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
        mode: "all" prefixes with at least `min_history` items before the target; one of them per sequence, "random"
            (RecFormer's fine-tuning) or "late", from the sequence's later half (its pre-training), which need `rng`;
            or the "last".
    """
    usable = np.flatnonzero(lengths > min_history)
    if mode == "all":
        counts = lengths[usable] - min_history
        starts = np.cumsum(counts) - counts
        positions = np.arange(counts.sum()) - np.repeat(starts, counts) + min_history
        return np.repeat(usable, counts).astype(np.int32), positions.astype(np.int32)
    if mode in DRAWN_MODES:
        first = np.maximum(min_history, (lengths[usable] - 1) // 2) if mode == "late" else min_history
        return usable.astype(np.int32), rng.integers(first, lengths[usable]).astype(np.int32)
    if mode == "last":
        return usable.astype(np.int32), (lengths[usable] - 1).astype(np.int32)
    raise ValueError(f"unknown prefix mode {mode!r}: use 'all', 'random', 'late' or 'last'")


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
        if min_history < 0:
            raise ValueError(f"min_history is {min_history}: it counts the items before the target")
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
        if self.mode in DRAWN_MODES and self._drawn_epoch != self.epoch:
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

    def token_lengths(self, item_tokens: ItemTokens | None, max_items: int, max_tokens: int) -> np.ndarray:
        """Tokens of every example's history with its CLS, (n,) int64; nothing is materialised.

        Without `item_tokens` an item counts as one token.
        """
        sequences, positions = self.examples
        starts = self.starts[sequences]
        ends = starts + positions
        tokens = np.ones(len(self.items), np.int64) if item_tokens is None else item_tokens.lengths[self.items]
        before = np.concatenate([[0], np.cumsum(tokens)])
        read = min(max_items, self.max_history)
        return np.minimum(1 + before[ends] - before[np.maximum(starts, ends - read)], max_tokens)


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
        item_tokens: ItemTokens | None,
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
        allow_empty: take an empty history for `[CLS]` alone instead of an error.
    """

    def __init__(
        self,
        tokenizer: ItemSentTokenizer,
        item_tokens: ItemTokens,
        history_items: int | None = None,
        allow_empty: bool = False,
    ):
        self.tokenizer, self.item_tokens = tokenizer, item_tokens
        self.history_items, self.allow_empty = history_items, allow_empty

    def __call__(self, histories: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        batch = dict(self.tokenizer.batch_histories(self.item_tokens, histories, allow_empty=self.allow_empty))
        if self.history_items is not None:
            batch["history_item_ids"] = newest_item_ids(histories, self.history_items)
        return batch


class ItemCollator:
    """Item indices -> model inputs (B, L), every item read alone."""

    def __init__(self, tokenizer: ItemSentTokenizer, item_tokens: ItemTokens):
        self.tokenizer, self.item_tokens = tokenizer, item_tokens

    def __call__(self, items: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        return dict(self.tokenizer.batch_items(self.item_tokens, items))


class FineTuningCollator:
    """Examples -> model inputs, history_item_ids (B, history_items) and target_item_ids (B,)."""

    def __init__(self, tokenizer: ItemSentTokenizer, item_tokens: ItemTokens, history_items: int = 0):
        self.collate_histories = HistoryCollator(tokenizer, item_tokens, history_items, allow_empty=True)

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
    With `mask_unit` "word" or "spaced_word", words are chosen whole, at the same rates (see `word_firsts`).

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
        mask_unit: str = "token",
    ):
        if tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask_token, which pre-training needs: add one to the tokenizer")
        self.tokenizer, self.item_tokens = tokenizer, item_tokens
        self.history_mask_rate, self.next_mask_rate = history_mask_rate, next_mask_rate
        self.seed, self.clean_history = seed, clean_history
        self.mask_unit = mask_unit
        self.starts_word = None if mask_unit == "token" else word_starts(tokenizer)
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
        draw = draws[0] if self.starts_word is None else self._one_draw_a_word(batch, draws[0])
        chosen = draw < rate
        if at_least_one:
            chosen |= ~chosen.any(1, keepdims=True) & (draw == draw.min(1, keepdims=True))
        mask_token_id = self.tokenizer.mask_token_id
        return mask_tokens(batch["input_ids"], chosen, draws[1], draws[2], mask_token_id, self.replacements)

    def _one_draw_a_word(self, batch: dict[str, np.ndarray], draw: np.ndarray) -> np.ndarray:
        """Every token takes the number drawn for the first token of its word; CLS and padding are never chosen."""
        firsts = word_firsts(batch, self.starts_word, seams=self.mask_unit == "word")
        return np.where(_maskable(batch), np.take_along_axis(draw, firsts, 1), 1.0)


def word_starts(tokenizer: ItemSentTokenizer) -> np.ndarray:
    """Which ids of the vocabulary begin a word in running text, (V,) bool.

    A byte-level or SentencePiece vocabulary marks the space before a word, WordPiece what continues one.

    Raises:
        ValueError: the vocabulary marks neither.
    """
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    spaced = np.array([token.startswith(("Ġ", "▁")) for token in tokens])
    if spaced.any():
        return spaced
    continued = np.array([token.startswith("##") for token in tokens])
    if not continued.any():
        raise ValueError("the tokenizer does not mark words (Ġ, ▁ or ##): mask_unit must be token")
    return ~continued


def word_firsts(batch: dict[str, np.ndarray], starts_word: np.ndarray, seams: bool) -> np.ndarray:
    """Column of the first token of each token's word, (B, L).

    Args:
        starts_word: (V,) from `word_starts`.
        seams: a word also ends where an attribute's name, its value or an item ends. RecFormer writes no space there
            and its published code goes by spaces alone, so that its first word of a value is one with the name.
    """
    starts = starts_word[batch["input_ids"]]
    starts[:, :2] = True  # CLS, and what follows it
    if seams:
        for name in ("token_type_ids", "item_position_ids"):
            starts[:, 1:] |= batch[name][:, 1:] != batch[name][:, :-1]
    columns = np.arange(starts.shape[1])
    return np.maximum.accumulate(np.where(starts, columns, 0), axis=1)


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
