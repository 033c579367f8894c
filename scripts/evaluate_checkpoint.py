"""Rank the whole catalogue of a built dataset with a checkpoint: metrics.json and ranks.parquet.

    python scripts/evaluate_checkpoint.py runs/quickstart/checkpoint data/retail
    python scripts/evaluate_checkpoint.py runs/quickstart data/retail --split validation --exclude_history

Zero-shot: items and histories are read as texts, so any checkpoint ranks any catalogue. Only a checkpoint that was
fine-tuned on this very dataset (same fingerprint) ranks with its own item matrix. A baseline (SASRec, …) knows item
ids alone and ranks only the dataset it was trained on. Popularity and item-transition stand beside it.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

import torch
from transformers import PreTrainedConfig
from transformers import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.baselines import BASELINE_MODELS, BASELINES, fit_baseline
from jepa4rec.datasets_builders.contract import (
    SeqRecDataset,
    Split,
    Splits,
    absolute_timestamp,
    leave_one_out,
    load_dataset_dir,
)
from jepa4rec.evaluation.audit import audit, summarise
from jepa4rec.evaluation.metrics.seqrec_ranking.seqrec_ranking import CUTOFFS
from jepa4rec.evaluation.ranking import Ranks, check_k, rank_split_both_ways
from jepa4rec.evaluation.records import describe_run, portable_path, write_evaluation
from jepa4rec.evaluation.scorers import make_scorer, measure
from jepa4rec.hub.opening import encoder_class
from jepa4rec.modeling_jepa4rec import Jepa4RecForSequentialRecommendation
from jepa4rec.serving.encoding_seqrec import check_histories
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

PROTOCOLS = {"leave_one_out": leave_one_out, "absolute_timestamp": absolute_timestamp}
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


# Checkpoints


def find_checkpoint(place: str) -> str:
    """The checkpoint inside a run's folder; a checkpoint's folder or Hub id stays as it is.

    Raises FileNotFoundError for what is neither a folder nor can be a Hub id.
    """
    folder = Path(place)
    if (folder / "checkpoint" / "config.json").is_file():
        return str(folder / "checkpoint")
    if not folder.is_dir() and not HUB_ID.fullmatch(place):
        raise FileNotFoundError(f"{place} is neither a folder nor the id of a checkpoint on the Hub.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{place} has no config.json: it is no checkpoint, nor the folder of a finished run.")
    return place


def load_model(checkpoint: str, fingerprint: str) -> torch.nn.Module:
    """The fine-tuned model where its item matrix is for the dataset of this fingerprint, else the encoder; or the
    baseline that the checkpoint holds.

    Raises:
        ValueError: a baseline of another dataset, another kind of checkpoint, a broken file, missing weights, or
            weights that are no numbers.
    """
    config = read_config(checkpoint)
    fine_tuned = Jepa4RecForSequentialRecommendation.__name__ in (config.get("architectures") or [])
    fits = fine_tuned and config.get("catalogue_fingerprint") == fingerprint
    if config.get("model_type") in BASELINE_MODELS:
        check_catalogue(checkpoint, config, fingerprint)
        model_class = BASELINE_MODELS[config["model_type"]]
    else:
        model_class = Jepa4RecForSequentialRecommendation if fits else encoder_class(checkpoint)
    try:
        model, info = model_class.from_pretrained(checkpoint, output_loading_info=True)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint}: the weights do not load ({error}); save the checkpoint again.") from error
    if info["missing_keys"]:
        raise ValueError(
            f"{checkpoint} lacks the weights {sorted(info['missing_keys'])[0]}; save the checkpoint again."
        )
    check_weights(checkpoint, model)
    return model.eval()


def check_catalogue(checkpoint: str, config: dict, fingerprint: str) -> None:
    """Raises ValueError unless a baseline was trained on the dataset of this fingerprint: its items are numbers."""
    trained_on = config.get("catalogue_fingerprint")
    if trained_on != fingerprint:
        raise ValueError(
            f"{checkpoint} is a {config['model_type']} trained on the dataset of fingerprint "
            f"{str(trained_on)[:12]}, not {fingerprint[:12]}: a baseline ranks no other catalogue than its own."
        )


def read_config(checkpoint: str) -> dict:
    """The content of config.json. Raises OSError when it is broken or cannot be fetched from the Hub."""
    try:
        return PreTrainedConfig.get_config_dict(checkpoint)[0]
    except OSError as error:
        if Path(checkpoint).is_dir():
            raise
        raise OSError(f"{checkpoint} is no folder here and cannot be fetched from the Hub: {error}") from error


def check_weights(checkpoint: str, model: torch.nn.Module) -> None:
    """Raises ValueError naming the first weights that are NaN or infinite."""
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise ValueError(
                f"{checkpoint}: the weights {name} hold NaN or infinity; training went wrong before saving."
            )


def load_tokenizer(checkpoint: str, max_items: int | None, model: torch.nn.Module) -> ItemSentTokenizer | None:
    """The checkpoint's tokenizer, reading `max_items` of a history where given; None for a baseline.

    Raises ValueError when there is no tokenizer, or the model has no item positions for so many.
    """
    if model.config.model_type in BASELINE_MODELS:
        if max_items is not None:
            raise ValueError(f"--max_items is for models that read texts; {checkpoint} is a baseline.")
        return None
    try:
        tokenizer = ItemSentTokenizer.from_pretrained(checkpoint)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{checkpoint} has no tokenizer that loads: tokenizer.json and tokenizer_config.json belong beside the "
            "weights."
        ) from error
    if max_items is None:
        return tokenizer
    most = getattr(model.config, "max_item_embeddings", math.inf) - 1
    if max_items > most:
        raise ValueError(f"--max_items is {max_items}, but the model reads at most {most} items of a history.")
    return ItemSentTokenizer.wrap(tokenizer, max_items=max_items)


def is_fine_tuned(model: torch.nn.Module) -> bool:
    return isinstance(model, Jepa4RecForSequentialRecommendation)


# Evaluation


def choose_split(dataset: SeqRecDataset, options: argparse.Namespace) -> tuple[Splits, Split]:
    """All splits and the one to rank. Raises ValueError for a split without users or with unknown items."""
    splits = PROTOCOLS[options.protocol](dataset.sequences)
    split = splits.test if options.split == "test" else splits.validation
    if not len(split.targets):
        raise ValueError(
            f"{options.dataset}: no user is left in the {options.split} split; users need three interactions."
        )
    check_histories(split.histories, dataset.num_items)
    return splits, split


def evaluate(options: argparse.Namespace) -> dict:
    """Rank, write both files, and return what metrics.json says."""
    check_places(options.out, options.device)
    dataset = load_dataset_dir(options.dataset)
    for cutoff in options.cutoffs:
        check_k(cutoff, dataset.num_items)
    splits, split = choose_split(dataset, options)
    checkpoint = find_checkpoint(options.checkpoint)
    model = load_model(checkpoint, dataset.fingerprint).to(options.device)
    tokenizer = load_tokenizer(checkpoint, options.max_items, model)
    if options.split == "validation" and tokenizer is None and model.trained_by is None:
        raise ValueError(f"{checkpoint} was counted for the test split, validation's targets included: rank test.")
    item_tokens = tokenizer and tokenizer.encode_items(dataset.item_texts(), dataset.items["item_id"].to_pylist())
    scorer = make_scorer(model, tokenizer, item_tokens, options.batch_tokens)
    ranks = rank_split_both_ways(scorer, split, options.exclude_history)
    record = {
        **describe_evaluation(checkpoint, dataset, options),
        "item_vectors": "matrix" if is_fine_tuned(model) or tokenizer is None else "text",
        "tokenizer": tokenizer and tokenizer.settings,
        "users": len(split.targets),
        "items": dataset.num_items,
        **describe_run(),
        **measure(ranks, rank_baselines(splits, split, dataset.num_items, options), options.ties, options.cutoffs),
        "audit": summarise(audit(dataset, options.protocol)),
    }
    write_evaluation(options.out, record, ranks.by(options.ties), split.user_ids, split.targets, ranks.official)
    return record


def rank_baselines(splits: Splits, split: Split, num_items: int, options: argparse.Namespace) -> dict[str, Ranks]:
    """Ranks of the same users by every baseline, by the same rules."""
    scorers = {name: fit_baseline(name, splits, options.split, num_items) for name in BASELINES}
    return {
        name: rank_split_both_ways(scorer, split, options.exclude_history, progress=False)
        for name, scorer in scorers.items()
    }


def check_places(out: Path, device: str) -> None:
    """Raises ValueError or NotADirectoryError for an `out` or a device that cannot be used, before an hour of work."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; name a folder.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {error}") from error


def describe_evaluation(checkpoint: str, dataset: SeqRecDataset, options: argparse.Namespace) -> dict:
    """What was ranked, and by which rules."""
    return {
        "model": options.name or portable_path(checkpoint),
        "system": options.system,
        "dataset": dataset.info.get("name"),
        "config": dataset.info.get("config"),
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


def markdown_table(record: dict) -> str:
    """The metrics beside the baselines."""
    rows = {record["model"]: record["metrics"], **record["baselines"]}
    lines = [
        "| " + " | ".join(["", *record["metrics"]]) + " |",
        "| --- |" + " --- |" * len(record["metrics"]),
        *("| " + " | ".join([name, *(f"{value:.4f}" for value in row.values())]) + " |" for name, row in rows.items()),
    ]
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint's folder, a run's folder, or a Hub id")
    parser.add_argument("dataset", metavar="DATASET_DIR", help="folder of a built dataset (scripts/build_dataset.py)")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="leave_one_out")
    parser.add_argument("--exclude_history", action="store_true", help="take history items out of the candidates")
    parser.add_argument(
        "--ties", choices=["mean", "official"], default="mean", help="official: RecFormer's, optimistic"
    )
    parser.add_argument("--cutoffs", type=int, nargs="+", default=list(CUTOFFS), metavar="K", help="default: 10 50")
    parser.add_argument("--max_items", type=int, help="newest items of a history to read (default: the tokenizer's)")
    parser.add_argument("--batch_tokens", type=int, help="tokens encoded at a time (default: by the device)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--name", help="what tables call it (default: the checkpoint's path)")
    parser.add_argument("--system", default="JEPA4Rec", help="the method that made the checkpoint (default: JEPA4Rec)")
    parser.add_argument("--out", type=Path, help="folder for both files (default: runs/evaluate-CKPT-DATASET-SPLIT)")
    options = parser.parse_args(arguments)
    if options.out is None:
        parts = [portable_path(str(Path(place))).replace("/", "-") for place in (options.checkpoint, options.dataset)]
        options.out = Path("runs") / "-".join(["evaluate", *parts, options.split])
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        record = evaluate(options)
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate_checkpoint: {' '.join(str(error).split())}")
    print(f"{markdown_table(record)}\n\nwrote {options.out}/metrics.json and ranks.parquet")


if __name__ == "__main__":
    main()
