"""Several built datasets as one, each a domain: a catalogue of all their items, and the users of all of them.

One config, ``default``. Give the folders of built datasets (``scripts/build_dataset.py``); a domain is called as its
folder. ``users`` keeps a random sample of at most so many users of each domain, by ``seed``, and the items they have,
so that a small shop is heard beside a large one; one folder alone is taken too, to be sampled. An item's and a user's
id end in the domain: two shops may share ids. Attributes are those of all parts; timestamps and ratings are kept where
all parts have them. Split it by leave-one-out: of the parts' own split rules nothing is kept.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .builder import SeqRecBuilder, table_configs
from .contract import (
    DOMAIN,
    INFO_FILE,
    SEQUENCE_TYPES,
    SeqRecDataset,
    list_column,
    load_dataset_dir,
    make_dataset,
    text_columns,
)

ABOUT_EACH = ("name", "config", "fingerprint", "source", "licence")


def prepare(
    files: list[Path] | dict[str, Path] | None,
    config: str = "default",
    *,
    users: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    engine: str = "duckdb",
) -> SeqRecDataset:
    """Puts built datasets together. Nothing is planned for ``engine`` and ``threads``: the parts are built."""
    if users is not None and users < 1:
        raise ValueError(f"users is {users}: sample at least one of each domain, or leave the option out for all")
    folders = _folders(files)
    whole = {folder.name: load_dataset_dir(folder) for folder in folders}
    parts = {name: _sampled(dataset, users, seed) for name, dataset in whole.items()}
    items = pa.concat_tables(
        [_named(part.items, "item_id", name) for name, part in parts.items()], promote_options="default"
    )
    starts = np.cumsum([0, *(part.num_items for part in parts.values())]).tolist()
    shifted = [
        _shifted(_named(part.sequences, "user_id", name), start)
        for start, (name, part) in zip(starts, parts.items(), strict=False)
    ]
    common = [name for name in SEQUENCE_TYPES if all(name in table.column_names for table in shifted)]
    sequences = pa.concat_tables([table.select(common) for table in shifted])
    about = {name: {key: dataset.info.get(key) for key in ABOUT_EACH} for name, dataset in whole.items()}
    info = {
        "name": "domains",
        "source": "; ".join(dict.fromkeys(str(one["source"]) for one in about.values())),
        "licence": "; ".join(dict.fromkeys(str(one["licence"]) for one in about.values())),
        "splits": "leave_one_out",
        "config": config,
        "options": {"users": users, "seed": seed},
        "domains": about,
    }
    return make_dataset(items, sequences, info)


def _folders(files: list[Path] | dict[str, Path] | None) -> list[Path]:
    """The folders of the given datasets, in the order given. Raises ValueError for none, or equal names."""
    given = list(files.values()) if isinstance(files, dict) else files or []
    if not given:
        raise ValueError("domains puts built datasets together: give their folders as --data_files")
    folders = list(dict.fromkeys(path if path.is_dir() else path.parent for path in given))
    missing = [folder for folder in folders if not (folder / INFO_FILE).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is not a built dataset ({INFO_FILE} is missing): make one with scripts/build_dataset.py"
        )
    names = [folder.name for folder in folders]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two of the datasets lie in a folder named {twice[0]}, which names the domain: rename one")
    return folders


def _sampled(dataset: SeqRecDataset, users: int | None, seed: int) -> SeqRecDataset:
    """A random sample of users in their old order, with the items they have in theirs; the whole where it is small."""
    if users is None or users >= dataset.num_users:
        return dataset
    rows = np.sort(np.random.default_rng(seed).choice(dataset.num_users, users, replace=False))
    sequences = dataset.sequences.take(pa.array(rows))
    used = np.unique(np.concatenate(list_column(sequences, "items")))
    return SeqRecDataset(
        dataset.items.take(pa.array(used)),
        _with_items(sequences, lambda items: np.searchsorted(used, items)),
        dataset.info,
    )


def _named(table: pa.Table, column: str, domain: str) -> pa.Table:
    """The table with the domain at the end of its ids and in a column of its own."""
    ids = pc.binary_join_element_wise(table[column], domain, " ")
    table = table.set_column(table.column_names.index(column), column, ids)
    if DOMAIN in text_columns(table):
        raise ValueError(f"{domain} has an attribute called {DOMAIN}: build it again without, by attributes=[...]")
    if DOMAIN in table.column_names:  # a part that is several domains already
        table = table.drop_columns(DOMAIN)
    return table.append_column(DOMAIN, pa.array([domain] * table.num_rows, pa.string()))


def _shifted(sequences: pa.Table, start: int) -> pa.Table:
    return _with_items(sequences, lambda items: items + start)


def _with_items(sequences: pa.Table, change) -> pa.Table:
    """The sequences with every item index changed: `change` maps an array of them to another of its length."""
    rows = list_column(sequences, "items")
    flat = pa.array(change(np.concatenate(rows)), pa.int32())
    offsets = pa.array(np.cumsum([0, *map(len, rows)]), pa.int32())
    place = sequences.column_names.index("items")
    return sequences.set_column(place, "items", pa.ListArray.from_arrays(offsets, flat))


class Domains(SeqRecBuilder):
    BUILDER_CONFIGS = table_configs("default")
    prepare = staticmethod(prepare)
