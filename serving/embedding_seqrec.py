"""What `SentenceTransformer(CHECKPOINT, trust_remote_code=True)` runs: modules.json beside the weights names it.

    model = SentenceTransformer(CHECKPOINT, trust_remote_code=True)
    items = model.encode([{"title": "Green tea"}, {"title": "Ceramic teapot", "brand": "Hearth"}])
    users = model.encode([[{"title": "Black tea"}, {"title": "Tea cosy"}]])
    model.similarity(users, items)

A dict is an item, a list of items a history, oldest first; a string is read as plain text. The vectors are those of
the pipeline's catalogue and search, one long. Only sentence-transformers loads this file; it gives no gradients.
"""

from collections.abc import Mapping, Sequence

import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .pipeline_catalogue import save_item_ids
from .pipeline_seqrec import SequentialRecommendationPipeline, save_checkpoint_files

KINDS = ("text", "item", "history")


class ItemSentEmbedding(InputModule):
    """Texts, items and histories -> `sentence_embedding` (B, d), one long."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.pipe = SequentialRecommendationPipeline(model, tokenizer)
        self.model, self.tokenizer = self.pipe.model, tokenizer

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **kwargs,
    ) -> "ItemSentEmbedding":
        hub = {"token": token, "cache_dir": cache_folder, "local_files_only": local_files_only}
        # Opened only where code of the checkpoint is trusted: this file is such code.
        hub |= {"revision": revision or "main", "trust_remote_code": True}
        wanted = {name: kwargs.get(name) or {} for name in ("model_kwargs", "processor_kwargs", "config_kwargs")}
        options = hub | wanted["model_kwargs"] | wanted["config_kwargs"]
        model = AutoModel.from_pretrained(model_name_or_path, **options)
        return cls(model, AutoTokenizer.from_pretrained(model_name_or_path, **hub | wanted["processor_kwargs"]))

    def preprocess(self, inputs: Sequence[str | Mapping | Sequence[Mapping]], prompt: str | None = None, **kwargs):
        """The inputs by kind; their tokens are cut by the pipeline. Raises ValueError for anything else."""
        if prompt:
            raise ValueError("This model reads items and histories; it takes no prompt.")
        kinds = torch.tensor([KINDS.index(_kind(place, value)) for place, value in enumerate(inputs)])
        return {"inputs": list(inputs), "kinds": kinds}

    @torch.no_grad()
    def forward(self, features: dict, **kwargs) -> dict:
        self.pipe.device = self.model.device
        encode = {"text": self._texts, "item": self.pipe.item_vectors, "history": self.pipe.user_vectors}
        vectors = torch.empty(len(features["inputs"]), self.get_embedding_dimension(), device=self.model.device)
        for kind, name in enumerate(KINDS):
            places = (features["kinds"] == kind).nonzero().flatten().tolist()
            if places:
                vectors[places] = encode[name]([features["inputs"][place] for place in places]).to(vectors)
        return features | {"sentence_embedding": vectors}

    def _texts(self, texts: list[str]) -> Tensor:
        options = {"padding": True, "truncation": True, "max_length": self.tokenizer.max_tokens}
        batch = self.tokenizer(texts, return_tensors="pt", **options).to(self.model.device)
        vectors = self.model.base_model.embed(batch["input_ids"], batch["attention_mask"])
        return torch.nn.functional.normalize(vectors, dim=1)

    @property
    def max_seq_length(self) -> int:
        """Tokens that are read of a text, an item or a history."""
        return self.tokenizer.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.pipe.tokenizer = self.tokenizer = type(self.tokenizer).wrap(self.tokenizer, max_tokens=value)

    def get_embedding_dimension(self) -> int:
        return self.model.config.vector_size

    def save(self, output_path: str, *args, **kwargs) -> None:
        save_checkpoint_files(self.model, self.tokenizer, output_path)
        if self.pipe.known_items:
            save_item_ids(output_path, list(self.pipe.known_items["rows"]), self.pipe.known_items["popularity"])


def _kind(place: int, value) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "item"
    if isinstance(value, list | tuple) and len(value) and all(isinstance(item, Mapping) for item in value):
        return "history"
    raise ValueError(
        f"Input {place} is {value!r}: give an item {{attribute: text}}, a history (a list of items, oldest first, not "
        "empty), or a text."
    )
