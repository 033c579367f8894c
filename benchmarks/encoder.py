"""Speed of the encoder beside transformers' LongformerModel with the same weights, in one run.

    python benchmarks/encoder.py --layers 2 12 --out encoder.json

The peer is used as RecFormer uses it: batches in file order, padded to the longest row and to a multiple of the
window, hidden states of all tokens, fp32. Ours is measured in the same batches, then with what the project does by
itself (sorted by length, batches of a token budget), then in bfloat16 where a GPU or a processor has it.
Random ids; lengths are drawn from the quantiles of real data.
"""

import contextlib
import itertools
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--layers", type=int, nargs="+", default=[2, 12], help="depths to measure")
PARSER.add_argument("--width", type=int, default=768, help="hidden width, a multiple of 64")
PARSER.add_argument("--items", type=int, default=128)
PARSER.add_argument("--histories", type=int, default=2, help="rows of 1,024 tokens")
PARSER.add_argument("--batch_size", type=int, default=16, help="rows a batch of the peer (RecFormer's 16)")
PARSER.add_argument("--batch_tokens", type=int, default=2048, help="our token budget a batch")
PARSER.add_argument("--repeats", type=int, default=3, help="the best of this many runs counts")
PARSER.add_argument("--seed", type=int, default=0)
PARSER.add_argument("--device", help="default: cuda where there is one")
PARSER.add_argument("--out", type=Path, help="JSON file for the result")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import LongformerConfig, LongformerModel

from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.evaluation.records import describe_benchmark
from jepa4rec.modeling_jepa4rec import Jepa4RecModel

# Deciles (0, 10, … 100 %) of lengths in WordPiece tokens, [CLS] and attribute names included.
ITEM_LENGTHS = {
    "Scientific items (title, brand, category)": [10, 31, 35, 39, 42, 45, 47, 50, 51, 54, 68],
    "Online Retail items (description)": [3, 6, 6, 7, 7, 7, 8, 8, 9, 10, 15],
}
HISTORY_LENGTHS = [55, 116, 128, 139, 152, 170, 192, 223, 268, 362, 1024]  # Scientific, training sequences
PAD, WINDOW, VOCABULARY = 1, 64, 50265

Batch = dict[str, Tensor]


def draw_lengths(deciles: list[int], count: int, rng: np.random.Generator) -> list[int]:
    return np.interp(rng.random(count), np.linspace(0, 1, 11), deciles).round().astype(int).tolist()


def make_batch(lengths: list[int], device: str) -> Batch:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, VOCABULARY, mask.shape).masked_fill(mask == 0, PAD)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def in_file_order(rows: list[Batch], size: int) -> list[list[Batch]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def by_token_budget(rows: list[Batch], budget: int) -> list[list[Batch]]:
    """Sorted by length, as many rows a batch as the budget holds."""
    batches = [[]]
    for row in sorted(rows, key=lambda row: row["input_ids"].shape[1]):
        if batches[-1] and (len(batches[-1]) + 1) * row["input_ids"].shape[1] > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def collate(rows: list[Batch]) -> Batch:
    """Pad rows (1, L) to the longest."""
    width = max(row["input_ids"].shape[1] for row in rows)
    fill = {"input_ids": PAD, "attention_mask": 0}
    return {
        name: torch.cat(
            [nn.functional.pad(row[name], (0, width - row[name].shape[1]), value=fill[name]) for row in rows]
        )
        for name in fill
    }


# ---------------------------------------------------------------------------------------------- models


def make_models(layers: int, width: int, device: str) -> tuple[LongformerModel, Jepa4RecModel]:
    """The peer and ours with its weights, in evaluation mode."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 1026,
        "layer_norm_eps": 1e-5,
        "pad_token_id": PAD,
    }
    peer = LongformerModel(LongformerConfig(attention_window=[WINDOW] * layers, **shape), add_pooling_layer=False)
    ours = Jepa4RecModel(Jepa4RecConfig(attention_window=WINDOW, position_offset=PAD + 1, **shape))
    weights = peer.state_dict()
    types = "embeddings.token_type_embeddings.weight"
    weights[types] = weights[types][:1].expand(4, -1)
    weights["embeddings.item_position_embeddings.weight"] = torch.zeros(ours.config.max_item_embeddings, width)
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})
    return peer.to(device).eval(), ours.to(device).eval()


def peer_states(peer: LongformerModel, batch: Batch) -> Tensor:
    is_global = torch.zeros_like(batch["input_ids"])
    is_global[:, 0] = 1
    return peer(**batch, global_attention_mask=is_global).last_hidden_state


def in_bfloat16(model: Jepa4RecModel, device: str) -> Callable[[Batch], Tensor] | None:
    """How to embed in bfloat16; None where neither the device nor the processor has it."""
    if device == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():

        def embed(batch: Batch) -> Tensor:
            with torch.autocast(device, dtype=torch.bfloat16):
                return model.embed(**batch)

        return embed
    return None


# ---------------------------------------------------------------------------------------------- measuring


def race(
    runs: dict[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Best seconds of each, taken in turns so that a busy moment of the machine meets all of them."""
    seconds = dict.fromkeys(runs, float("inf"))
    for attempt, (name, run) in itertools.product(range(repeats + 1), runs.items()):
        start = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if attempt:  # the first round warms up
            seconds[name] = min(seconds[name], clock() - start)
    return seconds


def summary(seconds: dict[str, float], **facts) -> dict:
    peer = seconds["LongformerModel"]
    return {"seconds": seconds, "speedup": {name: peer / own for name, own in seconds.items() if own != peer}, **facts}


@torch.inference_mode()
def measure_embedding(peer, ours: Jepa4RecModel, rows: list[Batch], size: int, args) -> dict:
    """Embedding `rows` of one item or one history each."""
    file_order = [collate(batch) for batch in in_file_order(rows, size)]
    sorted_batches = [collate(batch) for batch in by_token_budget(rows, args.batch_tokens)]
    embed_small = in_bfloat16(ours, args.device)
    runs = {
        "LongformerModel": lambda: [peer_states(peer, batch)[:, 0] for batch in file_order],
        "all tokens, same batches": lambda: [ours(**batch).last_hidden_state for batch in file_order],
        "embed, same batches": lambda: [ours.embed(**batch) for batch in file_order],
        "embed, token budget": lambda: [ours.embed(**batch) for batch in sorted_batches],
    }
    expected, exact = (torch.cat(runs[name]()) for name in ("LongformerModel", "embed, same batches"))
    facts = {
        "rows": len(rows),
        "tokens": sum(row["input_ids"].shape[1] for row in rows),
        "max_difference_fp32": (exact - expected).abs().max().item(),
    }
    if embed_small is not None:
        exact = torch.cat(runs["embed, token budget"]())
        runs["embed, token budget, bf16"] = lambda: [embed_small(batch) for batch in sorted_batches]
        small = torch.cat(runs["embed, token budget, bf16"]()).float()
        facts["cosine_bf16"] = nn.functional.cosine_similarity(exact, small).mean().item()
    return summary(race(runs, args.repeats, args.device), **facts)


def measure_training(peer, ours: Jepa4RecModel, batch: Batch, args) -> dict:
    """Forward and backward with dropout on one mixed-length batch, from all tokens (MLM) or from the vectors alone."""
    valid = batch["attention_mask"][..., None]

    def step(model: nn.Module, out: Callable[[], Tensor]) -> None:
        out().square().mean().backward()
        model.zero_grad()

    runs = {
        "LongformerModel": lambda: step(peer, lambda: peer_states(peer, batch) * valid),
        "all tokens": lambda: step(ours, lambda: ours(**batch).last_hidden_state),
        "embed": lambda: step(ours, lambda: ours.embed(**batch)),
    }
    with training(peer), training(ours):
        seconds = race(runs, max(1, args.repeats // 2), args.device)
    return summary(seconds, rows=len(valid), tokens=int(valid.sum()))


@contextlib.contextmanager
def training(model: nn.Module) -> Iterator[None]:
    model.train()
    yield
    model.eval()


def measure(layers: int, args: Namespace) -> Iterator[tuple[str, dict]]:
    """All comparisons at one depth, each as soon as it is done."""
    peer, ours = make_models(layers, args.width, args.device)
    rng = np.random.default_rng(args.seed)
    for name, deciles in ITEM_LENGTHS.items():
        rows = [make_batch([length], args.device) for length in draw_lengths(deciles, args.items, rng)]
        yield name, measure_embedding(peer, ours, rows, args.batch_size, args)
    histories = [make_batch([1024], args.device) for _ in range(args.histories)]
    yield "histories of 1,024 tokens", measure_embedding(peer, ours, histories, args.histories, args)
    mixed = make_batch(draw_lengths(HISTORY_LENGTHS, args.batch_size, rng), args.device)
    yield "training step, mixed lengths", measure_training(peer, ours, mixed, args)


# ---------------------------------------------------------------------------------------------- command line


def show(title: str, result: dict) -> None:
    facts = {key: value for key, value in result.items() if key not in ("seconds", "speedup")}
    print(f"\n{title}: " + ", ".join(f"{key} {value:.6g}" for key, value in facts.items()))
    for run, seconds in result["seconds"].items():
        ratio = result["speedup"].get(run, 1.0)
        print(f"  {run:34s} {seconds:9.4f} s  {result['rows'] / seconds:9.1f} rows/s  {ratio:6.2f}x", flush=True)


@command(PARSER)
def main(args: Namespace) -> None:
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    report = describe_benchmark() | {
        "device": args.device,
        "threads": torch.get_num_threads(),
        "transformers": transformers.__version__,
        "layers": {layers: {} for layers in args.layers},
    }
    for layers, results in report["layers"].items():
        for name, result in measure(layers, args):
            results[name] = result
            show(f"{layers} layers, {name}", result)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
