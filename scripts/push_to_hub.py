"""Publish a checkpoint: check it as a stranger would use it, then push it in one commit.

    python scripts/push_to_hub.py runs/quickstart me/jepa4rec-toy-shop --dry_run
    python scripts/push_to_hub.py runs/quickstart me/jepa4rec-toy-shop --tag v1

Before anything leaves: the checkpoint loads from another folder in another process with nothing of this repository
importable and gives the vectors it gives here; weights are safetensors only; the card is there, its metadata are what
the Hub expects; no text file names a path of this machine or holds a token. Whoever pushed meanwhile is not
overwritten. Log in with `hf auth login` or set HF_TOKEN.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx2
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file
from transformers import logging as transformers_logging

from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.scripts.evaluate_checkpoint import find_checkpoint
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

ALLOWED = {".safetensors", ".json", ".py", ".md", ".txt", ".png", ".model", ".jinja"}
TEXTS = {".json", ".md", ".txt"}
MACHINE_PATH = re.compile(r"(?<![\w./:])/(?:home|root|Users|work|tmp|mnt|data|var)/[\w.-]+")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
PROBE = [[{"title": "Green tea, loose leaf", "brand": "Leafwell"}, {"title": "Ceramic teapot"}], [{"title": "Tent"}]]
STRANGER = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "jepa4rec":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer, pipeline

probe = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained("checkpoint", trust_remote_code=True)
model = AutoModel.from_pretrained("checkpoint", trust_remote_code=True)
save_file({"vectors": model(**tokenizer(probe, return_tensors="pt")).pooler_output.detach().contiguous()}, "answers")
if "sequential-recommendation" in (getattr(model.config, "custom_pipelines", None) or {}):
    pipe = pipeline("sequential-recommendation", model="checkpoint", trust_remote_code=True)
    pipe.add_items([{"item_id": str(n), **item} for n, item in enumerate(probe[0])])
    assert len(pipe({"history": ["0"]}, top_k=2)) == 2
"""


# ------------------------------------------------------------------------------------------------ checks


def check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id} is no repository id: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id} is no repository id: write OWNER/NAME, for example me/jepa4rec-toy-shop")


def check_files(checkpoint: Path) -> list[Path]:
    """The files that go, sorted.

    Raises:
        FileNotFoundError: weights, configuration or card are missing.
        ValueError: a file that may hold code or is not known, or a text that names this machine or a token.
    """
    for name in ("config.json", "model.safetensors", "README.md"):
        sharded = name == "model.safetensors" and (checkpoint / f"{name}.index.json").is_file()
        if not (checkpoint / name).is_file() and not sharded:
            raise FileNotFoundError(f"{checkpoint} has no {name}: push the checkpoint of a finished run")
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    for path in files:
        if path.suffix not in ALLOWED:
            raise ValueError(f"{path}: {path.suffix or 'such'} files are not published (safetensors only); remove it")
        if path.suffix in TEXTS:
            _check_text(path)
    return files


def _check_text(path: Path) -> None:
    if path.name in ("tokenizer.json", "item_ids.json"):
        return  # vocabularies and ids, where anything may look like a path
    text = path.read_text(encoding="utf-8")
    if found := MACHINE_PATH.search(text):
        raise ValueError(f"{path} names {found.group()}, a path of one machine: take it out before publishing")
    if TOKEN.search(text):
        raise ValueError(f"{path} holds what looks like an access token: take it out before publishing")


def check_card(checkpoint: Path) -> None:
    """Raises ValueError unless the card's metadata parse, with a model-index that says what was measured."""
    path = checkpoint / "README.md"
    try:
        data = ModelCard.load(path, ignore_metadata_errors=False).data
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not data.eval_results or not data.model_name:
        raise ValueError(f"{path} has no model-index: cards are written with a run, or by model_cards/render.py")


def check_as_stranger(checkpoint: Path) -> None:
    """Raises ValueError when the checkpoint does not load, or gives other vectors, in a stranger's process."""
    model, tokenizer = Jepa4RecModel.from_pretrained(checkpoint).eval(), ItemSentTokenizer.from_pretrained(checkpoint)
    with torch.no_grad():
        expected = model(**tokenizer(PROBE, return_tensors="pt")).pooler_output
    with tempfile.TemporaryDirectory(prefix="stranger-") as home:
        shutil.copytree(checkpoint, Path(home) / "checkpoint")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_MODULES_CACHE": f"{home}/modules", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, json.dumps(PROBE)],
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


# ------------------------------------------------------------------------------------------------ the push


def push(checkpoint: Path, options: argparse.Namespace) -> str:
    """One commit with all files, and the tag; returns the commit's address.

    Raises:
        OSError: no network, no token, no right to push, or somebody pushed at the same time.
    """
    api = HfApi()
    try:
        api.create_repo(options.repo_id, private=options.private, exist_ok=True)
        if options.revision != "main":
            api.create_branch(options.repo_id, branch=options.revision, exist_ok=True)
        parent = api.model_info(options.repo_id, revision=options.revision).sha
        commit = api.upload_folder(
            folder_path=checkpoint,
            repo_id=options.repo_id,
            revision=options.revision,
            parent_commit=parent,
            commit_message=options.message,
            delete_patterns="*",  # what an older version had and this one has not
            ignore_patterns="**/__pycache__/**",
        )
        if options.tag:
            api.create_tag(options.repo_id, tag=options.tag, revision=commit.oid)
    except HfHubHTTPError as error:
        raise OSError(_explain(error, options.repo_id)) from error
    except httpx2.HTTPError as error:
        raise OSError(
            f"the Hub at {api.endpoint} did not answer or broke off ({error}); what was published before is whole, "
            "run the command again"
        ) from error
    return commit.commit_url


def _explain(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return (
            f"the Hub does not let you push to {repo_id}: log in with `hf auth login` or set HF_TOKEN to a write token"
        )
    if status == 412:
        return f"somebody pushed to {repo_id} at the same time; look at their commit, then run the command again"
    if status == 409:
        return f"the tag exists already in {repo_id}: choose another --tag"
    return f"the Hub refused the push to {repo_id}: {' '.join(str(error).split())}"


# ------------------------------------------------------------------------------------------------ command line


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CKPT", help="a run's folder or a checkpoint's")
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="check, and say what would go")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", default="main", help="branch to push to (default: main)")
    parser.add_argument("--tag", help="name this version, for others to pin as revision=")
    parser.add_argument("--message", default="Publish checkpoint, code and card")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        check_repo_id(options.repo_id)
        checkpoint = Path(find_checkpoint(options.checkpoint))
        files = check_files(checkpoint)
        check_card(checkpoint)
        check_as_stranger(checkpoint)
        for path in files:
            print(f"{path.stat().st_size:>12,}  {path.relative_to(checkpoint)}")
        if options.dry_run:
            print(f"all checks passed; nothing was pushed to {options.repo_id}")
        else:
            print(f"pushed {len(files)} files: {push(checkpoint, options)}")
    except (ValueError, OSError) as error:
        sys.exit(f"push_to_hub: {error}")


if __name__ == "__main__":
    main()
