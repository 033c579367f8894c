"""Rewrite the results block of a page from published records.

python scripts/results_table.py docs/results.md results
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("page", type=Path, help="the page with the two markers, e.g. docs/results.md")
PARSER.add_argument("results", type=Path, help="folder of records")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

from jepa4rec.model_cards.results_table import read_records, results_block, rewrite_block
from jepa4rec.serving.whole_files_seqrec import write_text


@command(PARSER)
def main(options: Namespace) -> None:
    text = options.page.read_text(encoding="utf-8")
    write_text(options.page, rewrite_block(text, results_block(read_records(options.results)), options.page))


if __name__ == "__main__":
    main()
