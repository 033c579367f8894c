"""Markdown tables from published records, and the block of them in a page.

A record is a `metrics.json`: one run on one split of one dataset, its metrics, and the baselines measured beside it.
Records are grouped by fingerprint and split; runs that differ in nothing but the seed become one row, mean ± sd. A
record with `ratings` is of a run that predicts stars, and stands in a table of their errors instead.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

METRICS = ("recall@10", "recall@50", "ndcg@10", "ndcg@50", "mrr")
METRIC_NAMES = {"recall@10": "R@10", "recall@50": "R@50", "ndcg@10": "NDCG@10", "ndcg@50": "NDCG@50", "mrr": "MRR"}
REQUIRED = ("model", "system", "dataset", "config", "fingerprint", "split", "seed", "metrics")
BASELINE_NAMES = {
    "popularity": "popularity",
    "item_transition": "item-transition, first order",
    "item_transition_decayed": "item-transition, decayed",
    "rating_mean": "damped means",
    "pmf": "PMF",
}
NEEDED_BASELINES = ("popularity", "item_transition")
ERRORS = {"rmse": "RMSE", "mae": "MAE"}
BEGIN, END = "<!-- results: written by `make table` from results/*.json -->", "<!-- end of results -->"


def check_record(record: object, source: str | Path) -> dict:
    """Returns the record; raises ValueError naming the source and the field unless it can be published."""
    if not isinstance(record, dict):
        raise ValueError(f"{source}: expected a record with {', '.join(REQUIRED)}, found {type(record).__name__}")
    missing = [field for field in REQUIRED if field not in record]
    if missing:
        raise ValueError(f"{source}: the record has no {missing[0]}; it is not a metrics.json of a run")
    for name, metrics in [("metrics", record["metrics"]), *record.get("baselines", {}).items()]:
        for metric in METRICS:
            value = metrics.get(metric)
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"{source}: {name}.{metric} is {value!r}, not a number")
    return record


def read_records(folder: str | Path) -> list[dict]:
    """All records directly in a folder, by file name. Raises ValueError for a file that is not one."""
    records = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        records.append(check_record(record, path))
    return records


def group_records(records: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Records that may stand in one table: same fingerprint, same split; in order of dataset name."""
    groups = defaultdict(list)
    for record in sorted(records, key=lambda r: (str(r["dataset"]), str(r["config"]))):
        groups[record["fingerprint"], record["split"]].append(record)
    return dict(groups)


def baseline_rows(records: list[dict]) -> dict[str, dict[str, float]]:
    """Metrics of the baselines measured beside the records of one group; those by official ties, where a record has
    them, under `official`.

    Raises ValueError when two records disagree (baselines have no seed) or one that every table needs is missing.
    """
    rows: dict[str, dict] = {}
    for record in records:
        official = record.get("official", {}).get("baselines", {})
        for name, metrics in record.get("baselines", {}).items():
            known = rows.setdefault(name, dict(metrics))
            if any(not math.isclose(known[metric], metrics[metric], abs_tol=1e-9) for metric in METRICS):
                raise ValueError(f"{describe(records)}: two records disagree about the baseline {name}")
            if name in official:
                known["official"] = official[name]
    missing = [name for name in NEEDED_BASELINES if name not in rows]
    if missing:
        raise ValueError(f"{describe(records)}: no record carries the baseline {missing[0]}, which every table needs")
    return dict(sorted(rows.items(), key=lambda row: row[1]["ndcg@10"]))


def model_rows(records: list[dict]) -> dict[str, list[dict[str, float]]]:
    """Metrics of every seed of every model of one group, the worst NDCG@10 first; `official` as in `baseline_rows`.

    Raises ValueError when a model has the same seed twice.
    """
    runs = defaultdict(dict)
    for record in records:
        if record["seed"] in runs[record["model"]]:
            raise ValueError(f"{describe(records)}: {record['model']} has two records with seed {record['seed']}")
        official = {"official": record["official"]["metrics"]} if "official" in record else {}
        runs[record["model"]][record["seed"]] = {**record["metrics"], **official}
    rows = {model: list(seeds.values()) for model, seeds in runs.items()}
    return dict(sorted(rows.items(), key=lambda row: statistics.mean(run["ndcg@10"] for run in row[1])))


def describe(records: list[dict]) -> str:
    """What a table is about: dataset, config, split and the start of the fingerprint."""
    first = records[0]
    name, config = dataset_name(first)
    dataset = f"{name} `{config}`" if config else name
    return f"{dataset}, {first['split']} split, fingerprint `{first['fingerprint'][:12]}`"


def dataset_name(record: dict) -> tuple[str, str | None]:
    """Name and config; in the place of the config a table of somebody's own has the folder that it was built into."""
    folder = record.get("folder") or (record.get("recipe") or {}).get("data", {}).get("dir")
    if record["dataset"] == "table" and folder:
        return "table", Path(folder).resolve().name
    return record["dataset"], record["config"]


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as Markdown, the first column to the left, the others to the right."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(heads) - 1), *lines[1:]])


def results_table(records: list[dict], official: bool = False) -> str:
    """One Markdown table: the baselines, then the models; the best mean of a column is bold.

    With `official` each metric stands there twice: strictly (ties take the mean rank), and by RecFormer's optimistic
    ties; "–" where a record does not know those.
    """
    named_baselines = {BASELINE_NAMES.get(name, name): [m] for name, m in baseline_rows(records).items()}
    rows = {**named_baselines, **model_rows(records)}
    columns = [(metric, way) for metric in METRICS for way in ((False, True) if official else (False,))]
    best = {column: max(_mean(runs, *column) for runs in rows.values()) for column in columns}
    heads = [METRIC_NAMES[metric] + (", official" if way else "") for metric, way in columns]
    lines = []
    for name, runs in rows.items():
        seeds = "–" if name in named_baselines else str(len(runs))  # baselines have none
        cells = [_cell(runs, *column, bold=_mean(runs, *column) == best[column]) for column in columns]
        lines.append([name, seeds, *cells])
    return markdown_table(["model", "seeds", *heads], lines)


def _values(runs: list[dict], metric: str, official: bool) -> list[float]:
    """The metric of each seed; none where it is not known of all of them."""
    if official:
        runs = [run["official"] for run in runs] if all("official" in run for run in runs) else []
    return [run[metric] for run in runs]


def _mean(runs: list[dict], metric: str, official: bool) -> float:
    values = _values(runs, metric, official)
    return statistics.mean(values) if values else -math.inf


def _cell(runs: list[dict], metric: str, official: bool, bold: bool) -> str:
    """`.2916 ± .0012` over seeds, `.2916` for one, `**.2916**` for the best of the column, `–` where not known."""
    values = _values(runs, metric, official)
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.4f}".removeprefix("0")
    text = f"**{mean}**" if bold else mean
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.4f}".replace("± 0.", "± .")
    return text


def ratings_table(records: list[dict]) -> str:
    """Errors of predicted stars as one Markdown table, the worst RMSE first; the least mean of a column is bold."""
    own = defaultdict(list)
    for record in records:
        own[record["model"]].append(record["ratings"]["this run"])
    beside = {name: errors for name, errors in records[0]["ratings"].items() if name != "this run"}
    rows = {BASELINE_NAMES.get(name, name): [errors] for name, errors in beside.items()} | own
    means = {name: {e: statistics.mean(run[e] for run in runs) for e in ERRORS} for name, runs in rows.items()}
    lines = []
    for name in sorted(rows, key=lambda name: -means[name]["rmse"]):
        cells = []
        for error in ERRORS:
            mean, values = f"{means[name][error]:.4f}", [run[error] for run in rows[name]]
            best = means[name][error] == min(own[error] for own in means.values())
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append((f"**{mean}**" if best else mean) + spread)
        lines.append([name, str(len(rows[name])) if name in own else "–", *cells])
    return markdown_table(["model", "seeds", *ERRORS.values()], lines)


def results_block(records: list[dict]) -> str:
    """Everything between a page's two markers: rankings, then ratings."""
    if not records:
        return "No run is published yet: `results/` holds no record."
    ranked, rated = ([record for record in records if ("ratings" in record) is told] for told in (False, True))
    parts = [f"**{describe(group)}**\n\n{results_table(group)}" for group in group_records(ranked).values()]
    parts += [f"**Ratings: {describe(group)}**\n\n{ratings_table(group)}" for group in group_records(rated).values()]
    return "\n\n".join(parts)


def rewrite_block(text: str, block: str, source: str | Path) -> str:
    """`text` with the block between the markers replaced; raises ValueError where the markers are not there once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{source}: it needs the line {BEGIN} and, after it, the line {END}, once each")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    return f"{before}{BEGIN}\n\n{block}\n\n{after}"
