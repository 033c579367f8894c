"""Files -> record batches of strings, in file order, a block at a time.

CSV and its relatives (commas, semicolons, tabs, bars or ``::``; UTF-8, UTF-16 or another encoding; RecBole's
``.inter`` and ``.item``), JSON lines, Parquet and Excel; text files also .gz, .bz2, .xz, .zst and .zip. Everything
comes out as strings: what a value means is the builder's business, and ``17850`` must not depend on its form.
"""

import ast
import codecs
import csv
import io
import itertools
import json
import lzma
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from .texts import DEEPEST, as_text, is_too_deep, words

BLOCK_BYTES = 16 << 20
LONGEST_LINE = BLOCK_BYTES  # a file without line ends would be read into memory whole
LARGEST_WHOLE = 512 << 20  # of what is read into memory whole, after decompression: a JSON array, a sheet of Excel
MOST_VALUES, VALUES_A_BYTE = 1 << 24, 1000  # of a column of Parquet: whichever is more, by the size of its file
PARQUET_ROWS = 1 << 16
JSON_PIECE_BYTES = 4 << 20  # parsed by one core at a time
MOST_COLUMNS = 10_000
FIRST_ROWS = 50  # in which a header must be
HEAD_ROWS = 20_000  # that tell what a column of an Excel sheet holds
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "::": "double colons", "|": "bars"}
TAB_SEPARATED = (".tsv", ".inter", ".item", ".user")
_SIGNATURES = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
_SIGNATURES |= {b"PAR1": ".parquet", b"PK\3\4": ".zip or .xlsx", b"\xd0\xcf\x11\xe0": ".xls"}
_NO_OBJECT = re.compile(rb"(?:^|\n)[ \t]*null\b")  # at the start of a line, which makes Arrow end the process
_QUOTING = {"twice": {}, "backslash": {"escape_char": "\\"}, "raw": {"quote_char": False}}
_STAND_IN = "\x1f"  # readers of CSV know delimiters of one character only
_ATOMIC = re.compile(r"(?P<name>[^:]+):(?P<kind>token|token_seq|float|float_seq)")  # RecBole's headers


@dataclass(frozen=True)
class TableFile:
    """A file that holds one table, or one sheet of an Excel book.

    ``sheet`` may also be a member of a .zip. ``delimiter`` None finds the one of a CSV file; ``header`` names the
    columns of one that has no header line. ``quoting`` says how a quotation mark stands inside a value of a CSV file:
    "twice", "backslash" before it, or "raw", where quotation marks are letters (`with_quoting`).
    """

    path: Path
    delimiter: str | None = None
    sheet: str | None = None
    header: tuple[str, ...] | None = None
    stated_encoding: str | None = None
    quoting: str = "twice"

    def __str__(self) -> str:
        return f"{self.path}, sheet {self.sheet!r}" if self.sheet else str(self.path)

    @cached_property
    def kind(self) -> str:
        return file_kind(self.path)

    @cached_property
    def encoding(self) -> str:
        return self.stated_encoding or text_encoding(self.path)

    @cached_property
    def form(self) -> "CsvForm":
        return _csv_form(self)

    @cached_property
    def head(self) -> pa.Table:
        """The first rows with the file's own types; for CSV and Excel with those that the values have."""
        with damage_named(self.path):
            return _HEADS[self.kind](self)

    @property
    def names(self) -> list[str]:
        """The columns, in the file's order; of RecBole's headers the name alone."""
        with damage_named(self.path):
            names = list(self.form.names) if self.kind == "csv" else self.head.column_names
        if not names:
            raise ValueError(f"{self} is empty: a table with names for its columns is needed")
        _check_once(self, names)
        return names

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The named columns as batches of strings. Raises ValueError that names what is missing, and what is there."""
        with damage_named(self.path):
            require_columns(self, self.names, columns)
            yield from _READERS[self.kind](self, list(columns))


def read_columns(path: Path, columns: Sequence[str], delimiter: str | None = None) -> Iterator[pa.RecordBatch]:
    """The named columns of a file as string batches; ValueError names a missing column and lists the rest."""
    return TableFile(path, delimiter).read(columns)


def file_kind(path: Path) -> str:
    """ "csv", "jsonl", "parquet" or "xlsx", by the file's name."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    known = dict.fromkeys((".csv", ".txt", ".dat", ".data", *TAB_SEPARATED), "csv")
    known |= {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".xlsx": "xlsx"}
    kind = known.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise ValueError(
            f"{path}: unknown kind of file; save it as .csv, .tsv, .inter, .item, .jsonl (each also .gz, .bz2, .xz, "
            ".zst or .zip), .parquet or .xlsx"
        )
    return kind


def _check_once(file: TableFile, names: Sequence[str]) -> None:
    if len(names) > MOST_COLUMNS:
        raise ValueError(
            f"{file} has {len(names):,} columns, more than the {MOST_COLUMNS:,} that are read: are these rows?"
        )
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{file}: two columns are called {twice[0]!r}; rename one")


def require_columns(file: TableFile | Path, present: Sequence[str], needed: Sequence[str]) -> None:
    """Raises ValueError naming all missing columns, the file and what is there."""
    missing = [repr(name) for name in dict.fromkeys(needed) if name not in present]
    if missing:
        others = f"; missing too: {', '.join(missing[1:])}" if missing[1:] else ""
        raise ValueError(
            f"{file}: column {missing[0]} is missing; the file has {', '.join(map(repr, present))}{others}"
        )


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns what the readers say about damaged files into one sentence with the file's name."""
    try:
        yield
    except (
        pa.ArrowException, EOFError, zipfile.BadZipFile, lzma.LZMAError, UnicodeError, RecursionError, OSError,
    ) as error:  # fmt: skip
        if isinstance(error, OSError) and str(path) in str(error):
            raise
        hint = " (a value that holds the delimiter needs quotation marks)" if "columns, got" in str(error) else ""
        reason = " ".join(str(error).split()) + hint
        raise ValueError(f"{path} cannot be read, it seems damaged or of another format: {reason}") from error


def open_bytes(path: Path) -> io.BufferedReader:
    """The file's bytes, decompressed by its name; UTF-16 becomes UTF-8."""
    return io.BufferedReader(_stream(path))


def _stream(path: Path) -> pa.NativeFile:
    with _decompressed(path) as data:
        start = data.read(6)
    for signature, ending in _SIGNATURES.items():
        if start.startswith(signature):
            raise ValueError(f"{path} is no text, it begins like a file of the kind {ending}: give it that ending")
    is_utf16 = start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and start[2:4] != b"\0\0"  # that is UTF-32
    data = _decompressed(path)
    return pa.transcoding_input_stream(data, "utf-16", "utf8") if is_utf16 else data


def _decompressed(path: Path) -> pa.NativeFile:
    if path.suffix.lower() == ".xz":
        return pa.PythonFile(lzma.open(path), "r")
    return pa.input_stream(str(path), compression="detect", buffer_size=1 << 20)


# CSV


@dataclass(frozen=True)
class CsvForm:
    """How a CSV file is written: its delimiter, the columns' names, the lines before the first row, and how many
    lines of other text stand above the header."""

    delimiter: str
    names: tuple[str, ...]
    kinds: tuple[str | None, ...]
    skipped: int
    above: int = 0


def _csv_form(file: TableFile) -> CsvForm:
    lines = _first_lines(file)
    skipped, above = 0, 0
    given = file.delimiter
    if lines and (stated := re.fullmatch(r"sep=(.)\s*", lines[0])):  # how Excel marks its exports
        given, skipped, lines = given or stated[1], 1, lines[1:]
    delimiter = given or _delimiter(file.path, lines)
    if file.header:
        return CsvForm(delimiter, file.header, (None,) * len(file.header), skipped)
    reader = _csv_rows(lines, delimiter)
    rows = [(row, reader.line_num) for row in reader if any(row)]
    above = next((place for place, (row, _) in enumerate(rows) if _is_table(row)), 0)
    header, lines_read = rows[above] if rows else ([], 0)
    header = [name.strip() for name in header]
    atomic = [_ATOMIC.fullmatch(name) for name in header]
    if all(atomic):
        header = [match["name"] for match in atomic]
    kinds = tuple(match["kind"] if match and all(atomic) else None for match in atomic)
    body = [row for row, _ in rows[above + 1 : -1] or rows[above + 1 :]]  # the last may be cut
    if body and all(len(row) == len(header) + 1 for row in body):
        if not any(row[-1] for row in body):  # a delimiter ends the rows, and not the header
            header = [*header, ""]
        elif [row[0] for row in body] == [str(number + 1) for number in range(len(body))]:  # R numbers rows like this
            header = ["", *header]
    kinds = kinds if len(kinds) == len(header) else (None,) * len(header)
    named = (name or f"column {place}" for place, name in enumerate(header, start=1))
    return CsvForm(delimiter, tuple(named), kinds, skipped + lines_read, above)


def _is_table(row: Sequence) -> bool:
    """Whether a row can be a table's header; the lines above it (a title, a comment) fill one cell."""
    return sum(bool(str(cell or "").strip()) for cell in row) > 1


def _first_lines(file: TableFile) -> list[str]:
    """Enough lines to know the form by; a header may have lines within quotation marks."""
    with io.TextIOWrapper(open_bytes(file.path), encoding=file.encoding, newline="") as text:
        lines = list(itertools.islice(text, FIRST_ROWS))
    return [line.removeprefix("\ufeff") if number == 0 else line for number, line in enumerate(lines)]


def _csv_rows(lines, delimiter: str, **options):
    csv.field_size_limit(LONGEST_LINE)
    if len(delimiter) > 1:
        lines = map(lambda line: line.replace(delimiter, _STAND_IN), lines)
    return csv.reader(lines, delimiter=delimiter if len(delimiter) == 1 else _STAND_IN, **options)


def _delimiter(path: Path, lines: list[str]) -> str:
    """That which splits every one of the first rows into the most columns, with the fewest lines above these."""
    if any(suffix.lower() in TAB_SEPARATED for suffix in path.suffixes) and lines and "\t" in lines[0]:
        return "\t"
    if lines and lines[0].count(":") > 1 and all(map(_ATOMIC.fullmatch, lines[0].split())):
        return " "

    def columns(delimiter: str) -> tuple[bool, int, int]:
        rows = [row for row in itertools.islice(_csv_rows(lines, delimiter), 20) if any(row)]
        above = next((place for place, row in enumerate(rows) if _is_table(row)), 0)
        shortest = min(map(len, rows[above : max(above + 1, len(rows) - 1)]), default=0)  # the last may be cut
        return shortest > 1, -above, shortest

    return max(DELIMITERS, key=columns)


def _open_csv(file: TableFile, **options) -> pa_csv.CSVStreamingReader:
    form = file.form
    data, delimiter = _stream(file.path), form.delimiter
    if len(delimiter) > 1:
        data, delimiter = pa.lib.TransformInputStream(data, _Replace(delimiter)), _STAND_IN
    read_options = {"column_names": list(form.names), "skip_rows": form.skipped}
    return pa_csv.open_csv(
        data,
        read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES, encoding=file.encoding, **read_options),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, **_QUOTING[file.quoting]),
        convert_options=pa_csv.ConvertOptions(**options),
    )


class _Replace:
    """Puts `_STAND_IN` in the place of a delimiter, in blocks that may end inside of one."""

    def __init__(self, delimiter: str):
        self.delimiter, self.rest = delimiter.encode(), b""

    def __call__(self, block) -> bytes:
        text = (self.rest + bytes(block)).replace(self.delimiter, _STAND_IN.encode())
        cut = len(text) - text.endswith(self.delimiter[:1])
        self.rest = text[cut:]
        return text[:cut]


def _read_csv(file: TableFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    types = {name: pa.string() for name in file.names}
    yield from _open_csv(file, column_types=types, include_columns=columns, strings_can_be_null=False)


def _csv_head(file: TableFile) -> pa.Table:
    texts = {
        name: pa.string() for name, kind in zip(file.form.names, file.form.kinds, strict=True) if kind == "token_seq"
    }
    reader = _open_csv(file, column_types=texts)
    return pa.Table.from_batches([batch for batch, _ in zip(reader, range(1), strict=False)], reader.schema)


def with_quoting(file: TableFile) -> TableFile:
    """The file, knowing how quotation marks stand in it: Arrow reads what is not closed without a word, as one value.

    Raises ValueError naming the line where one opens and is not properly closed. In a file of tabs, whose programs
    seldom quote, marks are letters where quoting does not work out or spans lines, and every line is a row.
    """
    if file.kind != "csv":
        return file
    with open_bytes(file.path) as data:
        if not any(b'"' in block for block in iter(lambda: data.read(BLOCK_BYTES), b"")):
            return file
    twice = _first_open_quote(file)
    if file.form.delimiter == "\t" and (twice or _spans_lines(file)) and _is_regular(file):
        return replace(file, quoting="raw")
    if twice is None:
        return file
    if _first_open_quote(file, escapechar="\\") is None:
        return replace(file, quoting="backslash")
    line, error = twice
    raise ValueError(
        f"{file}: in line {line} a quotation mark opens that is not properly closed ({error}); close it, and "
        'write quotation marks inside a value twice ("")'
    ) from error


def _text(file: TableFile) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_bytes(file.path), encoding=file.encoding, newline="")


def _first_open_quote(file: TableFile, **options) -> tuple[int, csv.Error] | None:
    with _text(file) as text:
        rows, line = _csv_rows(text, file.form.delimiter, strict=True, **options), 1
        try:
            for _ in rows:
                line = rows.line_num + 1
        except csv.Error as error:
            return line, error
    return None


def _spans_lines(file: TableFile) -> bool:
    with _text(file) as text:
        rows = _csv_rows(text, file.form.delimiter)
        return any(rows.line_num != number for number, _ in enumerate(rows, start=1))


def _is_regular(file: TableFile) -> bool:
    """Whether every line that is not empty has a tab between any two columns."""
    with _text(file) as text:
        tabs = len(file.form.names) - 1
        return all(line.count("\t") == tabs for line in itertools.islice(text, file.form.above, None) if line.strip())


def ends_in_a_line(file: TableFile) -> bool:
    """Whether the last line of a text file is ended, as it is not where the file was cut off."""
    last = b"\n"
    with open_bytes(file.path) as data:
        while block := data.read(BLOCK_BYTES):
            last = block[-1:]
    return last == b"\n"


def text_encoding(path: Path) -> str:
    """ "utf8" where the whole file decodes as such, else "cp1252" (Windows), else "latin-1", that decodes any.

    Raises:
        ValueError: the file is UTF-8 but for some damaged bytes; another encoding would spoil all its other letters.
    """
    decoder, encoding, line, undefined = codecs.getincrementaldecoder("utf-8")(), "utf8", 0, False
    with damage_named(path), open_bytes(path) as data:
        for block in itertools.chain(iter(lambda: data.read(BLOCK_BYTES), b""), [b""]):
            line = _check_line(path, line, block)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError:
                encoding = "cp1252"
            undefined = undefined or any(byte in block for byte in b"\x81\x8d\x8f\x90\x9d")
    if encoding == "cp1252":
        _check_damaged_utf8(path)
    return "latin-1" if encoding == "cp1252" and undefined else encoding


def _check_damaged_utf8(path: Path) -> None:
    """Raises ValueError where more letters are whole ones of UTF-8 than bytes are none; in text of Windows few are."""
    decoder, whole, damaged, lines, first = codecs.getincrementaldecoder("utf-8")("replace"), 0, 0, 1, 0
    with open_bytes(path) as data:
        for block in itertools.chain(iter(lambda: data.read(BLOCK_BYTES), b""), [b""]):
            text = decoder.decode(block, final=not block)
            here = text.count("\N{REPLACEMENT CHARACTER}")
            if here and not damaged:
                first = lines + text[: text.index("\N{REPLACEMENT CHARACTER}")].count("\n")
            lines, damaged = lines + text.count("\n"), damaged + here
            whole += 0 if text.isascii() else sum(letter > "\x7f" for letter in text) - here
    if whole > damaged:
        letters = f"{damaged} damaged letter{'s' * (damaged > 1)}, the first in line {first}"
        raise ValueError(f"{path} is UTF-8 but for {letters}: mend the line, save the file anew, or give encoding=")


def _check_line(path: Path, before: int, block: bytes) -> int:
    """How long the line is that a block leaves open, of one that had ``before`` bytes; ValueError where too long."""
    if b"\0" in block:
        raise ValueError(f"{path} is no text: it holds zero bytes; save it as UTF-8")
    end = block.rfind(b"\n")
    line = len(block) - end - 1 if end >= 0 else before + len(block)
    if line > LONGEST_LINE:
        raise ValueError(f"{path} has a line of more than {LONGEST_LINE >> 20} MB: is it a table with one row a line?")
    return line


# JSON lines


def _read_jsonl(file: TableFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    # What looks like a time to Arrow may be an id, which must keep its letters.
    fields = [file.head.schema.field(name) for name in columns]
    schema = pa.schema(
        [field.with_type(pa.string()) if pa.types.is_timestamp(field.type) else field for field in fields]
    )
    for lines in line_blocks(file.path):
        table = _parse_any_lines(lines, schema)
        missing = [name for name in columns if name not in table.column_names]
        for name in missing:
            table = table.append_column(name, pa.nulls(table.num_rows))
        yield from _as_strings(table.select(columns)).to_batches()


def _jsonl_head(file: TableFile) -> pa.Table:
    return next(map(_parse_any_lines, line_blocks(file.path)), pa.table({}))


def _parse_any_lines(lines: bytes, schema: pa.Schema | None = None) -> pa.Table:
    """The same as `parse_json_lines`, where lines disagree on a field's type with that field as text."""
    try:
        return parse_json_lines(lines, schema)
    except pa.ArrowInvalid:
        try:
            rows = [_json_or_python(line) for line in lines.splitlines() if line.strip()]
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            rows = []
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _array([row.get(name) for row in rows]) for name in names})


def _json_or_python(line: bytes):
    """Older collections of reviews hold what Python prints of a dict."""
    return ast.literal_eval(line.decode()) if re.match(rb"\s*\{u?'", line) else json.loads(line)


def _array(values: list) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        return pa.array(map(words, values), pa.string())


def line_blocks(path: Path) -> Iterator[bytes]:
    """The file's bytes, decompressed by its name, a block of whole lines at a time; a JSON array becomes lines."""
    rest = b""
    with open_bytes(path) as data:
        if data.peek(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
            yield from (_not_too_deep(path, lines) for lines in _array_lines(path, data))
            return
        while block := data.read(BLOCK_BYTES):
            _check_line(path, len(rest), block)
            whole, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                yield _not_too_deep(path, whole)
    if rest.strip():
        yield _not_too_deep(path, rest)


def _not_too_deep(path: Path, lines: bytes) -> bytes:
    """Arrow ends the process where lists are thousands deep."""
    if any(map(is_too_deep, lines.split(b"\n"))):
        raise ValueError(f"{path} has lists or objects within each other, more than {DEEPEST} deep: no row needs that")
    return lines


def _array_lines(path: Path, data: io.BufferedReader) -> Iterator[bytes]:
    text = data.read(LARGEST_WHOLE + 1)
    if len(text) > LARGEST_WHOLE:
        raise ValueError(f"{path} is a JSON array of more than {LARGEST_WHOLE >> 20} MB: write one object a line")
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise pa.ArrowInvalid(str(error)) from error
    for first in range(0, len(rows), HEAD_ROWS):
        yield "\n".join(map(json.dumps, rows[first : first + HEAD_ROWS])).encode()


def parse_json_lines(lines: bytes, schema: pa.Schema | None = None) -> pa.Table:
    """Whole lines, parsed on all cores: in pieces, each no shorter than the longest line.

    With a schema its fields only, null where a line lacks one. Raises ArrowInvalid where a line is no JSON or a value
    of another type.
    """
    if _NO_OBJECT.search(lines):
        raise pa.ArrowInvalid("a line is null where an object is needed")
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore" if schema else "infer")
    longest = max(map(len, lines.split(b"\n", 1)[:1]), default=0)
    size = max(JSON_PIECE_BYTES, 4 * longest)
    try:
        return pa_json.read_json(pa.BufferReader(lines), pa_json.ReadOptions(block_size=size), options)
    except pa.ArrowInvalid as error:
        if "straddling object" not in str(error):
            raise
    return pa_json.read_json(pa.BufferReader(lines), pa_json.ReadOptions(block_size=len(lines) + 1), options)


def read_json_fields(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The fields of a schema from a JSON-lines file, with their own types; null where a line lacks one."""
    with damage_named(path):
        for lines in line_blocks(path):
            yield from parse_json_lines(lines, schema).select(schema.names).to_batches()


# Parquet and Excel


def rows_at_once(path: Path, columns: Sequence[str] | None = None) -> int:
    """As many rows of a Parquet file (of some columns; None: of all) as memory has room for.

    A text that stands once in a column's dictionary takes its length in every row that refers to it.

    Raises:
        ValueError: what a column unpacks to is out of all proportion to its bytes, or a text is longer than a line may
            be.
    """
    rows, size = PARQUET_ROWS, path.stat().st_size
    with pq.ParquetFile(path) as plain:
        about, schema = plain.metadata, plain.schema
    leaves = [schema.column(place) for place in range(len(schema))]
    wanted = {leaf.path for leaf in leaves} if columns is None else set(columns)
    chosen = [place for place, leaf in enumerate(leaves) if wanted & {leaf.path, leaf.path.partition(".")[0]}]
    texts = [leaves[place].path for place in chosen if leaves[place].physical_type == "BYTE_ARRAY"]
    with pq.ParquetFile(path, read_dictionary=texts) as parquet:
        for place in chosen:
            leaf, longest = leaves[place], 0
            chunks = [about.row_group(number).column(place) for number in range(about.num_row_groups)]
            values, packed = (sum(map(attrgetter(name), chunks)) for name in ("num_values", "total_compressed_size"))
            if values > max(MOST_VALUES, VALUES_A_BYTE * size):
                raise ValueError(f"{path}: column {leaf.path!r} says it has {values:,} values in {size:,} bytes")
            for number, chunk in enumerate(chunks):
                _check_unpacked(path, leaf.path, chunk.total_uncompressed_size, chunk.total_compressed_size, 1, 100)
                if leaf.path in texts:
                    longest = max(longest, _longest_in_dictionary(parquet, number, leaf.path))
            if longest > LONGEST_LINE:
                raise ValueError(f"{path}: column {leaf.path!r} has a text of more than {LONGEST_LINE >> 20} MB")
            # What a list repeats may all stand in one row; a row's own text takes time at most.
            _check_unpacked(path, leaf.path, longest * values, packed, 8 if leaf.max_repetition_level else 32, 1000)
            rows = min(rows, LARGEST_WHOLE // (max(1, longest) * (values // max(1, about.num_rows) + 1)) + 1)
    return rows


def _check_unpacked(path: Path, column: str, unpacked: int, packed: int, most: int, times: int) -> None:
    if unpacked > most * LARGEST_WHOLE and unpacked > times * packed:
        raise ValueError(f"{path}: column {column!r} unpacks from {packed:,} bytes to {unpacked >> 20:,} MB or more")


def _longest_in_dictionary(parquet: pq.ParquetFile, group: int, column: str) -> int:
    """Bytes of the longest text in a column's dictionary; 0 where it has none."""
    first = next(parquet.iter_batches(1, [group], [column]), None)
    values = first.column(0) if first else pa.nulls(0)
    while pa.types.is_nested(values.type):
        values = values.field(0) if pa.types.is_struct(values.type) else values.values
    if not pa.types.is_dictionary(values.type):
        return 0
    return pc.max(pc.binary_length(values.dictionary)).as_py() or 0


def _read_parquet(file: TableFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    rows = rows_at_once(file.path, columns)
    with pq.ParquetFile(file.path) as parquet:
        for batch in parquet.iter_batches(rows, columns=columns):
            yield from _as_strings(pa.Table.from_batches([batch]).select(columns)).to_batches()


def _parquet_head(file: TableFile) -> pa.Table:
    rows = min(HEAD_ROWS, rows_at_once(file.path))
    with pq.ParquetFile(file.path) as parquet:
        batches = [batch for batch, _ in zip(parquet.iter_batches(batch_size=rows), range(1), strict=False)]
        return pa.Table.from_batches(batches, parquet.schema_arrow)


def book_sheets(file: TableFile) -> list[TableFile]:
    """The sheets of an Excel book that are not empty, each as a file of its own; any other file as it is."""
    if file.kind != "xlsx" or file.sheet:
        return [file]
    with damage_named(file.path), _excel_book(file.path) as book:
        filled = [sheet.title for sheet in book.worksheets if any(_filled_rows(sheet, max_row=FIRST_ROWS))]
        is_plain = filled in ([], [book.worksheets[0].title])
    return [file] if is_plain else [replace(file, sheet=name) for name in filled]


def _read_xlsx(file: TableFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for block in _excel_blocks(file, columns):
        yield pa.RecordBatch.from_pydict(
            {name: pa.array(map(words, cells), pa.string()) for name, cells in block.items()}
        )


def _excel_head(file: TableFile) -> pa.Table:
    columns = {name: _array(cells) for name, cells in next(_excel_blocks(file), {}).items()}
    empty = [name for name, cells in columns.items() if name.startswith("column ") and cells.null_count == len(cells)]
    return pa.table({name: cells for name, cells in columns.items() if name not in empty})


def _filled_rows(sheet, **limits) -> Iterator[tuple]:
    return (row for row in sheet.iter_rows(values_only=True, **limits) if any(cell is not None for cell in row))


def _excel_blocks(file: TableFile, columns: list[str] | None = None) -> Iterator[dict[str, list]]:
    """The cells of some columns (None: of all that have a name), so many rows at a time."""
    with _excel_book(file.path) as book:
        sheet = book[file.sheet] if file.sheet else book.worksheets[0]
        rows = _filled_rows(sheet)
        first = list(itertools.islice(rows, FIRST_ROWS))
        above = next((place for place, row in enumerate(first) if _is_table(row)), 0)
        header = [words(cell).strip() for cell in (first[above] if first else ())]
        header = [name or f"column {place}" for place, name in enumerate(header, start=1)]
        _check_once(file, header)
        rows = itertools.chain(first[above + 1 :], rows)
        places = {name: header.index(name) for name in columns or header}
        block = {name: [] for name in places}
        for number, row in enumerate(rows, start=1):
            for name, place in places.items():
                block[name].append(row[place] if place < len(row) else None)
            if number % HEAD_ROWS == 0:
                yield block
                block = {name: [] for name in places}
        yield block


@contextmanager
def _excel_book(path: Path):
    try:
        import openpyxl
    except ImportError as error:
        raise ValueError(f"{path}: reading .xlsx needs the package openpyxl (pip install openpyxl)") from error
    with zipfile.ZipFile(path) as parts:
        size = sum(part.file_size for part in parts.infolist())
    if size > LARGEST_WHOLE:
        raise ValueError(f"{path} unpacks to {size >> 20} MB, more than {LARGEST_WHOLE >> 20}: save it as CSV")
    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        yield book
    finally:
        book.close()


def _as_strings(table: pa.Table) -> pa.Table:
    return pa.table([as_text(table[name]) for name in table.column_names], names=table.column_names)


_READERS = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet, "xlsx": _read_xlsx}
_HEADS = {"csv": _csv_head, "jsonl": _jsonl_head, "parquet": _parquet_head, "xlsx": _excel_head}


def whole_number_ids(texts: pa.Array) -> pa.Array:
    """Ids that a float column turned into ``17850.0`` -> ``17850``."""
    return pc.replace_substring_regex(texts, r"^(\d+)\.0+$", r"\1")
