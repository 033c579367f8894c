"""One file a study; `studying.py` holds what they share. Each writes a JSON and a plot."""

import argparse
from pathlib import Path

from ..training.command_line import command_parser

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "studies"


def study_parser(module: str, file: str, document: str) -> argparse.ArgumentParser:
    """The arguments that every study takes; a study that is run reads them here, before it loads torch."""
    parser = command_parser(file, document)
    parser.add_argument(
        "--recipe", type=Path, default=RECIPES / f"{parser.prog}.yaml", help="default: recipes/studies"
    )
    parser.add_argument("--data", metavar="DATASET_DIR", help="a built dataset, instead of the base recipe's")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--out", type=Path, default=Path("results/studies"), help="folder for the JSON and the plot")
    if module == "__main__":
        parser.parse_args()
    return parser
