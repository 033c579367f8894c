"""The model card of a finished run, on the screen or into a checkpoint's folder.

python scripts/model_card.py runs/quickstart > card.md
python scripts/model_card.py runs/old --audit results/audits/shop.json --into runs/old/checkpoint

A run's record carries the audit of its dataset; --audit is for records from before they did. --into writes the card,
and the plot of its collapse telemetry, into a checkpoint's folder.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("run", type=Path, help="a run's output_dir")
PARSER.add_argument("--audit", type=Path, help="audit of the run's dataset, where its record has none")
PARSER.add_argument("--into", type=Path, help="write README.md and the plot into this folder instead")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

from jepa4rec.model_cards.render import render_card, write_card


@command(PARSER)
def main(options: Namespace) -> None:
    if options.into:
        write_card(options.run, options.into, options.audit)
    else:
        print(render_card(options.run, options.audit))


if __name__ == "__main__":
    main()
