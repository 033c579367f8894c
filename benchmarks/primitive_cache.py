"""Resident memory of a long CPU training whose batches differ in shape, by how many primitives oneDNN keeps.

    python benchmarks/primitive_cache.py [--steps 2000] --out primitive_cache.json

Each capacity runs in a process of its own: training steps of a small encoder on random lengths, resident memory every
tenth of the way, and the median seconds of a step.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--steps", type=int, default=2000)
PARSER.add_argument("--capacities", type=int, nargs="+", default=[1024, 64, 1], help="1024 is oneDNN's own")
PARSER.add_argument("--bf16", action="store_true", help="in bfloat16, where more goes through oneDNN")
PARSER.add_argument("--out", type=Path, help="JSON file for the result")
PARSER.add_argument("--alone", action="store_true", help="measure in this process, with the capacity it was given")
if __name__ == "__main__":
    PARSER.parse_args()


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def curve(steps: int, bf16: bool) -> dict:
    """Resident MiB after each tenth of the steps, and the median seconds of the steps behind the first tenth."""
    import torch

    from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
    from jepa4rec.modeling_jepa4rec import Jepa4RecModel

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    model = Jepa4RecModel(Jepa4RecConfig(vocab_size=1000, pad_token_id=0, **shape)).train()
    memory, seconds = [], []
    for step in range(1, steps + 1):
        lengths = torch.randint(1, 65, (8,))
        ids = torch.randint(5, 1000, (8, int(lengths.max())))
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(ids, mask).last_hidden_state.float().square().mean()
        loss.backward()
        model.zero_grad()
        seconds.append(time.perf_counter() - start)
        if step % max(1, steps // 10) == 0:
            memory.append(round(resident_mib(), 1))
    return {"resident_mib": memory, "seconds_per_step": statistics.median(seconds[len(seconds) // 10 :])}


@command(PARSER)
def main(args: Namespace) -> None:
    if args.alone:
        print(json.dumps(curve(args.steps, args.bf16)))
        return
    from jepa4rec.evaluation.records import describe_benchmark

    report = describe_benchmark() | {"steps": args.steps, "bf16": args.bf16, "capacities": {}}
    for capacity in args.capacities:
        words = [sys.executable, __file__, "--alone", "--steps", str(args.steps), *(["--bf16"] if args.bf16 else [])]
        settings = os.environ | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(capacity)}
        found = subprocess.run(words, env=settings, capture_output=True, text=True, check=True).stdout
        report["capacities"][capacity] = json.loads(found.splitlines()[-1])
        print(capacity, report["capacities"][capacity], flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
