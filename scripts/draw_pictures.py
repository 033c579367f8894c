"""Pictures of what a run has learned: t-SNE maps of items and of users by domain, and NDCG@10 by history length.

    python scripts/draw_pictures.py runs/st5_final data/domains
    python scripts/draw_pictures.py runs/st5_final data/toy_shop --colour_by category

Written into RUN/pictures unless --out says otherwise: items.png, users.png, history_length.png. A map shows a sample
of test users and of items in the vectors that rank (t-SNE, cosine); colours are the dataset's domains, or the values
of another attribute of the items, a user having that of the newest item. ST5 thesis, sections 5.1.2 and 5.1.6.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow.parquet as pq
from transformers import logging as transformers_logging

from jepa4rec.baselines import fit_baseline
from jepa4rec.checkpointing_seqrec import RunFolder, written_folder
from jepa4rec.datasets_builders.contract import DOMAIN, SeqRecDataset, Split, load_dataset_dir
from jepa4rec.encoders_seqrec import open_encoder
from jepa4rec.metrics.significance import mean_with_interval
from jepa4rec.plotting_seqrec import require_plots, save_panels
from jepa4rec.ranking_seqrec import encode_histories, encode_items, rank_split
from jepa4rec.scripts.evaluate_checkpoint import PROTOCOLS
from jepa4rec.studies.history_length import length_groups
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

MOST_LABELS = 9  # colours that can be told apart; rarer labels share one
OTHER, NONE = "other", "(none)"
BASELINES = {"popularity": "popularity", "item-transition": "item_transition"}


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


def draw_map(places: np.ndarray, labels: np.ndarray, title: str, path: Path) -> None:
    def panel(axes) -> None:
        for label in sorted(set(labels), key=lambda label: (label == OTHER, label)):
            own = places[labels == label]
            axes.scatter(*own.T, s=6, alpha=0.7, linewidths=0, label=f"{label} ({len(own)})")
        axes.set(xticks=[], yticks=[])
        axes.legend(fontsize="x-small", markerscale=2, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

    save_panels([panel], path, title)


def draw_history_length(series: dict[str, np.ndarray], lengths: np.ndarray, title: str, path: Path) -> dict:
    """NDCG@10 with its 95 % interval for users (U,) grouped by quartiles of their history's length; returns it."""
    groups = length_groups(lengths, (np.quantile(lengths, [0.25, 0.5, 0.75]).astype(int) + 1).tolist())
    figures = {
        name: {
            group: mean_with_interval(ranks[None, members], "ndcg@10")._asdict() for group, members in groups.items()
        }
        for name, ranks in series.items()
    }

    def panel(axes) -> None:
        for name, own in figures.items():
            mean, low, high = (np.array([figure[key] for figure in own.values()]) for key in ("mean", "low", "high"))
            bars = [(mean - low).clip(0), (high - mean).clip(0)]
            axes.errorbar(range(len(own)), mean, yerr=bars, marker="o", markersize=4, capsize=2, label=name)
        names = [f"{group}\n{members.sum()} users" for group, members in groups.items()]
        axes.set(xticks=range(len(names)), ylabel="NDCG@10", ylim=(0, None))
        axes.set_xticklabels(names, fontsize="x-small")
        axes.legend(fontsize="x-small", frameon=False)

    save_panels([panel], path, title)
    return figures


def run_ranks(run: Path, dataset: SeqRecDataset) -> tuple[dict, np.ndarray, Split]:
    """A finished run's record, its test ranks and the split they are of.

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


def draw(run: Path, dataset: SeqRecDataset, folder: Path, colour_by: str, points: int, seed: int) -> None:
    """All three pictures into `folder`, and figures.json with the numbers of the last."""
    labels = item_labels(dataset, colour_by)
    record, ranks, splits = run_ranks(run, dataset)
    test, name = splits.test, record["model"]
    checkpoint = run / "checkpoint"
    model, tokenizer = open_encoder(checkpoint).eval(), ItemSentTokenizer.from_pretrained(checkpoint)
    tokens = tokenizer.encode_items(dataset.item_texts())
    items = sample(dataset.num_items, points, seed)
    vectors = encode_items(model, tokenizer, tokens).cpu().numpy()[items]
    draw_map(tsne(vectors, seed), labels[items], f"Items by {colour_by}\n{name}", folder / "items.png")
    users = sample(len(test.targets), points, seed)
    histories = [test.histories[user] for user in users]
    vectors = encode_histories(model, tokenizer, tokens, histories).cpu().numpy()
    own = user_labels(dataset, labels, colour_by, test.user_ids[users], histories)
    draw_map(tsne(vectors, seed), own, f"Users by {colour_by}\n{name}", folder / "users.png")
    series = {name: ranks}
    for title, baseline in BASELINES.items():
        scorer = fit_baseline(baseline, splits, "test", dataset.num_items)
        series[title] = rank_split(scorer, test, record["exclude_history"], record["ties"], progress=False)
    lengths = np.array([len(history) for history in test.histories])
    title = f"NDCG@10 by history length\n{name}"
    figures = draw_history_length(series, lengths, title, folder / "history_length.png")
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def user_labels(dataset: SeqRecDataset, labels: np.ndarray, colour_by: str, user_ids, histories) -> np.ndarray:
    """A user's own domain where the dataset tells it, else the label of the newest item."""
    if colour_by == DOMAIN and DOMAIN in dataset.sequences.column_names:
        domains = dict(zip(*(dataset.sequences[name].to_pylist() for name in ("user_id", DOMAIN)), strict=True))
        return few_labels(np.array([domains[user] for user in user_ids], dtype=object))
    return labels[[history[-1] for history in histories]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run's folder")
    parser.add_argument("dataset", metavar="DATASET_DIR", help="the built dataset it was measured on")
    parser.add_argument("--colour_by", default=DOMAIN, metavar="ATTRIBUTE", help="default: domain")
    parser.add_argument("--points", type=int, default=1500, help="items and users on a map, at most (1500)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples and maps (0)")
    parser.add_argument("--out", type=Path, help="folder for the pictures (RUN/pictures)")
    options = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    out = options.out or options.run / "pictures"
    try:
        require_plots()
        if find_spec("sklearn") is None:
            raise ValueError("scikit-learn makes the maps and is not installed: pip install 'jepa4rec[plots]'")
        dataset = load_dataset_dir(options.dataset)
        with written_folder(out) as folder:
            draw(options.run, dataset, folder, options.colour_by, options.points, options.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"draw_pictures: {' '.join(str(error).split())}")
    print(f"wrote {out}/items.png, users.png, history_length.png and figures.json")


if __name__ == "__main__":
    main()
