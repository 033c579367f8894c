"""LlamaRec (Yue et al., 2023): LRURec finds candidates, a causal language model reads their titles and ranks them.

The model is asked, after the titles of the history and of the candidates, for one letter; the logits of the letters
are the candidates' scores, so nothing is generated (the paper's verbaliser). `next_item` trains the retriever, `rank`
the language model: the last item of an example among `num_candidates` - 1 items at random. Candidates keep the places
of the retriever's best, in the language model's order.

Any causal language model of transformers in `model.init` will do. It is part of the checkpoint with all the prompt's
tokens, so ranking needs no tokenizer. Unlike in the paper, which tunes Llama 2 in four bits by LoRA, all its weights
learn; the prompt's pieces are encoded one by one; and a prompt that is too long loses its oldest items.
"""

import string
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from .item_sequences import PADDING, Items, last_places, pad_sequences, split_last
from .lrurec import LruRec, LruRecConfig

PROMPT = {
    "opening": "### Instruction:\nGiven user history in chronological order, recommend an item from the candidate "
    "pool with its index letter.\n\n### Input:\nUser history: ",
    "middle": "; \n Candidate pool: ",
    "closing": "\n\n### Response:\n",
    "line": " \n ",
}
RANKED_AT_ONCE = 16  # prompts


@strict
class LlamaRecConfig(LruRecConfig):
    """Shape of LlamaRec; other arguments, of the retriever, as `LruRecConfig`.

    Args:
        num_candidates: items that the language model ranks, at most 26.
        max_title_tokens, max_shown, max_prompt_tokens: of a title, newest items of a history, and tokens, in a prompt.
        reranks: whether the language model has been trained, and ranks.
        language_model: its configuration. Made with the model, as are
        prompt: the token ids of the prompt's pieces.
    """

    model_type = "llamarec"
    num_candidates: int = 20
    max_title_tokens: int = 32
    max_shown: int = 20
    max_prompt_tokens: int = 1536
    reranks: bool = False
    language_model: dict | None = None
    prompt: dict | None = None

    def validate_candidates(self):
        """Every candidate has a letter."""
        if not 2 <= self.num_candidates <= len(string.ascii_uppercase):
            raise ValueError(f"num_candidates must lie between 2 and 26, got {self.num_candidates}.")
        if self.max_shown < 1 or self.max_title_tokens < 1:
            raise ValueError("max_shown and max_title_tokens must be at least 1.")


class LlamaRec(LruRec):
    """LRURec, and a causal language model that puts its best items in order."""

    config_class = LlamaRecConfig
    objectives = ("next_item", "rank")
    item_weights = ("item_embeddings", "titles")
    reads_texts = True

    def __init__(self, config: LlamaRecConfig):
        super().__init__(config)
        self.register_buffer("titles", torch.full((config.num_items, config.max_title_tokens), PADDING))
        language = AutoConfig.for_model(**config.language_model) if config.language_model else None
        self.language_model = AutoModelForCausalLM.from_config(language) if language else None
        self.post_init()

    @classmethod
    def for_catalogue(cls, shape: dict, items: Items) -> "LlamaRec":
        """As in the base. Raises ValueError where `init` names no causal language model, OSError where it is not."""
        if items.init == "scratch":
            raise ValueError("llamarec ranks by a causal language model: name one in model.init")
        tokenizer = AutoTokenizer.from_pretrained(items.init)
        language = AutoModelForCausalLM.from_pretrained(items.init, dtype=torch.float32)
        prompt = prompt_tokens(tokenizer, shape.get("max_shown", LlamaRecConfig.max_shown))
        shape_of_language = language.config.to_dict()
        shape_of_language.pop("_name_or_path", None)  # a folder of this machine
        own = {"language_model": shape_of_language, "prompt": prompt}
        model = cls(cls.config_class(**{**shape, **own}))
        model.language_model.load_state_dict(language.state_dict())
        for row, text in zip(model.titles, items.texts, strict=True):
            ids = tokenizer.encode(title_of(text), add_special_tokens=False)[: len(row)]
            row[: len(ids)] = torch.tensor(ids)
        return model

    def start_phase(self, objective: str) -> None:
        super().start_phase(objective)
        self.requires_grad_(objective == "next_item")
        self.language_model.requires_grad_(objective == "rank")
        self.config.reranks = self.config.reranks or objective == "rank"

    @property
    def num_candidates(self) -> int:
        return min(self.config.num_candidates, self.config.num_items)

    def losses(self, item_ids: Tensor, known: Tensor) -> dict[str, Tensor]:
        """The retriever's softmax over the catalogue; or "letters", the language model's over the candidates."""
        if self.objective != "rank":
            return super().losses(item_ids, known)
        histories, targets = split_last(item_ids)
        candidates, places = self.draw_candidates(item_ids, targets)
        return {"letters": F.cross_entropy(self.letter_logits(histories, candidates), places)}

    def draw_candidates(self, item_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (B,) among other items, none twice and none of the row where there are enough: (B, C), and the
        places (B,) of the targets."""
        order = torch.rand(len(targets), self.config.num_items, device=targets.device)
        order.scatter_add_(1, item_ids.clamp_min(0), -2.0 * (item_ids != PADDING))
        order.scatter_(1, targets[:, None], torch.inf)
        chosen = order.topk(self.num_candidates, dim=1).indices  # the target comes first
        shuffle = torch.rand(chosen.shape, device=chosen.device).argsort(dim=1)
        candidates = chosen.gather(1, shuffle)
        return candidates, (candidates == targets[:, None]).int().argmax(dim=1)

    def letter_logits(self, histories: Tensor, candidates: Tensor) -> Tensor:
        """What the language model thinks of candidates (B, C) after histories (B, L), padded at the end: (B, C)."""
        prompts = [self.write_prompt(*pair) for pair in zip(histories.tolist(), candidates.tolist(), strict=True)]
        ids = pad_sequences(prompts, self.config.max_prompt_tokens).to(histories.device)
        known, decoder = ids != PADDING, self.language_model.get_decoder()
        # Padding comes last, so causal attention never looks at it.
        states = decoder(input_ids=ids.clamp_min(0), attention_mask=known.long()).last_hidden_state
        letters = torch.tensor(self.config.prompt["answers"][: candidates.shape[1]], device=ids.device)
        head = self.language_model.get_output_embeddings()
        bias = None if head.bias is None else head.bias[letters]
        return F.linear(last_places(states, known.sum(1)), head.weight[letters], bias).float()

    def write_prompt(self, history: Sequence[int], candidates: Sequence[int]) -> list[int]:
        """Token ids of the question about one history, of which the oldest items are left out where it is too long."""
        prompt = self.config.prompt
        pool = self._listed(candidates, prompt["letters"])
        ends = len(prompt["opening"]) + len(prompt["middle"]) + len(pool) + len(prompt["closing"])
        shown = [item for item in history if item != PADDING][-self.config.max_shown :]
        told = self._listed(shown, prompt["numbers"])
        while shown and ends + len(told) > self.config.max_prompt_tokens:
            shown = shown[1:]
            told = self._listed(shown, prompt["numbers"])
        return [*prompt["opening"], *told, *prompt["middle"], *pool, *prompt["closing"]]

    def _listed(self, items: Sequence[int], marks: Sequence[list[int]]) -> list[int]:
        """Items one a line, each after its mark."""
        ids = []
        for place, item in enumerate(items):
            title = self.titles[item]
            ids += (self.config.prompt["line"] if place else []) + marks[place] + title[title != PADDING].tolist()
        return ids

    @torch.no_grad()
    def rerank(self, histories: Sequence, scores: Tensor) -> Tensor:
        if not self.config.reranks:
            return scores
        best, candidates = scores.topk(self.num_candidates, dim=1)
        order = self.order_candidates(histories, candidates).to(candidates.device)
        return scores.scatter(1, candidates.gather(1, order), best)

    @torch.no_grad()
    def order_candidates(self, histories: Sequence, candidates: Tensor) -> Tensor:
        """Places of the candidates (B, C) by the language model, best first; histories as for `encode_histories`."""
        rows = pad_sequences(histories, self.config.max_length).to(self.device)
        blocks = zip(rows.split(RANKED_AT_ONCE), candidates.to(self.device).split(RANKED_AT_ONCE), strict=True)
        return torch.cat([self.letter_logits(*block) for block in blocks]).argsort(dim=1, descending=True)


def title_of(item: Mapping[str, str]) -> str:
    return item.get("title") or next(iter(item.values()))


def prompt_tokens(tokenizer, max_shown: int) -> dict:
    """Token ids of the prompt's pieces, of the marks before items, and of the letters that may answer.

    Raises ValueError for a vocabulary that does not tell the letters apart.
    """

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    pieces = {name: encode(text) for name, text in PROMPT.items()}
    if tokenizer.bos_token_id is not None:
        pieces["opening"] = [tokenizer.bos_token_id, *pieces["opening"]]
    letters = string.ascii_uppercase
    answers = [encode(letter)[-1] for letter in letters]
    if len(set(answers)) < len(letters):
        raise ValueError("the language model's vocabulary does not tell the letters A to Z apart")
    marks = {
        "numbers": [encode(f"({n}) ") for n in range(1, max_shown + 1)],
        "letters": [encode(f"({x}) ") for x in letters],
    }
    return {**pieces, **marks, "answers": answers}
