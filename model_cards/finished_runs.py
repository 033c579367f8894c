"""Finished runs and published records read back, each with the ranks of its users."""

import glob
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .results_table import check_record

OFFICIAL = "official_rank"
# What must be equal for the ranks of two runs to answer the same question, and its value where a record lacks it.
SAME = {"fingerprint": None, "split": None, "protocol": "leave_one_out", "exclude_history": False, "ties": "mean"}


def read_run(place: Path) -> tuple[dict, pa.Table]:
    """Record and ranks of a run's folder or of a published record. Raises FileNotFoundError or ValueError, naming the
    file."""
    metrics, ranks = place / "metrics.json", place / "ranks.parquet"
    if place.suffix == ".json":
        metrics, ranks = place, place.parent / "ranks" / f"{place.stem}.parquet"
    for path in (metrics, ranks):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: {place} is not an evaluated run with ranks.")
    try:
        record = json.loads(metrics.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{metrics} is not valid JSON: {error}") from error
    try:
        table = pq.read_table(ranks)
        columns = [name for name in ("user_id", "target", "rank", OFFICIAL) if name in table.column_names]
        return check_record(record, metrics), table.select(columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{ranks} cannot be read: {error}") from error


def read_runs(pattern: str) -> list[tuple[dict, pa.Table]]:
    """Record and ranks of each run that a pattern matches, by name; errors as `read_run`."""
    return [read_run(Path(place)) for place in sorted(glob.glob(pattern)) or [pattern]]


def check_same_question(a: tuple[dict, pa.Table], b: tuple[dict, pa.Table]) -> None:
    """Raises ValueError unless both runs ranked the same targets of the same users, by the same rules."""
    for field, default in SAME.items():
        ours, theirs = a[0].get(field, default), b[0].get(field, default)
        if ours != theirs:
            raise ValueError(f"The runs differ in {field} ({ours} and {theirs}); only like can be compared with like.")
    if not a[1].select(["user_id", "target"]).equals(b[1].select(["user_id", "target"])):
        raise ValueError("The runs did not rank the same targets of the same users in the same order.")
