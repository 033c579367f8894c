"""Publishing a folder on the Hub: what must not go, one commit, and the card of a dataset.

It loads neither torch nor transformers, so that datasets can be published without them.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import DatasetCardData, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..evaluation.audit import audit, figure_rows, summarise, unknown_because
from ..datasets_builders.contract import INFO_FILE, ITEMS_FILE, SEQUENCES_FILE, list_lengths, load_dataset_dir

AUDIT_FILE = "audit.json"
LOG_IN = "log in with `hf auth login` or set HF_TOKEN to a write token"
MACHINE_PATH = re.compile(r"(?<![\w./:])/(?:home|root|Users|work|tmp|mnt|data|var)/[\w.-]+")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
# Licences that let anybody pass the data on, as builders write them -> the Hub's identifier.
OPEN_LICENCES = {"Apache-2.0": "apache-2.0", "CC BY 4.0": "cc-by-4.0", "CC0 1.0": "cc0-1.0"}
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


# ------------------------------------------------------------------------------------------------ checks


def check_repo_id(repo_id: str) -> None:
    """Raises ValueError unless it is OWNER/NAME in the Hub's alphabet."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id} is no repository id: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id} is no repository id: write OWNER/NAME, for example me/jepa4rec-toy-shop")


def check_token() -> None:
    """Raises ValueError when nobody is logged in: said before hours of work rather than after."""
    if not get_token():
        raise ValueError(f"there is no token to push with: {LOG_IN}")


def check_text(path: Path) -> None:
    """Raises ValueError when a text names a folder of this machine or holds an access token."""
    text = path.read_text(encoding="utf-8")
    if found := MACHINE_PATH.search(text):
        raise ValueError(f"{path} names {found.group()}, a path of one machine: take it out before publishing")
    if TOKEN.search(text):
        raise ValueError(f"{path} holds what looks like an access token: take it out before publishing")


def check_licence(info: dict, private: bool) -> None:
    """Raises ValueError when data would become public whose licence is not known to allow that."""
    if private or info["licence"] in OPEN_LICENCES:
        return
    raise ValueError(
        f"the licence of {info['name']} ({info['licence']}) is not one that lets everybody pass the data on: push it "
        "with --private, and make the repository public yourself only if you have the right to"
    )


# ------------------------------------------------------------------------------------------------ the push


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    message: str,
    repo_type: str = "model",
    private: bool = False,
    revision: str = "main",
    tag: str | None = None,
) -> str:
    """Make the repository hold just this folder, by one commit, and tag it; returns the commit's address.

    Raises:
        ValueError: the tag is taken, or the repository is public where a private one was asked for.
        OSError: no network, no right to push, or somebody pushed at the same time.
    """
    api = HfApi()
    with _explained(repo_id, api.endpoint):
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        if revision != "main":
            api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
        before = api.repo_info(repo_id, repo_type=repo_type, revision=revision)
        if private and not before.private:
            raise ValueError(f"{repo_id} exists and is public: choose another id, or make it private on the Hub first")
        if tag and tag in [ref.name for ref in api.list_repo_refs(repo_id, repo_type=repo_type).tags]:
            raise ValueError(f"the tag {tag} exists already in {repo_id}: choose another --tag")
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            repo_type=repo_type,
            revision=revision,
            parent_commit=before.sha,  # whoever pushed meanwhile is not overwritten
            commit_message=message,
            delete_patterns="*",  # what an older version had and this one has not
            ignore_patterns="**/__pycache__/**",
        )
        if tag:
            api.create_tag(repo_id, repo_type=repo_type, tag=tag, revision=commit.oid)
    return commit.commit_url


@contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[None]:
    """What the client raises becomes an OSError of one sentence."""
    try:
        yield
    except HfHubHTTPError as error:
        raise OSError(_explain(error, repo_id)) from error
    except httpx2.HTTPError as error:
        raise OSError(
            f"the Hub at {endpoint} did not answer or broke off ({error}); what was published before is whole, "
            "run the command again"
        ) from error


def _explain(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return f"the Hub does not let you push to {repo_id}: {LOG_IN}"
    if status == 412:
        return f"somebody pushed to {repo_id} at the same time; look at their commit, then run the command again"
    return f"the Hub refused the push to {repo_id}: {' '.join(str(error).split())}"


# ------------------------------------------------------------------------------------------------ datasets


def push_dataset(folder: Path, repo_id: str, private: bool) -> str:
    """Write card and audit of a built dataset beside its tables and publish the folder; returns the commit's address.

    Raises ValueError or OSError, see `load_dataset_dir`, `check_licence`, `check_text` and `push_folder`.
    """
    dataset = load_dataset_dir(folder)
    info = dataset.info
    check_licence(info, private)
    # Where nobody has the three interactions of a test, the dataset is for pre-training and there is nothing to audit.
    testable = list_lengths(dataset.sequences, "items").max() >= 3
    audited = summarise(audit(dataset)) if testable else None
    texts = {"README.md": dataset_card(info, repo_id, audited)}
    if audited:
        texts[AUDIT_FILE] = json.dumps({"fingerprint": dataset.fingerprint, **audited}, indent=2) + "\n"
    for name, text in texts.items():
        fresh = folder / f".{name}.new"
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, folder / name)
    for name in (INFO_FILE, *texts):
        check_text(folder / name)
    message = f"Publish {info['name']} {info['config']}, fingerprint {info['fingerprint'][:12]}"
    return push_folder(folder, repo_id, repo_type="dataset", private=private, message=message)


def dataset_card(info: dict, repo_id: str, audited: dict | None = None) -> str:
    """README.md of a dataset, from the content of its dataset_info.json and audit.json alone."""
    data = DatasetCardData(
        pretty_name=f"{info['name']} {info['config']}",
        license=OPEN_LICENCES.get(info["licence"], "other"),
        tags=["sequential-recommendation", "recommendation"],
        size_categories=[next((name for limit, name in SIZES if info["interactions"] < limit), "n>10M")],
        configs=[
            {"config_name": "sequences", "default": True, "data_files": _one_split("sequences", SEQUENCES_FILE)},
            {"config_name": "items", "data_files": _one_split("items", ITEMS_FILE)},
        ],
    )
    options = json.dumps(info.get("options", {}), ensure_ascii=False)
    rows = {
        "source": " ".join(filter(None, (info["source"], info.get("url")))),
        "licence, as the publisher states it": info["licence"],
        "users": f"{info['users']:,}",
        "items": f"{info['items']:,}",
        "interactions": f"{info['interactions']:,}",
        "interactions per user": f"{info['average_length']:.2f}",
        "density": f"{info['density']:.5f}",
        "split rule": info["splits"],
        "built by": f"`{info['name']}`, config `{info['config']}`, options `{options}`",
        "fingerprint": f"`{info['fingerprint']}`",
    }
    table = "\n".join(f"| {name} | {str(value).replace('|', ' ')} |" for name, value in rows.items())
    page = DATASET_PAGE.format(
        title=data.pretty_name, table=table, repo_id=repo_id, audit=_audit_section(audited) if audited else ""
    )
    return f"---\n{data}\n---\n\n{page}"


def _audit_section(audited: dict) -> str:
    rows = "\n".join(f"| {what} | {value} | {meaning} |" for what, value, meaning in figure_rows(audited))
    unknown = f"\n{unknown_because(audited)}\n" if audited["reasons"] else ""
    split = audited["protocol"].replace("_", "-")
    return f"""
## Before trusting a number

Counted for the {split} split with {audited["test_targets"]:,} test targets, and kept in `{AUDIT_FILE}`.

| share of | | what it means |
| --- | ---: | --- |
{rows}
{unknown}"""


def _one_split(name: str, file: str) -> list[dict[str, str]]:
    return [{"split": name, "path": file}]


DATASET_PAGE = """\
# {title}

Item texts and users' histories for sequential recommendation, prepared by jepa4rec's `scripts/build_dataset.py`.

| | |
| --- | --- |
{table}

```python
from datasets import load_dataset

items = load_dataset("{repo_id}", "items", split="items")
sequences = load_dataset("{repo_id}", "sequences", split="sequences")  # streaming=True reads as it goes
```

`items`: `item_id`, then the text attributes (`""` = no value). `sequences`: `user_id`, `items` (row numbers of the
table `items`, oldest first) and, where the source has them, `timestamps` (milliseconds), `ratings` and `domain`. The
tables hold whole histories: the split rule says which of a user's items are for validation and test.

jepa4rec reads a copy of the repository as it is, and checks it against the fingerprint:
`load_dataset_dir(snapshot_download("{repo_id}", repo_type="dataset"))`.
{audit}"""
