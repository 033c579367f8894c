"""Show in words what a model recommends: a few users' newest items, five recommendations, and what came next in truth.

Where nobody ever takes a thing twice, what a user has already is not recommended.

python scripts/show_recommendations.py RUN_OR_CHECKPOINT DATASET_DIR --users 5
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("model", help="a run's output_dir, a checkpoint's folder, or its id on the Hub")
PARSER.add_argument("dataset", help="folder of a built dataset (scripts/build_dataset.py)")
PARSER.add_argument("--users", type=int, default=5, help="how many users (default 5)")
PARSER.add_argument("--top-k", type=int, default=5, help="how many recommendations each (default 5)")
PARSER.add_argument("--seed", type=int, default=0, help="which users")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import numpy as np

from jepa4rec.datasets_builders.contract import SeqRecDataset, Split, leave_one_out, load_dataset_dir
from jepa4rec.evaluation.ranking import Scorer, rank_split, top_k
from jepa4rec.evaluation.scorers import make_scorer
from jepa4rec.hub.opening import find_checkpoint, is_fine_tuned, load_model, load_tokenizer
from jepa4rec.serving.encoding_seqrec import encode_items
from jepa4rec.training.data import sample_users

RECENT_ITEMS = 5
TEXT_WIDTH = 90


def open_scorer(place: str, dataset: SeqRecDataset) -> Scorer:
    """A checkpoint fine-tuned on this very dataset ranks with its item matrix, any other zero-shot with the texts.

    Raises FileNotFoundError or ValueError when there is no usable checkpoint.
    """
    checkpoint = find_checkpoint(place)
    model = load_model(checkpoint, dataset.fingerprint)
    tokenizer = load_tokenizer(checkpoint, model)
    item_tokens = tokenizer and tokenizer.encode_items(dataset.item_texts(empty=True))
    if is_fine_tuned(model) and model.config.catalogue_fingerprint != dataset.fingerprint:
        model.replace_items(encode_items(model, tokenizer, item_tokens))
    return make_scorer(model, tokenizer, item_tokens)


def choose_users(split: Split, users: int, seed: int) -> Split:
    """A seeded sample of test users, or all where there are no more, in the dataset's order."""
    if users < 1 or not len(split.targets):
        raise ValueError(f"--users {users}: show at least one, of the {len(split.targets)} users to test on")
    return sample_users(split, users, seed)


def in_words(item: dict[str, str]) -> str:
    """The item's values in a line that fits a terminal; a value that was said already (brand in title) is left out."""
    text = ""
    for value in item.values():
        words = " ".join(value.split())
        if words.lower() not in text.lower():
            text += f" · {words}" if text else words
    return text if len(text) <= TEXT_WIDTH else text[: TEXT_WIDTH - 1].rstrip() + "…"


def describe_user(user: str, history: np.ndarray, target: int, rank: float, best: np.ndarray, scores, texts) -> str:
    """One user's page: history oldest first, recommendations best first, the true next item marked with an arrow."""
    shown = history[-RECENT_ITEMS:]
    lines = [f"User {user}, {len(history)} items so far" + (", the newest:" if len(shown) < len(history) else ":")]
    lines += [f"        {in_words(texts[item])}" for item in shown]
    lines.append("    would be shown:")
    for place, (item, score) in enumerate(zip(best, scores, strict=True), start=1):
        mark = "->" if item == target else "  "
        lines.append(f"  {mark} {place}.  {in_words(texts[item])}  ({score:.2f})")
    lines.append(f"    and chose: {in_words(texts[target])}  (rank {rank:,.0f} of {len(texts):,})")
    return "\n".join(lines)


def show(model: str, dataset_dir: str, users: int, k: int, seed: int) -> str:
    """The pages of some test users, one below the other."""
    dataset = load_dataset_dir(dataset_dir)
    everybody = leave_one_out(dataset.sequences).test
    never_again = not any(map(np.isin, everybody.targets, everybody.histories))
    split = choose_users(everybody, users, seed)
    scorer = open_scorer(model, dataset)
    left = dataset.num_items - max(len(set(history)) for history in split.histories) * never_again
    items, scores = top_k(scorer, split.histories, min(k, left), exclude_history=never_again)
    ranks = rank_split(scorer, split, exclude_history=never_again, progress=False)
    texts = dataset.item_texts()
    columns = zip(*split, ranks, items, scores, strict=True)
    return "\n\n".join(describe_user(*row, texts) for row in columns)


@command(PARSER)
def main(options: Namespace) -> None:
    print(show(options.model, options.dataset, options.users, options.top_k, options.seed))


if __name__ == "__main__":
    main()
