"""Datasets: raw files -> the tables of the contract. ``build("online_retail", "jepa4rec", path)`` is the way in.

To add one: a module with a ``prepare`` function and a builder class (see ``builder.py``), and a line in ``DATASETS``.
"""

from .amazon_2014 import Amazon2014
from .amazon_2018 import Amazon2018
from .amazon_reviews_2023 import AmazonReviews2023
from .builder import DataFiles, SeqRecBuilder, check_choice
from .contract import SeqRecDataset, absolute_timestamp, leave_one_out, load_dataset_dir, make_dataset, save_dataset
from .domains import Domains
from .online_retail import OnlineRetail
from .table import Table
from .toy_shop import ToyShop
from .yelp import Yelp

DATASETS: dict[str, type[SeqRecBuilder]] = {
    "amazon_2014": Amazon2014,
    "amazon_2018": Amazon2018,
    "amazon_reviews_2023": AmazonReviews2023,
    "domains": Domains,
    "online_retail": OnlineRetail,
    "table": Table,
    "toy_shop": ToyShop,
    "yelp": Yelp,
}


def build(name: str, /, config: str | None = None, data_files: DataFiles = None, **options) -> SeqRecDataset:
    """Builds a dataset in memory.

    Args:
        name: a key of ``DATASETS``.
        config: one of its configs; None = its first.
        data_files: files, folders or URLs; None = the publisher's address where there is one.
        options: what the dataset's ``prepare`` takes.

    Raises ValueError (unknown name, config or option; data that cannot be used) or OSError (missing files).
    """
    check_choice("dataset", name, list(DATASETS))
    return DATASETS[name].build(config, data_files, **options)


__all__ = [
    "DATASETS",
    "absolute_timestamp",
    "build",
    "leave_one_out",
    "load_dataset_dir",
    "make_dataset",
    "save_dataset",
]
