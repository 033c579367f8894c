"""From a recipe to what the loop needs: built datasets, tokenizer, starting checkpoint, batches in a known order."""

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import datasets as hf_datasets
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from . import datasets_builders
from .baselines import SEQUENCE_MODELS
from .baselines.item_sequences import ItemSequenceModel
from .baselines.scoring import SequenceCollator
from .collation_itemsent import FineTuningCollator, LengthGroupedBatchSampler, PrefixDataset, PreTrainingCollator
from .collation_pairs import (
    ItemDescriptionCollator,
    SequenceItemCollator,
    SequenceSequenceCollator,
    described_items,
)
from .configuration_jepa4rec import Jepa4RecConfig
from .configuration_st5rec import St5RecConfig
from .datasets_builders.contract import (
    SeqRecDataset,
    Split,
    Splits,
    absolute_timestamp,
    leave_one_out,
    load_dataset_dir,
    save_dataset,
)
from .encoders_seqrec import ENCODERS, open_encoder
from .modeling_jepa4rec import (
    Jepa4RecForPreTraining,
    Jepa4RecForSequentialRecommendation,
    Jepa4RecModel,
    SeqRecPreTrainedModel,
)
from .modeling_st5rec import St5RecModel
from .pairing_seqrec import SentencePairModel
from .ranking_seqrec import encode_items
from .rating_seqrec import RatingCollator, RatingModel, RatingTasks, RatingVectors, rating_tasks
from .recipe_seqrec import (
    DataRecipe,
    DatasetRecipe,
    FinetunePhase,
    ItemDescriptionPhase,
    ModelRecipe,
    PairPhase,
    Phase,
    PretrainPhase,
    RatingPhase,
    Recipe,
    SequenceItemPhase,
    SequencePhase,
    SequenceSequencePhase,
)
from .tokenization_itemsent import ST5_SETTINGS, ItemSentTokenizer, ItemTokens
from .tokenization_st5rec import FIXED_TEXTS, TAGS

SPLITS = {"leave_one_out": leave_one_out, "absolute_timestamp": absolute_timestamp}
TOKENIZER_SETTINGS = (
    "max_attributes", "max_attribute_tokens", "max_items", "max_tokens", "attribute_names", "sentence", "instruction",
    "title_attributes", "description",
)  # fmt: skip
SCRATCH_SPECIAL_TOKENS = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip
T5_SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


# ------------------------------------------------------------------------------------------------ datasets


def open_dataset(recipe: DatasetRecipe, cache_dir: str | None) -> SeqRecDataset:
    """The built dataset a recipe names: read from `dir`, or built by `name` once and then read from the cache.

    The cache is keyed by everything the result depends on: builder, config, options, the files' paths, sizes and
    times, and the builders' code.
    """
    if recipe.dir is not None:
        return load_dataset_dir(recipe.dir)
    root = Path(cache_dir or Path(hf_datasets.config.HF_CACHE_HOME) / "jepa4rec_datasets")
    folder = root / f"{recipe.name}-{_cache_key(recipe)}"
    if not folder.exists():
        built = datasets_builders.build(recipe.name, recipe.config, recipe.data_files, **recipe.options)
        save_dataset(built, folder)
    return load_dataset_dir(folder)


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
    """What a phase learns from: item texts, and training sequences of indices into them (oldest first)."""

    texts: list[dict[str, str]]
    sequences: list[np.ndarray]


@dataclass
class RunData:
    """The datasets of one run: the one it is measured on, its split, and what each kind of phase learns from."""

    dataset: SeqRecDataset
    splits: Splits
    corpora: dict[str, Corpus]  # by kind of phase
    protocol: str = "leave_one_out"
    train_users: int | None = None
    _item_tokens: dict = field(default_factory=dict)

    @property
    def num_items(self) -> int:
        return self.dataset.num_items

    @cached_property
    def ratings(self) -> dict[str, RatingTasks]:
        """Ratings by part. Raises ValueError when there are none, or one outside 1 to 5."""
        return rating_tasks(self.dataset, self.protocol, self.train_users)

    def seen_items(self) -> torch.Tensor:
        """Which items occur in a training sequence, bool (num_items,)."""
        seen = torch.zeros(self.num_items, dtype=torch.bool)
        seen[torch.from_numpy(np.concatenate(self.corpora["finetune"].sequences).astype(np.int64))] = True
        return seen

    def item_tokens(self, tokenizer: ItemSentTokenizer, kind: str) -> ItemTokens:
        """The catalogue of a kind of phase as tokens; encoded once for all tokenizers that cut items alike."""
        texts = self.corpora[kind].texts
        limits = {name: value for name, value in tokenizer.settings.items() if name != "max_items"}
        key = (id(texts), json.dumps(limits, sort_keys=True))
        if key not in self._item_tokens:
            self._item_tokens[key] = tokenizer.encode_items(texts)
        return self._item_tokens[key]


def load_run_data(recipe: DataRecipe) -> RunData:
    """Open all datasets of a recipe.

    Raises:
        ValueError: no user is left to test on.
    """
    dataset = open_dataset(recipe, recipe.cache_dir)
    splits = SPLITS[recipe.split](dataset.sequences)
    if not len(splits.test.targets) or not len(splits.validation.targets):
        raise ValueError(
            f"{recipe.name or recipe.dir}: no user is left to validate and test on after the {recipe.split} split; "
            "users need at least three interactions"
        )
    splits = splits._replace(train=splits.train[: recipe.users])
    own = Corpus(dataset.item_texts(), splits.train)
    parts = [_training_part(part, recipe) for part in recipe.pretrain]
    read = _concatenate(parts) if parts else own
    corpora = {kind: read for kind in ("pretrain", "item_description", "sequence_sequence", "sequence_item")}
    return RunData(dataset, splits, {**corpora, "finetune": own, "sequence": own}, recipe.split, recipe.users)


def _training_part(recipe: DatasetRecipe, run: DataRecipe) -> Corpus:
    dataset = open_dataset(recipe, run.cache_dir)
    sequences = dataset.histories() if recipe.part == "all" else SPLITS[run.split](dataset.sequences).train
    return Corpus(dataset.item_texts(), sequences[: recipe.users])


def _concatenate(corpora: list[Corpus]) -> Corpus:
    """One catalogue after the other, item indices shifted along."""
    texts, sequences = [], []
    for corpus in corpora:
        sequences += [sequence + len(texts) for sequence in corpus.sequences]
        texts += corpus.texts
    return Corpus(texts, sequences)


def sample_users(split: Split, users: int | None, seed: int) -> Split:
    """A fixed random sample of a split's rows, in their old order; all of them for None."""
    if users is None or users >= len(split.targets):
        return split
    rows = np.sort(np.random.default_rng(seed).choice(len(split.targets), users, replace=False))
    return take_rows(split, rows)


def take_rows(split: Split, rows: np.ndarray) -> Split:
    return Split(split.user_ids[rows], [split.histories[row] for row in rows], split.targets[rows])


# ------------------------------------------------------------------------------------------------ tokenizer and model


def make_starting_checkpoint(recipe: Recipe, data: RunData) -> tuple[torch.nn.Module, ItemSentTokenizer | None]:
    """The model and tokenizer a run starts from, as `model.init` says, with the recipe's tokenizer settings.

    A baseline reads no text and has no tokenizer.

    Raises:
        ValueError: the recipe sets a field that the model's configuration does not have, or the checkpoint is of
            another kind.
        OSError: there is no checkpoint.
    """
    if recipe.model.baseline:
        return make_baseline(recipe, data), None
    config_class = _config_class(recipe.model)
    check_config_overrides(recipe.model.config, config_class)
    for index, phase in enumerate(recipe.phases):
        if config_class is St5RecConfig and isinstance(phase, PretrainPhase | FinetunePhase):
            raise ValueError(
                f"phases.{index} is of kind {phase.kind}, which trains JEPA4Rec's encoders; a Sentence-T5 learns by "
                "item_description, sequence_sequence and sequence_item"
            )
    if recipe.model.init == "scratch":
        return _from_scratch(recipe, data)
    return _from_checkpoint(recipe)


def _config_class(recipe: ModelRecipe) -> type[PretrainedConfig]:
    """What the starting model is configured by."""
    if recipe.init == "scratch":
        return ENCODERS[recipe.family].config_class
    return St5RecConfig if _read_config(recipe.init).get("model_type") in ("t5", "st5rec") else Jepa4RecConfig


def make_baseline(recipe: Recipe, data: RunData) -> ItemSequenceModel:
    """A new baseline for the run's catalogue; UniSRec with the item texts as `model.init` encodes them.

    Raises ValueError for a field that the baseline's configuration does not have, or a value that it does not take.
    """
    model_class = SEQUENCE_MODELS[recipe.model.baseline]
    check_config_overrides(recipe.model.config, model_class.config_class)
    shape = {"num_items": data.num_items, "catalogue_fingerprint": data.dataset.fingerprint, **recipe.model.config}
    if recipe.model.baseline != "unisrec":
        return model_class(_config(model_class, shape))
    text_recipe = replace(recipe, model=ModelRecipe(init=recipe.model.init), phases=[FinetunePhase(kind="finetune")])
    encoder, tokenizer = make_starting_checkpoint(text_recipe, data)
    item_tokens = data.item_tokens(tokenizer, "sequence")
    texts = encode_items(encoder, tokenizer, item_tokens, recipe.evaluation.batch_tokens, progress=False)
    model = model_class(_config(model_class, {**shape, "text_size": texts.shape[1]}))
    model.set_text_vectors(texts)
    return model


def _config(model_class: type[ItemSequenceModel], shape: dict) -> PretrainedConfig:
    try:
        return model_class.config_class(**shape)
    except StrictDataclassError as error:
        raise ValueError(f"model.config: {error.__cause__ or error}") from error


def check_config_overrides(overrides: dict, config_class: type) -> None:
    """transformers takes any keyword silently; a typo in a recipe must not train another model than was meant."""
    own = [c for c in reversed(config_class.__mro__) if issubclass(c, PretrainedConfig) and c is not PretrainedConfig]
    known = [name for c in own for name in vars(c).get("__annotations__", ())]
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"model.config.{name}: {config_class.__name__} has no such field; {hint}")


def _from_scratch(recipe: Recipe, data: RunData) -> tuple[SeqRecPreTrainedModel, ItemSentTokenizer]:
    """Random weights and a vocabulary learned from the texts of all the run's items."""
    corpora = {id(corpus): corpus for corpus in data.corpora.values()}
    items = [item for corpus in corpora.values() for item in corpus.texts]
    words = [text for item in items for pair in item.items() for text in pair]
    if recipe.model.family == "st5rec":
        vocabulary = train_t5_wordpiece([*words, *FIXED_TEXTS], recipe.tokenizer.vocab_size)
        tokenizer = ItemSentTokenizer.wrap(vocabulary, **{**ST5_SETTINGS, **_settings(recipe)})
        shape = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        shape |= {"eos_token_id": tokenizer.eos_token_id, **recipe.model.config}
        return St5RecModel(St5RecConfig(**shape)), tokenizer
    tokenizer = ItemSentTokenizer.wrap(train_wordpiece(words, recipe.tokenizer.vocab_size), **_settings(recipe))
    shape = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "max_position_embeddings": tokenizer.max_tokens,
        "max_item_embeddings": tokenizer.max_items + 1,
    }
    return Jepa4RecModel(Jepa4RecConfig(**{**shape, **recipe.model.config})), tokenizer


def train_wordpiece(
    texts: list[str], vocab_size: int, special_tokens: dict[str, str] = SCRATCH_SPECIAL_TOKENS
) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece vocabulary learned from texts, with BERT's special tokens. Same texts, same ids."""
    special, normalizer = list(special_tokens.values()), normalizers.BertNormalizer()
    unknown = special_tokens["unk_token"]
    # The trainer numbers the "##x" pieces in the order in which it meets them, which differs from run to run, and ties
    # are broken by number. Handing them over first, in a fixed order, makes the vocabulary reproducible.
    letters = sorted({letter for text in texts for letter in normalizer.normalize_str(text) if not letter.isspace()})
    first = [*special, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    learned = _wordpiece(models.WordPiece(unk_token=unknown), normalizer)
    learned.train_from_iterator(texts, trainer)
    tokenizer = _wordpiece(models.WordPiece(learned.get_vocab(), unk_token=unknown), normalizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)


def train_t5_wordpiece(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """The same with T5's special tokens instead and the tags of its sentences, for a T5 from scratch.

    Not a Unigram, as T5's own: training one gives another vocabulary every time.
    """
    tokenizer = train_wordpiece(texts, vocab_size - len(TAGS), T5_SPECIAL_TOKENS)
    tokenizer.add_special_tokens({"extra_special_tokens": list(TAGS)})
    end = (T5_SPECIAL_TOKENS["eos_token"], tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end[0]}", special_tokens=[end]
    )
    return tokenizer


def _wordpiece(model: models.WordPiece, normalizer: normalizers.Normalizer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _settings(recipe: Recipe) -> dict:
    """The recipe's tokenizer settings that are set."""
    settings = {name: getattr(recipe.tokenizer, name) for name in TOKENIZER_SETTINGS}
    return {name: value for name, value in settings.items() if value is not None}


def _from_checkpoint(recipe: Recipe) -> tuple[torch.nn.Module, ItemSentTokenizer]:
    """A checkpoint of ours as it is (of a fine-tuned one the encoder), any other encoder converted in memory."""
    init, overrides = recipe.model.init, recipe.model.config
    config = _read_config(init)
    if config.get("model_type") in ENCODERS:
        pretraining = "Jepa4RecForPreTraining" in (config.get("architectures") or [])
        model = (Jepa4RecForPreTraining.from_pretrained if pretraining else open_encoder)(init, **overrides)
        return model, ItemSentTokenizer.wrap(ItemSentTokenizer.from_pretrained(init), **_settings(recipe))
    from .scripts.import_checkpoint import import_checkpoint  # the road from other families, not needed by most runs

    model, tokenizer = import_checkpoint(init, **overrides)
    return model, ItemSentTokenizer.wrap(tokenizer, **_settings(recipe))


def _read_config(init: str) -> dict:
    """The checkpoint's config.json; empty where there is none, which the importer knows to explain."""
    try:
        return PretrainedConfig.get_config_dict(init)[0]
    except (OSError, ValueError):
        return {}


def open_phase_tokenizer(start: Path, phase: Phase | None) -> ItemSentTokenizer | None:
    """The run's tokenizer with the phase's `max_items`; none for a baseline."""
    if isinstance(phase, SequencePhase):
        return None
    tokenizer = ItemSentTokenizer.from_pretrained(start)
    return (
        tokenizer
        if phase is None or phase.max_items is None
        else ItemSentTokenizer.wrap(tokenizer, max_items=phase.max_items)
    )


def open_phase_model(source: Path, phase: Phase, data: RunData) -> torch.nn.Module:
    """The model of a phase with the weights of the phase before; heads that were not there yet are new.

    A new target encoder is a copy of the context encoder.
    """
    if isinstance(phase, SequencePhase):
        return SEQUENCE_MODELS[_read_config(str(source))["model_type"]].from_pretrained(source)
    if isinstance(phase, PairPhase):
        model = SentencePairModel.from_encoder(source)
        model.cache_chunk = phase.cache_chunk
    elif isinstance(phase, RatingPhase):
        mean = float(data.ratings["train"].ratings.mean())
        return RatingModel.from_encoder(source, hidden_size=phase.hidden_size, dropout=phase.dropout, mean=mean)
    elif isinstance(phase, PretrainPhase):
        model = Jepa4RecForPreTraining.from_pretrained(source)
    else:
        shape = {
            "num_items": data.num_items,
            "history_items": phase.history_items,
            "history_text": phase.history_text,
            "catalogue_fingerprint": data.dataset.fingerprint,
        }
        model = Jepa4RecForSequentialRecommendation.from_pretrained(source, **shape)
        model.mark_seen_items(data.seen_items())
        if not phase.history_text:
            model.jepa4rec.requires_grad_(False)
            model.log_text_gate.requires_grad_(False)
        if phase.text_gate is not None and phase.history_items:
            torch.nn.init.constant_(model.log_text_gate, math.log(phase.text_gate))
    model.objective = phase.objective
    return model


# ------------------------------------------------------------------------------------------------ batches


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

    def __len__(self) -> int:
        """Optimiser steps in an epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[list[dict[str, torch.Tensor]]]:
        """The steps of one epoch after the first `skip`, each a list of `slices` batches."""
        self.sampler.dataset.set_epoch(epoch)
        shares = [share for batch in list(self.sampler)[skip:] for share in self._shares(batch)]
        # A generator of its own: a loader without one draws from the global random numbers, which dropout uses.
        loader = DataLoader(
            self.sampler.dataset, batch_sampler=shares, collate_fn=self.collate, generator=torch.Generator()
        )
        stream = iter(loader)
        for _ in range(len(self) - skip):
            yield [next(stream) for _ in range(self.slices)]

    def _shares(self, batch: list[int]) -> list[list[int]]:
        """This process's examples of each slice of a batch."""
        return [batch[start :: self.slices][self.process :: self.processes] for start in range(self.slices)]


def make_batches(
    recipe: Recipe,
    phase: Phase,
    data: RunData,
    tokenizer: ItemSentTokenizer | None,
    process: int = 0,
    processes: int = 1,
    ratings: RatingVectors | None = None,
) -> Batches:
    """The batches of a phase as process `process` of `processes` sees them; a rating phase is given its vectors."""
    if isinstance(phase, SequencePhase):
        return _sequence_batches(recipe, phase, data, process, processes)
    if isinstance(phase, RatingPhase):
        examples = make_examples(phase, data, 1, recipe.run.seed)
        sampler = LengthGroupedBatchSampler(examples, None, phase.batch_size, drop_last=True, seed=recipe.run.seed)
        collate = RatingCollator(ratings.part("train"))
        return Batches(sampler, collate, phase.gradient_accumulation, process, processes)
    item_tokens = data.item_tokens(tokenizer, phase.kind)
    dataset = make_examples(phase, data, max(tokenizer.max_items, getattr(phase, "history_items", 0)), recipe.run.seed)
    sampler = LengthGroupedBatchSampler(
        dataset,
        item_tokens,
        phase.batch_size,
        max_items=tokenizer.max_items,
        max_tokens=tokenizer.max_tokens,
        drop_last=True,
        seed=recipe.run.seed,
    )
    collate = make_collator(recipe, phase, data, tokenizer)
    return Batches(sampler, collate, phase.gradient_accumulation, process, processes)


def make_collator(recipe: Recipe, phase: Phase, data: RunData, tokenizer: ItemSentTokenizer) -> Callable:
    """What makes batches of a phase's examples."""
    item_tokens, seed = data.item_tokens(tokenizer, phase.kind), recipe.run.seed
    if isinstance(phase, PretrainPhase):
        rates = (phase.history_mask_rate, phase.next_mask_rate)
        clean = phase.objective.contrastive_history == "clean"
        options = {"seed": seed, "clean_history": clean, "mask_unit": phase.mask_unit}
        return PreTrainingCollator(tokenizer, item_tokens, *rates, **options)
    if isinstance(phase, ItemDescriptionPhase):
        texts = data.corpora[phase.kind].texts
        return ItemDescriptionCollator(tokenizer, texts, phase.description, described_items(texts, phase.description))
    if isinstance(phase, SequenceSequencePhase):
        return SequenceSequenceCollator(tokenizer, item_tokens, phase.ratios, seed)
    if isinstance(phase, SequenceItemPhase):
        return SequenceItemCollator(tokenizer, item_tokens)
    return FineTuningCollator(tokenizer, item_tokens, phase.history_items)


def _sequence_batches(recipe: Recipe, phase: SequencePhase, data: RunData, process: int, processes: int) -> Batches:
    config_class, overrides = SEQUENCE_MODELS[recipe.model.baseline].config_class, recipe.model.config
    max_length = overrides.get("max_length", config_class.max_length)
    dataset = make_examples(phase, data, max_length, recipe.run.seed)
    sampler = LengthGroupedBatchSampler(
        dataset, None, phase.batch_size, max_items=max_length, drop_last=True, seed=recipe.run.seed
    )
    return Batches(sampler, SequenceCollator(), phase.gradient_accumulation, process, processes)


def make_examples(phase: Phase, data: RunData, max_history: int, seed: int) -> PrefixDataset:
    """The training examples of a phase.

    Raises ValueError when its data hold none.
    """
    if isinstance(phase, ItemDescriptionPhase):
        items = described_items(data.corpora[phase.kind].texts, phase.description)
        if not len(items):
            raise ValueError(
                f"no item has both a title and one of the attributes {', '.join(phase.description)}, which the phase "
                "item_description needs: name others in its description, or leave the phase out"
            )
        return PrefixDataset(np.repeat(items, 2).reshape(-1, 2), "last", seed=seed)  # the item, "after" itself
    if isinstance(phase, RatingPhase):
        tasks = sum(len(history) > 0 for history in data.ratings["train"].histories)
        return PrefixDataset(np.repeat(np.arange(tasks), 2).reshape(-1, 2), "last", seed=seed)
    sequences = data.corpora[phase.kind].sequences
    return PrefixDataset(sequences, phase.prefixes, phase.min_history, max_history, seed)


def check_phases(recipe: Recipe, data: RunData, processes: int) -> None:
    """Raise ValueError when a phase's batches do not fit its data or the processes, before anything is trained."""
    for index, phase in enumerate(recipe.phases):
        examples, share = len(make_examples(phase, data, 1, 0)), processes * phase.gradient_accumulation
        if examples < phase.batch_size:
            raise ValueError(
                f"phases.{index}.batch_size is {phase.batch_size}, but there are only {examples} training examples: "
                "lower it"
            )
        if phase.batch_size % share:
            raise ValueError(
                f"phases.{index}.batch_size {phase.batch_size} does not divide into {processes} process(es) × "
                f"{phase.gradient_accumulation} slices: choose a multiple of {share}"
            )
