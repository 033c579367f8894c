"""An independent check of our SASRec: RecTools' SASRec on the same split, ranked by the same rules.

    python -m venv rectools && rectools/bin/pip install 'rectools[torch]' pyarrow
    python benchmarks/rectools_sasrec.py data/scientific --python rectools/bin/python \\
        --ours 'results/scientific-sasrec-seed*.json' --out results/benchmarks/rectools_sasrec.json

RecTools wants NumPy 1, so it lives in an environment of its own, named by --python: this file runs itself there
(`--inside`) to train and to score, and compares the ranks here, user by user. RecTools trains for the epochs given
(128 wide, two blocks, two heads, softmax over the catalogue, no early stopping) on every user's training part; items
that have no interaction there tie behind all others, as an item without a score does.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SETTINGS = {"n_factors": 128, "n_blocks": 2, "n_heads": 2, "dropout_rate": 0.2, "lr": 1e-3, "batch_size": 128}
SETTINGS |= {"session_max_len": 50, "loss": "softmax"}
USERS_AT_ONCE = 500


# ------------------------------------------------------------------------------------------------ in RecTools' world


def train_and_rank(folder: Path, seed: int, epochs: int) -> None:
    """Reads `split.npz`, writes `ranks.npy`: the rank (U,) of every target among all items."""
    import pandas as pd
    from pytorch_lightning import seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    split = np.load(folder / "split.npz")
    seed_everything(seed)

    def interactions(items: np.ndarray, lengths: np.ndarray):
        users = np.repeat(np.arange(len(lengths)), lengths)
        days = pd.to_datetime(np.arange(len(items)), unit="s")  # the order, which is all that is known
        return pd.DataFrame({Columns.User: users, Columns.Item: items, Columns.Weight: 1.0, Columns.Datetime: days})

    model = SASRecModel(**SETTINGS, epochs=epochs, deterministic=False, verbose=0)
    model.fit(Dataset.construct(interactions(split["train_items"], split["train_lengths"])))
    histories = Dataset.construct(interactions(split["history_items"], split["history_lengths"]))
    known, num_items = np.unique(split["train_items"]), int(split["num_items"])
    unknown = (len(known) + 1 + num_items) / 2  # the mean rank of the items without a score
    ranks = np.full(len(split["targets"]), unknown)
    for users in np.split(np.arange(len(ranks)), range(USERS_AT_ONCE, len(ranks), USERS_AT_ONCE)):
        found = model.recommend(users, histories, k=len(known), filter_viewed=False)
        hit = found[found[Columns.Item].to_numpy() == split["targets"][found[Columns.User].to_numpy()]]
        ranks[hit[Columns.User].to_numpy()] = hit[Columns.Rank].to_numpy()
    np.save(folder / "ranks.npy", ranks)


# ------------------------------------------------------------------------------------------------ in ours


def flat(sequences: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All items one after the other, and the length of each sequence."""
    return np.concatenate(sequences), np.array([len(sequence) for sequence in sequences])


def rank_by_rectools(python: str, splits, num_items: int, seed: int, epochs: int) -> np.ndarray:
    """Ranks (U,) of the test targets by a SASRec that RecTools trained. Raises RuntimeError with its last words."""
    train, histories = flat(splits.train), flat(splits.test.histories)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            Path(folder) / "split.npz", train_items=train[0], train_lengths=train[1], history_items=histories[0],
            history_lengths=histories[1], targets=splits.test.targets, num_items=num_items,
        )  # fmt: skip
        command = [python, __file__, folder, "--inside", "--seeds", str(seed), "--epochs", str(epochs)]
        done = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["RecTools stopped without a word"])[-1])
        return np.load(Path(folder) / "ranks.npy")


def compare(options: argparse.Namespace) -> dict:
    """Both systems' metrics, and the paired test between them."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from jepa4rec.datasets_builders.contract import leave_one_out, load_dataset_dir
    from jepa4rec.evaluation.metrics.seqrec_ranking.ranking_metrics import ranking_metrics
    from jepa4rec.evaluation.metrics.significance import paired_bootstrap
    from jepa4rec.evaluation.records import describe_run
    from jepa4rec.scripts.compare_runs import read_systems

    dataset = load_dataset_dir(options.data)
    splits = leave_one_out(dataset.sequences)
    (ours,) = read_systems([options.ours])
    if ours.records[0]["fingerprint"] != dataset.fingerprint:
        raise ValueError(f"{options.ours} were measured on other data than {options.data}: the fingerprints differ.")
    theirs = [
        rank_by_rectools(options.python, splits, dataset.num_items, seed, options.epochs) for seed in options.seeds
    ]
    ranks, tested = ours.ranks("rank"), ("recall@10", "ndcg@10")
    tests = {metric: paired_bootstrap(ranks, np.stack(theirs), metric)._asdict() for metric in tested}
    return {
        "fingerprint": dataset.fingerprint,
        "rectools": [{"seed": seed, **ranking_metrics(r)} for seed, r in zip(options.seeds, theirs, strict=True)],
        "rectools_settings": {**SETTINGS, "epochs": options.epochs},
        "ours": [{"seed": record["seed"], **record["metrics"]} for record in ours.records],
        "ours_minus_rectools": tests,
        **describe_run(),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a built dataset's folder")
    parser.add_argument("--python", help="the interpreter of an environment with rectools[torch]")
    parser.add_argument("--ours", help="our SASRec's runs or published records, as for compare_runs.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside and not (options.python and options.ours):
        parser.error("--python and --ours are needed")
    return options


def main() -> None:
    options = parse_arguments()
    if options.inside:
        train_and_rank(Path(options.data), options.seeds[0], options.epochs)
        return
    try:
        result = compare(options)
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"rectools_sasrec: {error}")
    print(json.dumps(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
