"""PMF (Salakhutdinov and Mnih, 2007): a rating is the dot product of a user's and an item's vector.

With biases, unless the configuration says no `biases`, which is the paper's form and that of the ST5 thesis (section
5.1.5). The paper's Gaussian priors are the squared lengths of what a rating touches, `l2` times, in the loss; it
squashes ratings by a sigmoid, where these are kept in the range of the training ratings.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .item_sequences import ItemSequenceOutput


class PmfConfig(PreTrainedConfig):
    """Sizes of the tables, weight of the priors, whether users and items have biases, the training ratings' mean and
    range, and the fingerprint of the dataset whose users and items the numbers are.
    """

    model_type = "pmf"
    _auto_class = "AutoConfig"
    num_users: int = 1
    num_items: int = 1
    hidden_size: int = 16
    l2: float = 0.02
    biases: bool = True
    mean: float = 3.0
    lowest: float = 1.0
    highest: float = 5.0
    initializer_range: float = 0.1
    catalogue_fingerprint: str | None = None


class Pmf(PreTrainedModel):
    """rating(u, i) = mean + b_u + b_i + p_u · q_i; a user or item of index -1 is unknown and adds nothing.

    Without biases, users who are unknown tie all items.
    """

    config_class = PmfConfig
    _auto_class = "AutoModel"
    trained_by, predicts_ratings = "rating", True

    def __init__(self, config: PmfConfig):
        super().__init__(config)
        # One column more than the vectors: the bias, which stays 0 where there is none.
        self.users = nn.Embedding(config.num_users, config.hidden_size + 1)
        self.items = nn.Embedding(config.num_items, config.hidden_size + 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
            if not self.config.biases:
                init.zeros_(module.weight[:, -1])

    def forward(
        self, user_ids: Tensor, item_ids: Tensor, ratings: Tensor, telemetry: bool = False
    ) -> ItemSequenceOutput:
        """Mean squared error of ratings (n,) with the priors on what they touch."""
        users, items = self.users(user_ids), self.items(item_ids)
        error = (self._ratings(users, items) - ratings).square().mean()
        prior = (users.square().sum(1) + items.square().sum(1)).mean()
        parts = {"squared_error": error.detach(), "prior": prior.detach()}
        return ItemSequenceOutput(loss=error + self.config.l2 * prior, loss_parts=parts, telemetry={})

    def predict(self, users: Tensor, items: Tensor) -> Tensor:
        """Indices (n,), -1 for unknown, -> ratings (n,) within the range of the training ratings."""
        known = (users >= 0)[:, None], (items >= 0)[:, None]
        users, items = self.users(users.clamp_min(0)) * known[0], self.items(items.clamp_min(0)) * known[1]
        return self._ratings(users, items).clamp(self.config.lowest, self.config.highest)

    def score(self, histories: Sequence) -> Tensor:
        """B histories -> (B, N): what somebody unknown would give, for whom the items rated best come first."""
        return self.items.weight[:, -1].detach().expand(len(histories), -1)

    @property
    def num_items(self) -> int:
        return self.config.num_items

    def _ratings(self, users: Tensor, items: Tensor) -> Tensor:
        ratings = self.config.mean + (users[:, :-1] * items[:, :-1]).sum(1)
        return ratings + users[:, -1] + items[:, -1] if self.config.biases else ratings

    @classmethod
    def start(cls, users: Tensor, items: Tensor, ratings: Tensor, **shape) -> "Pmf":
        """An untrained model of the mean and range of training ratings (n,); `shape`: other fields of `PmfConfig`.

        Raises ValueError for no ratings, or one that is not finite.
        """
        if not len(ratings) or not ratings.isfinite().all():
            raise ValueError("ratings must be finite numbers, at least one: there is nothing to learn from these.")
        span = {"mean": ratings.mean().item(), "lowest": ratings.min().item(), "highest": ratings.max().item()}
        return cls(PmfConfig(**span, **shape))

    @classmethod
    def fit(
        cls,
        users: Tensor,
        items: Tensor,
        ratings: Tensor,
        num_users: int,
        num_items: int,
        epochs: int = 30,
        batch_size: int = 1024,
        lr: float = 1e-2,
        seed: int = 0,
        **shape,
    ) -> "Pmf":
        """Train on ratings (n,) by Adam; the same seed gives the same model.

        Args:
            shape: fields of `PmfConfig`.

        Raises:
            ValueError: no ratings, or one that is not finite.
        """
        ratings = ratings.float()
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls.start(users, items, ratings, num_users=num_users, num_items=num_items, **shape)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        for _ in range(epochs):
            for rows in torch.randperm(len(ratings), generator=generator).split(batch_size):
                optimizer.zero_grad()
                model(users[rows], items[rows], ratings[rows]).loss.backward()
                optimizer.step()
        return model.eval()
