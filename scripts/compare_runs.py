"""Compare two evaluated runs user by user: is A better than B, or was it luck?

    python scripts/compare_runs.py runs/pretrained runs/scratch

Each argument is a folder with metrics.json and ranks.parquet. Prints a Markdown table: each metric of both runs, the
difference, its 95 % interval and p-value by a paired bootstrap over users.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pyarrow as pa
import pyarrow.parquet as pq

from jepa4rec.metrics.significance import paired_bootstrap

# What must be equal for the ranks of two runs to answer the same question, and its value where a record lacks it.
SAME = {"fingerprint": None, "split": None, "protocol": "leave_one_out", "exclude_history": False, "ties": "mean"}


def read_run(folder: Path) -> tuple[dict, pa.Table]:
    """metrics.json and ranks.parquet of a run. Raises FileNotFoundError or ValueError, naming the file."""
    for name in ("metrics.json", "ranks.parquet"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist: {folder} is not an evaluated run.")
    try:
        record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'metrics.json'} is not valid JSON: {error}") from error
    try:
        ranks = pq.read_table(folder / "ranks.parquet", columns=["user_id", "target", "rank"])
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder / 'ranks.parquet'} cannot be read: {error}") from error
    return record, ranks


def check_same_question(a: tuple[dict, pa.Table], b: tuple[dict, pa.Table]) -> None:
    """Raises ValueError unless both runs ranked the same targets of the same users, by the same rules."""
    for field, default in SAME.items():
        ours, theirs = a[0].get(field, default), b[0].get(field, default)
        if ours != theirs:
            raise ValueError(f"The runs differ in {field} ({ours} and {theirs}); only like can be compared with like.")
    if not a[1].select(["user_id", "target"]).equals(b[1].select(["user_id", "target"])):
        raise ValueError("The runs did not rank the same targets of the same users in the same order.")


def compare(a: tuple[dict, pa.Table], b: tuple[dict, pa.Table], resamples: int, seed: int) -> str:
    """A Markdown table with one row a metric that both runs report."""
    ranks_a, ranks_b = (run[1]["rank"].to_numpy() for run in (a, b))
    lines = ["| metric | A | B | A - B | 95 % interval | p |", "| --- | --- | --- | --- | --- | --- |"]
    for metric in [name for name in a[0]["metrics"] if name in b[0]["metrics"]]:
        test = paired_bootstrap(ranks_a, ranks_b, metric, resamples, seed)
        values = f"{a[0]['metrics'][metric]:.4f} | {b[0]['metrics'][metric]:.4f}"
        interval = f"{test.low:+.4f} to {test.high:+.4f}"
        lines.append(f"| {metric} | {values} | {test.difference:+.4f} | {interval} | {test.p_value:.4f} |")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_a", type=Path, metavar="RUN_A")
    parser.add_argument("run_b", type=Path, metavar="RUN_B")
    parser.add_argument("--resamples", type=int, default=10_000, help="bootstrap resamples (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    try:
        a, b = read_run(options.run_a), read_run(options.run_b)
        check_same_question(a, b)
        table = compare(a, b, options.resamples, options.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"compare_runs: {error}")
    print(f"A: {options.run_a}, B: {options.run_b} ({a[1].num_rows} users, {options.resamples} resamples)\n\n{table}")


if __name__ == "__main__":
    main()
