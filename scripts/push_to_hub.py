"""Publish a checkpoint: check it as a stranger would use it, then push it in one commit.

    python scripts/push_to_hub.py runs/quickstart me/jepa4rec-toy-shop --dry_run
    python scripts/push_to_hub.py runs/quickstart me/jepa4rec-toy-shop --tag v1

Before anything leaves: the checkpoint loads from another folder in another process with nothing of this repository
importable and gives the vectors it gives here; weights are safetensors only; the card is there, its metadata are what
the Hub expects; no text file names a path of this machine or holds a token. Whoever pushed meanwhile is not
overwritten. Log in with `hf auth login` or set HF_TOKEN.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("checkpoint", metavar="CKPT", help="a run's folder or a checkpoint's")
PARSER.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME")
PARSER.add_argument("--dry_run", "--dry-run", action="store_true", help="check, and say what would go")
PARSER.add_argument("--private", action="store_true", help="make a new repository private")
PARSER.add_argument("--revision", default="main", help="branch to push to (default: main)")
PARSER.add_argument("--tag", help="name this version, for others to pin as revision=")
PARSER.add_argument("--message", default="Publish checkpoint, code and card")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from jepa4rec.baselines import BASELINE_MODELS, SEQUENCE_MODELS
from jepa4rec.hub.opening import find_checkpoint, open_encoder
from jepa4rec.hub.publishing import check_repo_id, check_text, check_token, push_folder
from jepa4rec.model_cards.render import is_hub_id
from jepa4rec.serving.pipeline_catalogue import IDS_FILE
from jepa4rec.serving.whole_files_seqrec import SEAL, changed_files, seal
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

ALLOWED = {".safetensors", ".json", ".py", ".md", ".txt", ".png", ".model", ".jinja", ".yaml"}
TEXTS = {".json", ".md", ".txt", ".yaml"}
BESIDE = ("LICENSE", "recipe.yaml")  # what lies beside published weights
VOCABULARIES = {"tokenizer.json", "item_ids.json"}  # where anything may look like a path
HISTORIES = [
    [{"title": "Green tea, loose leaf", "brand": "Leafwell"}, {"title": "Ceramic teapot"}],
    [{"title": "Tent"}],
]
STRANGER = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "jepa4rec":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer, pipeline

probe = json.loads(sys.argv[1])
model = AutoModel.from_pretrained("checkpoint", trust_remote_code=True).eval()
with torch.no_grad():
    if probe["histories"]:
        tokenizer = AutoTokenizer.from_pretrained("checkpoint", trust_remote_code=True)
        vectors = model(**tokenizer(probe["histories"], return_tensors="pt")).pooler_output
    else:
        vectors = model.user_vectors(torch.tensor([[0, 1]]))
save_file({"vectors": vectors.contiguous()}, "answers")
if "sequential-recommendation" in (getattr(model.config, "custom_pipelines", None) or {}):
    pipe = pipeline("sequential-recommendation", model="checkpoint", trust_remote_code=True)
    pipe.add_items(probe["items"])
    assert len(pipe({"history": [probe["items"][0]["item_id"]]}, top_k=2)) == 2
"""


# ------------------------------------------------------------------------------------------------ checks


def check_files(checkpoint: Path) -> list[Path]:
    """The files that go, sorted.

    Raises:
        FileNotFoundError: weights, configuration or card are missing.
        ValueError: a file that may hold code or is not known, or a text that names this machine or a token.
    """
    for name in ("config.json", "model.safetensors", "README.md", *BESIDE):
        sharded = name == "model.safetensors" and (checkpoint / f"{name}.index.json").is_file()
        if not (checkpoint / name).is_file() and not sharded:
            raise FileNotFoundError(f"{checkpoint} has no {name}: push the checkpoint of a finished run")
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    for path in files:
        if path.suffix not in ALLOWED and path.name not in BESIDE:
            raise ValueError(f"{path}: {path.suffix or 'such'} files are not published (safetensors only); remove it")
        if path.suffix in TEXTS and path.name not in VOCABULARIES:
            check_text(path)
    changed = changed_files(checkpoint) if (checkpoint / SEAL).is_file() else []
    if changed:
        raise ValueError(f"{checkpoint / changed[0]} is not what the run wrote: push the checkpoint as it was written")
    return files


def check_card(checkpoint: Path) -> None:
    """Raises ValueError unless the card's metadata parse, with a model-index that says what was measured, and with
    licence, language, tags and, where the recipe starts from weights of the Hub, these."""
    path = checkpoint / "README.md"
    try:
        data = ModelCard.load(path, ignore_metadata_errors=False).data
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not data.eval_results or not data.model_name:
        raise ValueError(f"{path} has no model-index: cards are written with a run, or by scripts/model_card.py")
    init = yaml.safe_load((checkpoint / "recipe.yaml").read_text(encoding="utf-8")).get("model", {}).get("init", "")
    needed = {"license": data.license, "language": data.language, "base_model": data.base_model or not is_hub_id(init)}
    needed |= {"tags: custom_code": "custom_code" in (data.tags or [])}
    missing = [name for name, value in needed.items() if not value]
    if missing:
        raise ValueError(f"{path} does not say {', '.join(missing)}: write it anew with scripts/model_card.py --into")


def make_probe(checkpoint: Path) -> tuple[torch.Tensor, dict]:
    """What a stranger is to try: histories of texts, or none for a model of item ids, and items for a catalogue.

    Returns the vectors (B, d) that the code here gives, and the probe.
    """
    kind = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("model_type")
    with torch.no_grad():
        if kind in SEQUENCE_MODELS:
            model = SEQUENCE_MODELS[kind].from_pretrained(checkpoint).eval()
            known = json.loads((checkpoint / IDS_FILE).read_text(encoding="utf-8"))["item_ids"]
            items = [{"item_id": item_id} for item_id in known[:2]]
            return model.user_vectors(torch.tensor([[0, 1]])), {"histories": [], "items": items}
        if kind in BASELINE_MODELS:
            raise ValueError(
                f"{checkpoint} is a {kind}, which has no pipeline: publish its dataset, it is soon fitted anew"
            )
        model, tokenizer = open_encoder(checkpoint).eval(), ItemSentTokenizer.from_pretrained(checkpoint)
        items = [{"item_id": str(row), **item} for row, item in enumerate(HISTORIES[0])]
        vectors = model(**tokenizer(HISTORIES, return_tensors="pt")).pooler_output
    return vectors, {"histories": HISTORIES, "items": items}


def check_as_stranger(checkpoint: Path) -> None:
    """Raises ValueError when the checkpoint does not load, or gives other vectors, in a stranger's process."""
    expected, probe = make_probe(checkpoint)
    with tempfile.TemporaryDirectory(prefix="stranger-") as home:
        shutil.copytree(checkpoint, Path(home) / "checkpoint")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_MODULES_CACHE": f"{home}/modules", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, json.dumps(probe)],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(f"{checkpoint} does not load without this repository: {reason}")
        answered = load_file(Path(home) / "answers")["vectors"]
    if not torch.allclose(answered, expected, atol=1e-6):
        raise ValueError(f"{checkpoint} gives a stranger other vectors than here: its code files are not its own")


# ------------------------------------------------------------------------------------------------ command line


@command(PARSER)
def main(options: Namespace) -> None:
    check_repo_id(options.repo_id)
    if not options.dry_run:
        check_token()
    checkpoint = Path(find_checkpoint(options.checkpoint))
    files = check_files(checkpoint)
    check_card(checkpoint)
    check_as_stranger(checkpoint)
    if not options.dry_run:
        seal(checkpoint)
        files = check_files(checkpoint)
    for path in files:
        print(f"{path.stat().st_size:>12,}  {path.relative_to(checkpoint)}")
    if options.dry_run:
        print(f"all checks passed; nothing was pushed to {options.repo_id}")
    else:
        chosen = {name: getattr(options, name) for name in ("private", "revision", "tag", "message")}
        print(f"pushed {len(files)} files: {push_folder(checkpoint, options.repo_id, **chosen)}")


if __name__ == "__main__":
    main()
