"""Files -> record batches of strings, in file order, a block at a time.

CSV and TSV (also .gz, .bz2, .zst; UTF-8 or latin-1), JSON lines, Parquet and Excel. Everything comes out as
strings: what a value means is the builder's business, and ``17850`` must not depend on the form it was stored in.
"""

import codecs
import csv
import datetime
import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

BLOCK_BYTES = 16 << 20
JSON_PIECE_BYTES = 4 << 20  # parsed by one core at a time
EXCEL_ROWS = 20_000
COMPRESSIONS = (".gz", ".bz2", ".zst")


def read_columns(path: Path, columns: Sequence[str], delimiter: str | None = None) -> Iterator[pa.RecordBatch]:
    """The named columns of a file as string batches; ValueError names a missing column and lists the rest."""
    with damage_named(path):
        yield from _READERS[file_kind(path)](path, columns, delimiter)


def column_names(path: Path, delimiter: str | None = None) -> list[str]:
    """The columns a file has, in its order."""
    kind = file_kind(path)
    with damage_named(path):
        if kind == "parquet":
            return pq.read_schema(path).names
        if kind == "jsonl":
            return next(_json_blocks(path), pa.table({})).column_names
        if kind == "xlsx":
            with _excel_rows(path) as rows:
                return [_excel_text(cell) for cell in next(rows, ())]
        return _csv_header(path, delimiter or _delimiter(path), text_encoding(path))


def text_columns(path: Path, delimiter: str | None = None) -> list[str]:
    """The columns that hold text or lists of text, judged by the file's types or, for CSV, its first block of rows.

    Excel sheets have no types: all their columns count.
    """
    kind = file_kind(path)
    if kind == "xlsx":
        return column_names(path)
    with damage_named(path):
        if kind == "parquet":
            schema = pq.read_schema(path)
        elif kind == "jsonl":
            schema = next(_json_blocks(path), pa.table({})).schema
        else:
            schema = _inferred_csv_schema(path, delimiter or _delimiter(path))
    return [field.name for field in schema if _is_text(field.type)]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def file_kind(path: Path) -> str:
    """ "csv", "jsonl", "parquet" or "xlsx", by the file's name."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    known = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl"}
    known |= {".parquet": "parquet", ".xlsx": "xlsx"}
    kind = known.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise ValueError(
            f"{path}: unknown kind of file; it may be .csv, .tsv, .jsonl (each also .gz), .parquet, .xlsx"
        )
    return kind


def require_columns(path: Path, present: Sequence[str], needed: Sequence[str]) -> None:
    """Raises ValueError naming the first missing column, the file and what is there."""
    missing = [name for name in needed if name not in present]
    if missing:
        raise ValueError(f"{path}: column {missing[0]!r} is missing; the file has {', '.join(map(repr, present))}")


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns what the readers say about damaged files into one sentence with the file's name."""
    try:
        yield
    except (pa.ArrowInvalid, EOFError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read, it seems damaged or of another format: {error}") from error
    except OSError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read, it seems damaged or of another format: {error}") from error


def open_bytes(path: Path) -> io.BufferedReader:
    """The file's bytes, decompressed by its name."""
    return io.BufferedReader(pa.input_stream(str(path), compression="detect", buffer_size=1 << 20))


# CSV


def _read_csv(path: Path, columns: Sequence[str], delimiter: str | None) -> Iterator[pa.RecordBatch]:
    delimiter, encoding = delimiter or _delimiter(path), text_encoding(path)
    header = _csv_header(path, delimiter, encoding)
    require_columns(path, header, columns)
    batches = pa_csv.open_csv(
        pa.input_stream(str(path), compression="detect"),
        read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES, encoding=encoding),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            column_types={name: pa.string() for name in header},
            include_columns=list(columns),
            strings_can_be_null=False,
        ),
    )
    yield from batches


def _inferred_csv_schema(path: Path, delimiter: str) -> pa.Schema:
    return pa_csv.open_csv(
        pa.input_stream(str(path), compression="detect"),
        read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES, encoding=text_encoding(path)),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
    ).schema


def _csv_header(path: Path, delimiter: str, encoding: str) -> list[str]:
    with io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="") as lines:
        header = next(csv.reader(lines, delimiter=delimiter), [])
    if not header:
        raise ValueError(f"{path} is empty: a header line with the column names is needed")
    return [header[0].removeprefix("\ufeff"), *header[1:]]


def _delimiter(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","


def text_encoding(path: Path) -> str:
    """ "utf8" where the whole file decodes as such, else "latin-1" (which decodes anything)."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open_bytes(path) as data:
            while block := data.read(BLOCK_BYTES):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "latin-1"
    return "utf8"


# JSON lines


def _read_jsonl(path: Path, columns: Sequence[str], _: str | None) -> Iterator[pa.RecordBatch]:
    first = next(_json_blocks(path), None)
    require_columns(path, first.column_names if first else [], columns)
    schema = pa.schema([first.schema.field(name) for name in columns])
    for table in _json_blocks(path, schema):
        yield from _as_strings(table.select(columns)).to_batches()


def _json_blocks(path: Path, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
    """Parsed blocks of whole lines. With a schema its fields only, null where a line lacks one."""
    for lines in line_blocks(path):
        yield parse_json_lines(lines, schema)


def line_blocks(path: Path) -> Iterator[bytes]:
    """The file's bytes, decompressed by its name, a block of whole lines at a time."""
    rest = b""
    with open_bytes(path) as data:
        while block := data.read(BLOCK_BYTES):
            whole, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                yield whole
    if rest.strip():
        yield rest


def parse_json_lines(lines: bytes, schema: pa.Schema | None = None) -> pa.Table:
    """Whole lines, parsed on all cores: in pieces, each no shorter than the longest line.

    With a schema its fields only, null where a line lacks one. Raises ArrowInvalid where a line is no JSON or a value
    of another type.
    """
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
        for table in _json_blocks(path, schema):
            yield from table.select(schema.names).to_batches()


# Parquet and Excel


def _read_parquet(path: Path, columns: Sequence[str], _: str | None) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        require_columns(path, file.schema_arrow.names, columns)
        for batch in file.iter_batches(columns=list(columns)):
            yield from _as_strings(pa.Table.from_batches([batch]).select(columns)).to_batches()


def _read_xlsx(path: Path, columns: Sequence[str], _: str | None) -> Iterator[pa.RecordBatch]:
    with _excel_rows(path) as rows:
        header = [_excel_text(cell) for cell in next(rows, ())]
        require_columns(path, header, columns)
        places = [header.index(name) for name in columns]
        texts: list[list[str]] = [[] for _ in columns]
        for row in rows:
            for place, column in zip(places, texts, strict=True):
                column.append(_excel_text(row[place]) if place < len(row) else "")
            if len(texts[0]) == EXCEL_ROWS:
                yield pa.RecordBatch.from_arrays([pa.array(column) for column in texts], list(columns))
                texts = [[] for _ in columns]
        yield pa.RecordBatch.from_arrays([pa.array(column, pa.string()) for column in texts], list(columns))


@contextmanager
def _excel_rows(path: Path) -> Iterator[Iterator[tuple]]:
    """The rows of the first sheet, as tuples of cell values."""
    try:
        import openpyxl
    except ImportError as error:
        raise ValueError(f"{path}: reading .xlsx needs the package openpyxl (pip install openpyxl)") from error
    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        yield book.worksheets[0].iter_rows(values_only=True)
    finally:
        book.close()


def _excel_text(cell) -> str:
    """A cell as the CSV form of the same table would show it: 17850.0 -> 17850, dates in ISO form."""
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, datetime.datetime):
        return cell.isoformat(sep=" ")
    return str(cell)


def _as_strings(table: pa.Table) -> pa.Table:
    """Numbers, dates and booleans as text; lists of strings joined with a space; null as ""."""
    return pa.table([_string_column(table[name]) for name in table.column_names], names=table.column_names)


def _string_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.binary_join(column.cast(pa.list_(pa.string())), " ")
    return pc.fill_null(column.cast(pa.string()), "")


_READERS = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet, "xlsx": _read_xlsx}


# Values


def to_milliseconds(texts: pa.Array, where: str) -> pa.Array:
    """Dates and times as text -> int64 milliseconds since 1970 (UTC where no zone is given).

    ISO dates and times, and the month-first form of spreadsheets (12/1/2010 8:26). Raises ValueError naming
    ``where`` (file and column) and the first value that is none of these.
    """
    for parse in (_iso_times, _month_first_times):
        times = parse(texts)
        if times is not None:
            return times.cast(pa.timestamp("ms")).cast(pa.int64())
    alone = ((text, pa.array([text])) for text in texts.to_pylist())
    bad = next((text for text, one in alone if _iso_times(one) is None and _month_first_times(one) is None), texts[0])
    raise ValueError(f"{where}: {bad!r} is not a date and time; 2010-12-01 08:26:00 and 12/1/2010 8:26 are understood")


def _iso_times(texts: pa.Array) -> pa.Array | None:
    try:
        return texts.cast(pa.timestamp("ms"))
    except pa.ArrowInvalid:
        pass
    try:
        return texts.cast(pa.timestamp("ms", "UTC"))
    except pa.ArrowInvalid:
        return None


def _month_first_times(texts: pa.Array) -> pa.Array | None:
    for form in ("%m/%d/%Y %H:%M", "%m/%d/%Y %H:%M:%S", "%m/%d/%y %H:%M"):
        try:
            return pc.strptime(texts, format=form, unit="s")
        except pa.ArrowInvalid:
            continue
    return None


def to_numbers(texts: pa.Array, where: str) -> pa.Array:
    """Text -> float64, "" -> null, "-0" -> 0 (engines differ in which zero stands for both in a group).

    Raises ValueError naming ``where`` (file and column).
    """
    texts = pc.if_else(pc.equal(texts, ""), None, texts)
    try:
        return pc.add(texts.cast(pa.float64()), 0.0)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{where}: a value is not a number ({error})") from error


def whole_number_ids(texts: pa.Array) -> pa.Array:
    """Ids that a float column turned into ``17850.0`` -> ``17850``."""
    return pc.replace_substring_regex(texts, r"^(\d+)\.0$", r"\1")
