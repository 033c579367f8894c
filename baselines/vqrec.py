"""VQ-Rec (Hou et al., 2023): text -> code -> representation. An item is the mean of its codes' embeddings.

Optimised product quantisation (Ge et al., 2013) rotates a text vector, cuts it into D parts, and tells each part by
the nearest of its M centroids: the codes. Items of like texts share code embeddings, and no vector of text is read.
`objective: pretrain` is the paper's contrastive pre-training: the batch's next items are the negatives (of several
domains where the dataset mixes them, see `domains`), and for each row a made-up item, its own target with most codes
drawn anew. Started from that by `model.pretrained`, `objective: align` learns which code of the new items takes the
embedding of which old one, a permutation of each part's codes (Gumbel-Sinkhorn), with all else fixed; `next_item`
then learns on, the Transformer too unless `fixed_body`.

Unlike the published code, a repeated target is no negative at all (there it counts as one of logit 0), the permutation
gets its gradient straight through the hard choice (there the rounding lets none through), and codes are fitted to all
items of the catalogue, not those of the training part alone.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from .item_sequences import TransformerBody, contrastive, split_last
from .text_vectors import TextSequenceConfig, TextSequenceModel, standardised

SINKHORN_ROUNDS, SINKHORN_TEMPERATURE = 3, 0.7
OWN_EMBEDDING = 5.0  # logit of a code's own embedding before another is learned


@strict
class VqRecConfig(TextSequenceConfig):
    """Shape of VQ-Rec; other arguments as `TextSequenceConfig`, whose `text_size` must be a multiple of `code_length`.

    Args:
        code_length: codes of an item, D.
        code_size: values each of them can take, M.
        fake_rate: share of codes drawn anew in pre-training's made-up items.
        align: have a matrix to align the codes of other items with, which `objective: align` learns.
        fixed_body: learn the code embeddings alone, as with a pre-trained Transformer.
    """

    model_type = "vqrec"
    code_length: int = 32
    code_size: int = 256
    fake_rate: float = 0.75
    align: bool = False
    fixed_body: bool = False
    temperature: float | None = 0.07

    def validate_codes(self):
        """The text vector is cut into equal parts."""
        if self.code_length < 1 or self.code_size < 2 or self.text_size % self.code_length:
            raise ValueError(
                f"text_size ({self.text_size}) must be a multiple of code_length ({self.code_length}), and code_size "
                f"({self.code_size}) at least 2."
            )


class VqRec(TextSequenceModel):
    """Causal Transformer over pooled code embeddings; `codes` (num_items, D) is all that is kept of the texts."""

    config_class = VqRecConfig
    objectives = ("next_item", "pretrain", "align")
    item_weights = ("codes", "alignment")

    def __init__(self, config: VqRecConfig):
        super().__init__(config)
        del self.text_vectors
        self.register_buffer("codes", torch.zeros(config.num_items, config.code_length, dtype=torch.int64))
        self.code_embeddings = nn.Embedding(config.code_length * config.code_size, config.hidden_size)
        if config.align:
            self.alignment = nn.Parameter(torch.zeros(config.code_length, config.code_size, config.code_size))
        self.body = TransformerBody(config, config.max_length)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is not self:
            return super()._init_weights(module)
        init.zeros_(self.codes)
        if self.config.align:
            init.copy_(self.alignment, self._identity())

    def _identity(self) -> Tensor:
        own = OWN_EMBEDDING * torch.eye(self.config.code_size, device=self.alignment.device)
        return own.expand(self.config.code_length, -1, -1)

    @torch.no_grad()
    def set_text_vectors(self, vectors: Tensor) -> None:
        """Take the codes of the items' text vectors (num_items, text_size); errors as `standardised`."""
        vectors = standardised(vectors, self.config)
        self.codes.copy_(product_codes(vectors, self.config.code_length, self.config.code_size))

    def start_phase(self, objective: str) -> None:
        """As in the base; raises ValueError for "align" without `align` in the configuration."""
        if objective == "align" and not self.config.align:
            raise ValueError("objective align needs model.config.align: true, a matrix to learn")
        super().start_phase(objective)
        self.requires_grad_(objective != "align")
        self.body.requires_grad_(objective == "pretrain" or (objective == "next_item" and not self.config.fixed_body))
        if self.config.align:
            self.alignment.requires_grad_(objective == "align")
            if objective != "align":
                self.settle_alignment()

    @torch.no_grad()
    def settle_alignment(self) -> None:
        """Give each code the embedding it was aligned with, for good: it learns on its own from now on."""
        self.code_embeddings.weight.copy_(self.code_table())
        self.alignment.copy_(self._identity())

    def code_table(self) -> Tensor:
        """Embeddings of all codes (D * M, d), aligned where `config.align`."""
        if not self.config.align:
            return self.code_embeddings.weight
        table = self.code_embeddings.weight.unflatten(0, (self.config.code_length, self.config.code_size))
        learning = self.training and self.objective == "align"
        soft = sinkhorn(self.alignment + gumbel_like(self.alignment) if learning else self.alignment)
        hard = F.one_hot(soft.argmax(dim=2), soft.shape[2]).to(soft)
        return ((hard + soft - soft.detach() if learning else hard) @ table).flatten(0, 1)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Codes (n, D) -> (n, d), the mean of their embeddings."""
        first = self.config.code_size * torch.arange(codes.shape[1], device=codes.device)
        return F.embedding_bag(codes + first, self.code_table(), mode="mean")

    def item_vectors(self) -> Tensor:
        return self.embed_codes(self.codes)

    def losses(self, item_ids: Tensor, known: Tensor) -> dict[str, Tensor]:
        """The softmax over the catalogue; in pre-training "contrastive", of the last item alone."""
        if self.objective != "pretrain":
            return super().losses(item_ids, known)
        histories, targets = split_last(item_ids)
        users, items = self.user_vectors(histories), self.item_vectors()
        fakes = self.embed_codes(self.fake_codes(targets))
        return {"contrastive": contrastive(users, items[targets], targets, self.config.temperature, fakes)}

    def fake_codes(self, targets: Tensor) -> Tensor:
        """Codes (B, D) of items that nobody sells: each code of a target is drawn anew at `fake_rate`."""
        codes = self.codes[targets]
        drawn = torch.rand(codes.shape, device=codes.device) < self.config.fake_rate
        return torch.where(drawn, torch.randint_like(codes, self.config.code_size), codes)


def gumbel_like(logits: Tensor) -> Tensor:
    return -torch.empty_like(logits).exponential_().clamp_min(1e-20).log()


def sinkhorn(logits: Tensor) -> Tensor:
    """Logits (D, M, M) -> matrices whose columns sum to 1 and whose rows nearly do."""
    logs = logits / SINKHORN_TEMPERATURE
    for _ in range(SINKHORN_ROUNDS):
        logs = logs.log_softmax(dim=2).log_softmax(dim=1)
    return logs.exp()


@torch.no_grad()
def product_codes(vectors: Tensor, length: int, size: int, rounds: int = 10, seed: int = 0) -> Tensor:
    """Codes (N, length) of vectors (N, t) by optimised product quantisation; the same vectors give the same codes.

    A rotation and the centroids of each part are fitted in turns: one step of k-means for the centroids, then the
    rotation that brings the vectors nearest to what their codes stand for (orthogonal Procrustes).
    """
    vectors = vectors.float() - vectors.float().mean(dim=0)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(len(vectors), (size,), generator=generator)
    if len(vectors) >= size:
        start = torch.randperm(len(vectors), generator=generator)[:size]
    rotation, centroids = torch.eye(vectors.shape[1]).to(vectors), None
    for _ in range(rounds):
        parts = (vectors @ rotation).unflatten(1, (length, -1)).transpose(0, 1)  # (D, N, t / D)
        centroids = parts[:, start.to(parts.device)] if centroids is None else centroids
        codes = nearest(parts, centroids)
        fitted = zip(parts, codes, centroids, strict=True)
        centroids = torch.stack([means(part, own, old) for part, own, old in fitted])
        told = torch.stack([own[rows] for own, rows in zip(centroids, codes, strict=True)], dim=1).flatten(1)
        left, _, right = torch.linalg.svd(vectors.T @ told)
        rotation = left @ right
    parts = (vectors @ rotation).unflatten(1, (length, -1)).transpose(0, 1)
    return nearest(parts, centroids).T


def nearest(parts: Tensor, centroids: Tensor) -> Tensor:
    """parts (D, N, s), centroids (D, M, s) -> the nearest one's number (D, N)."""
    return torch.stack(
        [
            torch.cat([torch.cdist(rows, own).argmin(dim=1) for rows in part.split(2**16)])
            for part, own in zip(parts, centroids, strict=True)
        ]
    )


def means(points: Tensor, groups: Tensor, old: Tensor) -> Tensor:
    """Mean of the points (N, s) of each group (N,); a group without any keeps its old one, (M, s)."""
    counts = torch.bincount(groups, minlength=len(old))[:, None]
    sums = torch.zeros_like(old).index_add_(0, groups, points)
    return torch.where(counts > 0, sums / counts.clamp_min(1), old)
