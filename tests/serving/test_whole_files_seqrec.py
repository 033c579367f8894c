"""Files and folders are whole or not there, and readable as the umask says."""

import errno
import functools
import os
import stat
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from safetensors import SafetensorError

from jepa4rec.serving import whole_files_seqrec
from jepa4rec.serving.whole_files_seqrec import written_files, written_folder


def private(path, text):
    """As safetensors writes: for its owner alone."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(handle, text.encode())
    os.close(handle)


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_what_is_written_is_readable_as_the_umask_says(tmp_path, umask):
    with written_files(tmp_path / "a", tmp_path / "b") as fresh:
        for path in fresh:
            private(path, "x")
    with written_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir(mode=0o700)
        private(folder / "inner" / "c", "x")
    for path in (tmp_path / "a", tmp_path / "b", tmp_path / "folder/inner/c"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder/inner").stat().st_mode) == 0o777 & ~umask


def write(folder, text):
    with written_folder(folder) as fresh:
        (fresh / "a").write_text(text)


@pytest.mark.parametrize("one_step", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, one_step):
    if not one_step:  # a file system or a system that cannot swap two names at once
        monkeypatch.setattr(whole_files_seqrec, "_exchange", lambda *_: False)
    for text in ("old", "new", "newer"):
        write(tmp_path / "folder", text)
        assert (tmp_path / "folder" / "a").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="two names are swapped in one step on Linux alone")
@pytest.mark.slow("reads while another process writes")
def test_under_the_name_there_is_always_a_whole_folder(tmp_path):
    write(tmp_path / "folder", "0")
    code = (
        "import sys; sys.path[:0] = ['', 'tests', sys.argv[2]]\n"
        "from test_whole_files_seqrec import write\nfrom pathlib import Path\n"
        "for n in range(10**9): write(Path(sys.argv[1]), str(n))"
    )
    here = os.path.dirname(__file__)
    writer = subprocess.Popen([sys.executable, "-c", code, tmp_path / "folder", here], cwd=ROOT)
    try:
        seen, end = set(), time.monotonic() + 3
        while time.monotonic() < end or len(seen) < 3:
            seen.add((tmp_path / "folder").stat().st_ino)  # raises where there is none
            assert time.monotonic() < end + 60, "nothing was written"
    finally:
        writer.kill()
        writer.wait()


def test_what_a_kill_left_is_cleaned_at_the_next_start(tmp_path):
    (tmp_path / ".folder.new").mkdir()
    (tmp_path / ".folder.new" / "half").write_text("x")
    write(tmp_path / "folder", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_error_leaves_what_was_there(tmp_path):
    write(tmp_path / "folder", "old")
    with pytest.raises(OSError, match="full"), written_folder(tmp_path / "folder") as fresh:
        (fresh / "a").write_text("half")
        raise OSError("disk full")
    with pytest.raises(OSError, match="full"), written_files(tmp_path / "file") as (fresh,):
        fresh.write_text("half")
        raise OSError("disk full")
    assert (tmp_path / "folder" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


NAMELESS = functools.partial(OSError, errno.ENOSPC)  # the system names no file where a copy fails half-way


@pytest.mark.parametrize("kind", [RuntimeError, SafetensorError, Exception, NAMELESS])
def test_what_libraries_make_of_a_full_disk_is_a_sentence(tmp_path, kind):
    """torch, safetensors and tokenizers raise these; make torture fills a real file system."""
    with pytest.raises(OSError, match="target could not be written; is the disk full?") as error:
        with written_folder(tmp_path / "target"):
            raise kind("No space left\non device")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
