"""What all builders share: options, files, and the `datasets` builder around a plan.

A dataset is a module with a function ``prepare(files, config, *, option=default, ...) -> SeqRecDataset`` and one
subclass of :class:`SeqRecBuilder` (one a module: `datasets` names its cache after the module).
"""

import contextlib
import difflib
import inspect
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin
from urllib.parse import unquote, urlparse

import datasets
import pyarrow as pa
from datasets.builder import Key
from datasets.fingerprint import Hasher
from datasets.utils.file_utils import cached_path

from . import contract, engines, meaning, preparation, reading, texts, times
from .contract import SeqRecDataset

ROWS_PER_BATCH = 10_000
SHARED = (contract, engines, meaning, preparation, reading, texts, times)  # what every builder is made with
_UNZIPPED: list[tempfile.TemporaryDirectory] = []
DataFiles = str | Path | Sequence[str | Path] | Mapping[str, str | Path] | None


def check_choice(kind: str, word: str, words: Sequence[str]) -> None:
    """Raises ValueError with the nearest choice and all of them."""
    if word in words:
        return
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.4)
    hint = f" did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {kind} {word!r}:{hint} it may be {', '.join(words) or 'nothing, there is none'}")


@dataclass
class SeqRecConfig(datasets.BuilderConfig):
    """One table of one prepared dataset: ``variant`` is the preparation, ``table`` items or sequences."""

    variant: str = ""
    table: str = "sequences"
    options: dict = field(default_factory=dict)


def table_configs(*variants: str) -> list[SeqRecConfig]:
    """Two configs a variant, because both tables have columns of their own: ``x`` (sequences) and ``x_items``."""
    return [
        SeqRecConfig(name=variant + suffix, variant=variant, table=table)
        for variant in variants
        for table, suffix in (("sequences", ""), ("items", "_items"))
    ]


class SeqRecBuilder(datasets.ArrowBasedBuilder):
    """`datasets` around a plan: ``Builder(config_name="c", data_files=...)`` gives the split ``sequences`` and
    ``Builder(config_name="c_items", data_files=...)`` the split ``items``, loaded or streamed."""

    BUILDER_CONFIG_CLASS = SeqRecConfig
    VERSION = "1.0.0"

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.BUILDER_CONFIGS and "DEFAULT_CONFIG_NAME" not in vars(cls):
            cls.DEFAULT_CONFIG_NAME = cls.BUILDER_CONFIGS[0].name

    def __init__(self, *args, hash: str | None = None, **kwargs):
        # `datasets` keys its cache with the config but not with the code that prepares the data.
        code = [inspect.getsource(module) for module in (sys.modules[type(self).__module__], *SHARED)]
        super().__init__(*args, hash=hash or Hasher.hash(code), **kwargs)

    @staticmethod
    def prepare(files, config: str, **options) -> SeqRecDataset:
        raise NotImplementedError

    @classmethod
    def variants(cls) -> list[str]:
        return list(dict.fromkeys(config.variant for config in cls.BUILDER_CONFIGS))

    @classmethod
    def build(cls, config: str | None = None, data_files: DataFiles = None, **options) -> SeqRecDataset:
        """Prepares one variant from local files or URLs, without any cache. See the module for its options."""
        config = config or cls.variants()[0]
        check_choice("config", config, cls.variants())
        known = {p.name: p for p in inspect.signature(cls.prepare).parameters.values() if p.kind == p.KEYWORD_ONLY}
        for name, value in options.items():
            check_choice("option", name, list(known))
            _check_kind(name, value, known[name].annotation)
        return cls.prepare(local_files(data_files), config, **options)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=self.config.table, gen_kwargs={"data_files": self.config.data_files})]

    def _generate_tables(self, data_files) -> Iterator[tuple[Key, pa.Table]]:
        prepared = self.build(self.config.variant, _plain(data_files), **self.config.options)
        table = getattr(prepared, self.config.table)
        for shard, batch in enumerate(table.to_batches(max_chunksize=ROWS_PER_BATCH)):
            yield Key(0, shard), pa.Table.from_batches([batch])


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word, in quotation marks where it looks like more",
    list: "a list such as [a, b]",
    Sequence: "a list such as [a, b]",
}


def _check_kind(name: str, value: Any, annotation: Any) -> None:
    """Raises ValueError where an option is of another type than its annotation says: YAML reads ``no`` as false."""
    kinds = [get_origin(kind) or kind for kind in get_args(annotation) or (annotation,)]
    if get_origin(annotation) in _KINDS:
        kinds = [get_origin(annotation)]
    is_wanted = isinstance(value, tuple(kinds)) and type(value) not in {bool, str} - set(kinds)
    if not is_wanted:
        wanted = " or ".join(dict.fromkeys(_KINDS[kind] for kind in kinds if kind in _KINDS))
        raise ValueError(f"{name} is {value!r}: it is {wanted}")


def _plain(data_files: Mapping | None) -> DataFiles:
    """What `datasets` made of ``data_files`` -> the list or mapping that was given."""
    if data_files is None:
        return None
    files = {name: list(paths) for name, paths in data_files.items()}
    return files["train"] if list(files) == ["train"] else {name: paths[0] for name, paths in files.items()}


# Files


def local_files(data_files: DataFiles) -> list[Path] | dict[str, Path] | None:
    """Local paths of what was given: URLs are downloaded (into the `datasets` cache), folders become their files."""
    if data_files is None:
        return None
    if isinstance(data_files, Mapping):
        return {name: _local_file(path) for name, path in data_files.items()}
    # Not Path: streaming puts a class of its own in the place of this module's Path.
    if isinstance(data_files, str | os.PathLike):
        data_files = [data_files]
    return [path for given in data_files for path in _expand(_local_file(given))]


def _expand(path: Path) -> list[Path]:
    if path.suffix.lower() == ".zip":
        path = _unzipped(path)
        return sorted(p for p in path.rglob("*") if p.is_file() and "__MACOSX" not in p.parts)
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]


def _unzipped(path: Path) -> Path:
    """A folder with what an archive holds, there as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="seqrec-")
    _UNZIPPED.append(folder)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
            if size > max(reading.LARGEST_WHOLE, 100 * path.stat().st_size):
                raise ValueError(f"{path} unpacks to {size >> 20:,} MB, more than tables do: give the files")
            archive.extractall(folder.name)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): unpack it yourself and give the files") from error
    return Path(folder.name)


def _local_file(path: str | Path) -> Path:
    if urlparse(str(path)).scheme in ("http", "https"):
        return download(str(path))
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return path


def download(url: str) -> Path:
    """A local copy of the file at a URL, under its own name. Raises OSError when it cannot be had."""
    try:
        cached = Path(cached_path(url))
    except OSError as error:
        raise OSError(
            f"{_public(url)} could not be downloaded: check address and network, or get the file yourself and pass "
            "--data_files"
        ) from error
    # The cache names files by hash, but readers tell formats by name: a second name for the same file.
    named = cached.with_name(f"{cached.name}.named") / unquote(Path(urlparse(url).path).name)
    named.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.link(cached, named)
    return named


def _public(url: str) -> str:
    """An address that may be shown: passwords and tokens stand before the host or in the query."""
    parts = urlparse(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def one_file(files: list[Path], ending: str, layout: str) -> Path:
    """The one file whose name ends like this; the error says what the layout needs and what was given."""
    found = [path for path in files if path.name.endswith(ending)]
    if len(found) != 1:
        given = ", ".join(path.name for path in files)
        raise FileNotFoundError(
            f"{layout} needs exactly one file named *{ending}, but {len(found)} were given among: {given}"
        )
    return found[0]
