"""The recipe of one training run: typed dataclasses read from one YAML file and `--set section.key=value`.

A recipe says everything about a *run*; everything about the model's *shape* lives in `config.json`. There is no
third place and there are no other flags.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from ..losses_seqrec import FineTuningObjective, PreTrainingObjective, SentencePairObjective
from .typed_yaml import read_typed_yaml

# The kind of phase that trains a baseline; the others are counted.
BASELINE_PHASES = {name: "sequence" for name in ("sasrec", "bert4rec", "gru4rec", "unisrec")} | {"pmf": "rating"}

# ------------------------------------------------------------------------------------------------ sections


@dataclass(kw_only=True)
class RunRecipe:
    """Where the run lives and how it is carried out; nothing here changes what is learned, except the seed.

    `name` is what tables and the model card call the run (None: the last part of `output_dir`), `system` the method it
    trains. `mixed_precision` None leaves the choice to `accelerate launch`. `save_every` counts optimiser steps
    between saved states (0: none between phases), `telemetry_every` between looks for collapse (0: none). `resume`
    continues an interrupted run, `overwrite` replaces a finished one.
    """

    output_dir: str
    name: str | None = None
    system: str = "JEPA4Rec"
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    activation_checkpointing: bool = False
    tracker: Literal["none", "tensorboard", "trackio"] = "none"
    log_every: int = 20
    save_every: int = 500
    telemetry_every: int = 100

    def __post_init__(self):
        for name, least in {"log_every": 1, "save_every": 0, "telemetry_every": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


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


@dataclass(kw_only=True)
class DataRecipe(DatasetRecipe):
    """The dataset the run is measured on, and how it is split.

    `pretrain` lists the datasets that phases of pretrain, item_description, sequence_sequence and sequence_item read;
    without any they read this one's training part. Built datasets are kept in `cache_dir` (None: beside the Hub's
    caches).
    """

    split: Literal["leave_one_out", "absolute_timestamp"] = "leave_one_out"
    pretrain: list[DatasetRecipe] = field(default_factory=list)
    cache_dir: str | None = None


@dataclass(kw_only=True)
class TokenizerRecipe:
    """Settings of ItemSentTokenizer; None keeps what the starting checkpoint has. `vocab_size` is for scratch only."""

    max_attributes: int | None = None
    max_attribute_tokens: int | None = None
    max_items: int | None = None
    max_tokens: int | None = None
    attribute_names: bool | None = None
    sentence: Literal["attributes", "structured", "unstructured"] | None = None
    instruction: bool | None = None
    title_attributes: list[str] | None = None
    description: bool | None = None
    vocab_size: int = 4000


@dataclass(kw_only=True)
class ModelRecipe:
    """What the run starts from.

    `init`: a checkpoint of ours, or any BERT, RoBERTa, Longformer or Sentence-T5 (folder, Hub id, or `package:NAME` of
    an installed package), or "scratch": random weights of `family` and a WordPiece vocabulary learned from the run's
    own item texts. `config` overrides fields of Jepa4RecConfig, or St5RecConfig.

    `baseline` is one of baselines/ instead; `config` is then of its configuration, and `init` only the encoder of
    unisrec's frozen text vectors. Its phases are of the kind that `BASELINE_PHASES` says, or none: it is counted.
    """

    baseline: (
        Literal["popularity", "item_transition", "sasrec", "bert4rec", "gru4rec", "unisrec", "rating_mean", "pmf"]
        | None
    ) = None
    init: str = "scratch"
    family: Literal["jepa4rec", "st5rec"] = "jepa4rec"
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class EvaluationRecipe:
    """Full ranking after training, and what stands beside it. `validation_users`: a fixed sample for evaluations
    *during* training; `batch_tokens`: tokens encoded at a time; `ties` "official": optimistic, as RecFormer's."""

    exclude_history: bool = False
    ties: Literal["mean", "official"] = "mean"
    validation_users: int | None = None
    zero_shot: bool = True
    baselines: list[Literal["popularity", "item_transition", "item_transition_decayed"]] = field(
        default_factory=lambda: ["popularity", "item_transition"]
    )
    batch_tokens: int = 16384

    def __post_init__(self):
        missing = [name for name in ("popularity", "item_transition") if name not in self.baselines]
        if missing:
            raise ValueError(
                f"baselines lacks {' and '.join(missing)}: every table carries popularity and item_transition, so "
                "every run measures them"
            )


@dataclass(kw_only=True)
class Phase:
    """What pretrain and finetune phases share.

    Length: `epochs` (fractions allowed), or `steps` where given. `batch_size` counts examples per optimiser step over
    all processes and all `gradient_accumulation` slices, so that a recipe means the same on any machine. Examples are
    "all" prefixes of a user's sequence, or one of them an epoch: a "random" one, one from the "late" half, the "last".
    `warmup` is a fraction of the steps, after which "linear" falls from 1, and "recformer" goes on along the line that
    falls from the first step on. `clip_norm` null clips nothing. Evaluation on the validation split: every
    `evaluate_every_steps` where given, else every `evaluate_every_epochs`; 0 evaluates at the end only. `patience`
    counts evaluations without a better NDCG@10. `freeze_layers` n freezes all embeddings and the lowest n layers.
    `max_items`: newest items kept in the text.
    """

    kind: str
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 256
    gradient_accumulation: int = 1
    prefixes: Literal["all", "random", "late", "last"] = "all"
    min_history: int = 1
    max_items: int | None = None
    lr: float = 5e-5
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    schedule: Literal["linear", "cosine", "constant", "recformer"] = "linear"
    warmup: float = 0.05
    clip_norm: float | None = 1.0
    freeze_word_embeddings: bool = False
    freeze_layers: int = 0
    evaluate_every_steps: int | None = None
    evaluate_every_epochs: float = 1.0
    patience: int | None = None

    least_history: ClassVar[int] = 1

    def __post_init__(self):
        least = {"batch_size": 1, "gradient_accumulation": 1, "min_history": self.least_history}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, got {getattr(self, name)}")
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into gradient_accumulation = "
                f"{self.gradient_accumulation} slices: choose a multiple"
            )
        if (self.steps if self.steps is not None else self.epochs) <= 0:
            raise ValueError("steps or epochs must be above 0")


@dataclass(kw_only=True)
class PretrainPhase(Phase):
    """JEPA4Rec pre-training: contrastive + MLM + mapping (paper section 3.3), or RecFormer's, without mapping.

    The mask rates are over tokens, or over words where `mask_unit` is "word"; the words of "spaced_word" are told by
    spaces alone, as in RecFormer's published code, so that a value's first word is one with its attribute's name.
    """

    kind: Literal["pretrain"]
    history_mask_rate: float = 0.15
    next_mask_rate: float = 0.5
    mask_unit: Literal["token", "word", "spaced_word"] = "token"
    objective: PreTrainingObjective = field(default_factory=PreTrainingObjective)


@dataclass(kw_only=True)
class FinetunePhase(Phase):
    """Fine-tuning by full softmax over the catalogue.

    `item_vectors` says when the item matrix is encoded from the item texts: "start" (once, before the first step),
    "epoch" (again before each epoch: RecFormer's stage 1) or "keep" (never: the matrix of the phase before, stage 2).
    Whether it also learns is `objective.item_matrix`. `history_items`: how many of the newest items add a learnable
    vector of their own to the user vector. `history_text` false leaves the text encoder out of the user vector: item
    vectors alone learn, some fifty times faster, before a phase that adds the text. `text_gate`: the weight the text
    begins with beside the items (None: where the phase before left it; 1 at first). `lr_items` is for everything that
    is not the text encoder.

    Slips of RecFormer's published code, to compare with its numbers: `min_history` 0 also trains on empty histories
    (`[CLS]` alone); `stale_items` evaluates with the item vectors from before the epoch (else those of
    `item_vectors: epoch` are encoded before each evaluation too); `continue_schedule` goes on with the learning rates
    of the phase before from the step where that stopped, at 0 after its last.
    """

    kind: Literal["finetune"]
    lr_items: float = 3e-3
    history_items: int = 10
    history_text: bool = True
    text_gate: float | None = None
    item_vectors: Literal["start", "epoch", "keep"] = "start"
    stale_items: bool = False
    continue_schedule: bool = False
    objective: FineTuningObjective = field(default_factory=FineTuningObjective)

    least_history: ClassVar[int] = 0


@dataclass(kw_only=True)
class PairPhase(Phase):
    """What ST5's contrastive phases share; they train any text encoder.

    `cache_chunk` n keeps the activations of n texts at a time (cached gradients): the same loss and gradients, a third
    more time, and memory for n texts instead of `batch_size`.
    """

    cache_chunk: int | None = None
    objective: SentencePairObjective = field(default_factory=SentencePairObjective)

    def __post_init__(self):
        super().__post_init__()
        if self.cache_chunk is not None and self.cache_chunk < 1:
            raise ValueError(f"cache_chunk must be at least 1, got {self.cache_chunk}")


@dataclass(kw_only=True)
class ItemDescriptionPhase(PairPhase):
    """Items and their descriptions find each other. An example is an item that has both; `description` names the
    attributes that make one, where a shop has no attribute of that name (brand and category, say)."""

    kind: Literal["item_description"]
    prefixes: Literal["last"] = "last"
    description: list[str] = field(default_factory=lambda: ["description"])


@dataclass(kw_only=True)
class SequenceSequencePhase(PairPhase):
    """A user's sequence and the same augmented find each other: one of crop (η), reorder (β) and drop (δ), which the
    thesis leaves open; crop and reorder are as in CL4SRec. 0 rules one out."""

    kind: Literal["sequence_sequence"]
    prefixes: Literal["all", "random", "late", "last"] = "last"
    crop: float = 0.6
    reorder: float = 0.6
    drop: float = 0.3

    def __post_init__(self):
        super().__post_init__()
        for name, ratio in self.ratios.items():
            if not 0 <= ratio <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {ratio}")
        if not any(self.ratios.values()):
            raise ValueError("crop, reorder and drop are all 0: nothing would be augmented")

    @property
    def ratios(self) -> dict[str, float]:
        return {"crop": self.crop, "reorder": self.reorder, "drop": self.drop}


@dataclass(kw_only=True)
class SequenceItemPhase(PairPhase):
    """Histories and their next items find each other: ST5's fine-tuning."""

    kind: Literal["sequence_item"]


@dataclass(kw_only=True)
class RatingPhase(Phase):
    """A dense head learns ratings from [user vector ; item vector]; the encoder stays as it is (ST5, section 5.1.5).

    An example is a rating of the training part with at least one item before it; `hidden_size` and `dropout` are the
    head's. Weights are chosen by RMSE on the validation ratings; `patience` counts in those.
    """

    kind: Literal["rating"]
    lr: float = 1e-3
    hidden_size: int = 256
    dropout: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size < 1 or not 0 <= self.dropout < 1:
            raise ValueError("hidden_size must be at least 1, and dropout at least 0 and below 1")


@dataclass(kw_only=True)
class SequencePhase(Phase):
    """Training of a baseline on sequences of item ids (`model.baseline`).

    An example is a user's sequence up to its target, cut to the newest items the model can read; of it every next item
    is learned (BERT4Rec: masked ones). So one prefix a user is enough: the "last", or a "random" one where sequences
    are longer than what the model reads.
    """

    kind: Literal["sequence"]
    prefixes: Literal["all", "random", "late", "last"] = "last"
    lr: float = 1e-3
    weight_decay: float = 0.0


@dataclass(kw_only=True)
class Recipe:
    """One run, whole. Without phases nothing is trained, and the starting weights are measured."""

    run: RunRecipe
    data: DataRecipe
    phases: list[
        PretrainPhase
        | FinetunePhase
        | ItemDescriptionPhase
        | SequenceSequencePhase
        | SequenceItemPhase
        | RatingPhase
        | SequencePhase
    ]
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)

    def __post_init__(self):
        self._check_baseline()
        finetuning = [phase for phase in self.phases if isinstance(phase, FinetunePhase)]
        if finetuning and finetuning[0].item_vectors == "keep":
            raise ValueError("the first finetune phase has item_vectors keep, but no item matrix to keep: use start")
        if any(phase.text_gate is not None and phase.text_gate <= 0 for phase in finetuning):
            raise ValueError("text_gate must be above 0; history_text: false leaves the text out")
        if any(not phase.history_text and not phase.history_items for phase in finetuning):
            raise ValueError("history_text is false and history_items 0: nothing of the history would be read")
        if finetuning and self.phases[0] is finetuning[0] and self.phases[0].continue_schedule:
            raise ValueError("the first phase has continue_schedule, but no phase before it to continue")
        if len({phase.history_items for phase in finetuning}) > 1:
            raise ValueError("finetune phases must agree on history_items: they train one model")

    def _check_baseline(self) -> None:
        """Phases and model belong together, and what only a text encoder has is not asked of a baseline."""
        kinds, wanted = {phase.kind for phase in self.phases}, BASELINE_PHASES.get(self.model.baseline)
        if self.model.baseline is None and "sequence" in kinds:
            raise ValueError("phases of kind sequence train a model.baseline: name one, or take other phases")
        if wanted and kinds != {wanted}:
            raise ValueError(f"phases of kind {wanted}, and no others, train the baseline {self.model.baseline}")
        if self.model.baseline and not wanted and kinds:
            raise ValueError(f"the baseline {self.model.baseline} is counted, not trained: write phases: []")
        if self.model.baseline and self.run.activation_checkpointing:
            raise ValueError("activation_checkpointing is for text encoders, not for model.baseline")
        if self.model.baseline and any(phase.freeze_layers or phase.freeze_word_embeddings for phase in self.phases):
            raise ValueError("freeze_layers and freeze_word_embeddings are for text encoders, not for model.baseline")


# ------------------------------------------------------------------------------------------------ reading


def read_recipe(path: str | Path, settings: list[str] = (), kind: type = Recipe) -> Any:
    """Read a YAML recipe (of a run, or another dataclass) and apply `section.key=value` settings, parsed as YAML.

    Raises FileNotFoundError for a missing file, ValueError (one sentence naming file or setting, and key) otherwise.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"recipe {path} does not exist; recipes/ holds ready ones")
    return read_typed_yaml(path, settings, kind)


def recipe_to_dict(recipe: Recipe) -> dict:
    """The resolved recipe as plain dicts, lists and numbers, ready for YAML or JSON."""
    return asdict(recipe)


def write_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe, defaults included, so that `read_recipe` gives an equal one back."""
    Path(path).write_text(
        yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
