"""Compare two systems user by user: is A better than B, or was it luck?

    python scripts/compare_runs.py runs/pretrained runs/plain
    python scripts/compare_runs.py 'runs/pretrained-seed*' 'runs/plain-seed*' --out results/comparisons/shop.json
    python scripts/compare_runs.py 'results/scientific-pretrained-seed*.json' 'results/scientific-minilm-seed*.json'

Each argument is a run's folder (metrics.json and ranks.parquet), a published record (results/NAME.json with
results/ranks/NAME.parquet), or a pattern that matches one run a seed: a user's value is then the mean over the seeds.
Prints a Markdown table: each metric of both, the difference, its 95 % interval and p-value by a paired bootstrap over
users.
"""

import argparse
import glob
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jepa4rec.metrics.significance import paired_bootstrap

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
            raise FileNotFoundError(f"{path} does not exist: {place} is not an evaluated run.")
    try:
        record = json.loads(metrics.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{metrics} is not valid JSON: {error}") from error
    try:
        table = pq.read_table(ranks, columns=["user_id", "target", "rank"])
    except (ValueError, OSError) as error:
        raise ValueError(f"{ranks} cannot be read: {error}") from error
    return record, table


def read_system(pattern: str) -> list[tuple[dict, pa.Table]]:
    """The run of a folder, or the runs of all folders that a pattern matches, by name."""
    folders = sorted(Path(place) for place in glob.glob(pattern)) or [Path(pattern)]
    runs = [read_run(folder) for folder in folders]
    for run in runs[1:]:
        check_same_question(runs[0], run)
    return runs


def check_same_question(a: tuple[dict, pa.Table], b: tuple[dict, pa.Table]) -> None:
    """Raises ValueError unless both runs ranked the same targets of the same users, by the same rules."""
    for field, default in SAME.items():
        ours, theirs = a[0].get(field, default), b[0].get(field, default)
        if ours != theirs:
            raise ValueError(f"The runs differ in {field} ({ours} and {theirs}); only like can be compared with like.")
    if not a[1].select(["user_id", "target"]).equals(b[1].select(["user_id", "target"])):
        raise ValueError("The runs did not rank the same targets of the same users in the same order.")


def compare(a: list[tuple[dict, pa.Table]], b: list[tuple[dict, pa.Table]], resamples: int, seed: int) -> dict:
    """Per metric that all runs report: means of A and of B over their seeds, and the paired test."""
    ranks_a, ranks_b = (np.stack([table["rank"].to_numpy() for _, table in runs]) for runs in (a, b))
    rows = {}
    for metric in [name for name in a[0][0]["metrics"] if all(name in record["metrics"] for record, _ in [*a, *b])]:
        means = [float(np.mean([record["metrics"][metric] for record, _ in runs])) for runs in (a, b)]
        test = paired_bootstrap(ranks_a, ranks_b, metric, resamples, seed)
        rows[metric] = {"a": means[0], "b": means[1], **test._asdict()}
    return rows


def markdown_table(rows: dict) -> str:
    """One row a metric."""
    lines = ["| metric | A | B | A - B | 95 % interval | p |", "| --- | --- | --- | --- | --- | --- |"]
    for metric, row in rows.items():
        interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
        values = f"{row['a']:.4f} | {row['b']:.4f} | {row['difference']:+.4f}"
        lines.append(f"| {metric} | {values} | {interval} | {row['p_value']:.4f} |")
    return "\n".join(lines)


def write_comparison(out: Path, a: list, b: list, rows: dict, options: argparse.Namespace) -> None:
    """What was compared, and the table's numbers, as JSON."""
    first = a[0][0]
    sides = [
        {"model": runs[0][0].get("model"), "seeds": [record.get("seed") for record, _ in runs]} for runs in (a, b)
    ]
    what = {field: first.get(field, default) for field, default in SAME.items()}
    comparison = {
        "dataset": first.get("dataset"), "config": first.get("config"), **what, "a": sides[0], "b": sides[1],
        "users": a[0][1].num_rows, "resamples": options.resamples, "metrics": rows,
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.tmp")
    partial.write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, out)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_a", metavar="RUN_A", help="a run's folder, or a quoted pattern for several seeds")
    parser.add_argument("run_b", metavar="RUN_B")
    parser.add_argument("--resamples", type=int, default=10_000, help="bootstrap resamples (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--out", type=Path, help="also write the comparison here as JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    try:
        a, b = read_system(options.run_a), read_system(options.run_b)
        check_same_question(a[0], b[0])
        rows = compare(a, b, options.resamples, options.seed)
        if options.out:
            write_comparison(options.out, a, b, rows, options)
    except (ValueError, OSError) as error:
        sys.exit(f"compare_runs: {error}")
    seeds = f"{len(a)} and {len(b)} runs, {a[0][1].num_rows} users, {options.resamples} resamples"
    print(f"A: {options.run_a}, B: {options.run_b} ({seeds})\n\n{markdown_table(rows)}")


if __name__ == "__main__":
    main()
