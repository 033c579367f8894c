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

import json
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser, parse_setting

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("name", help="toy_shop, table (files of your own), online_retail, …; a wrong one gets the list")
PARSER.add_argument("--config", help="a config of the dataset (default: its first)")
PARSER.add_argument("--data_files", nargs="+", help="files, folders or URLs (default: the publisher's address)")
PARSER.add_argument("--out", type=Path, required=True, help="the folder to make")
PARSER.add_argument("--option", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
PARSER.add_argument("--engine", default="duckdb", help="what runs the plan: duckdb or spark (default: duckdb)")
PARSER.add_argument("--overwrite", action="store_true", help="replace the dataset that --out holds")
PARSER.add_argument("--push", metavar="REPO_ID", help="publish the dataset on the Hub as OWNER/NAME")
PARSER.add_argument("--private", action="store_true", help="publish it in a private repository")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before anything heavy is loaded

from jepa4rec.datasets_builders import build, save_dataset
from jepa4rec.datasets_builders.contract import check_output
from jepa4rec.hub.publishing import check_repo_id, check_token
from jepa4rec.model_cards.dataset_card import push_dataset

PRINTED = ("users", "items", "interactions", "average_length", "density", "fingerprint")


@command(PARSER)
def main(options: Namespace) -> None:
    if options.private and not options.push:
        raise ValueError("--private says how to publish: give --push REPO_ID too")
    if options.push:
        check_repo_id(options.push)
        check_token()
    check_output(options.out, options.overwrite)
    settings = dict(parse_setting("--option", text) for text in options.option)
    for name in ("config", "data_files"):
        if name in settings:
            raise ValueError(f"{name} is no --option: it is an argument of its own, --{name}")
    if options.engine != PARSER.get_default("engine"):
        settings["engine"] = options.engine  # a dataset that does not know engines is built by the usual one
    dataset = build(options.name, options.config, options.data_files, **settings)
    print(*dataset.info.get("report", []), sep="\n", file=sys.stderr)
    save_dataset(dataset, options.out, options.overwrite)
    published = push_dataset(options.out, options.push, options.private) if options.push else None
    printed = {key: dataset.info[key] for key in PRINTED} | ({"published": published} if published else {})
    print(json.dumps(printed))


if __name__ == "__main__":
    main()
