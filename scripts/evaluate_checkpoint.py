"""Rank the whole catalogue of a built dataset with a checkpoint: metrics.json and ranks.parquet.

    python scripts/evaluate_checkpoint.py runs/quickstart/checkpoint data/retail
    python scripts/evaluate_checkpoint.py runs/quickstart data/retail --split validation --exclude_history

Zero-shot: items and histories are read as texts, so any checkpoint ranks any catalogue. Only a checkpoint that was
fine-tuned on this very dataset (same fingerprint) ranks with its own item matrix. A baseline (SASRec, …) knows item
ids alone and ranks only the dataset it was trained on. Popularity and item-transition stand beside it, and where texts
are read TF-IDF, which only counts their words.

`--history items` reads no history: it takes the recency-weighted mean of the items' vectors, which costs nothing.
Without it a checkpoint reads as its config.json says (history_decay). With it, `--whitening 0.75` first takes out of
the vectors what all items of this catalogue share (catalogue_whitening); nothing but their texts is looked at.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("checkpoint", metavar="CKPT", help="a checkpoint's folder, a run's folder, or a Hub id")
PARSER.add_argument("dataset", metavar="DATASET_DIR", help="folder of a built dataset (scripts/build_dataset.py)")
PARSER.add_argument("--split", choices=["test", "validation"], default="test")
PARSER.add_argument("--protocol", default="leave_one_out", help="or absolute_timestamp (default: leave_one_out)")
PARSER.add_argument("--exclude_history", action="store_true", help="take history items out of the candidates")
PARSER.add_argument("--ties", choices=["mean", "official"], default="mean", help="official: RecFormer's, optimistic")
PARSER.add_argument("--cutoffs", type=int, nargs="+", default=[10, 50], metavar="K", help="default: 10 50")
PARSER.add_argument("--max_items", type=int, help="newest items of a history to read (default: the tokenizer's)")
PARSER.add_argument("--batch_tokens", type=int, help="tokens encoded at a time (default: by the device)")
PARSER.add_argument(
    "--history",
    choices=["text", "items"],
    help="as one text, or as the recency-weighted mean of its items' vectors (default: as the checkpoint says)",
)
PARSER.add_argument(
    "--whitening",
    type=float,
    metavar="POWER",
    help="with --history items: of the catalogue's vectors by themselves, 0.75 say (default: as the checkpoint says)",
)
PARSER.add_argument("--device", help="default: cuda where there is one, else cpu")
PARSER.add_argument("--name", help="what tables call it (default: the checkpoint's path)")
PARSER.add_argument("--system", default="JEPA4Rec", help="the method that made the checkpoint (default: JEPA4Rec)")
PARSER.add_argument("--out", type=Path, help="folder for both files (default: runs/evaluate-CKPT-DATASET-SPLIT)")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import torch

from jepa4rec.baselines import BASELINES
from jepa4rec.datasets_builders.builder import check_choice
from jepa4rec.datasets_builders.contract import PROTOCOLS, SeqRecDataset, Split, Splits, load_dataset_dir
from jepa4rec.evaluation.audit import audit, summarise
from jepa4rec.evaluation.ranking import rank_split_both_ways
from jepa4rec.evaluation.records import describe_run, portable_path, write_evaluation
from jepa4rec.evaluation.scorers import TfIdfScorer, history_reading, make_scorer, measure, rank_baselines
from jepa4rec.hub.opening import find_checkpoint, is_fine_tuned, load_model, load_tokenizer
from jepa4rec.model_cards.results_table import markdown_table
from jepa4rec.serving.encoding_seqrec import check_histories
from jepa4rec.training.data import kept_vectors


def choose_split(dataset: SeqRecDataset, options: Namespace) -> tuple[Splits, Split]:
    """All splits and the one to rank. Raises ValueError for a split without users or with unknown items."""
    splits = PROTOCOLS[options.protocol](dataset.sequences)
    split = splits.test if options.split == "test" else splits.validation
    if not len(split.targets):
        raise ValueError(
            f"{options.dataset}: no user is left in the {options.split} split; users need three interactions."
        )
    check_histories(split.histories, dataset.num_items)
    return splits, split


def evaluate(options: Namespace) -> dict:
    """Rank, write both files, and return what metrics.json says."""
    check_choice("--protocol", options.protocol, list(PROTOCOLS))
    check_places(options.out, options.device)
    dataset = load_dataset_dir(options.dataset)
    if any(cutoff < 1 for cutoff in options.cutoffs):
        raise ValueError(f"--cutoffs {' '.join(map(str, options.cutoffs))}: each is at least 1")
    splits, split = choose_split(dataset, options)
    checkpoint = find_checkpoint(options.checkpoint)
    model = load_model(checkpoint, dataset.fingerprint).to(options.device)
    tokenizer = load_tokenizer(checkpoint, model, options.max_items)
    if options.split == "validation" and tokenizer is None and model.trained_by is None:
        raise ValueError(f"{checkpoint} was counted for the test split, validation's targets included: rank test.")
    if options.whitening is not None:
        if tokenizer is None or is_fine_tuned(model) or (options.history or history_reading(model)) != "items":
            raise ValueError("--whitening is for a text encoder that reads histories as items: add --history items")
        if not 0 <= options.whitening <= 1:
            raise ValueError(f"--whitening {options.whitening}: a power is at least 0 and at most 1")
        model.config.catalogue_whitening = options.whitening
    item_ids = dataset.items["item_id"].to_pylist()
    item_tokens = tokenizer and tokenizer.encode_items(dataset.item_texts(empty=True), item_ids)
    vectors = None
    from_texts = not is_fine_tuned(model) or model.config.catalogue_fingerprint != dataset.fingerprint
    if tokenizer is not None and from_texts:
        vectors = kept_vectors(model, tokenizer, item_tokens, options.batch_tokens)
        if is_fine_tuned(model):
            model.replace_items(vectors)
    reading = {"history": options.history, "item_vectors": vectors}
    scorer = make_scorer(model, tokenizer, item_tokens, options.batch_tokens, **reading)
    baselines = rank_baselines(BASELINES, splits, options.split, dataset.num_items, options.exclude_history)
    if item_tokens is not None:
        words = TfIdfScorer(item_tokens)
        baselines["tf_idf"] = rank_split_both_ways(words, split, options.exclude_history, progress=False)
    ranks = rank_split_both_ways(scorer, split, options.exclude_history)
    history = "ids" if tokenizer is None else options.history or history_reading(model)
    whitened = history == "items" and not is_fine_tuned(model)
    record = {
        **describe_evaluation(checkpoint, dataset, options),
        "item_vectors": "matrix" if tokenizer is None or not from_texts else "text",
        "history": history,
        "whitening": model.config.catalogue_whitening if whitened else None,
        "tokenizer": tokenizer and tokenizer.settings,
        "users": len(split.targets),
        "items": dataset.num_items,
        **describe_run(),
        **measure(ranks, baselines, options.ties, options.cutoffs),
        "audit": summarise(audit(dataset, options.protocol)),
    }
    write_evaluation(options.out, record, ranks.by(options.ties), split.user_ids, split.targets, ranks.official)
    return record


def check_places(out: Path, device: str) -> None:
    """Raises ValueError or NotADirectoryError for an `out` or a device that cannot be used, before an hour of work."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; name a folder.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {error}") from error


def describe_evaluation(checkpoint: str, dataset: SeqRecDataset, options: Namespace) -> dict:
    """What was ranked, and by which rules."""
    return {
        "model": options.name or portable_path(checkpoint),
        "system": options.system,
        "dataset": dataset.info.get("name"),
        "config": dataset.info.get("config"),
        "folder": Path(options.dataset).resolve().name,
        "fingerprint": dataset.fingerprint,
        "split": options.split,
        "protocol": options.protocol,
        "exclude_history": options.exclude_history,
        "ties": options.ties,
        "seed": training_seed(options.checkpoint),  # nothing is random here
    }


def training_seed(place: str) -> int | None:
    """The seed that trained the checkpoint in a run's folder; None where that is not said."""
    metrics = Path(place) / "metrics.json"
    return json.loads(metrics.read_text(encoding="utf-8")).get("seed") if metrics.is_file() else None


@command(PARSER)
def main(options: Namespace) -> None:
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.out is None:
        parts = [portable_path(str(Path(place))).replace("/", "-") for place in (options.checkpoint, options.dataset)]
        options.out = Path("runs") / "-".join(["evaluate", *parts, options.split])
    record = evaluate(options)
    rows = {record["model"]: record["metrics"], **record["baselines"]}
    cells = ([name, *(f"{value:.4f}" for value in row.values())] for name, row in rows.items())
    print(f"{markdown_table(['', *record['metrics']], cells)}\n\nwrote {options.out}/metrics.json and ranks.parquet")


if __name__ == "__main__":
    main()
