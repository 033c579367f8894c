"""Recommend to everybody: histories in a Parquet file, answers in a folder of Parquet files.

    python scripts/recommend.py RUN_OR_CHECKPOINT CATALOGUE histories.parquet --out recommendations

HISTORIES has a column `user_id`, and a column `history` of lists of item ids (text or whole numbers) or of attributes,
oldest first. CATALOGUE is a folder that `save_catalogue` wrote with this checkpoint. OUT is read by
`pyarrow.parquet.read_table("recommendations")`: for every row of HISTORIES, in its order, `user_id`, `item_ids` and
`scores`, best first, and `error`, a sentence where there is no answer.

Memory does not grow with the number of users. OUT appears when it is whole: until then its parts are in
OUT.unfinished, and after a kill the same command goes on from them.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser, parse_setting

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("model", help="a run's output_dir, a checkpoint's folder, or its id on the Hub")
PARSER.add_argument("catalogue", help="folder that save_catalogue wrote with this checkpoint")
PARSER.add_argument("histories", type=Path, help="Parquet file with the columns user_id and history")
PARSER.add_argument("--out", type=Path, required=True, help="folder to write")
PARSER.add_argument("--overwrite", action="store_true", help="replace an OUT that this command wrote")
PARSER.add_argument("--top_k", type=int, default=10, help="items a user (default 10)")
PARSER.add_argument("--exclude_history", action="store_true", help="leave out what a history holds already")
PARSER.add_argument(
    "--unknown", choices=("ignore", "error"), default="ignore",
    help="ids that are not in the catalogue: go by the others (default), or answer that user with an error",
)  # fmt: skip
PARSER.add_argument(
    "--most_per",
    action="append",
    default=[],
    metavar="ATTRIBUTE=N",
    help="at most N items of a brand, say; repeatable",
)
PARSER.add_argument("--diversity", type=float, default=0.0, help="from 0 (default) to 1: avoid items near each other")
PARSER.add_argument("--index", help="how to search: exact, faiss or binary (default: as the catalogue was saved)")
PARSER.add_argument("--device", help="cpu (default), cuda, ...")
PARSER.add_argument("--part", type=int, default=20_000, help="users a file (default 20,000)")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jepa4rec.datasets_builders.reading import damage_named, rows_at_once
from jepa4rec.hub.opening import open_pipeline
from jepa4rec.serving.catalogue_seqrec import ABOUT_FILE
from jepa4rec.serving.pipeline_catalogue import CataloguePipeline
from jepa4rec.serving.whole_files_seqrec import replace_folder, restore_folder, write_json, written_files

USER, HISTORY = "user_id", "history"
BEGUN_FILE = "_recommend.json"  # readers of Parquet folders pass over names with an underscore
AT_ONCE = 2000  # users in one call of the pipeline


# ------------------------------------------------------------------------------------------------ histories


def open_histories(path: Path) -> pq.ParquetFile:
    """Raises ValueError unless it is a Parquet file with users and lists."""
    with damage_named(path):
        rows_at_once(path, (USER, HISTORY))
        file = pq.ParquetFile(path)
    schema = file.schema_arrow
    for name in (USER, HISTORY):
        if name not in schema.names:
            raise ValueError(
                f"{path} has no column {name!r}: it has {', '.join(schema.names)}; rename one, for example with "
                "pyarrow's Table.rename_columns."
            )
    if not is_list(schema.field(HISTORY).type):
        raise ValueError(f"{HISTORY} in {path} is {schema.field(HISTORY).type}: a list of item ids is needed.")
    return file


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def parts(path: Path, size: int) -> Iterator[pa.Table]:
    """The rows in tables of `size`, the last one shorter; no more than one is in memory."""
    waiting: list[pa.Table] = []
    with damage_named(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=size, columns=[USER, HISTORY]):
            waiting.append(pa.Table.from_batches([batch]))
            while sum(map(len, waiting)) >= size:
                joined = pa.concat_tables(waiting)
                yield joined.slice(0, size)
                waiting = [joined.slice(size)]
    if rest := sum(map(len, waiting)):
        yield pa.concat_tables(waiting).slice(0, rest)


# ------------------------------------------------------------------------------------------------ answers


def id_type(history: pa.DataType, ids: list[str]) -> pa.DataType:
    """Whole numbers where the histories' ids are, and every id of the catalogue is written as one; else text."""
    numbers = pa.types.is_integer(history.value_type) and all(map(is_number, ids))
    return pa.int64() if numbers else pa.string()


def is_number(item_id: str) -> bool:
    """Whether an int64 is written so: 7, but neither 007 nor +7."""
    return re.fullmatch("0|-?[1-9][0-9]{0,18}", item_id) is not None and -(2**63) <= int(item_id) < 2**63


def answer(pipe: CataloguePipeline, table: pa.Table, ids: pa.DataType, wishes: dict) -> pa.Table:
    """One part's answers, a row for each of its rows."""
    found = []
    for start in range(0, len(table), AT_ONCE):
        histories = table[HISTORY].slice(start, AT_ONCE).to_pylist()
        found += pipe([{"history": history} for history in histories], **wishes)
    fine = [own if isinstance(own, list) else [] for own in found]
    errors = [None if isinstance(own, list) else own["error"].partition(": ")[2] for own in found]
    item_ids = pa.array([[item["item_id"] for item in own] for own in fine], pa.list_(pa.string()))
    scores = pa.array([[item["score"] for item in own] for own in fine], pa.list_(pa.float32()))
    columns = [table[USER], pc.cast(item_ids, pa.list_(ids)), scores, pa.array(errors, pa.string())]
    return pa.table(columns, names=[USER, "item_ids", "scores", "error"])


def describe(pipe: CataloguePipeline, options: Namespace, wishes: dict) -> dict:
    """All that the answers depend on."""
    with open(options.histories, "rb") as file:
        histories = hashlib.file_digest(file, "sha256").hexdigest()
    catalogue = hashlib.sha256((Path(options.catalogue) / ABOUT_FILE).read_bytes()).hexdigest()
    made = {"weights": pipe.weights_hash, "catalogue": catalogue, "histories": histories, "part": options.part}
    return made | {"index": pipe.catalogue.index, "wishes": wishes}


def begin(folder: Path, made: dict) -> None:
    """Make the folder of the parts, or go on with one that was begun alike. Raises ValueError where it was not."""
    try:
        begun = json.loads((folder / BEGUN_FILE).read_text(encoding="utf-8")) if folder.exists() else None
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not of this command ({error}): move it away.") from error
    if begun is None:
        return write_json(folder / BEGUN_FILE, made)
    other = [name for name in made if not isinstance(begun, dict) or begun.get(name) != made[name]]
    if other:
        raise ValueError(f"{folder} was begun with other {other[0]}: run that to its end, or delete the folder.")
    for left in folder.glob(".*"):  # what a kill left half written
        left.unlink()


def check_place(out: Path, overwrite: bool) -> None:
    """Raises FileExistsError unless OUT is free or may be replaced."""
    if not out.exists():
        return
    if not (out / BEGUN_FILE).is_file():
        raise FileExistsError(f"{out} exists and this command did not write it: choose another --out.")
    if not overwrite:
        raise FileExistsError(f"{out} is finished: choose another --out, or replace it with --overwrite.")


def wishes_of(options: Namespace) -> dict:
    wishes = {name: getattr(options, name) for name in ("top_k", "exclude_history", "unknown", "diversity")}
    return wishes | {"most_per": dict(parse_setting("--most_per", text) for text in options.most_per)}


@command(PARSER, "interrupted: the same command goes on from here")
def main(options: Namespace) -> None:
    if options.part < 1:
        raise ValueError(f"--part {options.part}: at least one user a file is needed.")
    check_place(options.out, options.overwrite)
    file = open_histories(options.histories)
    settings = {name: getattr(options, name) for name in ("index", "device") if getattr(options, name)}
    wishes = wishes_of(options)
    pipe = open_pipeline(options.model, **settings)
    pipe.load_catalogue(options.catalogue)
    pipe([], **wishes)  # what cannot be is said now, and not with the first part
    unfinished = options.out.with_name(f"{options.out.name}.unfinished")
    begin(unfinished, describe(pipe, options, wishes))
    ids = id_type(file.schema_arrow.field(HISTORY).type, pipe.catalogue.ids)
    users = answered = failed = 0
    started = time.perf_counter()
    for number, table in enumerate(parts(options.histories, options.part)):
        path, users = unfinished / f"part-{number:06}.parquet", users + len(table)
        if path.exists():
            continue
        answers = answer(pipe, table, ids, wishes)
        with written_files(path) as (fresh,):
            pq.write_table(answers, fresh)
        answered, failed = answered + len(table), failed + len(table) - answers["error"].null_count
        rate = answered / (time.perf_counter() - started)
        print(f"{users:,} of {file.metadata.num_rows:,} users, {rate:,.0f} users/s", file=sys.stderr)
    if not users:
        raise ValueError(f"{options.histories} has no rows.")
    restore_folder(options.out)
    replace_folder(unfinished, options.out)
    shutil.rmtree(unfinished, ignore_errors=True)
    rate = answered / (time.perf_counter() - started)
    print(f"{options.out}: {users:,} users, {failed:,} of these {answered:,} without an answer, {rate:,.0f} users/s")


if __name__ == "__main__":
    main()
