"""Compare systems user by user: is the first better than each other one, or was it luck?

    python scripts/compare_runs.py runs/pretrained runs/plain
    python scripts/compare_runs.py 'runs/pretrained-seed*' 'runs/plain-seed*' --out results/comparisons/shop.json
    python scripts/compare_runs.py 'results/scientific-pretrained-seed*.json' 'results/scientific-minilm-seed*.json' \\
        'results/scientific-sasrec-seed*.json'

Each argument is a run's folder (metrics.json and ranks.parquet), a published record (results/NAME.json with
results/ranks/NAME.parquet), or a pattern that matches one run a seed: a user's value is then the mean over the seeds.
All must be of one dataset fingerprint, split and set of rules.

Prints Markdown: a table as in docs/results.md (mean ± sd over seeds, baselines beside it, each metric strictly and by
RecFormer's `official` ties; "–" where older records have no such ranks), then the first system against each other one:
per metric the difference, its 95 % interval and p-value by a paired bootstrap over users.
"""

import statistics
import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder, or a quoted pattern for several seeds")
PARSER.add_argument("--resamples", type=int, default=10_000, help="bootstrap resamples (default: 10000)")
PARSER.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
PARSER.add_argument("--out", type=Path, help="also write the comparison here as JSON")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import numpy as np
import pyarrow as pa

from jepa4rec.evaluation.metrics.seqrec_ranking.ranking_metrics import ranking_metrics
from jepa4rec.evaluation.metrics.significance import paired_bootstrap
from jepa4rec.model_cards.finished_runs import OFFICIAL, SAME, check_same_question, read_runs
from jepa4rec.model_cards.results_table import METRIC_NAMES, METRICS, describe, markdown_table, results_table
from jepa4rec.serving.whole_files_seqrec import write_json


class System(NamedTuple):
    """One system under comparison: its name in tables, and records and ranks of its seeds."""

    name: str
    records: list[dict]
    tables: list[pa.Table]

    def ranks(self, column: str) -> np.ndarray | None:
        """(seeds, U), or None where a run has no such column."""
        if any(column not in table.column_names for table in self.tables):
            return None
        return np.stack([table[column].to_numpy() for table in self.tables])


def read_systems(patterns: list[str]) -> list[System]:
    """One system an argument: the run of a folder, or the runs of all that a pattern matches, by name.

    Raises ValueError unless all ranked the same targets of the same users, by the same rules.
    """
    systems = []
    for pattern in patterns:
        records, tables = zip(*read_runs(pattern), strict=True)
        systems.append(System(pattern, list(records), list(tables)))
    first = (systems[0].records[0], systems[0].tables[0])
    for system in systems:
        for run in zip(system.records, system.tables, strict=True):
            check_same_question(first, run)
    return named(systems)


def named(systems: list[System]) -> list[System]:
    """Systems under the name their records have, or under their argument where that would not tell them apart."""
    models = [{record["model"] for record in system.records} for system in systems]
    names = [next(iter(own)) if len(own) == 1 else system.name for own, system in zip(models, systems, strict=True)]
    return [
        system._replace(name=name if names.count(name) == 1 else f"{name} ({system.name})")
        for name, system in zip(names, systems, strict=True)
    ]


def compare(a: System, b: System, column: str, resamples: int, seed: int) -> dict | None:
    """Per metric: means of A and of B over their seeds, and the paired test; None where the ranks are not known."""
    ranks_a, ranks_b = a.ranks(column), b.ranks(column)
    if ranks_a is None or ranks_b is None:
        return None
    rows = {}
    for metric in METRICS:
        means = [np.mean([ranking_metrics(one)[metric] for one in ranks]) for ranks in (ranks_a, ranks_b)]
        test = paired_bootstrap(ranks_a, ranks_b, metric, resamples, seed)
        rows[metric] = {"a": float(means[0]), "b": float(means[1]), **test._asdict()}
    return rows


def compare_all(systems: list[System], resamples: int, seed: int) -> dict:
    """The whole comparison, as the JSON holds it: every system, and the first against each other one."""
    first = systems[0].records[0]
    pairs = []
    for other in systems[1:]:
        print(f"{systems[0].name} against {other.name}: {resamples} resamples", file=sys.stderr)
        strict, official = (compare(systems[0], other, column, resamples, seed) for column in ("rank", OFFICIAL))
        pairs.append({"a": systems[0].name, "b": other.name, "metrics": strict, "official": official})
    return {
        "dataset": first["dataset"],
        "config": first["config"],
        **{field: first.get(field, default) for field, default in SAME.items()},
        "users": systems[0].tables[0].num_rows,
        "resamples": resamples,
        "systems": [describe_system(system) for system in systems],
        "comparisons": pairs,
    }


def describe_system(system: System) -> dict:
    """Name, seeds, and mean and sd over the seeds of each metric; the sd of one seed is null."""
    values = {metric: [record["metrics"][metric] for record in system.records] for metric in METRICS}
    spread = {
        metric: {"mean": statistics.mean(own), "sd": statistics.stdev(own) if len(own) > 1 else None}
        for metric, own in values.items()
    }
    return {"name": system.name, "seeds": [record["seed"] for record in system.records], "metrics": spread}


# Output


def markdown(systems: list[System], comparison: dict) -> str:
    """What was compared, the table of all systems, and one table a pair."""
    records = [{**record, "model": system.name} for system in systems for record in system.records]
    official = any("official" in record for record in records)
    parts = [f"**{describe(records)}**, {comparison['users']:,} users", results_table(records, official)]
    if not official:
        parts.append("None of these records has ranks by `official` ties; runs from now on do.")
    for pair in comparison["comparisons"]:
        seeds = " and ".join(
            f"{len(system['seeds'])}" for name in (pair["a"], pair["b"]) for system in comparison["systems"]
            if system["name"] == name
        )  # fmt: skip
        heading = f"A: {pair['a']}, B: {pair['b']} ({seeds} runs, {comparison['resamples']:,} resamples)"
        parts.append(f"{heading}\n\n{pair_table(pair)}")
    return "\n\n".join(parts)


def pair_table(pair: dict) -> str:
    """One row a metric, the strict ranks first."""
    lines = []
    for ways, suffix in ((pair["metrics"], ""), (pair["official"], ", official")):
        for metric, row in (ways or {}).items():
            interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
            values = f"{row['a']:.4f}", f"{row['b']:.4f}", f"{row['difference']:+.4f}"
            lines.append([METRIC_NAMES[metric] + suffix, *values, interval, f"{row['p_value']:.4f}"])
    return markdown_table(["metric", "A", "B", "A - B", "95 % interval", "p"], lines)


@command(PARSER)
def main(options: Namespace) -> None:
    if len(options.runs) < 2:
        raise ValueError(f"{options.runs[0]} alone cannot be compared: name at least two runs")
    systems = read_systems(options.runs)
    comparison = compare_all(systems, options.resamples, options.seed)
    text = markdown(systems, comparison)
    if options.out:
        write_json(options.out, comparison)
    print(text)


if __name__ == "__main__":
    main()
