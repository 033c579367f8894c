"""What a run leaves on record: metrics.json, ranks.parquet, and how they came about."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..serving.whole_files_seqrec import written_files


def write_evaluation(
    out_dir: str | Path,
    record: dict,
    ranks: np.ndarray,
    user_ids: Sequence,
    targets: np.ndarray,
    official_ranks: np.ndarray | None = None,
) -> None:
    """Write metrics.json (the record) and ranks.parquet (user_id, target, rank: one row a user) into a folder.

    `rank` counts ties as the record's `ties` says; `official_rank`, where given, is the optimistic one. Both files are
    complete before either appears under its name. Raises ValueError when the columns differ in length or the record
    holds a number that JSON cannot.
    """
    columns_of_ranks = [ranks] if official_ranks is None else [ranks, official_ranks]
    if any(not len(column) == len(user_ids) == len(targets) for column in columns_of_ranks):
        raise ValueError(f"{len(ranks)} ranks, {len(user_ids)} users and {len(targets)} targets are not one table.")
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    columns = {
        "user_id": pa.array([str(user) for user in user_ids], pa.string()),
        "target": pa.array(np.asarray(targets), pa.int32()),
        "rank": pa.array(np.asarray(ranks), pa.float64()),
    }
    if official_ranks is not None:
        columns["official_rank"] = pa.array(np.asarray(official_ranks), pa.float64())
    table = pa.table(columns)
    with written_files(Path(out_dir) / "ranks.parquet", Path(out_dir) / "metrics.json") as (of_ranks, of_record):
        pq.write_table(table, of_ranks, compression="zstd")
        of_record.write_text(text, encoding="utf-8")


def describe_run() -> dict:
    """What a record says about how it was made.

    `commit` is None outside a checkout, and ends in `-dirty` where tracked files differ from it.
    """
    return {"commit": _commit(), "command": _command(), "hardware": _hardware()}


def describe_benchmark() -> dict:
    """`describe_run`, and what a speed depends on besides: torch, and `flags`, the processor's vector extensions."""
    flags = [flag for flag in _processor("flags").split() if flag.startswith(("avx", "fma", "amx"))]
    return describe_run() | {"flags": flags, "torch": torch.__version__}


def _commit() -> str | None:
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():  # an installed copy may lie in the folder of somebody else's repository
        return None
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes else commit


def _command() -> str:
    """The command line, with absolute paths made relative to the working directory, or cut to their last part."""
    words = [portable_path(word) for word in sys.argv]
    return shlex.join(["python", *words])


def portable_path(word: str) -> str:
    """A word of a command line (a path, or `--flag=path`) without the part that only this machine knows."""
    flag, equals, path = word.rpartition("=")
    if not os.path.isabs(path):
        return word
    relative = os.path.relpath(path)
    return flag + equals + (Path(path).name if relative.startswith("..") else relative)


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{_processor('model name') or platform.machine()}, {os.cpu_count()} cores"


def _processor(field: str) -> str:
    """A field of what Linux tells of the first core; "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
