"""The recipe of one training run: typed dataclasses read from one YAML file and `--set section.key=value`.

A recipe says everything about a *run*; everything about the model's *shape* lives in `config.json`. There is no
third place and there are no other flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Union

import yaml

from ..baselines import BASELINE_MODELS
from ..baselines.text_vectors import TextSequenceModel
from .data import DataRecipe
from .phases import KINDS
from .typed_yaml import Range, check_ranges, nearest, read_typed_tree, read_typed_yaml

PACKAGE = Path(__file__).resolve().parents[1]
AnyPhase = Union[tuple(KINDS.values())]  # noqa: UP007 - made of what phases/ holds

# Recipes that had the name of a paper's method and were not it.
RENAMED = {
    "jepa4rec_online_retail.yaml": "hybrid_online_retail.yaml",
    "jepa4rec_scientific.yaml": "hybrid_scientific.yaml",
}

# ------------------------------------------------------------------------------------------------ sections


@dataclass(kw_only=True)
class RunRecipe:
    """Where the run lives and how it is carried out; nothing here changes what is learned, except the seed.

    `name` is what tables and the model card call the run (None: the last part of `output_dir`), `system` the method it
    trains. `mixed_precision` "auto" is what `accelerate launch` was told, else bf16 where the processor computes
    in it, else "no"; the record says which it was. `save_every` counts optimiser steps between saved states (0: none
    between phases), `telemetry_every` between looks for collapse (0: none). `resume` continues an interrupted run,
    `overwrite` replaces a finished one. `keep_evaluated` leaves the model of each evaluation in
    evaluated/phase-N-step-S, to look at how a long run went. `compile` fuses what sees tokens one by one
    (`torch.compile`): worth its minute on a GPU.
    """

    output_dir: str
    name: str | None = None
    system: str = "JEPA4Rec"
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    keep_evaluated: bool = False
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] | None = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    tracker: Literal["none", "tensorboard", "trackio"] = "none"
    log_every: int = 20
    save_every: int = 500
    telemetry_every: int = 100

    def __post_init__(self):
        check_ranges(self, seed=Range(0, 2**32 - 1), log_every=Range(1), save_every=Range(0), telemetry_every=Range(0))


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
    description: bool | None = None
    vocab_size: int = 4000
    REMOVED: ClassVar = {"title_attributes": (None, "the title is the attribute of that name, or the first")}

    def __post_init__(self):
        limits = ("max_attributes", "max_attribute_tokens", "max_items", "max_tokens", "vocab_size")
        check_ranges(self, **dict.fromkeys(limits, Range(1)))


@dataclass(kw_only=True)
class ModelRecipe:
    """What the run starts from.

    `init`: a checkpoint of ours, or any BERT, RoBERTa, Longformer or Sentence-T5 (folder, Hub id, or `package:NAME` of
    an installed package), or "scratch": random weights of `family` and a WordPiece vocabulary learned from the run's
    own item texts. `config` overrides fields of Jepa4RecConfig, or St5RecConfig; where a recipe
    shapes random weights and `--set model.init` takes others, what its file says of `config` and `family` is left out.
    `whitening` sets the projection of an
    encoder that has one (`config.projection`) to a whitening of this power, learned from the item texts that
    pre-training reads; of a baseline it whitens the text vectors, by those of its own items.

    `baseline` is one of baselines/ instead; `config` is then of its configuration, and `init` only the encoder of
    a baseline's frozen text vectors. Its phases are of the kind that its `trained_by` says, or none: it is counted.
    `pretrained` is a checkpoint of the same baseline trained on other items: all its weights but those of items, which
    without phases are measured on these.
    """

    baseline: str | None = None
    init: str = "scratch"
    family: Literal["jepa4rec", "st5rec"] = "jepa4rec"
    pretrained: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    whitening: float | None = None

    def __post_init__(self):
        if self.baseline is not None and self.baseline not in BASELINE_MODELS:
            raise ValueError(f"baseline {self.baseline} is unknown{nearest(self.baseline, BASELINE_MODELS)}")
        if self.whitening is None:
            return
        check_ranges(self, whitening=Range(0, 1))
        if self.baseline is not None and not issubclass(BASELINE_MODELS[self.baseline], TextSequenceModel):
            raise ValueError(f"whitening is of text vectors, and {self.baseline} has none: leave it out")
        if self.baseline is None and not self.config.get("projection"):
            raise ValueError("whitening needs config.projection: true to be kept in")
        if self.baseline is None and self.init == "scratch":
            raise ValueError("whitening is of the vectors of trained weights: name them by init, or leave it out")


@dataclass(kw_only=True)
class EvaluationRecipe:
    """Full ranking after training, and what stands beside it. `validation_users`: a fixed sample for evaluations
    *during* training; `ties` "official": optimistic, as RecFormer's."""

    exclude_history: bool = False
    ties: Literal["mean", "official"] = "mean"
    validation_users: int | None = None
    zero_shot: bool = True
    baselines: list[Literal["popularity", "item_transition", "item_transition_decayed"]] = field(
        default_factory=lambda: ["popularity", "item_transition"]
    )

    REMOVED: ClassVar = {"batch_tokens": (16384, "the device decides")}

    def __post_init__(self):
        check_ranges(self, validation_users=Range(1))
        missing = [name for name in ("popularity", "item_transition") if name not in self.baselines]
        if missing:
            raise ValueError(
                f"baselines lacks {' and '.join(missing)}: every table carries popularity and item_transition, so "
                "every run measures them"
            )


@dataclass(kw_only=True)
class Recipe:
    """One run, whole. Without phases nothing is trained, and the starting weights are measured."""

    run: RunRecipe
    data: DataRecipe
    phases: list[AnyPhase]
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)

    def __post_init__(self):
        self._check_baseline()
        for index, phase in enumerate(self.phases):
            phase.check(self, index)

    def _check_baseline(self) -> None:
        """Phases and model belong together, and what only a text encoder has is not asked of a baseline."""
        name, kinds = self.model.baseline, {phase.kind for phase in self.phases}
        if name is None:
            if self.model.pretrained:
                raise ValueError("model.pretrained is for model.baseline; a text encoder starts from model.init")
            if "sequence" in kinds:
                raise ValueError("phases of kind sequence train a model.baseline: name one, or take other phases")
            return
        wanted, reads_texts = BASELINE_MODELS[name].trained_by, getattr(BASELINE_MODELS[name], "reads_texts", False)
        if wanted and kinds != {wanted} and not (self.model.pretrained and not kinds):
            raise ValueError(f"phases of kind {wanted}, and no others, train the baseline {name}")
        if not wanted and kinds:
            raise ValueError(f"the baseline {name} is counted, not trained: write phases: []")
        if self.tokenizer != TokenizerRecipe() and not reads_texts:
            raise ValueError(f"the baseline {name} reads no texts: leave the section tokenizer out")
        if self.model.init != "scratch" and not reads_texts:
            raise ValueError(f"the baseline {name} reads no texts: leave model.init out")
        for setting in ("activation_checkpointing", "compile"):
            if getattr(self.run, setting):
                raise ValueError(f"{setting} is for text encoders, not for model.baseline")
        if any(phase.freeze_layers or phase.freeze_word_embeddings for phase in self.phases):
            raise ValueError("freeze_layers and freeze_word_embeddings are for text encoders, not for model.baseline")


# ------------------------------------------------------------------------------------------------ reading


def read_recipe(path: str | Path, settings: list[str] = (), kind: type = Recipe) -> Any:
    """Read a YAML recipe (of a run, or another dataclass) and apply `section.key=value` settings, parsed as YAML.

    `recipes/quickstart.yaml` and its like are found from any folder: they are the package's own.

    Raises FileNotFoundError for a missing file, ValueError (one sentence naming file or setting, and key) otherwise.
    """
    found = next((place for place in (Path(path), PACKAGE / path) if place.is_file()), None)
    if found is None:
        now = RENAMED.get(Path(path).name)
        hint = f"it is called {now} now" if now else "recipes/ holds ready ones"
        raise FileNotFoundError(f"recipe {path} does not exist; {hint}")
    return read_typed_yaml(found, settings, kind, _forget_the_shape_of_scratch)


def _forget_the_shape_of_scratch(tree: dict, settings: Sequence[str]) -> None:
    """A model that `--set model.init` brings has a shape of its own: the recipe's was meant for random weights."""
    starts = [setting.partition("=")[2] for setting in settings if setting.startswith("model.init=")]
    model = tree.get("model")
    if not starts or starts[-1] == "scratch" or not isinstance(model, dict) or model.get("baseline"):
        return
    if model.get("init", "scratch") == "scratch":
        model.pop("config", None)
        model.pop("family", None)


def recipe_to_dict(recipe: Recipe) -> dict:
    """The resolved recipe as plain dicts, lists and numbers, ready for YAML or JSON."""
    return asdict(recipe)


def recipe_from_dict(tree: object, source: str | Path) -> Recipe:
    """What `recipe_to_dict` gave, perhaps that of an earlier version: settings it lacks are what they begin with.

    Raises ValueError for what is no recipe today, in a sentence that begins with its source.
    """
    return read_typed_tree(tree, source, Recipe)


def write_recipe(recipe: Recipe, path: str | Path, portable: bool = False) -> None:
    """Write the resolved recipe, defaults included, so that `read_recipe` gives an equal one back.

    A portable one lies beside published weights: of paths of this machine only the last part is in it.
    """
    tree = recipe_to_dict(recipe)
    text = yaml.safe_dump(_without_paths(tree) if portable else tree, sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")


def _without_paths(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_paths(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_paths(value) for value in tree]
    return Path(tree).name if isinstance(tree, str) and Path(tree).is_absolute() else tree
