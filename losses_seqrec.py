"""Objectives of language-based sequential recommendation: tensors in, named scalars out.

Everything here sees tensors only. Where several processes train together, each loss is returned so that its *mean
over the processes*, and so the gradient mean that DistributedDataParallel takes, is exactly the loss of the whole
batch, whatever the number of rows each process holds: in-batch negatives come from all processes, token losses are
divided by the global number of predicted tokens.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

NORM_EPSILON = 1e-12
PLAIN_SOFTMAX_ITEMS = 16_384  # up to here (B, N) logits and a normalised copy of the items cost no more than the loop
CHUNK_LOGITS = {"cpu": 2**18, "cuda": 2**26}  # logits held at a time: what fits a core's cache, what fills a GPU


# ---------------------------------------------------------------------------------------------------- settings


def _check_choice(objective: Any, field: str, choices: tuple[str, ...]) -> None:
    value = getattr(objective, field)
    if value not in choices:
        raise ValueError(f"objective.{field} is {value!r}: choose one of {', '.join(choices)}.")


def _check_range(objective: Any, field: str, low: float, high: float = math.inf, above: bool = False) -> None:
    """Require a number within [low, high], or within (low, high] when `above`."""
    value = getattr(objective, field)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value > high or value < low or (above and value == low):
        wanted = f"above {low}" if above else f"at least {low}"
        limit = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"objective.{field} is {value!r}: it must be a number {wanted}{limit}.")


def _check_flag(objective: Any, field: str) -> None:
    value = getattr(objective, field)
    if not isinstance(value, bool):
        raise ValueError(f"objective.{field} is {value!r}: it must be true or false.")


@dataclass(frozen=True)
class PreTrainingObjective:
    """What JEPA4Rec pre-training minimises: L = L_SI + mlm_weight L_MLM + map_weight L_map (section 3.3.2).

    The paper leaves open where the positive comes from, which history meets it, how far a prediction is from its
    target and how the target encoder moves; those are settings here, with the defaults of the nearest published work.

    Args:
        temperature: tau of the sequence-item contrastive loss.
        positive: which encoder embeds the clean next item, "context" (with gradients, as RecFormer) or "target".
        contrastive_history: h_CLS of the "masked" history (shared with the other losses) or of the "clean" one.
        mlm_average: one mean over the predicted "tokens" of history and next item, or the mean of each of the two
            "sides", added up (RecFormer).
        map_weight: at 0 neither predictor nor target vectors are computed, and the predictor does not learn.
        map_distance: "l2" is the paper's squared norm; "smooth_l1" as in I-JEPA. Both sum over the d dimensions.
        normalise_targets: layer-normalise the target vectors (without affine weights) before the distance.
        mask_duplicates: leave the same item as somebody else's positive out of the negatives.
        ema_start, ema_end: momentum of the target encoder at the first and at the last step, linear in between.
    """

    temperature: float = 0.05
    mlm_weight: float = 0.1
    map_weight: float = 0.1
    positive: str = "context"
    contrastive_history: str = "masked"
    mlm_average: str = "tokens"
    map_distance: str = "l2"
    normalise_targets: bool = False
    mask_duplicates: bool = True
    ema_start: float = 0.996
    ema_end: float = 1.0

    def __post_init__(self):
        _check_range(self, "temperature", 0, above=True)
        _check_range(self, "mlm_weight", 0)
        _check_range(self, "map_weight", 0)
        _check_choice(self, "positive", ("context", "target"))
        _check_choice(self, "contrastive_history", ("masked", "clean"))
        _check_choice(self, "mlm_average", ("tokens", "sides"))
        _check_choice(self, "map_distance", ("l2", "smooth_l1"))
        _check_flag(self, "normalise_targets")
        _check_flag(self, "mask_duplicates")
        _check_range(self, "ema_start", 0, 1)
        _check_range(self, "ema_end", 0, 1)


@dataclass(frozen=True)
class FineTuningObjective:
    """What fine-tuning minimises: cross-entropy over the whole catalogue on cos / temperature (JEPA4Rec,
    section 3.4).

    Args:
        temperature: where the temperature starts, or stays when `learn_temperature` is false.
        learn_temperature: train log(1 / temperature) with the rest.
        item_matrix: "learnable" trains the item vectors; "frozen" leaves them as encoded (RecFormer, Algorithm 1).
        unseen_items: what items are in the softmax that nobody bought in training: "negatives" as all others, which
            drives them away from every user; "fixed" keeps them where their text put them; "left_out" takes them out
            of the softmax, so that users do not learn to avoid them either.
        mlm_weight: lambda_1, of masked language modelling on the histories beside it (JEPA4Rec, Appendix C, names it
            among the settings); 0 leaves it out.
    """

    temperature: float = 0.05
    learn_temperature: bool = True
    item_matrix: str = "learnable"
    unseen_items: str = "negatives"
    mlm_weight: float = 0.0
    REMOVED: ClassVar = {
        "user_dropout": (0.0, "it helped no recipe"),
        "chunk_items": (None, "the catalogue's size decides"),
    }

    def __post_init__(self):
        _check_range(self, "temperature", 0, above=True)
        _check_flag(self, "learn_temperature")
        _check_choice(self, "item_matrix", ("learnable", "frozen"))
        _check_choice(self, "unseen_items", ("negatives", "fixed", "left_out"))
        _check_range(self, "mlm_weight", 0)


@dataclass(frozen=True)
class SentencePairObjective:
    """What ST5's phases minimise: the symmetric multiple-negatives ranking loss (section 4.4.3 of the thesis).

    Args:
        temperature: of the cosines; 0.05 is the scale of 20 that sentence-transformers takes.
        mask_duplicates: leave another pair with the same next item out of the negatives, in both directions.
    """

    temperature: float = 0.05
    mask_duplicates: bool = True

    def __post_init__(self):
        _check_range(self, "temperature", 0, above=True)
        _check_flag(self, "mask_duplicates")


# ---------------------------------------------------------------------------------------------------- processes


def process_count() -> int:
    """Number of processes that train together; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    return dist.get_rank() if process_count() > 1 else 0


def process_mean(values: Tensor) -> Tensor:
    """The mean of a detached tensor over all processes."""
    values = values.detach().clone()
    if process_count() > 1:
        dist.all_reduce(values)
        values /= process_count()
    return values


def whole_batch_mean(values: Tensor) -> Tensor:
    """Mean of `values` (n,) over the rows of all processes, as this process's share of it.

    The share is (sum over own rows) * processes / (number of rows everywhere), so the mean over processes of the
    shares is the mean over all rows. Zero when there is no row anywhere.
    """
    if process_count() == 1:
        return values.sum() / max(values.numel(), 1)
    rows = torch.tensor(values.numel(), device=values.device)
    dist.all_reduce(rows)
    return values.sum() * (process_count() / rows.clamp(min=1))


def rows_per_process(rows: int, device: torch.device) -> list[int]:
    """How many rows each process holds, in the order of the processes."""
    if process_count() == 1:
        return [rows]
    own = torch.tensor([rows], device=device)
    counts = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(counts, own)
    return torch.cat(counts).tolist()


class _AllGatherRows(torch.autograd.Function):
    """Rows of all processes; backward adds up what every process asks of our rows (accelerate's gather drops that)."""

    @staticmethod
    def forward(ctx, rows, counts):
        ctx.counts = counts
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        start = sum(ctx.counts[: process_index()])
        return grad[start : start + ctx.counts[process_index()]], None


def all_gather_with_gradient(rows: Tensor, counts: list[int] | None = None) -> Tensor:
    """Concatenate (n_r, ...) of every process r into (sum n_r, ...), differentiable; the identity on one process.

    Args:
        counts: `rows_per_process`, when the caller already has it.
    """
    if process_count() == 1:
        return rows
    return _AllGatherRows.apply(rows, counts or rows_per_process(len(rows), rows.device))


# ---------------------------------------------------------------------------------------------------- pre-training


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Autocast switched off: cosines divided by a temperature need more than the 8 bits of bfloat16."""
    return torch.autocast(tensor.device.type, enabled=False)


def normalise(vectors: Tensor) -> Tensor:
    """Vectors (..., d) of length one, in float32."""
    return F.normalize(vectors.float(), dim=-1, eps=NORM_EPSILON)


def contrastive_loss(
    user_vectors: Tensor, item_vectors: Tensor, temperature: float, item_ids: Tensor | None = None
) -> Tensor:
    """Sequence-item contrastive loss: -log softmax over the batch's items of cos(user, item) / temperature.

    JEPA4Rec section 3.3.2, L_S-I. Row i's positive is item i; its negatives are the items of all other rows of all
    processes, with gradients to them.

    Args:
        user_vectors, item_vectors: (B, d), any length.
        item_ids: (B,) which item each row has; the same item in another row is then no negative. None keeps them all.
    """
    with _full_precision(user_vectors):
        counts = rows_per_process(len(user_vectors), user_vectors.device)
        own = sum(counts[: process_index()]) + torch.arange(len(user_vectors), device=user_vectors.device)
        items = all_gather_with_gradient(normalise(item_vectors), counts)
        logits = normalise(user_vectors) @ items.T / temperature
        if item_ids is not None:
            same_item = item_ids[:, None] == all_gather_with_gradient(item_ids, counts)[None, :]
            logits = logits.masked_fill(same_item.scatter(1, own[:, None], False), -math.inf)
        return whole_batch_mean(F.cross_entropy(logits, own, reduction="none"))


def symmetric_ranking_loss(
    anchors: Tensor, positives: Tensor, temperature: float, pair_ids: Tensor | None = None
) -> Tensor:
    """Symmetric multiple-negatives ranking loss of ST5, eq. 4.2 and 4.3: the mean of both directions.

    Each anchor is to find its positive among those of all processes, and each positive its anchor.

    Args:
        anchors, positives: (B, d), any length.
        pair_ids: (B,) pairs of the same id are no negatives of each other. None keeps them all.
    """
    forward = contrastive_loss(anchors, positives, temperature, pair_ids)
    return (forward + contrastive_loss(positives, anchors, temperature, pair_ids)) / 2


def item_sequence_loss(
    item_vectors: Tensor, item_ids: Tensor, sequences: Tensor, next_places: Tensor, temperature: float, decay: float
) -> Tensor:
    """Every next item is found among the items of all processes by what stands before it; no text is read as a whole.

    What stands before is the mean of its items' directions, each weighing `decay` of the next newer one. Of the other
    items in its own sequence none is a negative: the earlier ones are what was read, the later ones as right.

    Args:
        item_vectors: (D, d) of the distinct items here, any length.
        item_ids: (D,) the catalogue's numbers of them.
        sequences: (B, L) which of the D, oldest first, padded at the end with -1.
        next_places: (M,) the places of `sequences[:, 1:]`, counted row by row, that are no padding.
    """
    with _full_precision(item_vectors):
        counts = rows_per_process(len(item_vectors), item_vectors.device)
        vectors, row = normalise(item_vectors), next_places // (sequences.shape[1] - 1)
        read = vectors[sequences.clamp_min(0)]
        states = [read[:, 0]]
        for newest in read[:, 1:-1].unbind(1):
            states.append(newest + decay * states[-1])
        users = normalise(torch.stack(states, 1).flatten(0, 1)[next_places])
        everywhere = all_gather_with_gradient(item_ids, counts)
        first = (everywhere[:, None] == everywhere).int().argmax(1)  # of an item that several processes hold
        again = first != torch.arange(len(first), device=first.device)
        of_sequence = item_ids[sequences.clamp_min(0)].masked_fill(sequences < 0, -1)
        own = (of_sequence[..., None] == everywhere).any(1)[row]
        targets = first[sequences[:, 1:].flatten()[next_places] + sum(counts[: process_index()])]
        logits = users @ all_gather_with_gradient(vectors, counts).T / temperature
        logits = logits.masked_fill((own | again).scatter(1, targets[:, None], False), -math.inf)
        return whole_batch_mean(F.cross_entropy(logits, targets, reduction="none"))


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Masked language modelling: the cross-entropy of each predicted token, (T,). Their `whole_batch_mean` is L_MLM.

    Args:
        logits: (T, vocabulary) at the predicted positions only; T may be 0.
        labels: (T,) the original token ids.
    """
    with _full_precision(logits):
        rows = max(1, CHUNK_LOGITS.get(logits.device.type, 2**26) // logits.shape[1])
        return _TokenLosses.apply(logits, labels, rows)


class _TokenLosses(torch.autograd.Function):
    """`F.cross_entropy` of logits in float32, `rows` at a time: neither they nor their gradient stand in memory in
    float32 where they come in half precision."""

    @staticmethod
    def forward(ctx, logits, labels, rows):
        log_sum = torch.cat([part.float().logsumexp(dim=1) for part in logits.split(rows)])
        ctx.save_for_backward(logits, labels, log_sum)
        ctx.rows = rows
        return log_sum - logits.gather(1, labels[:, None])[:, 0].float()

    @staticmethod
    def backward(ctx, grad):
        logits, labels, log_sum = ctx.saved_tensors
        to_logits = torch.empty_like(logits)
        for start in range(0, len(logits), ctx.rows):
            part = slice(start, start + ctx.rows)
            error = (logits[part].float() - log_sum[part, None]).exp_()
            error.scatter_add_(1, labels[part, None], error.new_full((len(error), 1), -1.0))
            to_logits[part] = error.mul_(grad[part, None])
        return to_logits, None, None


def mapping_loss(
    predictions: Tensor, targets: Tensor, distance: str = "l2", normalise_targets: bool = False
) -> Tensor:
    """Mapping loss ||h - h_hat||^2 of JEPA4Rec section 3.3.2: summed over d, averaged over the rows of all processes.

    Args:
        predictions: (B, d) from the predictor.
        targets: (B, d) from the target encoder; no gradient flows to them.
        distance: "l2" or "smooth_l1" (I-JEPA), both summed over d.
    """
    with _full_precision(predictions):
        targets = targets.detach().float()
        if normalise_targets:
            targets = F.layer_norm(targets, targets.shape[-1:])
        measure = F.smooth_l1_loss if distance == "smooth_l1" else F.mse_loss
        return whole_batch_mean(measure(predictions.float(), targets, reduction="none").sum(dim=-1))


def weighted_total(parts: dict[str, Tensor], weights: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Add up loss parts into the loss to train on, and report them.

    Returns:
        loss: its gradient is this process's share; its value is that of the whole batch, equal on every process, so
            that a NaN anywhere is seen everywhere.
        reported: each part, unweighted and detached, of the whole batch.
    """
    share = sum(weights.get(name, 1.0) * part for name, part in parts.items())
    values = process_mean(torch.stack([*parts.values(), share]))
    loss = share + (values[-1] - share).detach() if process_count() > 1 else share
    return loss, dict(zip(parts, values[:-1], strict=True))


# ---------------------------------------------------------------------------------------------------- full softmax


class _ChunkedSoftmax(torch.autograd.Function):
    """-log softmax(scale * users @ normalise(items).T)[target] per row, holding the logits of one chunk at a time.

    Forward keeps a running log-sum-exp; backward computes each chunk's logits again and writes the chunk's gradient
    in place, so memory is the items, their gradient, and one (B, chunk) block. Items are normalised chunk by chunk:
    no second (N, d) copy.
    """

    @staticmethod
    def forward(ctx, users, items, targets, scale, chunk, repeats, bias):
        log_sum = users.new_full((len(users),), -math.inf)
        for start in range(0, len(items), chunk):
            cosines = users @ normalise(items[start : start + chunk]).T
            log_sum = torch.logaddexp(log_sum, (scale * add_repeats(cosines, repeats - start, bias)).logsumexp(dim=1))
        ctx.save_for_backward(users, items, targets, scale, log_sum, repeats, bias)
        ctx.chunk = chunk
        of_target = (users * normalise(items[targets])).sum(dim=1) + ((repeats == targets[:, None]) * bias).sum(dim=1)
        return log_sum - scale * of_target

    @staticmethod
    def backward(ctx, grad):
        users, items, targets, scale, log_sum, repeats, bias = ctx.saved_tensors
        with _full_precision(users):
            grad_users, grad_scale, grad_bias = (torch.zeros_like(tensor) for tensor in (users, scale, bias))
            grad_items = torch.empty_like(items) if ctx.needs_input_grad[1] else None
            for start in range(0, len(items), ctx.chunk):
                part = items[start : start + ctx.chunk].float()
                length = part.norm(dim=1, keepdim=True).clamp_min(NORM_EPSILON)
                directions = part / length
                cosines = add_repeats(users @ directions.T, repeats - start, bias)
                error = _softmax_error(cosines, scale, log_sum, targets - start).mul_(grad[:, None])
                grad_scale += (error * cosines).sum()
                columns, inside = _columns(repeats - start, len(part))
                grad_bias += (error.gather(1, columns) * inside).sum(dim=0)
                grad_users.addmm_(error, directions)
                if grad_items is not None:
                    pull = scale * (error.T @ users)
                    pull -= directions * (directions * pull).sum(dim=1, keepdim=True)
                    grad_items[start : start + ctx.chunk] = pull.div_(length)
            return grad_users.mul_(scale), grad_items, None, grad_scale, None, None, grad_bias.mul_(scale)


def _softmax_error(cosines: Tensor, scale: Tensor, log_sum: Tensor, targets: Tensor) -> Tensor:
    """softmax minus one-hot (B, chunk) of one chunk; `targets` count from the chunk's first item."""
    error = (scale * cosines).sub_(log_sum[:, None]).exp_()
    columns, inside = _columns(targets[:, None], cosines.shape[1])
    return error.scatter_add_(1, columns, -inside.to(error.dtype))


def _columns(items: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Items (B, k) as columns of a chunk of `count`, and which of them lie in it. Every row changes something, by
    nothing where its item is in another chunk: to look which would stop a GPU."""
    return items.clamp(0, count - 1), (items >= 0) & (items < count)


def add_repeats(scores: Tensor, repeats: Tensor, bias: Tensor) -> Tensor:
    """Scores (B, N) with the `bias` (K,) of each age added where the items (B, K) of that age stand among the columns,
    each item once a row, -1 for none."""
    if not repeats.shape[1]:
        return scores
    columns, inside = _columns(repeats, scores.shape[1])
    return scores.scatter_add(1, columns, inside * bias.to(scores.dtype))


def _chunk_size(users: Tensor) -> int:
    """Items per step for a batch of users (B, d)."""
    return max(1024, CHUNK_LOGITS.get(users.device.type, 2**22) // len(users))


def full_softmax_loss(
    user_vectors: Tensor,
    item_vectors: Tensor,
    target_ids: Tensor,
    scale: float | Tensor,
    chunk_items: int | None = None,
    repeats: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Fine-tuning loss over the whole catalogue: -log softmax(scale * cos(user, item)) at the target (JEPA4Rec,
    section 3.4).

    Args:
        user_vectors: (B, d), any length.
        item_vectors: (N, d), any length; gradients flow to them where they require one.
        target_ids: (B,) rows of `item_vectors`.
        scale: 1 / temperature, a number or a scalar tensor (learnable).
        chunk_items: items per step; None takes the plain road for small catalogues and chunks for large ones.
        repeats, bias: what is added to the cosines of items of the histories, see `add_repeats`.
    """
    if repeats is None:
        repeats, bias = target_ids.new_empty(len(target_ids), 0), user_vectors.new_empty(0)
    with _full_precision(user_vectors):
        users = normalise(user_vectors)
        scale = torch.as_tensor(scale, dtype=users.dtype, device=users.device)
        if chunk_items is None and len(item_vectors) <= PLAIN_SOFTMAX_ITEMS:
            logits = add_repeats(scale * users @ normalise(item_vectors).T, repeats, scale * bias)
            losses = F.cross_entropy(logits, target_ids, reduction="none")
        else:
            chunk = chunk_items or _chunk_size(users)
            losses = _ChunkedSoftmax.apply(users, item_vectors, target_ids, scale, chunk, repeats, bias.float())
        return whole_batch_mean(losses)


# ---------------------------------------------------------------------------------------------------- target encoder


def ema_momentum(step: int, total: int, start: float, end: float) -> float:
    """Momentum of the target encoder at `step` of `total`: linear from `start` to `end`, then `end` (I-JEPA)."""
    if total < 1:
        raise ValueError(f"ema_momentum needs the number of training steps, got total={total}.")
    return start + (end - start) * min(max(step / total, 0.0), 1.0)


@torch.no_grad()
def ema_distance(parameters: Iterable[Tensor], target_parameters: Iterable[Tensor]) -> Tensor:
    """||theta - theta_bar|| / ||theta|| over all parameters: 0 when the target encoder equals the context encoder."""
    parameters, targets = list(parameters), list(target_parameters)
    gaps = torch.stack(torch._foreach_norm(torch._foreach_sub(parameters, targets)))
    sizes = torch.stack(torch._foreach_norm(parameters))
    return gaps.float().norm() / sizes.float().norm().clamp_min(NORM_EPSILON)


@torch.no_grad()
def effective_rank(vectors: Tensor) -> Tensor:
    """exp(entropy of the normalised singular values) of (n, d): 1 when all rows agree, min(n, d) when spread evenly.

    Roy & Vetterli, "The effective rank" (2007); RankMe (Garrido et al., 2023) reads it as a collapse gauge.
    """
    spectrum = torch.linalg.svdvals(vectors.float())
    shares = spectrum / spectrum.sum().clamp_min(NORM_EPSILON)
    return torch.special.entr(shares).sum().exp()


@torch.no_grad()
def alignment(users: Tensor, items: Tensor) -> Tensor:
    """Mean squared distance of positive pairs on the unit sphere (Wang & Isola, 2020): 0 best, 4 opposite."""
    return (normalise(users) - normalise(items)).square().sum(dim=-1).mean()


@torch.no_grad()
def uniformity(vectors: Tensor) -> Tensor:
    """log mean exp(-2 ||x - y||^2) over pairs on the unit sphere (Wang & Isola, 2020): 0 = collapsed, lower = spread.

    Defined for at least two rows; one row alone has no pair and gives 0.
    """
    if len(vectors) < 2:
        return vectors.new_zeros(())
    squared = F.pdist(normalise(vectors)).square()
    return (-2 * squared).logsumexp(dim=0) - math.log(len(squared))


@torch.no_grad()
def collapse_telemetry(user_vectors: Tensor, positive_vectors: Tensor, target_vectors: Tensor) -> dict[str, Tensor]:
    """Is the representation collapsing? Measured on this process's batch, all three inputs (B, d).

    Returns:
        target_variance: variance over the batch, mean over d, of the target vectors (0 = constant).
        effective_rank: of the target vectors.
        alignment: of h_CLS with its positive.
        uniformity: of the target vectors.
    """
    targets = target_vectors.float()
    with _full_precision(targets):
        return {
            "target_variance": targets.var(dim=0, unbiased=False).mean(),
            "effective_rank": effective_rank(targets),
            "alignment": alignment(user_vectors, positive_vectors),
            "uniformity": uniformity(targets),
        }
