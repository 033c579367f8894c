"""RecFormer's published code beside ours, on the same weights and histories: ids, types, positions, h_CLS, ranks.

    git clone https://github.com/AaronHeee/RecFormer recformer
    python -m venv peer && peer/bin/pip install torch 'transformers<4.45'
    python benchmarks/recformer_official.py recformer --python peer/bin/python

The published code does not run on this project's transformers, so it runs in an interpreter that has an older one;
nothing of it is copied. Without --weights both get random ones of two layers in the published layout, made by the
published classes; without --tokenizer a byte-level vocabulary learned from the items. With --dataset the histories are
of test users of a built dataset (`--config recformer` for its texts), else of the toy shop, where every fifth item is
left without a brand: the published code reads what is empty, too. Differences are printed as a table and written to
--out. The two agree where every count is 0: ranks may part by as many places as there are items that tie with the
target but for rounding, vectors by 1e-4, metrics by 1e-3.
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("recformer", type=Path, metavar="FOLDER", help="a checkout of the published code")
PARSER.add_argument("--python", default=sys.executable, help="interpreter whose transformers it runs on")
PARSER.add_argument("--weights", type=Path, help="recformer_seqrec_ckpt.bin or recformer_ckpt.bin; else random")
PARSER.add_argument("--tokenizer", help="folder of Longformer's tokenizer and configuration (longformer-base-4096)")
PARSER.add_argument("--dataset", help="a built dataset; else the toy shop")
PARSER.add_argument("--histories", type=int, default=200, help="test users, at most (200)")
PARSER.add_argument("--out", type=Path, help="write the table's numbers here")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizerFast

from jepa4rec import datasets_builders
from jepa4rec.datasets_builders.contract import leave_one_out, load_dataset_dir
from jepa4rec.evaluation.metrics.seqrec_ranking.ranking_metrics import ranking_metrics
from jepa4rec.evaluation.ranking import rank_split_both_ways
from jepa4rec.evaluation.records import describe_run
from jepa4rec.evaluation.scorers import DualEncoderScorer
from jepa4rec.hub.importing import import_recformer
from jepa4rec.serving.encoding_seqrec import encode_histories, encode_items
from jepa4rec.training.data import sample_users

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # ids 0 to 4, as RecFormer's tokenizer numbers what it uses
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
ROUNDING = 2e-6  # of a cosine in float32
INPUTS = ("input_ids", "token_type_ids", "item_position_ids")

# Runs in the other interpreter, beside the published files: reads job.json, writes weights.bin and answers.json.
PEER = """
import json, sys, torch, types
sys.path[:0] = [sys.argv[1]]
package = types.ModuleType("recformer")  # without what it imports for training
package.__path__ = [sys.argv[1] + "/recformer"]
sys.modules["recformer"] = package
from recformer.models import RecformerConfig, RecformerForSeqRec
from recformer.tokenization import RecformerTokenizer
from utils import Ranker

job = json.load(open("job.json"))
torch.manual_seed(0)
config = RecformerConfig.from_pretrained(job["config"]) if job["config"] else RecformerConfig(**job["shape"])
layers = config.num_hidden_layers
config.attention_window, config.max_attr_num, config.max_attr_length = [64] * layers, 3, 32
config.max_item_embeddings, config.max_token_num, config.item_num = 51, 1024, len(job["items"])
tokenizer = RecformerTokenizer.from_pretrained(job["tokenizer"], config)
model = RecformerForSeqRec(config).eval()
if job["weights"]:
    model.load_state_dict(torch.load(job["weights"], map_location="cpu"), strict=False)
else:
    for name, parameter in model.named_parameters():  # LayerNorms too: equal ones would hide a mistake
        torch.nn.init.normal_(parameter, mean=float(name.endswith("LayerNorm.weight")), std=0.2)
    torch.save(model.state_dict(), "weights.bin")


@torch.no_grad()
def vectors(histories):
    found = []
    for start in range(0, len(histories), 16):
        batch = tokenizer(histories[start : start + 16], return_tensor=True)
        found.append(model.longformer(**batch).pooler_output)
    return torch.cat(found)


histories = [[job["items"][i] for i in history] for history in job["histories"]]
encoded = [tokenizer(history) for history in histories]
users, items = vectors(histories), vectors([[item] for item in job["items"]])
model.init_item_embedding(items)
targets = torch.tensor(job["targets"])
scores = torch.cat([model.similarity_score(users[start : start + 16]) for start in range(0, len(users), 16)])
own = scores[torch.arange(len(users)), targets][:, None]
metrics = Ranker([10, 50])(scores, targets)
answers = {name: [row[name] for row in encoded] for name in ("input_ids", "token_type_ids", "item_position_ids")}
answers |= {"users": users.tolist(), "items": items.tolist(), "ranks": ((scores > own).sum(1) + 1).tolist()}
names = ("ndcg@10", "recall@10", "ndcg@50", "recall@50", "mrr")
json.dump(answers | {"metrics": dict(zip(names, metrics))}, open("answers.json", "w"))
"""


def make_tokenizer(items: list[dict[str, str]], folder: Path) -> str:
    """A small byte-level vocabulary of the items' texts, as files that both tokenizers read."""
    learned = ByteLevelBPETokenizer()
    texts = [text for item in items for pair in item.items() for text in pair]
    learned.train_from_iterator(texts, vocab_size=2000, special_tokens=SPECIAL, show_progress=False)
    folder.mkdir()
    learned.save_model(str(folder))
    RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return str(folder)


def ask_peer(options: Namespace, job: dict, folder: Path) -> dict:
    """What the published code says of a job. Ends with its last line where it fails."""
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [str(Path(options.python).absolute()), "-c", PEER, str(options.recformer.resolve())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise SystemExit(f"the published code does not run in {options.python}: {last} (see --python in --help)")
    return json.loads((folder / "answers.json").read_text(encoding="utf-8"))


@torch.no_grad()
def answer(job: dict, weights: Path) -> dict:
    """What our code says of the same job."""
    heads = {} if job["weights"] else {"num_attention_heads": job["shape"]["num_attention_heads"]}
    imported = import_recformer(weights, job["tokenizer"], **heads)
    model, tokenizer = imported.model.base_model.eval(), imported.tokenizer
    tokens = tokenizer.encode_items(job["items"])
    histories = [np.array(history) for history in job["histories"]]
    batch = tokenizer.batch_histories(tokens, histories, return_tensors="np")
    lengths = batch["attention_mask"].sum(1)
    read = {name: [row[:n].tolist() for row, n in zip(batch[name], lengths, strict=True)] for name in INPUTS}
    items = encode_items(model, tokenizer, tokens, progress=False)
    users = encode_histories(model, tokenizer, tokens, histories, progress=False)
    scorer = DualEncoderScorer(model, tokenizer, tokens, items, progress=False)
    names = np.array([str(place) for place in range(len(histories))], dtype=object)
    split = job["split"]._replace(user_ids=names)
    ranks = rank_split_both_ways(scorer, split, progress=False).official
    read |= {"users": users.tolist(), "items": items.tolist(), "ranks": ranks.tolist()}
    return read | {"metrics": ranking_metrics(ranks)}


def differences(theirs: dict, ours: dict, targets: np.ndarray) -> dict[str, dict]:
    """By name, how many were compared, how many differ by more than rounding, and by how much at most."""
    rows = {}
    for name in INPUTS:
        pairs = list(zip(theirs[name], ours[name], strict=True))
        unequal = sum(a != b for a, b in pairs)
        rows[name] = {"compared": len(pairs), "differ": unequal, "most": None}
    for name in ("users", "items", "ranks"):
        a, b = np.array(theirs[name]), np.array(ours[name])
        gap = np.abs(a - b).reshape(len(a), -1).max(1)
        tolerance = near_ties(theirs, targets) if name == "ranks" else 1e-4
        rows[name] = {"compared": len(a), "differ": int((gap > tolerance).sum()), "most": float(gap.max())}
    gaps = [abs(theirs["metrics"][name] - ours["metrics"][name]) for name in theirs["metrics"]]
    rows["metrics"] = {"compared": len(gaps), "differ": sum(gap > 1e-3 for gap in gaps), "most": max(gaps)}
    return rows


def near_ties(theirs: dict, targets: np.ndarray) -> np.ndarray:
    """Other items that have the target's cosine but for rounding, (n,): so far ranks may part by rounding alone."""
    users, items = (np.array(theirs[name]) for name in ("users", "items"))
    users, items = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (users, items))
    cosines = users @ items.T
    own = cosines[np.arange(len(users)), targets][:, None]
    return (np.abs(cosines - own) < ROUNDING).sum(1) - 1


NAMES = dict(zip(INPUTS, ("token ids", "token types", "item positions"), strict=True))
NAMES |= {"users": "h_CLS of histories", "items": "h_CLS of items", "ranks": "ranks", "metrics": "metrics"}


def table(rows: dict[str, dict]) -> str:
    lines = ["| | compared | differ beyond rounding | largest difference |", "| --- | ---: | ---: | ---: |"]
    for name, row in rows.items():
        most = "–" if row["most"] is None else f"{row['most']:.2g}"
        lines.append(f"| {NAMES[name]} | {row['compared']} | {row['differ']} | {most} |")
    return "\n".join(lines)


@command(PARSER)
def main(options: Namespace) -> None:
    if not (options.recformer / "recformer" / "models.py").is_file():
        PARSER.error(f"{options.recformer} is no checkout of RecFormer: recformer/models.py is missing")
    if options.weights and not options.tokenizer:
        PARSER.error("--weights needs --tokenizer, the folder of the vocabulary they were trained with")
    dataset = load_dataset_dir(options.dataset) if options.dataset else datasets_builders.build("toy_shop")
    split = sample_users(leave_one_out(dataset.sequences).test, options.histories, seed=0)
    items = dataset.item_texts(empty=True)
    if not options.dataset:  # the toy shop leaves nothing empty, as real ones do
        items = [item | {"brand": ""} if place % 5 == 0 else item for place, item in enumerate(items)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer = options.tokenizer or make_tokenizer(items, folder / "tokenizer")
        vocabulary = len(json.loads((Path(tokenizer) / "vocab.json").read_text(encoding="utf-8")))
        shape = {**SHAPE, "vocab_size": vocabulary, "max_position_embeddings": 1026, "layer_norm_eps": 1e-5}
        shape |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        job = {
            "items": items, "histories": [history.tolist() for history in split.histories],
            "targets": split.targets.tolist(), "tokenizer": tokenizer, "shape": shape,
            "config": options.tokenizer if options.weights else None,
            "weights": str(options.weights.resolve()) if options.weights else None,
        }  # fmt: skip
        theirs = ask_peer(options, job, folder)
        ours = answer({**job, "split": split}, options.weights or folder / "weights.bin")
    rows = differences(theirs, ours, split.targets)
    tokens = sum(map(len, theirs["input_ids"]))
    print(f"{len(split.targets)} histories, {tokens:,} tokens, {len(items)} items\n\n{table(rows)}")
    if options.out:
        result = {"dataset": dataset.info.get("name"), "fingerprint": dataset.fingerprint, "tokens": tokens}
        result |= {"weights": "published" if options.weights else "random", **describe_run(), "differences": rows}
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
