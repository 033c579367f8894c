"""Audit a built dataset before trusting numbers measured on it: a page to read, a plot, and the same as JSON.

    python scripts/audit_dataset.py data/online_retail
    python scripts/audit_dataset.py data/shop --out audits --name my_shop

How often people repeat themselves, how much of the order is the file's, which targets nobody has in training, equal
texts, future leakage, and how far the recommenders get that only count. `evaluation/audit.py` defines every figure.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("dataset", metavar="DIR", type=Path, help="folder of a built dataset (scripts/build_dataset.py)")
PARSER.add_argument("--protocol", default="leave_one_out", help="or absolute_timestamp (default: leave_one_out)")
PARSER.add_argument("--out", type=Path, default=Path("results/audits"), help="default: results/audits")
PARSER.add_argument("--name", help="of the three files (default: the folder's)")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import numpy as np

from jepa4rec.baselines import BASELINES
from jepa4rec.datasets_builders.builder import check_choice
from jepa4rec.datasets_builders.contract import PROTOCOLS, SeqRecDataset, load_dataset_dir
from jepa4rec.evaluation.audit import audit, figure_rows, percent, unknown_because
from jepa4rec.evaluation.metrics.seqrec_ranking.ranking_metrics import ranking_metrics
from jepa4rec.evaluation.plots import COLOURS, label_plainly, require_plots, save_panels
from jepa4rec.evaluation.records import describe_run
from jepa4rec.evaluation.scorers import rank_baselines
from jepa4rec.model_cards.results_table import BASELINE_NAMES, METRIC_NAMES, METRICS, markdown_table
from jepa4rec.serving.whole_files_seqrec import written_files

TOLD = (
    "name",
    "config",
    "fingerprint",
    "source",
    "licence",
    "users",
    "items",
    "interactions",
    "average_length",
    "density",
)


def make_audit(dataset: SeqRecDataset, protocol: str) -> dict:
    """The whole audit as the JSON holds it. Raises ValueError for a dataset too small or without what is needed."""
    told = {("dataset" if name == "name" else name): dataset.info.get(name) for name in TOLD}
    return {
        **told,
        **audit(dataset, protocol),
        "baselines": measure_baselines(dataset, protocol),
        **describe_run(),
    }


def measure_baselines(dataset: SeqRecDataset, protocol: str) -> dict[str, dict[str, float]]:
    """Test metrics of the baselines that are counted, by the rules of every record: full ranking, mean rank for ties,
    history items stay candidates."""
    splits = PROTOCOLS[protocol](dataset.sequences)
    print(f"ranking all {len(splits.test.targets):,} test targets by counting", file=sys.stderr)
    ranks = rank_baselines(BASELINES, splits, "test", dataset.num_items)
    return {name: ranking_metrics(own.by("mean")) for name, own in ranks.items()}


# The page


def page(audited: dict, name: str) -> str:
    """The audit in words and tables, with its plot."""
    title = " ".join(filter(None, (audited["dataset"], audited["config"]))) or name
    counts = (
        f"{audited['users']:,} users, {audited['items']:,} items, {audited['interactions']:,} interactions "
        f"({audited['average_length']:.1f} a user, density {audited['density']:.5f}). Split: "
        f"{audited['protocol'].replace('_', '-')}, {audited['test_targets']:,} test targets, "
        f"{audited['training_interactions']:,} training interactions."
    )
    figures = "\n".join(f"| {what} | {value} | {meaning} |" for what, value, meaning in figure_rows(audited))
    unknown = f"\n{unknown_because(audited)}\n" if audited["reasons"] else ""
    commit = f", commit `{audited['commit']}`" if audited["commit"] else ""
    return f"""\
# Audit of {title}

{counts}

Fingerprint `{audited["fingerprint"]}`{commit}.

Written by `scripts/audit_dataset.py`; the numbers, and those the plots show, are in `{name}.json`.

![Plots of the audit: {", ".join(panel_names(audited))}]({name}.png)

## What to know before trusting a number

| share of | | what it means |
| --- | ---: | --- |
{figures}
{unknown}
## How far counting gets

The target of each test user ranked among all items; ties take the mean rank, items of the history stay candidates. A
model that does not beat these rows has learned nothing that counting does not know.

{baselines_table(audited["baselines"])}
"""


def baselines_table(baselines: dict[str, dict[str, float]]) -> str:
    cells = {name: [f"{own[metric]:.4f}".removeprefix("0") for metric in METRICS] for name, own in baselines.items()}
    return markdown_table(["", *METRIC_NAMES.values()], ([BASELINE_NAMES[name], *own] for name, own in cells.items()))


# The plot


def draw_lengths(axes, audited: dict) -> None:
    shown = audited["distributions"]["history_length"]
    axes.stairs(shown["users"], shown["edges"], fill=True, color=COLOURS[0])
    axes.set(title="Length of the histories", xlabel="interactions of a user", ylabel="users", xscale="log")
    label_plainly(axes.xaxis, shown["edges"][0], shown["edges"][-1])


def draw_popularity(axes, audited: dict) -> None:
    shown = audited["distributions"]["item_popularity"]
    values = np.maximum(shown["interactions"], 0.5)  # a logarithmic axis has no 0
    axes.plot(shown["rank"], values, color=COLOURS[0])
    axes.set(title="Long tail of the items", xlabel="items, most popular first", ylabel="interactions of the item")
    axes.set(xscale="log", yscale="log")
    label_plainly(axes.xaxis, 1, shown["rank"][-1])
    label_plainly(axes.yaxis, values.min(), values.max())
    top = percent(audited["figures"]["top_tenth_items"])
    axes.text(0.05, 0.08, f"the top 10 % of items\nhave {top} of interactions", transform=axes.transAxes)


def draw_time(axes, audited: dict) -> None:
    """Training and test over time, each as a share of its own."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    shown = audited["distributions"]["time"]
    edges = [datetime.fromtimestamp(edge / 1000, UTC) for edge in shown["edges"]]
    for number, (name, label) in enumerate((("train", "training"), ("test", "test targets"))):
        values = 100 * np.array(shown[name]) / sum(shown[name])
        axes.stairs(
            values, edges, fill=number == 0, alpha=0.5 if number == 0 else 1, color=COLOURS[number], label=label
        )
    axes.set(title="Training and test over time", xlabel="date", ylabel="% of all training, of all test")
    axes.legend(frameon=False, loc="upper left")
    locator = AutoDateLocator(maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def draw_gaps(axes, audited: dict) -> None:
    shown = audited["distributions"]["test_gap"]
    values = 100 * np.array(shown["targets"]) / sum(shown["targets"])
    axes.barh(shown["gap"], values, color=COLOURS[0])
    axes.set(title="From the last known item to the target", xlabel="% of test targets")
    axes.invert_yaxis()


def draw_baselines(axes, audited: dict) -> None:
    names = [BASELINE_NAMES[name].replace(", ", ",\n") for name in audited["baselines"]]
    bars = axes.barh(names, [metrics["ndcg@10"] for metrics in audited["baselines"].values()], color=COLOURS[2])
    axes.bar_label(bars, fmt="%.4f", padding=3)
    axes.set(title="How far counting gets", xlabel="NDCG@10 on test, full ranking")
    axes.margins(x=0.2)
    axes.invert_yaxis()


def draw_figures(axes, audited: dict) -> None:
    shown = {
        "in the history": "repeat_targets",
        "never in training": "cold_targets",
        "same time as item before": "tied_targets",
        "seen later by others": "targets_seen_later",
    }
    values = [audited["figures"][name] for name in shown.values()]
    bars = axes.barh(list(shown), [100 * (value or 0) for value in values], color=COLOURS[1])
    axes.bar_label(bars, ["not known" if value is None else percent(value) for value in values], padding=3)
    axes.set(title="Test targets to beware of", xlabel="% of test targets", xlim=(0, 130), xticks=range(0, 101, 25))
    axes.invert_yaxis()


PANELS: dict[str, Callable] = {
    "length of the histories": draw_lengths,
    "popularity of the items": draw_popularity,
    "test targets to beware of": draw_figures,
    "training and test over time": draw_time,
    "gap before the target": draw_gaps,
    "baselines": draw_baselines,
}


def panel_names(audited: dict) -> list[str]:
    needs_times = ("training and test over time", "gap before the target")
    return [name for name in PANELS if name not in needs_times or "time" in audited["distributions"]]


def draw(audited: dict, path: Path, name: str) -> None:
    names = panel_names(audited)
    title = " ".join(filter(None, (audited["dataset"], audited["config"]))) or name
    save_panels([partial(PANELS[one], audited=audited) for one in names], path, title, 3 if len(names) > 4 else 2)


# Command line


def write_audit(audited: dict, out: Path, name: str) -> None:
    """NAME.json, NAME.md and NAME.png in a folder, all complete before the first appears under its name."""
    with written_files(*(out / f"{name}{end}" for end in (".png", ".md", ".json"))) as (picture, text, figures):
        draw(audited, picture, name)
        text.write_text(page(audited, name), encoding="utf-8")
        figures.write_text(json.dumps(audited, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


@command(PARSER)
def main(options: Namespace) -> None:
    name = options.name or options.dataset.resolve().name
    check_choice("--protocol", options.protocol, list(PROTOCOLS))
    require_plots()
    if options.out.exists() and not options.out.is_dir():
        raise NotADirectoryError(f"--out {options.out} is a file; name a folder")
    audited = make_audit(load_dataset_dir(options.dataset), options.protocol)
    write_audit(audited, options.out, name)
    for what, value, _ in figure_rows(audited):
        print(f"{value:>9}  {what}")
    if audited["reasons"]:
        print(unknown_because(audited))
    print(f"\n{baselines_table(audited['baselines'])}\n\nwrote {options.out / name}.md, .json and .png")


if __name__ == "__main__":
    main()
