"""Ranking speed and memory: `rank_targets` beside RecFormer's broadcast cosine, and a catalogue of a million items.

    python benchmarks/ranking.py            4,181 users x 3,896 items (Online Retail), both in one run
    python benchmarks/ranking.py --large    10,000 users x 1,000,000 items, with the peak memory of the process

Vectors are random, 384 wide. Prints one JSON object, and writes it to `--out` where given.
"""

import json
import resource
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--large", action="store_true", help="the million-item catalogue")
PARSER.add_argument("--users", type=int)
PARSER.add_argument("--items", type=int)
PARSER.add_argument("--threads", type=int, default=2, help="default: 2")
PARSER.add_argument("--rounds", type=int, default=3, help="of the comparison; the best counts (default: 3)")
PARSER.add_argument("--broadcast_users", type=int, default=320, help="users for the broadcast (default: 320)")
PARSER.add_argument("--out", type=Path, help="JSON file")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import numpy as np
import torch
from torch import Tensor, nn

from jepa4rec.evaluation.ranking import rank_targets
from jepa4rec.evaluation.records import describe_benchmark
from jepa4rec.serving.whole_files_seqrec import write_json

SMALL, LARGE, WIDTH = (4181, 3896), (10_000, 1_000_000), 384
BROADCAST_BATCH = 16  # RecFormer's evaluation batch


def broadcast_cosine_ranks(users: Tensor, items: Tensor, targets: Tensor) -> np.ndarray:
    """The published way: cosine of (B, 1, d) with (1, N, d), which fills (B, N, d); rank = 1 + items above."""
    similarity, ranks = nn.CosineSimilarity(dim=-1), []
    for rows in torch.arange(len(users)).split(BROADCAST_BATCH):
        scores = similarity(users[rows][:, None, :], items[None])
        ranks.append((scores > scores.gather(1, targets[rows, None])).sum(1) + 1)
    return torch.cat(ranks).double().numpy()


def random_vectors(rows: int, generator: torch.Generator) -> Tensor:
    """(rows, WIDTH) float32, filled in place so that nothing else is ever in memory."""
    vectors = torch.empty(rows, WIDTH)
    for part in vectors.split(65536):
        part.normal_(generator=generator)
    return vectors


def draw(num_users: int, num_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """User vectors, item vectors, and a target for each user."""
    generator = torch.Generator().manual_seed(0)
    vectors = random_vectors(num_users, generator), random_vectors(num_items, generator)
    return *vectors, torch.randint(num_items, (num_users,), generator=generator)


def timed(function, *arguments) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    ranks = function(*arguments)
    return ranks, time.perf_counter() - started


def compare_small(num_users: int, num_items: int, rounds: int, broadcast_users: int) -> dict:
    """Best of some rounds, the two taking turns; the broadcast gets fewer users, as its time is linear in them."""
    users, items, targets = draw(num_users, num_items)
    few = min(broadcast_users, num_users)
    ours, theirs = [], []
    for _ in range(rounds):
        ranks, seconds = timed(rank_targets, users, items, targets)
        ours.append(num_users / seconds)
        reference, seconds = timed(broadcast_cosine_ranks, users[:few], items, targets[:few])
        theirs.append(few / seconds)
    return {
        "users": num_users,
        "items": num_items,
        "width": WIDTH,
        "threads": torch.get_num_threads(),
        "users_per_second": round(max(ours)),
        "broadcast_users_per_second": round(max(theirs)),
        "speedup": round(max(ours) / max(theirs), 1),
        "largest_rank_difference": float(np.abs(ranks[:few] - reference).max()),
    }


def rank_large(num_users: int, num_items: int) -> dict:
    """Rank in this process and report the most memory it ever held."""
    users, items, targets = draw(num_users, num_items)
    before = peak_gib()
    ranks, seconds = timed(rank_targets, users, items, targets)
    return {
        "users": num_users,
        "items": num_items,
        "width": WIDTH,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "users_per_second": round(num_users / seconds, 1),
        "peak_gib": round(peak_gib(), 2),
        "peak_gib_before_ranking": round(before, 2),
        "mean_rank": round(float(ranks.mean())),
    }


def peak_gib() -> float:
    """Peak resident memory of this process in GiB (Linux counts KiB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


@command(PARSER)
def main(options: Namespace) -> None:
    torch.set_num_threads(options.threads)
    default_users, default_items = LARGE if options.large else SMALL
    size = options.users or default_users, options.items or default_items
    if options.large:
        result = rank_large(*size)
    else:
        result = compare_small(*size, options.rounds, options.broadcast_users)
    result |= describe_benchmark()
    print(json.dumps(result))
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
