"""Dataclasses read from YAML and `section.key=value` settings, with every value checked against its annotation.

An unknown key is an error that suggests the nearest known one, and so is a value of the wrong type: YAML reads `5e-5`
as text, and a learning rate that silently became text has cost many a run.

Not pydantic: it would replace `_Reader.read*` alone, some 80 lines, and its errors would have to be written anew into
these sentences (setting or file, nearest key, the hint on exponents, what replaced a setting that is gone).
"""

import difflib
import math
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from ..serving.catalogue_seqrec import shortened

# What reading YAML raises; the last three for a tag with a wrong value, and for lists in lists in lists.
NO_YAML = (yaml.YAMLError, ValueError, AttributeError, RecursionError)
_hints = cache(get_type_hints)  # which evaluates every annotation each time


def read_typed_yaml(
    path: str | Path,
    settings: Sequence[str],
    kind: type,
    prepare: Callable[[dict, Sequence[str]], None] = lambda tree, settings: None,
) -> Any:
    """Read a dataclass from a YAML file after `section.key=value` settings, parsed as YAML too.

    ``prepare`` may change the file's tree before the settings are applied to it.

    Raises:
        OSError: the file cannot be read.
        ValueError: what stands there is no such dataclass; one sentence that names file or setting, and key.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except NO_YAML as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold sections, found {_name_of(tree)}")
    prepare(tree, settings)
    origins = [_apply_setting(tree, setting) for setting in settings]
    return _Reader(str(path), origins).read(kind, tree, "")


def read_typed_tree(tree: Any, source: str | Path, kind: type) -> Any:
    """The dataclass of a tree that was read already, as `read_typed_yaml`; errors name its source."""
    return _Reader(str(source), []).read(kind, tree, "")


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice: PyYAML keeps the last one without a word."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, (key, _) in enumerate(node.value):
            if key.value in names[:place]:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {shortened(key.value)} stands twice", problem_mark=key.start_mark
                )
        return node


def _apply_setting(tree: dict, setting: str) -> str:
    """Write one `a.b.0.c=value` into the tree, creating sections on the way; returns the dotted key."""
    dotted, equals, text = setting.partition("=")
    if not equals or not dotted:
        raise ValueError(f"--set {setting}: write section.key=value")
    try:
        value = yaml.safe_load(text)
    except NO_YAML as error:
        raise ValueError(f"--set {setting}: the value is not valid YAML: {' '.join(str(error).split())}") from error
    *parents, last = dotted.split(".")
    place = tree
    for key in parents:
        place = _child(place, key, setting)
    if isinstance(place, list):
        place[_list_index(place, last, setting)] = value
    elif not isinstance(place, dict):
        raise ValueError(f"--set {setting}: {parents[-1]} is a single value, it has no keys inside")
    else:
        place[last] = value
    return dotted


def _child(place: dict | list, key: str, setting: str) -> dict | list:
    if isinstance(place, list):
        key = _list_index(place, key, setting)
    elif place.get(key) is None:
        place[key] = {}
    if not isinstance(place[key], dict | list):
        raise ValueError(f"--set {setting}: {key} is a single value, it has no keys inside")
    return place[key]


def _list_index(place: list, key: str, setting: str) -> int:
    if not key.isdigit() or int(key) >= len(place):
        raise ValueError(f"--set {setting}: {key} is not a position in a list of {len(place)} (counted from 0)")
    return int(key)


class Range(NamedTuple):
    """The numbers that a setting may take; without its ``least`` where ``above``."""

    least: float
    most: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        return (value > self.least if self.above else value >= self.least) and value <= self.most

    def __str__(self) -> str:
        least = f"above {self.least:g}" if self.above else f"at least {self.least:g}"
        return least if self.most == math.inf else f"{least} and at most {self.most:g}"


def check_ranges(section: Any, **ranges: Range) -> None:
    """Raise ValueError naming the first setting of a section that lies outside its range; None is no number."""
    for name, allowed in ranges.items():
        value = getattr(section, name)
        if value is not None and not allowed.holds(value):
            raise ValueError(f"{name} must be {allowed}, got {value}")


class _Reader:
    """Turns a tree of plain values into the dataclasses of their annotations; every error names where it stands."""

    def __init__(self, path: str, origins: list[str]):
        self.path, self.origins = path, set(origins)

    def error(self, where: str, message: str) -> ValueError:
        source = "--set" if where in self.origins else self.path
        return ValueError(f"{source}: {shortened(where) + ': ' if where else ''}{message}")

    def read(self, annotation: Any, value: Any, where: str) -> Any:
        if get_origin(annotation) in (Union, types.UnionType):
            return self.read_union(get_args(annotation), value, where)
        if is_dataclass(annotation):
            return self.read_dataclass(annotation, value, where)
        if get_origin(annotation) is Literal:
            return self.read_literal(get_args(annotation), value, where)
        if get_origin(annotation) is list and isinstance(value, list):
            (item,) = get_args(annotation)
            return [self.read(item, v, f"{where}.{i}") for i, v in enumerate(value)]
        return self.read_plain(annotation, value, where)

    def read_dataclass(self, cls: type, value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise self.error(where, f"expected a section with keys, found {_name_of(value)}")
        types_of = _hints(cls)
        known = {f.name: f for f in fields(cls) if f.init}
        gone = getattr(cls, "REMOVED", {})
        # What a setting that is gone stood at by default changes nothing: recipes that runs wrote hold all defaults.
        value = {key: v for key, v in value.items() if key not in gone or v != gone[key][0]}
        for key in value:
            if key in gone:
                raise self.error(_join(where, key), f"is no longer a setting: {gone[key][1]}")
            if key not in known:
                raise self.error(_join(where, key), f"unknown key{nearest(str(key), known)}")
        for name, f in known.items():
            if name not in value and f.default is MISSING and f.default_factory is MISSING:
                raise self.error(_join(where, name), "this key is required")
        arguments = {key: self.read(types_of[key], v, _join(where, key)) for key, v in value.items()}
        try:
            return cls(**arguments)
        except ValueError as error:
            raise self.error(where, str(error)) from error

    def read_union(self, options: tuple, value: Any, where: str) -> Any:
        if value is None and type(None) in options:
            return None
        options = tuple(o for o in options if o is not type(None))
        if all(is_dataclass(o) for o in options):
            return self.read_dataclass(self.class_of_kind(options, value, where), value, where)
        for option in options[:-1]:
            if isinstance(value, get_origin(option) or option):
                return self.read(option, value, where)
        return self.read(options[-1], value, where)

    def class_of_kind(self, options: tuple, value: Any, where: str) -> type:
        """The dataclass among `options` whose `kind` the value names."""
        if not isinstance(value, dict):
            raise self.error(where, f"expected a section with keys, found {_name_of(value)}")
        kinds = {get_args(_hints(o)["kind"])[0]: o for o in options}
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            raise self.error(_join(where, "kind"), f"expected {_one_of(kinds)}, found {_name_of(kind)}")
        return kinds[kind]

    def read_literal(self, choices: tuple, value: Any, where: str) -> Any:
        if value in choices and isinstance(value, str):
            return value
        # YAML reads a bare `no` as false; where "no" is a choice that is what was meant.
        if value is False and "no" in choices:
            return "no"
        raise self.error(where, f"expected {_one_of(choices)}, found {_name_of(value)}")

    def read_plain(self, annotation: Any, value: Any, where: str) -> Any:
        if annotation is Any:
            return value
        cls = get_origin(annotation) or annotation
        if cls is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, cls) or (isinstance(value, bool) and cls is not bool):
            raise self.error(
                where,
                f"expected {_TYPE_NAMES.get(cls, cls.__name__)}, found {_name_of(value)}{_float_hint(cls, value)}",
            )
        if cls is float and not math.isfinite(value):
            raise self.error(where, f"expected a finite number, found {value}")
        return value


_TYPE_NAMES = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "keys with values",
}


def _name_of(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return _TYPE_NAMES[type(value)]
    name = next((_TYPE_NAMES[t] for t in (bool, int, float, str) if isinstance(value, t)), type(value).__name__)
    return f"{name} ({shortened(repr(value))})"


def _float_hint(cls: type, value: Any) -> str:
    """YAML 1.1 needs a dot in a number with an exponent: 5e-5 is text, 5.0e-5 is a number."""
    if cls is not float or not isinstance(value, str):
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    digits, _, exponent = value.lower().partition("e")
    return (
        f": YAML reads this as text, write {digits if '.' in digits else digits + '.0'}e{exponent}" if exponent else ""
    )


def nearest(key: str, known: Any) -> str:
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else f"; known keys are {', '.join(known)}"


def _one_of(choices: Any) -> str:
    return "one of " + ", ".join(map(str, choices))


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
