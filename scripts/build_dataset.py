"""Builds a dataset on disk and prints its counts and fingerprint as one JSON line.

python scripts/build_dataset.py online_retail --config jepa4rec --data_files OnlineRetail.csv.gz --out data/retail
python scripts/build_dataset.py table --data_files sales.csv products.csv --out data/shop --option rating=stars
python scripts/build_dataset.py toy_shop --out data/toy --push me/toy-shop
spark-submit --master spark://host:7077 scripts/build_dataset.py yelp --data_files ... --out data/yelp --engine spark

--push publishes the tables with a dataset card; `load_dataset("me/toy-shop", "items")` and `"sequences"` bring them
back. Data whose licence does not let everybody pass them on go to a private repository (--private) or nowhere.

--engine spark runs the same plan on Spark, with the same result: on this machine, or on the cluster that spark-submit
or spark-defaults.conf (SPARK_CONF_DIR) names, whose machines must all see the folder in TMPDIR.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from jepa4rec.datasets_builders import DATASETS, build, save_dataset
from jepa4rec.datasets_builders.contract import check_output
from jepa4rec.datasets_builders.engines import ENGINES
from jepa4rec.hub.publishing import check_repo_id, check_token
from jepa4rec.model_cards.dataset_card import push_dataset

PRINTED = ("users", "items", "interactions", "average_length", "density", "fingerprint")


def main() -> None:
    arguments = parse_arguments()
    try:
        if arguments.private and not arguments.push:
            raise ValueError("--private says how to publish: give --push REPO_ID too")
        if arguments.push:
            check_repo_id(arguments.push)
            check_token()
        check_output(arguments.out, arguments.overwrite)
        options = dict(map(parse_option, arguments.option))
        dataset = build(arguments.name, arguments.config, arguments.data_files, engine=arguments.engine, **options)
        save_dataset(dataset, arguments.out, arguments.overwrite)
        published = push_dataset(arguments.out, arguments.push, arguments.private) if arguments.push else None
    except (ValueError, OSError) as error:
        sys.exit(f"build_dataset: {error}")
    printed = {key: dataset.info[key] for key in PRINTED} | ({"published": published} if published else {})
    print(json.dumps(printed))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--config", help="a config of the dataset (default: its first)")
    parser.add_argument("--data_files", nargs="+", help="files, folders or URLs (default: the publisher's address)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--option", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--engine", choices=ENGINES, default="duckdb", help="what runs the plan (default: duckdb)")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset that --out holds")
    parser.add_argument("--push", metavar="REPO_ID", help="publish the dataset on the Hub as OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="publish it in a private repository")
    return parser.parse_args()


def parse_option(text: str) -> tuple[str, object]:
    """``key=value``, the value in YAML: 5 is a number, [a, b] a list, anything else a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option takes KEY=VALUE, not {text!r}")
    return key, yaml.safe_load(value)


if __name__ == "__main__":
    main()
