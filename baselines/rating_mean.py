"""Mean rating: global mean plus what item and user deviate from it, each shrunk towards nothing to go on.

The least that a model of ratings has to beat. Counted, not trained, but saved and loaded as any model. The ST5 thesis'
"Mean Rating" (section 5.1.5) is the plain mean of each item: `damping` 0 and no `user_biases`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


class RatingMeanConfig(PreTrainedConfig):
    """Sizes of the bias tables; predictions stay within `lowest` and `highest`, the range of the training ratings.

    Args:
        damping: ratings of deviation 0 that every user and item is given besides its own.
        user_biases: whether users deviate too.
        catalogue_fingerprint: of the dataset whose users and items the numbers are.
    """

    model_type = "rating_mean"
    _auto_class = "AutoConfig"
    num_users: int = 1
    num_items: int = 1
    lowest: float = 1.0
    highest: float = 5.0
    damping: float = 5.0
    user_biases: bool = True
    catalogue_fingerprint: str | None = None


class RatingMean(PreTrainedModel):
    """rating(u, i) = mean + user_bias[u] + item_bias[i]; a user or item of index -1 is unknown and adds nothing."""

    config_class = RatingMeanConfig
    _auto_class = "AutoModel"
    trained_by, predicts_ratings = None, True

    def __init__(self, config: RatingMeanConfig):
        super().__init__(config)
        self.mean = nn.Parameter(torch.zeros(()), requires_grad=False)
        # The last entries are those of index -1.
        self.user_bias = nn.Parameter(torch.zeros(config.num_users + 1), requires_grad=False)
        self.item_bias = nn.Parameter(torch.zeros(config.num_items + 1), requires_grad=False)
        self.post_init()

    @classmethod
    def fit(
        cls,
        users: Tensor,
        items: Tensor,
        ratings: Tensor,
        num_users: int,
        num_items: int,
        damping: float = 5.0,
        user_biases: bool = True,
    ) -> "RatingMean":
        """Count the biases of training ratings, each of (n,).

        Args:
            damping, user_biases: as in `RatingMeanConfig`.

        Raises:
            ValueError: no ratings, or one that is not finite.
        """
        ratings = ratings.double()
        if not len(ratings) or not ratings.isfinite().all():
            raise ValueError("ratings must be finite numbers, at least one: there is no mean of these.")
        lowest, highest = float(ratings.min()), float(ratings.max())
        sizes = {"num_users": num_users, "num_items": num_items}
        settings = {"lowest": lowest, "highest": highest, "damping": damping, "user_biases": user_biases}
        model = cls(RatingMeanConfig(**sizes, **settings))
        rest = ratings - ratings.mean()
        item_bias = _damped_means(items, rest, num_items, damping)
        model.mean.fill_(ratings.mean())
        model.item_bias[:-1] = item_bias
        if user_biases:
            model.user_bias[:-1] = _damped_means(users, rest - item_bias[items], num_users, damping)
        return model

    start = fit  # what a run starts from is all there is

    def predict(self, users: Tensor, items: Tensor) -> Tensor:
        """Indices (n,) -> ratings (n,)."""
        ratings = self.mean + self.user_bias[users] + self.item_bias[items]
        return ratings.clamp(self.config.lowest, self.config.highest)

    def score(self, histories: Sequence) -> Tensor:
        """B histories -> (B, N): what somebody unknown would give, for whom the items rated best come first."""
        return self.item_bias[:-1].expand(len(histories), -1)

    @property
    def num_items(self) -> int:
        return self.config.num_items


def _damped_means(groups: Tensor, values: Tensor, num_groups: int, damping: float) -> Tensor:
    sums = values.new_zeros(num_groups).index_add_(0, groups, values)
    counts = torch.bincount(groups, minlength=num_groups)
    return sums / (counts + damping).clamp_min(1e-12)
