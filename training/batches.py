"""Sequences of item indices -> examples -> optimiser steps, in a known order that any number of processes share.

A training example is a prefix of a user's sequence and the item after it. Everything random here depends on (seed,
epoch, example) alone, never on the worker, the process or the batch an example falls into: a resumed run sees what the
uninterrupted one would have. That is all that resuming depends on.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..modeling_seqrec import SeqRecPreTrainedModel, check_batch
from ..tokenization_itemsent import ItemTokens

DRAWN_MODES = ("random", "late", "window")  # prefixes that are drawn anew each epoch
# Independent random numbers under one seed.
PREFIX_STREAM, SHUFFLE_STREAM, MASK_STREAM, AUGMENTATION_STREAM = range(4)


class Example(NamedTuple):
    history: np.ndarray  # item indices, oldest first
    target: int  # index of the next item
    index: int  # of the example in its dataset, with the epoch the key of its randomness
    epoch: int


# ---- examples


def prefix_examples(
    lengths: np.ndarray,
    mode: str = "all",
    min_history: int = 1,
    rng: np.random.Generator | None = None,
    max_history: int = 50,
) -> tuple[np.ndarray, np.ndarray]:
    """Which prefixes of sequences with `lengths` items are examples: (sequence, position of the target), int32 each.

    Args:
        mode: "all" prefixes with at least `min_history` items before the target; one of them per sequence, "random"
            (RecFormer's fine-tuning) or "late", from the sequence's later half (its pre-training), or the "last";
            or a "window": the last where the whole sequence is read, else any that `max_history` items stand before.
        rng: for the modes that draw.
    """
    usable = np.flatnonzero(lengths > min_history)
    if mode == "all":
        counts = lengths[usable] - min_history
        starts = np.cumsum(counts) - counts
        positions = np.arange(counts.sum()) - np.repeat(starts, counts) + min_history
        return np.repeat(usable, counts).astype(np.int32), positions.astype(np.int32)
    if mode in DRAWN_MODES:
        first = np.maximum(min_history, (lengths[usable] - 1) // 2) if mode == "late" else min_history
        if mode == "window":
            first = np.minimum(np.maximum(min_history, max_history), lengths[usable] - 1)
        return usable.astype(np.int32), rng.integers(first, lengths[usable]).astype(np.int32)
    if mode == "last":
        return usable.astype(np.int32), (lengths[usable] - 1).astype(np.int32)
    raise ValueError(f"unknown prefix mode {mode!r}: use 'all', 'random', 'late', 'last' or 'window'")


class PrefixDataset(Dataset):
    """Prefixes of training sequences as `Example`s, stored as two integers each.

    `set_epoch` is the one clock of a training run: the random prefixes, the masks and the order of the batches
    (`LengthGroupedBatchSampler`) follow it. Workers of a loader see it too (shared memory).

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
            raise ValueError(
                f"no training sequence has {min_history + 1} items: there is nothing to train on (a user's last two "
                "are kept for validation and test)"
            )
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
        rng = np.random.default_rng((PREFIX_STREAM, self.seed, self._drawn_epoch))
        return prefix_examples(self.lengths, self.mode, self.min_history, rng, self.max_history)

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
    batches are shuffled. The epoch is the dataset's, so there is nothing else to set. Examples that do not fill a
    batch are left out, others in each epoch.

    Args:
        pool_batches: batches in a pool; more means less padding and less mixing.
        domains: (sequences,) int, where a batch is to hold examples of one domain only: its items are then harder
            negatives than those of another shop. None mixes.

    Raises:
        ValueError: the examples do not fill one batch.
    """

    def __init__(
        self,
        dataset: PrefixDataset,
        item_tokens: ItemTokens | None,
        batch_size: int,
        max_items: int = 50,
        max_tokens: int = 1024,
        pool_batches: int = 64,
        seed: int = 0,
        domains: np.ndarray | None = None,
    ):
        self.dataset, self.item_tokens = dataset, item_tokens
        sequences = dataset.examples[0]
        self.domains = np.zeros(len(sequences), np.int64) if domains is None else domains[sequences]
        self.max_items, self.max_tokens = max_items, max_tokens
        self.batch_size, self.pool_batches, self.seed = batch_size, pool_batches, seed
        if not len(self):
            raise ValueError(f"{len(dataset)} examples do not fill one batch of {batch_size}: use a smaller batch")

    def __len__(self) -> int:
        return int((np.bincount(self.domains) // self.batch_size).sum())

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((SHUFFLE_STREAM, self.seed, self.dataset.epoch))
        order, batches = rng.permutation(len(self.dataset)), []
        for domain in np.unique(self.domains):
            own = order[self.domains[order] == domain]
            batches.append(self._grouped(own[: len(own) // self.batch_size * self.batch_size]))
        for batch in rng.permutation(np.concatenate(batches)):
            yield batch.tolist()

    def _grouped(self, order: np.ndarray) -> np.ndarray:
        """Batches of similar lengths, (batches, batch_size)."""
        lengths = self.dataset.token_lengths(self.item_tokens, self.max_items, self.max_tokens)[order]
        pools = np.arange(len(order)) // (self.pool_batches * self.batch_size)
        return order[np.lexsort((lengths, pools))].reshape(-1, self.batch_size)


# ---- texts


def read_once(texts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The distinct rows of a padded batch, (D, L) each, and as `text_rows` which of them each example reads, (B,).

    In a batch sorted by length many short histories say the same (57 distinct of 128 in RecFormer's stage 1 on
    Scientific). Told here, on the CPU and ahead of the step, no device waits for the count of the distinct ones.
    """
    places: dict[bytes, int] = {}
    table = torch.cat([part for part in texts.values()], dim=1).numpy()
    place = [places.setdefault(row.tobytes(), len(places)) for row in table]
    first = np.unique(place, return_index=True)[1]
    return {name: part[first] for name, part in texts.items()} | {"text_rows": torch.tensor(place)}


# ---- devices

# What of a batch is counted before it is used, by the ends of its names.
COUNTED_INPUTS = ("attention_mask", "labels")
MOST_WORKERS = 8


def to_device(batch: Mapping, device: torch.device) -> dict:
    """A batch on `device`, but for attention masks and labels, which are counted: counted on the host, no step waits
    for a GPU to tell how many tokens there are. Batches inside a batch are treated alike."""
    moved = {}
    for name, value in batch.items():
        if isinstance(value, Mapping):
            moved[name] = to_device(value, device)
        else:
            moved[name] = value if name.endswith(COUNTED_INPUTS) else value.to(device, non_blocking=True)
    return moved


def checked(collate: Callable, encoder: SeqRecPreTrainedModel) -> Callable:
    """`collate`, and on its batches the checks of `check_batch`, which an encoder would have to wait for a GPU for."""
    sizes, most = encoder.table_sizes(), getattr(encoder.config, "max_tokens", None)

    def collate_and_check(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        batch = collate(examples)
        for mask in (name for name in batch if name.endswith("attention_mask")):
            prefix = mask.removesuffix("attention_mask")
            tables = {name: (batch.get(prefix + name), size) for name, size in sizes.items()}
            check_batch(batch[mask].bool(), tables, most)
        return batch

    return collate_and_check


# ---- steps


class Batches:
    """A phase's optimiser steps in a known order, as one process sees them, from any position on.

    The sampler deals whole batches of the recipe's `batch_size`; each is cut into `slices` for gradient accumulation,
    and of each slice a process takes every n-th example. So all processes together see what one process would, and
    resuming is a matter of leaving out the first batches' indices: nothing is computed for them.
    """

    def __init__(
        self, sampler: LengthGroupedBatchSampler, collate: Callable, slices: int, process: int, processes: int
    ):
        self.sampler, self.collate = sampler, collate
        self.slices, self.process, self.processes = slices, process, processes
        self.workers, self.pinned = 0, False

    def prepare_ahead(self, encoder: SeqRecPreTrainedModel, workers: int | None = None) -> None:
        """Make batches in processes of their own, a few steps ahead of a GPU, in memory that it copies from by itself.

        What an example is depends on (seed, epoch, example) alone, so the batches are the same.
        """
        self.workers = min(MOST_WORKERS, max(1, (os.cpu_count() or 2) - 1)) if workers is None else workers
        self.pinned = encoder.device.type == "cuda"
        self.collate = checked(self.collate, encoder)

    def __len__(self) -> int:
        """Optimiser steps in an epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[list[dict[str, torch.Tensor]]]:
        """The steps of one epoch after the first `skip`, each a list of `slices` batches."""
        self.sampler.dataset.set_epoch(epoch)
        shares = [share for batch in list(self.sampler)[skip:] for share in self._shares(batch)]
        # A generator of its own: a loader without one draws from the global random numbers, which dropout uses.
        # Forked, workers share the examples and the tokens of the catalogue; they never touch the GPU.
        ahead = {"num_workers": self.workers, "prefetch_factor": 4, "multiprocessing_context": "fork"}
        loader = DataLoader(
            self.sampler.dataset, batch_sampler=shares, collate_fn=self.collate, generator=torch.Generator(),
            pin_memory=self.pinned, **(ahead if self.workers else {}),
        )  # fmt: skip
        stream = iter(loader)
        for _ in range(len(self) - skip):
            yield [next(stream) for _ in range(self.slices)]

    def _shares(self, batch: list[int]) -> list[list[int]]:
        """This process's examples of each slice of a batch."""
        return [batch[start :: self.slices][self.process :: self.processes] for start in range(self.slices)]
