"""The kinds of phase, each a file in this folder: whatever stands here with a `kind` can be named in a recipe."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Literal, get_args, get_origin, get_type_hints

from .phase import Phase, Work

__all__ = ["KINDS", "Phase", "Work"]


def _kinds_in(module) -> dict[str, type[Phase]]:
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Phase)]
    hints = {c: get_type_hints(c)["kind"] for c in classes if c.__module__ == module.__name__}
    return {get_args(kind)[0]: c for c, kind in hints.items() if get_origin(kind) is Literal}


KINDS: dict[str, type[Phase]] = {}
for _found in iter_modules(__path__):
    KINDS |= _kinds_in(import_module(f"{__name__}.{_found.name}"))
