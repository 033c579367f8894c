"""What the optimiser sees: which parameters learn, at which rate, and how the rate moves with the step."""

import math

import torch
from torch import nn

# What stands around the text encoder and may learn at a rate of its own: the heads of pre-training, and what of a
# fine-tuned model belongs to the catalogue or to the score.
HEAD_PARAMETERS = ("predictor", "lm_head")
ITEM_PARAMETERS = (
    "item_matrix", "history_item_vectors", "history_projection", "item_projection", "repeat_bias", "log_recency",
    "log_text_gate", "log_scale",
)  # fmt: skip


def learning_rate_factor(step: int, total: int, warmup: float, schedule: str) -> float:
    """What the learning rates are multiplied with at optimiser step `step` (from 0) of `total`.

    Rises linearly over the first `warmup` fraction of the steps, then stays ("constant"), or falls to 0 at the end
    along a line ("linear") or half a cosine ("cosine"). "recformer" falls along the line that begins with 1 at step 0,
    so it drops where the rise ends: the schedule of RecFormer's published code. A function of the step alone, so a
    resumed run needs no scheduler state.
    """
    warmup_steps = round(warmup * total)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "recformer":
        return max(0.0, 1.0 - step / total)
    done = (step - warmup_steps) / max(1, total - warmup_steps)
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return 1.0


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Write `factor` × each group's own `peak_lr`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def freeze(model: nn.Module, word_embeddings: bool, layers: int) -> None:
    """Stop learning of the word embeddings, or of all embeddings and the lowest `layers` encoder layers.

    With all embeddings frozen nothing below the lowest learning layer needs a gradient, so autograd records nothing
    there: frozen layers cost a forward pass and no backward pass.

    Raises:
        ValueError: more layers than the encoder has.
    """
    if not (word_embeddings or layers):
        return
    encoder = model.base_model
    embeddings, *blocks = encoder.stages()
    if layers > len(blocks):
        raise ValueError(f"freeze_layers is {layers}, the encoder has {len(blocks)} layers")
    if word_embeddings:
        encoder.get_input_embeddings().requires_grad_(False)
    if layers:
        for module in (embeddings, *blocks[:layers]):
            module.requires_grad_(False)


def compile_token_wise(model: nn.Module) -> None:
    """Compile what sees tokens one by one: it fuses, and one compilation serves any number of tokens.

    Attention and pooling stay as they are: their shapes change with every batch.

    Raises:
        ValueError: an encoder that names no such parts.
    """
    kinds = getattr(model.base_model, "token_wise", ())
    if not kinds:
        raise ValueError(f"run.compile is for jepa4rec encoders, not for {type(model).__name__}: leave it out")
    for module in model.modules():
        if isinstance(module, kinds):
            module.compile(dynamic=True)


def parameter_groups(
    model: nn.Module, lr: float, lr_items: float, weight_decay: float, lr_heads: float | None = None
) -> list[dict]:
    """AdamW groups by (encoder, heads or item parameters) × (decayed or not), frozen parameters left out.

    LayerNorm weights, biases and scalars are not decayed: these are the parameters of fewer than two dimensions.
    Each group's `kind` is "lr", "lr_items" or, where `lr_heads` is given, "lr_heads".
    """
    rates, groups = {"lr": lr, "lr_items": lr_items, "lr_heads": lr_heads}, {}
    own_rate = dict.fromkeys(ITEM_PARAMETERS, "lr_items")
    if lr_heads is not None:
        own_rate |= dict.fromkeys(HEAD_PARAMETERS, "lr_heads")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = own_rate.get(name.split(".")[0], "lr")
            groups.setdefault((kind, weight_decay if parameter.ndim >= 2 else 0.0), []).append(parameter)
    return [
        {"params": parameters, "kind": kind, "lr": rates[kind], "peak_lr": rates[kind], "weight_decay": decay}
        for (kind, decay), parameters in groups.items()
    ]


def make_optimizer(
    model: nn.Module,
    lr: float,
    lr_items: float,
    weight_decay: float,
    betas: list[float],
    lr_heads: float | None = None,
):
    """AdamW in its fused form: one pass over memory a step instead of six, which shows on CPUs too."""
    groups = parameter_groups(model, lr, lr_items, weight_decay, lr_heads)
    if not groups:
        raise ValueError("every parameter is frozen: lower freeze_layers")
    return torch.optim.AdamW(groups, betas=tuple(betas), fused=True)
