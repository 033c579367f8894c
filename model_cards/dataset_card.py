"""The card of a dataset, and its publication with the audit beside it.

It loads neither torch nor transformers, so that datasets can be published without them.
"""

import json
from pathlib import Path

from huggingface_hub import DatasetCardData

from ..datasets_builders.contract import INFO_FILE, ITEMS_FILE, SEQUENCES_FILE, list_lengths, load_dataset_dir
from ..evaluation.audit import audit, figure_rows, summarise, unknown_because
from ..hub.publishing import check_text, push_folder
from ..serving.whole_files_seqrec import write_text

AUDIT_FILE = "audit.json"
# Licences that let anybody pass the data on, as builders write them -> the Hub's identifier.
OPEN_LICENCES = {"Apache-2.0": "apache-2.0", "CC BY 4.0": "cc-by-4.0", "CC0 1.0": "cc0-1.0"}
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def check_licence(info: dict, private: bool) -> None:
    """Raises ValueError when data would become public whose licence is not known to allow that."""
    if private or info["licence"] in OPEN_LICENCES:
        return
    raise ValueError(
        f"the licence of {info['name']} ({info['licence']}) is not one that lets everybody pass the data on: push it "
        "with --private, and make the repository public yourself only if you have the right to"
    )


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
        write_text(folder / name, text)
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
