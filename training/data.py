"""The data of a run: what a recipe says of it, datasets built or read, their split, and what phases learn from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import datasets as hf_datasets
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .. import datasets_builders
from ..datasets_builders.contract import (
    PROTOCOLS,
    SeqRecDataset,
    Split,
    Splits,
    load_dataset_dir,
    save_dataset,
)
from ..evaluation.ratings import RatingTasks, rating_tasks
from ..losses_seqrec import process_index
from ..serving.encoding_seqrec import encode_items
from ..serving.whole_files_seqrec import written_files
from ..tokenization_itemsent import ItemSentTokenizer, ItemTokens
from .typed_yaml import Range, check_ranges


@dataclass(kw_only=True)
class DatasetRecipe:
    """One dataset: a builder by `name` with its `config`, `data_files` and `options`, or a built folder in `dir`.

    `users` keeps the training sequences of the first n users only; validation and test always keep all users. `part`
    "train" leaves out each user's last two items, "all" takes whole sequences (for domains that are never tested).
    """

    name: str | None = None
    config: str | None = None
    data_files: str | list[str] | dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    dir: str | None = None
    users: int | None = None
    part: Literal["train", "all"] = "train"

    def __post_init__(self):
        if (self.name is None) == (self.dir is None):
            raise ValueError(
                "a dataset is named either by name (a builder) or by dir (a built folder), not both or none"
            )
        check_ranges(self, users=Range(1))


@dataclass(kw_only=True)
class DataRecipe(DatasetRecipe):
    """The dataset the run is measured on, and how it is split.

    `pretrain` lists the datasets that phases of pretrain, item_description, sequence_sequence and sequence_item read;
    without any they read this one's training part. `ratio` [7, 2, 1] keeps of every dataset random training sequences,
    validation and test targets, as many as stand in this ratio (ST5 thesis, section 3.4); ratings are not sampled.
    Built datasets are kept beside the Hub's caches (HF_HOME).
    """

    split: Literal["leave_one_out", "absolute_timestamp"] = "leave_one_out"
    ratio: list[int] | None = None
    pretrain: list[DatasetRecipe] = field(default_factory=list)
    REMOVED: ClassVar = {"cache_dir": (None, "the environment's HF_HOME says where caches are")}

    def __post_init__(self):
        super().__post_init__()
        if self.ratio is not None and not (len(self.ratio) == 3 and min(self.ratio) > 0):
            raise ValueError(f"ratio is {self.ratio}: it is three whole numbers, of training, validation and test")


def open_dataset(recipe: DatasetRecipe) -> SeqRecDataset:
    """The built dataset a recipe names: read from `dir`, or built by `name` once and then read from the cache.

    The cache is keyed by everything the result depends on: builder, config, options, the files' paths, sizes and
    times, and the builders' code.
    """
    if recipe.dir is not None:
        return load_dataset_dir(recipe.dir)
    folder = _cache("jepa4rec_datasets") / f"{recipe.name}-{_cache_key(recipe)}"
    if not folder.exists():
        built = datasets_builders.build(recipe.name, recipe.config, recipe.data_files, **recipe.options)
        save_dataset(built, folder)
    return load_dataset_dir(folder)


def _cache(name: str) -> Path:
    return Path(hf_datasets.config.HF_CACHE_HOME) / name


def _cache_key(recipe: DatasetRecipe) -> str:
    code = hashlib.sha256()
    for path in sorted(Path(datasets_builders.__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    parts = [recipe.name, recipe.config, recipe.options, _file_stamps(recipe.data_files), code.hexdigest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _file_stamps(data_files) -> list:
    """[name, size, time] of each file, folders opened; a URL stands for itself."""
    if data_files is None:
        return []
    given = [data_files] if isinstance(data_files, str) else data_files
    if isinstance(given, dict):
        return [[name, _file_stamps(path)] for name, path in given.items()]
    stamps = []
    for name in given:
        path = Path(name).expanduser()
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stamps += [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] if f.exists() else [name] for f in files]
    return stamps


@dataclass(frozen=True)
class Corpus:
    """What a phase learns from: item texts ("" where one is missing), and sequences of items, oldest first.

    `domains` (sequences,) numbers the dataset of each sequence, where there are several.
    """

    texts: list[dict[str, str]]
    sequences: list[np.ndarray]
    domains: np.ndarray | None = None


@dataclass
class RunData:
    """The datasets of one run: the one it is measured on, its split, and what its phases learn from."""

    dataset: SeqRecDataset
    splits: Splits
    own: Corpus  # its texts and training sequences
    read: Corpus  # what pre-training learns from: the datasets of `data.pretrain`, else the run's own
    protocol: str = "leave_one_out"
    train_users: int | None = None
    pretrain_fingerprints: list[str] = field(default_factory=list)
    _item_tokens: dict = field(default_factory=dict)

    @property
    def num_items(self) -> int:
        return self.dataset.num_items

    @cached_property
    def ratings(self) -> dict[str, RatingTasks]:
        """Ratings by part. Raises ValueError when there are none, or one outside 1 to 5."""
        return rating_tasks(self.dataset, self.protocol, self.train_users)

    @property
    def fingerprints(self) -> list[str]:
        """Of all that the run reads: its own dataset, then each of `data.pretrain`."""
        return [self.dataset.fingerprint, *self.pretrain_fingerprints]

    def seen_items(self) -> torch.Tensor:
        """Which items occur in a training sequence, bool (num_items,)."""
        seen = torch.zeros(self.num_items, dtype=torch.bool)
        seen[torch.from_numpy(np.concatenate(self.own.sequences).astype(np.int64))] = True
        return seen

    def item_tokens(self, tokenizer: ItemSentTokenizer, corpus: Corpus) -> ItemTokens:
        """A corpus' catalogue as tokens; encoded once for all tokenizers that cut items alike."""
        texts = corpus.texts
        limits = {name: value for name, value in tokenizer.settings.items() if name != "max_items"}
        key = (id(texts), json.dumps(limits, sort_keys=True))
        if key not in self._item_tokens:
            self._item_tokens[key] = tokenizer.encode_items(texts)
        return self._item_tokens[key]

    def item_vectors(
        self, model: nn.Module, tokenizer: ItemSentTokenizer, precision: torch.dtype | None = None
    ) -> torch.Tensor:
        """The catalogue by a model's encoder, float32 (N, d), kept on disk for the next run that starts from it."""
        return kept_vectors(model, tokenizer, self.item_tokens(tokenizer, self.own), precision=precision)


def kept_vectors(
    model: nn.Module,
    tokenizer: ItemSentTokenizer,
    tokens: ItemTokens,
    batch_tokens: int | None = None,
    precision: torch.dtype | None = None,
) -> torch.Tensor:
    """A catalogue by a model's encoder, float32 (N, d), read from disk where it was encoded before.

    A second seed, or the zero-shot row of a table, asks for the same vectors again: minutes on a CPU. The name of
    the file is a hash of everything they depend on, so a stale one is never read; the folder may be deleted.
    """
    path = _cache("jepa4rec_vectors") / f"{_vectors_key(model, tokenizer, tokens, precision)}.safetensors"
    if path.is_file():
        return load_file(path)["vectors"].to(model.device)
    vectors = encode_items(model, tokenizer, tokens, batch_tokens, process_index() == 0, precision)
    with written_files(path) as (fresh,):
        save_file({"vectors": vectors.cpu()}, fresh)
    return vectors


def _vectors_key(
    model: nn.Module, tokenizer: ItemSentTokenizer, tokens: ItemTokens, precision: torch.dtype | None
) -> str:
    encoder, digest = model.base_model, hashlib.sha256()
    shape = {name: value for name, value in encoder.config.to_dict().items() if not name.startswith("_")}
    how = [shape, tokenizer.settings, tokenizer.all_special_ids, str(model.device), torch.__version__, str(precision)]
    digest.update(json.dumps(how, sort_keys=True, default=str).encode())
    for part in (tokens.input_ids, tokens.token_type_ids, tokens.offsets):
        digest.update(np.ascontiguousarray(part).tobytes())
    for name, weights in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(weights.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_run_data(recipe: DataRecipe) -> RunData:
    """Open all datasets of a recipe.

    Raises:
        ValueError: no user is left to test on.
    """
    dataset = open_dataset(recipe)
    splits = PROTOCOLS[recipe.split](dataset.sequences)
    if not len(splits.test.targets) or not len(splits.validation.targets):
        raise ValueError(
            f"{recipe.name or recipe.dir}: no user is left to validate and test on after the {recipe.split} split; "
            "users need at least three interactions"
        )
    splits = in_ratio(splits, recipe.ratio)
    splits = splits._replace(train=splits.train[: recipe.users])
    own = Corpus(dataset.item_texts(empty=True), splits.train)
    others = [open_dataset(part) for part in recipe.pretrain]
    parts = [_training_part(*pair, recipe) for pair in zip(others, recipe.pretrain, strict=True)]
    read = _concatenate(parts) if parts else own
    told = [other.fingerprint for other in others]
    return RunData(dataset, splits, own, read, recipe.split, recipe.users, told)


def _training_part(dataset: SeqRecDataset, recipe: DatasetRecipe, run: DataRecipe) -> Corpus:
    whole = recipe.part == "all"
    sequences = dataset.histories() if whole else in_ratio(PROTOCOLS[run.split](dataset.sequences), run.ratio).train
    return Corpus(dataset.item_texts(empty=True), sequences[: recipe.users])


def _concatenate(corpora: list[Corpus]) -> Corpus:
    """One catalogue after the other, item indices shifted along."""
    texts, sequences = [], []
    for corpus in corpora:
        sequences += [sequence + len(texts) for sequence in corpus.sequences]
        texts += corpus.texts
    domains = np.repeat(np.arange(len(corpora)), [len(corpus.sequences) for corpus in corpora])
    return Corpus(texts, sequences, domains)


def in_ratio(splits: Splits, ratio: Sequence[int] | None, seed: int = 0) -> Splits:
    """Random parts of a split, as large as they can be in a ratio of training sequences : validation : test targets;
    all of it for None.

    Raises:
        ValueError: one of the parts would be empty.
    """
    if ratio is None:
        return splits
    sizes = (len(splits.train), len(splits.validation.targets), len(splits.test.targets))
    kept = [min(size * part // own for size, own in zip(sizes, ratio, strict=True)) for part in ratio]
    if not min(kept):
        raise ValueError(f"data.ratio {ratio}: the split has {sizes} users, too few for this ratio")
    rows = np.sort(np.random.default_rng(seed).choice(sizes[0], kept[0], replace=False))
    validation, test = sample_users(splits.validation, kept[1], seed), sample_users(splits.test, kept[2], seed)
    return Splits([splits.train[row] for row in rows], validation, test)


def sample_users(split: Split, users: int | None, seed: int) -> Split:
    """A fixed random sample of a split's rows, in their old order; all of them for None."""
    if users is None or users >= len(split.targets):
        return split
    rows = np.sort(np.random.default_rng(seed).choice(len(split.targets), users, replace=False))
    return take_rows(split, rows)


def take_rows(split: Split, rows: np.ndarray) -> Split:
    return Split(split.user_ids[rows], [split.histories[row] for row in rows], split.targets[rows])
