"""What a GPU makes of it: encoding, training steps, a large softmax and a large ranking, beside transformers' SDPA.

    python benchmarks/gpu.py --out gpu.json            under 8 minutes on an H100; no network, random weights
    python benchmarks/gpu.py --toy --out gpu.json      the same at toy sizes, on a CPU too: that it runs, no speeds

Shapes of MiniLM (6 layers, 384 wide) and of Longformer-base (12 layers, 768 wide, window 64), in bfloat16 where the
device has it. A text's tokens are random ids; lengths are those of real items. MFU counts the products that the tokens
need (padding needs none), three times for a training step, over the peak that the maker names for dense bfloat16.
The JSON is written after each part; a part or a system that did not run says "not measured" and why.
"""

import contextlib
import importlib.util
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--toy", action="store_true", help="toy sizes, on a CPU where there is no GPU: shows that it runs")
PARSER.add_argument("--seconds", type=float, default=460, help="begin no part after so long (default: 460)")
PARSER.add_argument("--out", type=Path, required=True, help="JSON file, written after each part")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.evaluation.ranking import rank_targets
from jepa4rec.evaluation.records import describe_benchmark
from jepa4rec.losses_seqrec import full_softmax_loss
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecForSequentialRecommendation, Jepa4RecModel
from jepa4rec.serving.whole_files_seqrec import write_json
from jepa4rec.training.batches import to_device
from jepa4rec.training.optimisation import compile_token_wise, make_optimizer

PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121}  # dense bfloat16, by the name's part
ITEM_LENGTHS = [10, 31, 35, 39, 42, 45, 47, 50, 51, 54, 68]  # deciles, Scientific in WordPiece tokens
HISTORY_LENGTHS = [55, 116, 128, 139, 152, 170, 192, 223, 268, 362, 1024]
SHAPES = {
    "MiniLM": {"layers": 6, "width": 384, "heads": 12, "window": None, "vocabulary": 30522},
    "Longformer-base": {"layers": 12, "width": 768, "heads": 12, "window": 64, "vocabulary": 50265},
}
SIZES = {
    "items": 16384, "histories": 256, "history_tokens": 1024, "batch": 256, "batch_tokens": 131072,
    "catalogue": 50_000, "softmax_items": 1_500_000, "users": 10_000, "ranked_items": 1_000_000, "repeats": 5,
}  # fmt: skip
TOY = {
    "items": 8, "histories": 2, "history_tokens": 40, "batch": 4, "batch_tokens": 256, "catalogue": 20,
    "softmax_items": 3000, "users": 5, "ranked_items": 50, "repeats": 1,
}  # fmt: skip
TOY_SHAPE = {"layers": 2, "width": 32, "heads": 2, "window": 8, "vocabulary": 100}
SOFTMAX_GIB = 24

Batch = dict[str, Tensor]


# ------------------------------------------------------------------------------------------------ what is run


def make_batch(lengths: list[int], vocabulary: int, prefix: str = "") -> Batch:
    """Random ids of texts of so many tokens, padded, on the host, with the names of a collator."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, vocabulary, mask.shape) * mask
    after_cls = mask * (torch.arange(mask.shape[1]) > 0)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 2 * after_cls, "item_position_ids": after_cls}
    return {prefix + name: values for name, values in batch.items()}


def draw_lengths(deciles: list[int], count: int, most: int) -> list[int]:
    drawn = np.interp(np.random.default_rng(0).random(count), np.linspace(0, 1, 11), deciles)
    return np.minimum(drawn.round().astype(int), most).tolist()


def pretraining_batch(rows: int, most: int, vocabulary: int) -> Batch:
    """A step of JEPA4Rec: masked histories and next items, and the clean items the target encoder reads."""
    histories, items = (draw_lengths(deciles, rows, most) for deciles in (HISTORY_LENGTHS, ITEM_LENGTHS))
    batch = make_batch(histories, vocabulary) | make_batch(items, vocabulary, "next_")
    batch |= make_batch(items, vocabulary, "item_")
    for prefix, rate in (("", 0.15), ("next_", 0.5)):
        ids, words = batch[f"{prefix}input_ids"], batch[f"{prefix}item_position_ids"] > 0
        batch[f"{prefix}labels"] = torch.where((torch.rand(ids.shape) < rate) & words, ids, -100)
    batch["clean_next_input_ids"] = batch["next_input_ids"].clone()
    return batch | {"masked_item_positions": torch.ones(rows).long(), "next_item_ids": torch.arange(rows)}


def our_config(shape: dict, most: int, **fields) -> Jepa4RecConfig:
    return Jepa4RecConfig(
        vocab_size=shape["vocabulary"], hidden_size=shape["width"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], intermediate_size=4 * shape["width"], max_position_embeddings=most + 2,
        attention_window=shape["window"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0,
        **fields,
    )  # fmt: skip


def peers(shape: dict, most: int) -> Iterator[tuple[str, nn.Module]]:
    """transformers' encoder of the same matrices, which sees whole rows, on padded batches."""
    config = {
        "vocab_size": shape["vocabulary"], "hidden_size": shape["width"], "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "intermediate_size": 4 * shape["width"], "pad_token_id": 0,
        "max_position_embeddings": most + 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    yield "transformers, SDPA", BertModel(BertConfig(attn_implementation="sdpa", **config), add_pooling_layer=False)
    if importlib.util.find_spec("flash_attn"):
        flash = BertConfig(attn_implementation="flash_attention_2", **config)
        yield "transformers, flash", BertModel(flash, add_pooling_layer=False)


def peer_vectors(peer: nn.Module, batch: Batch) -> Tensor:
    return peer(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state[:, 0]


# ------------------------------------------------------------------------------------------------ measuring


def forward_flops(shape: dict, lengths: list[int]) -> float:
    """Multiplications and additions that the products of one forward pass need for these texts."""
    width, window = shape["width"], shape["window"]
    seen = [length if window is None else min(length, window + 2) for length in lengths]
    attention = sum(4 * length * keys * width for length, keys in zip(lengths, seen, strict=True))
    return shape["layers"] * (sum(lengths) * 2 * (4 * width**2 + 8 * width**2) + attention)


def peak_flops(device: str) -> float | None:
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def seconds_of(action: Callable[[], object], repeats: int, device: str) -> float:
    """Median seconds after two rounds to warm up."""
    taken = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[2:]))


def rates(seconds: float, rows: int, flops: float, device: str) -> dict:
    peak = peak_flops(device)
    known = None if peak is None else flops / seconds / peak
    return {"seconds": seconds, "rows_per_second": rows / seconds, "tflops": flops / seconds / 1e12, "mfu": known}


@contextlib.contextmanager
def alone(found: dict, name: str) -> Iterator[None]:
    """What does not run says so in `found`, where memory is full for one; the others are still measured."""
    try:
        yield
    except RuntimeError as error:
        found[name] = f"not measured: {str(error).splitlines()[0]}"


def half(device: str) -> contextlib.AbstractContextManager:
    """bfloat16 where a GPU has it."""
    low = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast("cuda", torch.bfloat16) if low else contextlib.nullcontext()


def measure_encoding(shape: dict, sizes: dict, device: str) -> dict:
    """Item texts and long histories to vectors; ours in batches of similar length, and so is the peer's."""
    most, found = sizes["history_tokens"], {}
    texts = {
        "items": sorted(draw_lengths(ITEM_LENGTHS, sizes["items"], most)),
        "histories": [most] * sizes["histories"],
    }
    ours = Jepa4RecModel(our_config(shape, most)).to(device).eval()
    for name, lengths in texts.items():
        size = max(1, sizes["batch_tokens"] // lengths[-1])
        parts = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        batches = [make_batch(part, shape["vocabulary"]) for part in parts]
        flops = forward_flops(shape, lengths)

        def encode(batches=batches) -> None:
            with torch.inference_mode(), half(device):
                for batch in batches:
                    ours.embed(**to_device(batch, device))

        def add(system: str, action: Callable[[], None], name=name, lengths=lengths, flops=flops) -> None:
            with alone(found, f"{name}, {system}"):
                seconds = seconds_of(action, sizes["repeats"], device)
                found[f"{name}, {system}"] = rates(seconds, len(lengths), flops, device)

        add("ours", encode)
        for peer_name, peer in peers(shape, most):
            peer.to(device).eval()

            def encode_as_peer(batches=batches, peer=peer) -> None:
                with torch.inference_mode(), half(device):
                    for batch in batches:
                        peer_vectors(peer, {key: values.to(device) for key, values in batch.items()})

            add(peer_name, encode_as_peer)
    return found


def measure_training(shape: dict, sizes: dict, device: str) -> dict:
    """Whole steps, AdamW included: JEPA4Rec's pre-training, and fine-tuning by full softmax, ours and the peer's."""
    most, rows, vocabulary, found = sizes["history_tokens"], sizes["batch"], shape["vocabulary"], {}
    histories, items = (draw_lengths(deciles, rows, most) for deciles in (HISTORY_LENGTHS, ITEM_LENGTHS))

    def step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, 1e-5, fused=True)

        def run() -> None:
            with half(device):
                value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    def add(name: str, action: Callable[[], None], flops: float) -> None:
        with alone(found, name):
            found[name] = rates(seconds_of(action, sizes["repeats"], device), rows, flops, device)

    batch = pretraining_batch(rows, most, vocabulary)
    learner = Jepa4RecForPreTraining(our_config(shape, most)).to(device).train()
    # Three texts with gradients (history, masked and clean next item), two for the target encoder without.
    flops = 3 * sum(forward_flops(shape, lengths) for lengths in (histories, items, items))
    flops += 2 * forward_flops(shape, items)
    add("pre-training, ours", step(learner, lambda: learner(**to_device(batch, device)).loss), flops)

    texts = make_batch(histories, vocabulary)
    more = {"target_item_ids": torch.arange(rows) % sizes["catalogue"]}
    flops = 3 * (forward_flops(shape, histories) + 2 * rows * sizes["catalogue"] * shape["width"])
    for name in ("fine-tuning, ours", "fine-tuning, ours, compiled"):
        tuned = Jepa4RecForSequentialRecommendation(our_config(shape, most, num_items=sizes["catalogue"]))
        tuned.to(device).train()
        if name.endswith("compiled"):
            compile_token_wise(tuned)
        add(name, step(tuned, lambda tuned=tuned: tuned(**to_device(texts | more, device)).loss), flops)
    matrix = torch.randn(sizes["catalogue"], shape["width"], device=device)
    targets = more["target_item_ids"].to(device)
    for name, peer in peers(shape, most):
        peer.to(device).train()

        def loss(peer=peer) -> Tensor:
            inputs = {key: values.to(device) for key, values in texts.items()}
            return full_softmax_loss(peer_vectors(peer, inputs), matrix, targets, 20.0)

        add(f"fine-tuning, {name}", step(peer, loss), flops)
    ours, theirs = found["fine-tuning, ours"], found["fine-tuning, transformers, SDPA"]
    if not isinstance(ours, str) and not isinstance(theirs, str):
        found["times transformers' step"] = theirs["seconds"] / ours["seconds"]
    return found


def measure_softmax(shape: dict, sizes: dict, device: str) -> dict:
    """A step over a learned matrix of all items, Adam's moments included, in 24 GiB."""
    if device == "cuda":
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, SOFTMAX_GIB * 2**30 / whole))
        torch.cuda.reset_peak_memory_stats()
    matrix = nn.Embedding(sizes["softmax_items"], shape["width"], device=device)
    users = torch.randn(sizes["batch"], shape["width"], device=device, requires_grad=True)
    targets = torch.arange(sizes["batch"], device=device)
    optimizer = make_optimizer(matrix, 1e-3, 1e-3, 0.0, [0.9, 0.999])

    def step() -> None:
        full_softmax_loss(users, matrix.weight, targets, 20.0).backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = seconds_of(step, sizes["repeats"], device)
    peak = torch.cuda.max_memory_reserved() / 2**30 if device == "cuda" else None
    return {"items": sizes["softmax_items"], "seconds_per_step": seconds, "peak_gib": peak, "limit_gib": SOFTMAX_GIB}


def measure_ranking(shape: dict, sizes: dict, device: str) -> dict:
    users, items = (torch.randn(sizes[n], shape["width"], device=device) for n in ("users", "ranked_items"))
    targets = np.arange(sizes["users"]) % sizes["ranked_items"]
    start = time.perf_counter()
    rank_targets(users, items, targets)
    return {"users": len(users), "items": len(items), "seconds": time.perf_counter() - start}


# ------------------------------------------------------------------------------------------------ command line


def parts(shapes: dict) -> Iterator[tuple[str, Callable, dict]]:
    """The parts by name, the cheap and the wanted first."""
    small, large = next(iter(shapes.values())), list(shapes.values())[-1]
    yield "ranking", measure_ranking, small
    yield "softmax", measure_softmax, large
    for name, shape in shapes.items():
        yield f"training, {name}", measure_training, shape
    for name, shape in shapes.items():
        yield f"encoding, {name}", measure_encoding, shape


@command(PARSER)
def main(args: Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.perf_counter()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    report = describe_benchmark() | {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "transformers": transformers.__version__,
        "toy": args.toy,
        "sizes": TOY if args.toy else SIZES,
        "parts": {},
    }
    for name, measure, shape in parts(dict.fromkeys(SHAPES, TOY_SHAPE) if args.toy else SHAPES):
        if device == "cpu" and not args.toy:
            report["parts"][name] = "not measured: no GPU"
        elif time.perf_counter() - started > args.seconds:
            report["parts"][name] = f"not measured: {args.seconds:g} s were over"
        else:
            with alone(report["parts"], name):
                report["parts"][name] = measure(shape, report["sizes"], device)
        report["seconds"] = round(time.perf_counter() - started, 1)
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)  # the softmax lowers it
            torch.cuda.empty_cache()
        write_json(args.out, report)
        print(name, json.dumps(report["parts"][name], indent=1), flush=True)


if __name__ == "__main__":
    main()
