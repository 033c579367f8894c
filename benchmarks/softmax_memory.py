"""Peak memory and time of the full softmax over a large catalogue, forward and backward, each in its own process.

    python benchmarks/softmax_memory.py [--items 1000000] [--batch 128] [--width 384]

Compares `full_softmax_loss` in chunks, the same loss in plain PyTorch (normalise, matrix product, cross-entropy), and
RecFormer's broadcast `CosineSimilarity`, which is run on as many items as fit `--broadcast_gib` and scaled up, since
its (batch, items, width) tensor does not fit for a large catalogue. Fails when the chunked loss needs 6 GiB or more.
"""

import json
import os
import resource
import subprocess
import sys
import time
from argparse import SUPPRESS, Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--items", type=int, default=1_000_000)
PARSER.add_argument("--batch", type=int, default=128)
PARSER.add_argument("--width", type=int, default=384)
PARSER.add_argument("--broadcast_gib", type=float, default=1.0)
PARSER.add_argument("--out", type=Path, help="write the measurements here as JSON")
PARSER.add_argument("--measure", help=SUPPRESS)
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import torch
from torch.nn import functional as F

from jepa4rec.losses_seqrec import full_softmax_loss

GIB = 2**30
LIMIT_GIB = 6.0
SCALE = 20.0


def _chunked(users, items, targets):
    return full_softmax_loss(users, items, targets, SCALE)


def _plain(users, items, targets):
    return F.cross_entropy(SCALE * F.normalize(users, dim=-1) @ F.normalize(items, dim=-1).T, targets)


def _broadcast(users, items, targets):
    return F.cross_entropy(SCALE * F.cosine_similarity(users[:, None], items[None], dim=-1), targets)


ROADS = {"chunked": _chunked, "plain": _plain, "broadcast": _broadcast}


def _peak_gib() -> float:
    """Largest resident set of this process so far (Linux counts KiB, macOS bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB


def measure(road: str, items: int, batch: int, width: int) -> dict:
    """One forward and backward with gradients to users and items."""
    rng = torch.Generator().manual_seed(0)
    users = torch.randn(batch, width, generator=rng).requires_grad_()
    item_vectors = torch.randn(items, width, generator=rng).requires_grad_()
    targets = torch.randint(items, (batch,), generator=rng)
    before, start = _peak_gib(), time.perf_counter()
    loss = ROADS[road](users, item_vectors, targets)
    loss.backward()
    seconds = time.perf_counter() - start
    result = {"road": road, "items": items, "loss": loss.item(), "seconds": seconds}
    return {**result, "inputs_gib": before, "peak_gib": _peak_gib()}


def _measure_apart(road: str, items: int, options: Namespace) -> dict:
    """`measure` in a fresh process: a peak never goes down again."""
    command = [sys.executable, __file__, "--items", str(items), "--batch", str(options.batch)]
    command += ["--width", str(options.width), "--measure", road]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        return {"road": road, "items": items, "failed": f"exit code {run.returncode}: not enough memory"}
    return json.loads(run.stdout)


def _broadcast_items(options: Namespace) -> int:
    """How many items keep RecFormer's (batch, items, width) tensor, of which it makes about six, in the limit."""
    return min(options.items, int(options.broadcast_gib * GIB / (6 * 4 * options.batch * options.width)))


def _row(result: dict, options: Namespace) -> str:
    if "failed" in result:
        return f"{result['road']:>10} {result['items']:>9}  {result['failed']}"
    row = f"{result['road']:>10} {result['items']:>9} {result['peak_gib']:>9.2f} {result['seconds']:>9.2f}"
    if result["items"] == options.items:
        return row
    growth = options.items / result["items"]
    peak, seconds = (result["peak_gib"] - result["inputs_gib"]) * growth, result["seconds"] * growth
    return f"{row}   scaled to {options.items}: {peak:.0f} GiB, {seconds:.0f} s"


@command(PARSER)
def main(options: Namespace) -> None:
    if options.measure:
        print(json.dumps(measure(options.measure, options.items, options.batch, options.width)))
        return
    from jepa4rec.evaluation.records import describe_benchmark  # not in the processes whose memory is measured

    print(f"batch {options.batch}, width {options.width}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{'road':>10} {'items':>9} {'peak GiB':>9} {'seconds':>9}")
    results = {}
    for road, items in [
        ("chunked", options.items),
        ("plain", options.items),
        ("broadcast", _broadcast_items(options)),
    ]:
        results[road] = _measure_apart(road, items, options)
        print(_row(results[road], options), flush=True)
    if options.out:
        options.out.write_text(json.dumps(describe_benchmark() | results, indent=2) + "\n", encoding="utf-8")
    if not results["chunked"].get("peak_gib", LIMIT_GIB) < LIMIT_GIB:
        raise ValueError(f"the chunked loss does not stay under {LIMIT_GIB} GiB.")


if __name__ == "__main__":
    main()
