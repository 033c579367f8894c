"""Say which file of a checkpoint is not what was published.

    python scripts/verify_checkpoint.py runs/quickstart
    python scripts/verify_checkpoint.py me/jepa4rec-toy-shop --revision v1
    python scripts/verify_checkpoint.py .                                      the model that this repository is

A checkpoint carries the SHA-256 of its files in sha256.json; this repository that of weights, configuration and
tokenizer. The exit code is 1 where a file is missing or another
one. That file guards against damage, not against whoever can also rewrite it: pin `revision=` for that.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("checkpoint", metavar="CKPT", help="a run's folder, a checkpoint's, or its id on the Hub")
PARSER.add_argument("--revision", help="branch, tag or commit on the Hub")
if __name__ == "__main__":
    PARSER.parse_args()

from jepa4rec.serving.whole_files_seqrec import SEAL, changed_files


def find(checkpoint: str, revision: str | None) -> Path:
    """The checkpoint's folder; one on the Hub is fetched. Raises OSError where there is none."""
    folder = Path(checkpoint)
    if folder.is_dir():
        inner = folder / "checkpoint"
        return inner if inner.is_dir() else folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(checkpoint, revision=revision))


@command(PARSER)
def main(options: Namespace) -> None:
    folder = find(options.checkpoint, options.revision)
    if not (folder / SEAL).is_file():
        raise FileNotFoundError(f"{folder} has no {SEAL}: it was published before checkpoints carried one")
    if changed := changed_files(folder):
        raise ValueError(f"{options.checkpoint}: not what was published: {', '.join(changed)}")
    print(f"{options.checkpoint}: every file is what was published")


if __name__ == "__main__":
    main()
