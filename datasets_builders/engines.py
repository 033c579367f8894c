"""The engines that run the plans: DuckDB, embedded and out of core (the default), and Spark, on one machine or many.

Everything in which they differ is here; `preparation` and the builders see an Ibis connection that reads Parquet,
writes Parquet and hands over Arrow tables.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from .reading import COMPRESSIONS

MEMORY_LIMIT = "3GB"
_DUCKDB_TYPES = {pa.string(): "VARCHAR", pa.float64(): "DOUBLE", pa.int64(): "BIGINT"}


@contextmanager
def connect(engine: str, threads: int | None, directory: Path) -> Iterator[ibis.BaseBackend]:
    """A connection to "duckdb" or "spark" for one build; ``directory`` takes what passes between its steps.

    Raises ValueError for an unknown engine and for one that cannot be started.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}: it may be {', '.join(ENGINES)}")
    with ENGINES[engine](threads, directory) as connection:
        yield connection


def keep(connection: ibis.BaseBackend, table: ir.Table, path: Path) -> ir.Table:
    """Runs an expression now, into a table of DuckDB's own (which may spill to disk) or Parquet files of Spark's."""
    if connection.name == "duckdb":
        return connection.create_table(path.stem, table, temp=True)
    table.to_parquet(path)
    return connection.read_parquet(path)


def json_lines(connection: ibis.BaseBackend, path: Path, schema: pa.Schema, name: str) -> ir.Table | None:
    """The fields of a schema (strings, float64, int64) from a plain JSON-lines file, as the table ``name``.

    None where the engine has no reader of its own that keeps the order of the file, or gives up on this file: whoever
    asks then reads it as any file, and says what is wrong with it.
    """
    if connection.name != "duckdb" or path.suffix in COMPRESSIONS or set("*?[") & set(str(path)):
        return None
    kinds = {field.name: _DUCKDB_TYPES[field.type] for field in schema}
    connection.raw_sql("SET preserve_insertion_order = true")
    try:
        lines = connection.read_json(path, columns=kinds, format="newline_delimited")
        table = connection.create_table(name, lines, temp=True)
    except (duckdb.InvalidInputException, duckdb.IOException):
        return None
    finally:
        connection.raw_sql("SET preserve_insertion_order = false")
    return table.select(table.rowid().name("row"), *schema.names)


@contextmanager
def _duckdb(threads: int | None, directory: Path) -> Iterator[ibis.BaseBackend]:
    """Embedded; ``threads`` None = all cores. What does not fit into MEMORY_LIMIT goes to disk."""
    settings = {"memory_limit": MEMORY_LIMIT, "preserve_insertion_order": False}  # whoever wants an order asks for it
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}: take at least one, or leave the option out for all cores")
    if threads is not None:
        settings["threads"] = threads
    connection = ibis.duckdb.connect(temp_directory=str(directory / "spill"), **settings)
    try:
        yield connection
    finally:
        connection.disconnect()


@contextmanager
def _spark(threads: int | None, directory: Path) -> Iterator[ibis.BaseBackend]:
    """The Spark session that is active, else one as Spark's own settings describe it, stopped at the end.

    Those are spark-defaults.conf in SPARK_CONF_DIR or the arguments of spark-submit; without any, Spark runs in this
    process on all cores. On a cluster every machine must see ``directory``: set TMPDIR to a shared folder.
    """
    if threads is not None:
        raise ValueError("threads is a setting of DuckDB; say spark.master=local[N] in Spark's own settings")
    SparkSession, failures = _pyspark()
    active = SparkSession.getActiveSession()
    session = active
    try:
        session = active or _new_session(SparkSession)
        yield _spark_connection(session, directory)
    except failures as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"Spark gave up: {reason} (what it wrote above says more)") from error
    finally:
        if session and not active:
            session.stop()


def _pyspark() -> tuple[type, tuple[type[Exception], ...]]:
    """Spark's session class and what it raises; ValueError says what is not installed."""
    try:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ValueError(
            "engine spark needs pyspark: pip install 'jepa4rec[spark]' (in a checkout: make spark)"
        ) from error
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        raise ValueError(
            "engine spark needs Java 17 or newer: install it (in a checkout: make spark) or set JAVA_HOME"
        )
    warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas")  # which is not used here
    return SparkSession, (Py4JError, PySparkException)


def _new_session(SparkSession: type):
    """A session as Spark's own settings describe it, quieter than usual."""
    session = SparkSession.builder.appName("jepa4rec").config("spark.ui.showConsoleProgress", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def _spark_connection(session, directory: Path) -> ibis.BaseBackend:
    """Ibis on a session of its own beside the given one, so that nobody else's settings and views are touched."""
    session = session.newSession()
    backend = type(ibis.pyspark.connect(session))

    class ArrowBackend(backend):
        """Results as Arrow: the way through pandas copies them twice and makes null of NaN."""

        def to_pyarrow(self, expr, /, **options):
            table = self.raw_sql(self.compile(expr.as_table(), **options)).toArrow()
            return expr.__pyarrow_result__(table)

    session.conf.set("fs.defaultFS", "file:///")  # the steps' paths are no paths of HDFS
    connection = ArrowBackend()
    connection.do_connect(session)
    if not session.sparkContext.master.startswith("local"):
        _check_shared(session, directory)
    return connection


def _check_shared(session, directory: Path) -> None:
    """Raises ValueError when the machines of a cluster do not see ``directory``."""
    probe, rows = directory / "probe", 4 * session.sparkContext.defaultParallelism
    session.range(0, rows, 1, rows).write.parquet(str(probe))
    if sum(pq.read_metadata(part).num_rows for part in probe.glob("*.parquet")) != rows:
        raise ValueError(f"Spark's machines do not share {directory}: set TMPDIR to a folder that all of them see")


ENGINES = {"duckdb": _duckdb, "spark": _spark}
