"""Every number that shapes the JEPA4Rec encoder, and nothing about a training run; what all families' shapes share."""

import json
import shutil
import sys
from functools import wraps
from math import inf
from pathlib import Path

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import cached_file, logging

logger = logging.get_logger(__name__)

TASK = "sequential-recommendation"
PIPELINE = "pipeline_seqrec.SequentialRecommendationPipeline"
EMBEDDING = "embedding_seqrec.ItemSentEmbedding"  # what sentence-transformers loads
SIZES = frozenset(
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
    "d_model d_kv d_ff num_layers num_heads".split()
)
MOST_LAYERS = 1000
SCALES = frozenset("layer_norm_eps layer_norm_epsilon initializer_range initializer_factor".split())


def with_plain_errors(config_class: type) -> type:
    """Let a wrong field raise a ValueError of one sentence, as any bad input here does."""
    strict_init = config_class.__init__

    @wraps(strict_init)
    def __init__(self, *args, **kwargs):
        try:
            strict_init(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__ or error)) from error

    config_class.__init__ = __init__
    return config_class


def copy_code(config: PreTrainedConfig, modules: list[str], folder: str | Path) -> None:
    """Copy modules, and those that they import from beside them, into a folder.

    The code is that of the configuration's own class: of the package it belongs to, or of the checkpoint it came from.

    Raises OSError where a file is in neither.
    """
    here = Path(sys.modules[type(config).__module__].__file__).parent
    waiting, done = list(modules), set()
    Path(folder).mkdir(parents=True, exist_ok=True)
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        path = here / "serving" / f"{name}.py"
        if not path.is_file():
            commit = getattr(config, "_commit_hash", None)
            path = cached_file(
                config.name_or_path,
                f"serving/{name}.py",  # as in this repository, which is a released model
                revision=commit,
                _raise_exceptions_for_missing_entries=False,
            )
            path = Path(path or cached_file(config.name_or_path, f"{name}.py", revision=commit))
        target = Path(folder) / f"{name}.py"
        if not target.exists() or not path.samefile(target):
            shutil.copyfile(path, target)
        waiting += get_relative_imports(path)


class SeqRecConfig(PreTrainedConfig):
    """What a fine-tuned model of any family has besides its encoder.

    Args:
        num_items: rows of the item matrix of a fine-tuned model; 0 for none.
        history_items: how many of the most recent items a fine-tuned model also looks up by id; 0 is text only.
        history_text: whether a fine-tuned model reads the history's text; without it the looked-up items are all.
        history_decay: of an encoder that reads a history as the mean of its items' vectors: what an item weighs beside
            the next newer one. `None` reads it as one text.
        catalogue_whitening: with `history_decay`: the power of the whitening, learned from a catalogue's own item
            vectors, that these and histories pass before they are compared. `None` compares them as they are.
        history_reading: how a fine-tuned model reads a history: as one `"text"`, or as the mean of its `"items"`'
            vectors (see `history_decay`), behind a linear layer that only histories go through.
        history_projection: whether a history that is read as a text goes through such a layer too.
        item_projection: with `history_reading` "items": whether a linear layer that items go through learns, which is
            folded into the encoder's own projection where the model is saved.
        repeat_items: how many of the newest items of a history have a learned amount, one for each age, added to their
            cosine: what is less likely to be bought again, or more.
        token_head: whether a fine-tuned model has a token head, to learn masked tokens beside its catalogue.
        catalogue_fingerprint: of the dataset whose items the rows of the item matrix are; `None` for no item matrix.
    """

    _auto_class = "AutoConfig"  # as `register_for_auto_class` would set it for each family
    code = {}  # a family's `auto_map`: one checkpoint serves each class; the code it names travels beside the weights

    num_items: int = 0
    history_items: int = 0
    history_text: bool = True
    history_decay: float | None = None
    catalogue_whitening: float | None = None
    history_reading: str = "text"
    history_projection: bool = False
    item_projection: bool = False
    repeat_items: int = 0
    token_head: bool = False
    catalogue_fingerprint: str | None = None

    def __post_init__(self, **kwargs):
        kwargs["auto_map"] = {**self.code, **(kwargs.get("auto_map") or {})}
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, and the code that config.json (for `pipeline`) and modules.json (for
        `SentenceTransformer`) name lies beside them, however a model was saved."""
        names = [PIPELINE.partition(".")[0], EMBEDDING.partition(".")[0]]
        try:
            copy_code(self, names, save_directory)
            self.custom_pipelines = {TASK: {"impl": PIPELINE, "pt": ["AutoModel"]}}
            modules = [{"idx": 0, "name": "0", "path": "", "type": EMBEDDING}]
            (Path(save_directory) / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            reason = str(error).splitlines()[0]
            logger.warning(
                f"{save_directory} is saved without the code of its pipeline, which was not found: {reason}"
            )
            self.custom_pipelines = {}
        super().save_pretrained(save_directory, **kwargs)

    @property
    def vector_size(self) -> int:
        """Width of a history's or an item's vector."""
        return self.hidden_size

    def validate_shape(self):
        """There is something of everything, and dropout leaves something."""
        for name, value in vars(self).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and name in SIZES and not value >= 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
            if is_number and name in ("num_hidden_layers", "num_layers") and value > MOST_LAYERS:
                raise ValueError(f"{name} must be at most {MOST_LAYERS}, got more.")
            if is_number and name in SCALES and not 0 < value < inf:
                raise ValueError(f"{name} must be above 0, got {value}.")
            if is_number and "dropout" in name and not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}.")

    def validate_history(self):
        """Something of a history is read."""
        for name in ("num_items", "history_items", "repeat_items"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.history_decay is not None and not 0 < self.history_decay <= 1:
            raise ValueError(f"history_decay must be above 0 and at most 1, got {self.history_decay}.")
        if self.catalogue_whitening is not None and not 0 <= self.catalogue_whitening <= 1:
            raise ValueError(f"catalogue_whitening must be at least 0 and at most 1, got {self.catalogue_whitening}.")
        if self.history_reading not in ("text", "items"):
            raise ValueError(f'history_reading must be "text" or "items", got "{self.history_reading}".')
        if self.history_reading == "items" and (self.history_items or self.history_decay is None):
            raise ValueError('history_reading "items" needs a history_decay, and history_items 0.')
        if self.item_projection and self.history_reading != "items":
            raise ValueError('item_projection needs history_reading "items".')
        if not self.history_text and not self.history_items:
            raise ValueError("history_text is false and history_items is 0: nothing of the history would be read.")


@with_plain_errors
@strict
class Jepa4RecConfig(SeqRecConfig):
    """Shape of a JEPA4Rec model. One encoder serves three families of weights: Longformer, RoBERTa and BERT.

    Args (those that `BertConfig` does not have, or that mean more here):
        position_offset: row of the position table that the first token reads: 0 for BERT, 2 for RoBERTa, Longformer.
        count_pad_tokens: whether a padding token that stands in a text (not behind it) counts among the positions.
            False as in RoBERTa and Longformer: it reads the row before `position_offset`, as if it were no token.
        type_vocab_size: token types: 0 `[CLS]`, 1 attribute name, 2 attribute value, 3 padding.
        max_item_embeddings: rows of the item-position table; row 0 is `[CLS]`, row k the k-th most recent item.
        attention_window: two-sided window in tokens (64 = 32 to each side). When set, `[CLS]` attends to all tokens
            through projections of its own and all tokens attend to it, as in Longformer with one global token.
            `None` is full attention.
        token_types, item_positions: whether tokens are told apart by type and by item; without, all take the `[CLS]`
            row of that table (an ablation).
        pooling: `"cls"` (the hidden state of `[CLS]`) or `"mean"` (over all tokens), what `pooler_output` holds.
        projection: whether a linear layer (d to d) stands behind the pooling, and reads its vector made one long. It
            can hold a whitening of the vectors (`Jepa4RecModel.whiten`).
        num_items, history_items, history_text, catalogue_fingerprint: as in `SeqRecConfig`.

    Raises:
        ValueError: a value of the wrong type or outside its range; the message names the field.
    """

    model_type = "jepa4rec"
    code = {
        "AutoConfig": "configuration_jepa4rec.Jepa4RecConfig",
        "AutoModel": "modeling_jepa4rec.Jepa4RecModel",
        "AutoModelForPreTraining": "modeling_jepa4rec.Jepa4RecForPreTraining",
    }

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    position_offset: int = 0
    count_pad_tokens: bool = True
    type_vocab_size: int = 4
    max_item_embeddings: int = 51
    token_types: bool = True
    item_positions: bool = True
    attention_window: int | None = None
    pooling: str = "cls"
    projection: bool = False
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    cls_token_id: int | None = None
    tie_word_embeddings: bool = True

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, `[CLS]` included."""
        return self.max_position_embeddings - self.position_offset

    def validate_heads(self):
        """Every head has the same width."""
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of "
                f"num_attention_heads ({self.num_attention_heads})."
            )

    def validate_attention_window(self):
        """The window is two-sided, so it is even."""
        window = self.attention_window
        if window is not None and (window < 2 or window % 2):
            raise ValueError(f"attention_window must be null or an even number of tokens >= 2, got {window}.")

    def validate_activation(self):
        """transformers knows the activation by its name."""
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {self.hidden_act!r}; it may be {', '.join(ACT2FN)}.")

    def validate_pooling(self):
        """`pooler_output` is one of two things."""
        if self.pooling not in ("cls", "mean"):
            raise ValueError(f'pooling must be "cls" or "mean", got "{self.pooling}".')

    def validate_positions(self):
        """A padding token that does not count has a row of its own."""
        if not self.count_pad_tokens and (self.position_offset < 1 or self.pad_token_id is None):
            raise ValueError("count_pad_tokens: false needs a pad_token_id and a position_offset of at least 1.")

    def validate_tables(self):
        """The embedding tables have room for what every input holds."""
        if self.position_offset < 0 or self.max_tokens < 1:
            raise ValueError(
                f"position_offset ({self.position_offset}) must be >= 0 and below "
                f"max_position_embeddings ({self.max_position_embeddings})."
            )
        if self.type_vocab_size < 4:
            raise ValueError(f"type_vocab_size must be >= 4 (CLS, name, value, pad), got {self.type_vocab_size}.")
        if self.max_item_embeddings < 2:
            raise ValueError(f"max_item_embeddings must be >= 2 (CLS and one item), got {self.max_item_embeddings}.")
