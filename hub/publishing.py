"""Publishing a folder on the Hub: what must not go, and one commit.

It loads neither torch nor transformers, so that datasets can be published without them.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

# The client of huggingface_hub 2 is httpx2, that of version 1 was httpx: the one that it has just imported.
httpx = sys.modules.get("httpx2") or sys.modules["httpx"]
LOG_IN = "log in with `hf auth login` or set HF_TOKEN to a write token"
MACHINE_PATH = re.compile(r"(?<![\w./:])/(?:home|root|Users|work|tmp|mnt|data|var)/[\w.-]+")
CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")  # in an address
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")

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
    except httpx.HTTPError as error:
        told = (
            f"the Hub at {endpoint} did not answer or broke off ({error}); what was published before is whole, run the"
        )
        raise OSError(f"{CREDENTIALS.sub('', told)} command again") from error


def _explain(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return f"the Hub does not let you push to {repo_id}: {LOG_IN}"
    if status == 412:
        return f"somebody pushed to {repo_id} at the same time; look at their commit, then run the command again"
    return CREDENTIALS.sub("", f"the Hub refused the push to {repo_id}: {' '.join(str(error).split())}")
