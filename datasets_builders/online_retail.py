"""Online Retail (UCI, D. Chen 2015): one year of invoices of a British gift shop.

From the publisher's URL or from local files in any form it circulates in: .xlsx, .zip with the .xlsx, .csv, .csv.gz;
``2010-12-01 08:26:00`` or ``12/1/2010 8:26``; ``17850`` or ``17850.0``; UTF-8 or latin-1. All give the same tables.

Configs:

- ``jepa4rec``: rows with a CustomerID, exact duplicate rows dropped, item = Description as it stands, users with at
  least 4 rows: 4,181 users, 3,896 items, 401,248 interactions (JEPA4Rec, Table 1).
- ``five_core``: rows with a CustomerID, duplicates kept, item = StockCode (its title: the most frequent description),
  iterative 5-core: 4,126 users, 3,206 items, 405,208 interactions.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
from ibis import _

from .builder import SeqRecBuilder, download, table_configs
from .contract import SeqRecDataset, make_dataset
from .preparation import (
    build_tables,
    drop_duplicate_rows,
    items_by_first_appearance,
    most_frequent_text,
    open_workspace,
)
from .reading import read_columns, whole_number_ids
from .times import to_milliseconds, to_numbers

URL = "https://archive.ics.uci.edu/static/public/352/online+retail.zip"
COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
ABOUT = {
    "name": "online_retail",
    "source": "Online Retail, D. Chen, UCI Machine Learning Repository, 2015, doi:10.24432/C5BW33",
    "url": URL,
    "licence": "CC BY 4.0",
    "splits": "leave_one_out; timestamps are minutes of the invoice, items of one invoice keep the file's order",
}
MINIMUM_INTERACTIONS = {"jepa4rec": (4, 1), "five_core": (5, 5)}  # of a user, of an item


def prepare(
    files: list[Path] | None, config: str = "jepa4rec", *, threads: int | None = None, engine: str = "duckdb"
) -> SeqRecDataset:
    """Builds ``jepa4rec`` or ``five_core``. ``threads`` and ``engine`` do not change the result."""
    with open_workspace(threads, engine) as workspace:
        path = _table_file(files or [download(URL)], workspace.directory)
        rows = workspace.stage(_typed_rows(path), path.name).filter(_.CustomerID != "")
        if config == "jepa4rec":
            interactions, items = _by_description(drop_duplicate_rows(rows))
        else:
            interactions, items = _by_stock_code(rows)
        minimum = MINIMUM_INTERACTIONS[config]
        tables = build_tables(workspace, workspace.checkpoint(interactions), items, *minimum, name=path.name)
    return make_dataset(*tables, {**ABOUT, "config": config, "options": {}})


def _by_description(rows: ir.Table) -> tuple[ir.Table, ir.Table]:
    """Interactions and items where the item is the Description itself."""
    interactions = _interactions(rows.filter(_.Description != ""), rows.Description)
    return interactions, items_by_first_appearance(interactions).mutate(title=_.item_id)


def _by_stock_code(rows: ir.Table) -> tuple[ir.Table, ir.Table]:
    """Interactions and items where the item is the StockCode."""
    interactions = _interactions(rows, rows.StockCode)
    titles = most_frequent_text(rows.select("row", item_id="StockCode", title="Description"), "title")
    return interactions, items_by_first_appearance(interactions).left_join(titles, "item_id").drop("item_id_right")


def _interactions(rows: ir.Table, item_id: ir.StringColumn) -> ir.Table:
    return rows.select("row", user_id="CustomerID", item_id=item_id.get_name(), timestamp="InvoiceDate")


def _typed_rows(path: Path) -> Iterator[pa.RecordBatch]:
    """The file's rows with one representation of each value, whatever form the file has."""
    for batch in read_columns(path, COLUMNS):
        columns = {name: batch[name] for name in COLUMNS}
        columns["CustomerID"] = whole_number_ids(pc.utf8_trim_whitespace(batch["CustomerID"]))
        columns["InvoiceDate"] = to_milliseconds(batch["InvoiceDate"], f"{path}, column 'InvoiceDate'")
        for name in ("Quantity", "UnitPrice"):
            columns[name] = to_numbers(batch[name], f"{path}, column {name!r}")
        yield pa.RecordBatch.from_pydict(columns)


def _table_file(files: list[Path], directory: Path) -> Path:
    """The one file to read; an archive is opened into ``directory`` first."""
    if len(files) != 1:
        raise ValueError(f"online_retail is one file, but {len(files)} were given")
    path = files[0]
    if path.suffix.lower() in (".csv", ".gz", ".xlsx") or not zipfile.is_zipfile(path):
        return path
    with zipfile.ZipFile(path) as archive:
        tables = [name for name in archive.namelist() if name.lower().endswith((".xlsx", ".csv"))]
        if not tables:
            raise ValueError(f"{path}: the archive holds no .xlsx or .csv file")
        return Path(archive.extract(tables[0], directory))


class OnlineRetail(SeqRecBuilder):
    BUILDER_CONFIGS = table_configs("jepa4rec", "five_core")
    prepare = staticmethod(prepare)
