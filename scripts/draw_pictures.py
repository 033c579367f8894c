"""Pictures of what a run has learned: t-SNE maps of items and of users by domain, and NDCG@10 by domain and by history
length.

    python scripts/draw_pictures.py runs/st5_final data/domains --beside runs/st5_only runs/st5_finetune
    python scripts/draw_pictures.py runs/st5_final data/toy_shop --colour_by category

Written into RUN/pictures unless --out says otherwise: items.png, users.png, groups.png, history_length.png, and
figures.json with the numbers of the last two. A map shows a sample of test users and of items in the vectors that rank
(t-SNE, cosine); colours are the dataset's domains, or the values of another attribute of the items, a user having that
of the newest item. --beside puts other runs on the same dataset into all four, UniSRec and its like, too. ST5 thesis,
sections 5.1.2 and 5.1.6.
"""

import json
import sys
from argparse import Namespace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("run", metavar="RUN", type=Path, help="a finished run's folder")
PARSER.add_argument("dataset", metavar="DATASET_DIR", help="the built dataset it was measured on")
PARSER.add_argument("--beside", nargs="+", type=Path, default=[], metavar="RUN", help="runs to measure beside it")
PARSER.add_argument("--colour_by", default="domain", metavar="ATTRIBUTE", help="default: domain")
PARSER.add_argument("--points", type=int, default=1500, help="items and users on a map, at most (1500)")
PARSER.add_argument("--seed", type=int, default=0, help="of the samples and maps (0)")
PARSER.add_argument("--out", type=Path, help="folder for the pictures (RUN/pictures)")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import numpy as np
import pyarrow.parquet as pq
import torch

from jepa4rec.baselines import BASELINE_MODELS
from jepa4rec.baselines.item_sequences import ItemSequenceModel
from jepa4rec.datasets_builders.contract import DOMAIN, PROTOCOLS, SeqRecDataset, Splits, load_dataset_dir
from jepa4rec.evaluation.metrics.significance import mean_with_interval
from jepa4rec.evaluation.plots import require_plots, save_panels
from jepa4rec.evaluation.ranking import length_groups
from jepa4rec.evaluation.scorers import rank_baselines
from jepa4rec.hub.opening import open_as_is
from jepa4rec.serving.encoding_seqrec import encode_histories, encode_items
from jepa4rec.serving.whole_files_seqrec import written_folder
from jepa4rec.tokenization_itemsent import ItemSentTokenizer
from jepa4rec.training.run_folder import RunFolder

MOST_LABELS = 9  # colours that can be told apart; rarer labels share one
OTHER, NONE = "other", "(none)"
BASELINES = ("popularity", "item_transition")


def item_labels(dataset: SeqRecDataset, name: str) -> np.ndarray:
    """What every item is coloured by, (N,) str. Raises ValueError for a column that is not there."""
    columns = [column for column in dataset.items.column_names if column != "item_id"]
    if name not in columns:
        raise ValueError(f"items have no {name} to be coloured by: choose --colour_by {', '.join(columns)}")
    return few_labels(np.array(dataset.items[name].to_pylist(), dtype=object))


def few_labels(labels: np.ndarray) -> np.ndarray:
    """The most frequent labels, all others as one."""
    values, counts = np.unique(np.where(labels == "", NONE, labels).astype(str), return_counts=True)
    kept = values[np.argsort(-counts, kind="stable")][:MOST_LABELS]
    return np.array(
        [label if label in kept else OTHER for label in np.where(labels == "", NONE, labels)], dtype=object
    )


def sample(count: int, most: int, seed: int) -> np.ndarray:
    """At most `most` of `count` rows, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Places (n, 2) of vectors (n, d). Raises ValueError for fewer than four."""
    from sklearn.manifold import TSNE

    if len(vectors) < 4:
        raise ValueError(f"{len(vectors)} points are too few for a map: at least 4 are needed")
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed).fit_transform(vectors)


def draw_maps(vectors: dict[str, np.ndarray], labels: np.ndarray, title: str, path: Path, seed: int) -> None:
    """A map of every run's vectors (n, d) beside each other, coloured by the labels (n,)."""

    def panel(axes, name: str, places: np.ndarray) -> None:
        for label in sorted(set(labels), key=lambda label: (label == OTHER, label)):
            own = places[labels == label]
            axes.scatter(*own.T, s=6, alpha=0.7, linewidths=0, label=f"{label} ({len(own)})")
        axes.set(title=name, xticks=[], yticks=[], xlabel="t-SNE of the vectors, by cosine: near is alike")
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.legend(fontsize="x-small", markerscale=2, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

    panels = [partial(panel, name=name, places=tsne(own, seed)) for name, own in vectors.items()]
    save_panels(panels, path, title, size=(5.0, 3.4))


def read_vectors(run: Path, dataset: SeqRecDataset, histories: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N, d) of all items and (n, d) of histories, as a run's checkpoint ranks them. Raises ValueError for a
    baseline that has none."""
    checkpoint = run / "checkpoint"
    model = open_as_is(checkpoint).eval()
    if isinstance(model, ItemSequenceModel):
        with torch.no_grad():
            items = model.item_vectors()
            users = model.encode_histories(histories)
        return items.detach().numpy(), users.numpy()
    if model.config.model_type in BASELINE_MODELS:
        raise ValueError(f"{run} is a {model.config.model_type}, which has no vectors to draw a map of")
    tokenizer = ItemSentTokenizer.from_pretrained(checkpoint)
    tokens = tokenizer.encode_items(dataset.item_texts(empty=True))
    items = encode_items(model, tokenizer, tokens)
    return items.cpu().numpy(), encode_histories(model, tokenizer, tokens, histories).cpu().numpy()


def draw_groups(series: dict[str, np.ndarray], groups: dict[str, np.ndarray], what: str, path: Path) -> dict:
    """NDCG@10 with its 95 % interval of every series of ranks (U,) in groups of users, bool (U,) each; returns it."""
    figures = {
        name: {
            group: mean_with_interval(ranks[None, members], "ndcg@10")._asdict() for group, members in groups.items()
        }
        for name, ranks in series.items()
    }

    def panel(axes) -> None:
        for place, (name, own) in enumerate(figures.items()):
            mean, low, high = (np.array([figure[key] for figure in own.values()]) for key in ("mean", "low", "high"))
            bars = [(mean - low).clip(0), (high - mean).clip(0)]
            beside = np.arange(len(own)) + 0.08 * (place - (len(figures) - 1) / 2)  # bars that do not hide each other
            axes.errorbar(beside, mean, yerr=bars, marker="o", markersize=4, capsize=2, linestyle="none", label=name)
        names = [f"{group}\n{members.sum()} users" for group, members in groups.items()]
        axes.set(xticks=range(len(names)), xlim=(-0.5, len(names) - 0.5), ylim=(0, None))
        axes.set_ylabel("NDCG@10, 95 % interval")
        axes.set_xticklabels(names, fontsize="x-small")
        axes.legend(fontsize="x-small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

    save_panels([panel], path, f"NDCG@10 by {what}", size=(6.0, 3.2))
    return figures


def run_ranks(run: Path, dataset: SeqRecDataset) -> tuple[dict, np.ndarray, Splits]:
    """A finished run's record, its test ranks and the splits they are of.

    Raises ValueError or FileNotFoundError for an unfinished run or another dataset than it was measured on.
    """
    folder = RunFolder(run)
    if not folder.is_finished():
        raise FileNotFoundError(f"{run} is not the folder of a finished run: metrics.json is missing")
    record = json.loads(folder.metrics.read_text(encoding="utf-8"))
    if record["fingerprint"] != dataset.fingerprint:
        raise ValueError(f"{run} was measured on another dataset (fingerprint {record['fingerprint'][:12]}…)")
    splits = PROTOCOLS[record["protocol"]](dataset.sequences)
    return record, pq.read_table(folder.ranks, columns=["rank"])["rank"].to_numpy(), splits


def draw(run: Path, beside: list[Path], dataset: SeqRecDataset, folder: Path, options: Namespace) -> None:
    """All pictures into `folder`, and figures.json with the numbers of those that measure."""
    labels = item_labels(dataset, options.colour_by)
    record, ranks, splits = run_ranks(run, dataset)
    test, name, what = splits.test, record["model"], options.colour_by
    series = {name: ranks} | other_ranks(beside, dataset, record)
    items = sample(dataset.num_items, options.points, options.seed)
    users = sample(len(test.targets), options.points, options.seed)
    own = user_labels(dataset, labels, what, test.user_ids, test.histories)
    histories = [test.histories[user] for user in users]
    read = {title: read_vectors(one, dataset, histories) for title, one in zip(series, (run, *beside), strict=True)}
    of_items = {title: vectors[items] for title, (vectors, _) in read.items()}
    of_users = {title: vectors for title, (_, vectors) in read.items()}
    draw_maps(of_items, labels[items], f"Items by {what}", folder / "items.png", options.seed)
    draw_maps(of_users, own[users], f"Users by {what}", folder / "users.png", options.seed)
    counted = rank_baselines(BASELINES, splits, "test", dataset.num_items, record["exclude_history"])
    series |= {title.replace("_", "-"): own.by(record["ties"]) for title, own in counted.items()}
    lengths = np.array([len(history) for history in test.histories])
    by_length = length_groups(lengths)
    by_label = {label: own == label for label in sorted(set(own))}
    figures = {
        what: draw_groups(series, by_label, what, folder / "groups.png"),
        "history_length": draw_groups(series, by_length, "history length", folder / "history_length.png"),
    }
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def other_ranks(runs: list[Path], dataset: SeqRecDataset, record: dict) -> dict[str, np.ndarray]:
    """Test ranks of other runs by their names. Raises ValueError unless they rank by the rules of `record`."""
    series = {}
    for run in runs:
        other, ranks, _ = run_ranks(run, dataset)
        for rule in ("split", "protocol", "exclude_history", "ties"):
            if other[rule] != record[rule]:
                raise ValueError(f"{run} was ranked with {rule} {other[rule]}, not {record[rule]}: rank it alike")
        if other["model"] in (record["model"], *series):
            raise ValueError(f"{run} is called {other['model']}, as another run here: give it a run.name of its own")
        series[other["model"]] = ranks
    return series


def user_labels(dataset: SeqRecDataset, labels: np.ndarray, colour_by: str, user_ids, histories) -> np.ndarray:
    """A user's own domain where the dataset tells it, else the label of the newest item."""
    if colour_by == DOMAIN and DOMAIN in dataset.sequences.column_names:
        domains = dict(zip(*(dataset.sequences[name].to_pylist() for name in ("user_id", DOMAIN)), strict=True))
        return few_labels(np.array([domains[user] for user in user_ids], dtype=object))
    return labels[[history[-1] for history in histories]]


@command(PARSER)
def main(options: Namespace) -> None:
    out = options.out or options.run / "pictures"
    require_plots()
    if find_spec("sklearn") is None:
        raise ValueError("scikit-learn makes the maps and is not installed: pip install 'jepa4rec[plots]'")
    dataset = load_dataset_dir(options.dataset)
    with written_folder(out) as folder:
        draw(options.run, options.beside, dataset, folder, options)
    print(f"wrote {out}/items.png, users.png, groups.png, history_length.png and figures.json")


if __name__ == "__main__":
    main()
