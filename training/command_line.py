"""What every command does: answer at once when asked for help, keep quiet and small, and fail in one sentence.

Torch takes seconds to import, so a command reads its arguments first, and nothing heavy is imported here:

    PARSER = command_parser(__file__, __doc__)
    PARSER.add_argument(...)
    if __name__ == "__main__":
        PARSER.parse_args()  # --help and slips are answered before torch is loaded

    import torch ...

    @command(PARSER)
    def main(options): ...
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any


def command_parser(file: str, document: str) -> argparse.ArgumentParser:
    """A parser that goes by the name of the command's file; its document is the help."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=Path(file).stem, description=document, formatter_class=formatter)


def command(parser: argparse.ArgumentParser, interrupted: str = "interrupted") -> Callable:
    """Turns `work(options)` into `main(arguments=None)`: None reads the command line.

    ValueError and OSError become one sentence behind the command's name and exit code 1; Ctrl-C becomes `interrupted`.
    """

    def decorate(work: Callable[[argparse.Namespace], Any]) -> Callable[[list[str] | None], Any]:
        @wraps(work)
        def main(arguments: list[str] | None = None) -> Any:
            options = parser.parse_args(arguments)
            # oneDNN keeps what it prepares for every shape of a batch, 1,024 times by itself: memory would grow for
            # hours. It reads this when it first computes.
            os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
            if transformers := sys.modules.get("transformers"):  # some commands never load it
                transformers.logging.set_verbosity_error()
                transformers.logging.disable_progress_bar()
            try:
                return work(options)
            except (ValueError, OSError) as error:
                sys.exit(f"{parser.prog}: {' '.join(str(error).split())}")
            except KeyboardInterrupt:
                sys.exit(f"{parser.prog}: {interrupted}")

        return main

    return decorate


def parse_setting(flag: str, text: str) -> tuple[str, Any]:
    """`key=value`, the value in YAML: 5 is a number, [a, b] a list; signs alone (`::`, `|`) are text.

    Raises ValueError for anything else.
    """
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{flag} takes KEY=VALUE, not {text!r}")
    if re.fullmatch(r"[^\w\s\[\]{}\"'~]+", value):  # YAML reads "::" as a mapping, "|" as nothing, "#" as a comment
        return key, value
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, AttributeError) as error:  # what a tag with a wrong value raises
        raise ValueError(f"{flag} {text}: the value is not valid YAML: {' '.join(str(error).split())}") from error
