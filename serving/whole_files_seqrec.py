"""Files and folders that are whole or not there, after a crash, a kill or a full disk too.

Whatever is written is written beside its place under a hidden name, brought to disk, and renamed. It can be read by
whom the umask lets read, also where its writer (safetensors, for one) makes files for their owner alone.
"""

import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

SEAL = "sha256.json"  # beside files that are not to change: their digests


@contextmanager
def written_folder(target: str | Path) -> Iterator[Path]:
    """Gives an empty folder to write into; it takes the place of `target` when the block ends without an error.

    With an error (disk full, say) the half-written folder is removed and `target` stays as it was.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = _beside(target, "new")
    restore_folder(target)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
        _open_to_readers(fresh)
        _to_disk(fresh)
        replace_folder(fresh, target)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        # What torch, safetensors and tokenizers make of a full disk, and the system where it names no file.
        nameless = isinstance(error, OSError) and error.errno is not None and error.filename is None
        if nameless or isinstance(error, RuntimeError | SafetensorError) or type(error) is Exception:
            reason = " ".join(str(error).split())
            raise OSError(f"{target} could not be written; is the disk full? ({reason})") from error
        raise


def replace_folder(fresh: Path, target: Path) -> None:
    """Give a whole folder its place; what stood there goes."""
    old = _beside(target, "old")
    if target.exists() and _exchange(fresh, target):
        _sync(target.parent)
        shutil.rmtree(fresh, ignore_errors=True)  # by that name the old one now
        return
    # Elsewhere a folder cannot be replaced in one call; `restore_folder` mends a kill between these two.
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(fresh, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Undo a swap interrupted half way: the old folder gets its name back, or goes where the new one stands."""
    old = _beside(target, "old")
    if old.exists() and not target.exists():
        os.replace(old, target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def written_files(*targets: str | Path) -> Iterator[list[Path]]:
    """Gives a path to write to for each target; all of them are whole before the first takes its target's place."""
    paths = [Path(target) for target in targets]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Ends as the target does: writers choose a format by the name's end.
    fresh = [path.with_name(f".{os.getpid()}.{path.name}") for path in paths]
    try:
        modes = []
        for path in fresh:  # made here, a file has the permissions of any other
            path.touch()
            modes.append(path.stat().st_mode & 0o777)
        yield fresh
        for path, mode in zip(fresh, modes, strict=True):
            path.chmod(mode)
            _sync(path)
        for new, path in zip(fresh, paths, strict=True):
            os.replace(new, path)
            _sync(path.parent)
    finally:
        for path in fresh:
            path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole."""
    with written_files(path) as (fresh,):
        fresh.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON file whole. Raises ValueError for NaN and infinity, which JSON does not know."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def seal(folder: Path) -> None:
    """Write down what the files of a folder are."""
    write_json(folder / SEAL, digests(folder))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the seal, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_files(folder: Path) -> list[str]:
    """The files that are missing or not what was sealed. Raises ValueError where the seal itself is damaged, OSError
    where there is none."""
    try:
        sealed = dict(json.loads((folder / SEAL).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / SEAL} is damaged: {error}") from error
    return [name for name in sealed if not (folder / name).is_file() or digest(folder / name) != sealed[name]]


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders swap their names in one step, so that there is always a whole one. False where that is not to be
    had: it takes Linux, and a file system that can."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    return renameat2 is not None and not renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange)


def _open_to_readers(folder: Path) -> None:
    """Give the files of a folder that was just made the permissions that its own umask gave it."""
    mode = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def _to_disk(folder: Path) -> None:
    """A rename must never outlive its content in a power cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Ask the system to really write a file, or a folder's list of names."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
