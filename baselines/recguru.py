"""RecGURU (Li et al., 2022): an autoencoder of sequences whose code, the user, tells nothing of the domain.

An encoder reads a sequence both ways; its last place is the generalised user representation. `objective: pretrain`
asks a decoder to say the sequence again from that vector alone, and a discriminator to name the user's domain by it,
while the encoder learns to leave it unable to. `next_item` then learns a recommender, which reads the history from
left to right with the user's vector beside, and the encoder with it unless `fixed_encoder`.

The published code attends to copies of that vector, which gives each place the same linear map of it, as here. Unlike
there, one item table, decoder and recommender serve all domains; the adversary is a reversed gradient in one optimiser
(Ganin et al., 2016), not steps in turn; both losses are the softmax over the whole catalogue, not sampled ones; only
the last item of an example is predicted, so that the user's vector never holds what is asked; users known in two
domains, which the paper draws together, are not looked for. In a dataset of one domain there is no adversary.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from .item_sequences import (
    PADDING,
    Items,
    ItemSequenceConfig,
    ItemSequenceModel,
    TransformerBody,
    full_softmax,
    last_places,
    split_last,
    taken,
)


@strict
class RecGuruConfig(ItemSequenceConfig):
    """Shape of RecGURU, the same for its three stacks; other arguments as `ItemSequenceConfig`.

    Args:
        num_domains: counted from the items.
        discriminator_size: width of the discriminator's hidden layers.
        adversary_weight: of what it holds against the encoder.
        fixed_encoder: the recommender learns nothing of the encoder, as in the published runs.
    """

    model_type = "recguru"
    num_domains: int = 1
    discriminator_size: int = 640
    adversary_weight: float | int = 0.1
    fixed_encoder: bool = False


class RecGuru(ItemSequenceModel):
    """Encoder, decoder and recommender over one table of items; with several domains, a discriminator."""

    config_class = RecGuruConfig
    objectives = ("next_item", "pretrain")
    item_weights = ("item_embeddings", "item_domains", "discriminator")

    def __init__(self, config: RecGuruConfig):
        super().__init__(config)
        width, inner = config.hidden_size, config.discriminator_size
        self.register_buffer("item_domains", torch.zeros(config.num_items, dtype=torch.int64))
        self.item_embeddings = nn.Embedding(config.num_items, width)
        self.start = nn.Parameter(torch.zeros(width))  # what the decoder reads before the first item
        self.encoder = TransformerBody(config, config.max_length + 1)
        self.decoder = TransformerBody(config, config.max_length + 1)
        self.recommender = TransformerBody(config, config.max_length)
        self.decoder_user, self.recommender_user = nn.Linear(width, width), nn.Linear(width, width)
        if config.num_domains > 1:
            layers = nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, inner), nn.ReLU()
            self.discriminator = nn.Sequential(*layers, nn.Linear(inner, config.num_domains))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.item_domains)
            init.zeros_(self.start)

    @classmethod
    def for_catalogue(cls, shape: dict, items: Items) -> "RecGuru":
        domains = items.domains or [""] * len(items.texts)
        numbers = {name: number for number, name in enumerate(dict.fromkeys(domains))}
        model = cls(cls.config_class(**{**shape, "num_domains": len(numbers)}))
        model.item_domains.copy_(torch.tensor([numbers[name] for name in domains]))
        return model

    def start_phase(self, objective: str) -> None:
        super().start_phase(objective)
        self.requires_grad_(True)
        idle = [self.recommender, self.recommender_user]
        if objective == "next_item":
            idle = [self.decoder, self.decoder_user, *([self.discriminator] if self.config.num_domains > 1 else [])]
            idle += [self.encoder] if self.config.fixed_encoder else []
        for module in idle:
            module.requires_grad_(False)
        self.start.requires_grad_(objective == "pretrain")

    def represent(self, item_ids: Tensor) -> Tensor:
        """The generalised representation of the users of sequences (B, L): (B, d)."""
        known = item_ids != PADDING
        hidden = self.encoder(self.item_vectors()[item_ids.clamp_min(0)], known[:, None, None, :])
        return last_places(hidden, known.sum(1))

    def user_vectors(self, histories: Tensor) -> Tensor:
        items, users = self.item_vectors()[histories.clamp_min(0)], self.represent(histories)
        users = users.detach() if self.config.fixed_encoder else users
        hidden = self.recommender(items + self.recommender_user(users)[:, None])
        return last_places(hidden, (histories != PADDING).sum(1))

    def examples(self, item_ids: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The last item of each sequence alone."""
        histories, targets = split_last(item_ids)
        return self.user_vectors(histories), targets, self.item_vectors()

    def losses(self, item_ids: Tensor, known: Tensor) -> dict[str, Tensor]:
        """The softmax over the catalogue; in pre-training "reconstruction" and, of several domains, "domain"."""
        if self.objective != "pretrain":
            return super().losses(item_ids, known)
        users = self.represent(item_ids)
        parts = {"reconstruction": self.reconstruction_loss(item_ids, known, users)}
        if self.config.num_domains > 1:
            domains = self.item_domains[item_ids[:, 0]]
            asked = ReversedGradient.apply(users, self.config.adversary_weight)
            parts["domain"] = F.cross_entropy(self.discriminator(asked), domains)
        return parts

    def reconstruction_loss(self, item_ids: Tensor, known: Tensor, users: Tensor) -> Tensor:
        """Mean of -log softmax of every item of (B, L), told by the users (B, d) and the items before it."""
        items = self.item_vectors()
        before = torch.cat([self.start.expand(len(users), 1, -1), items[item_ids[:, :-1].clamp_min(0)]], dim=1)
        said = self.decoder(before + self.decoder_user(users)[:, None])
        return full_softmax(taken(said, known), taken(item_ids, known), items, self.config.temperature)


class ReversedGradient(torch.autograd.Function):
    """The identity, whose gradient is turned round and weighed."""

    @staticmethod
    def forward(ctx, vectors: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None
