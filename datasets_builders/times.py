"""Texts -> moments and ratings. What a column means is decided by all of it; what does not fit is refused by its row.

Numbers are seconds, milliseconds, microseconds or nanoseconds since 1970, or a spreadsheet's days (45123.5), told
apart by their size, and all alike; eight digits are a day (20240301). Dates are ISO, spelled with the month's name, or
numbers of which one is above 12: where none is, nothing says whether day or month comes first, and whoever knows is
asked.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}  # nanoseconds in each
SHEET_DAYS = "sheet_days"
TIMESTAMP_UNITS = ("auto", *UNITS, SHEET_DAYS)
SHEET_DAY_OF_1970 = 25_569
# 2000 to 2050: most seconds of a day, which are no dates, lie outside.
SHEET_DAYS_KNOWN = (36_526, 54_790)
DATE_ORDERS = ("day_first", "month_first")
LAST_SHORT_YEAR = 26  # a first number above it is a day, not a year of two digits
# Seconds, 1980 and 2100: narrow enough that no number is a time in two units, and none is that lost its last digit.
EARLIEST, LATEST = 315_532_800, 4_102_444_800
EARLIEST_OF_KNOWN_UNIT = -2_208_988_800  # 1900

SHOWN = 60  # letters of a value in an error
_KINDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "date": "a date"}
_KINDS[SHEET_DAYS] = "a spreadsheet's days"
_NUMBER = r"^[+-]?(?:(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?|(?i:nan|inf|infinity))$"
_YEAR, _SHORT_YEAR = r"(?P<year>(?:19|20)\d{2})", r"(?P<year>(?:19|20)\d{2}|\d{2})"
_DAY, _MONTH = r"(?P<day>0?[1-9]|[12]\d|3[01])", r"(?P<month>0?[1-9]|1[0-2])"
_MONTHS = (  # in English, German, French, Spanish, Italian, Portuguese, Dutch and Swedish
    "jan january januar janvier janv enero ene gennaio gen janeiro januari",
    "feb february februar février fevrier févr fév febrero febbraio fevereiro fev februari",
    "mar march märz maerz mär mrz mars marzo março marco maart mrt",
    "apr april avril avr abril abr aprile",
    "may mai mayo maggio mag maio mei maj",
    "jun june juni juin junio giugno giu junho",
    "jul july juli juillet juil julio luglio lug julho",
    "aug august août aout agosto ago augustus augusti",
    "sep sept september septembre septiembre settembre set setembro",
    "oct october oktober okt octobre octubre ottobre ott outubro out",
    "nov november novembre noviembre novembro",
    "dec december dezember dez décembre decembre déc diciembre dic dicembre dezembro",
)
_MONTH_OF = {name: str(number) for number, names in enumerate(_MONTHS, start=1) for name in names.split()}
_NAME = rf"(?P<month>(?i:{'|'.join(sorted(_MONTH_OF, key=len, reverse=True))}))"
_WEEKDAY = r"^(?:\p{L}{2,12}[.,]* )?"
_HOUR = r"(?P<hour>[01]?\d|2[0-3]):(?P<rest>[0-5]\d(?::[0-5]\d(?:[.,]\d{1,9})?)?)"
_HALF, _ZONE = r"(?P<half>(?i:am|pm|a\.m\.|p\.m\.))", r"(?P<zone>Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)"
CLOCK = rf"^{_HOUR}\s*{_HALF}?\s*{_ZONE}?$"
_CLOCK = rf"(?:(?:[T ,:]| at )\s*{_HOUR}\s*{_HALF}?\s*{_ZONE}?)?$"
_DATES = {
    "iso": rf"^{_YEAR}[-/.]{_MONTH}[-/.]{_DAY}{_CLOCK}",
    "eight digits": rf"^{_YEAR}(?P<month>0[1-9]|1[0-2])(?P<day>0[1-9]|[12]\d|3[01]){_CLOCK}",
    # which of the two is the day is decided by the column
    "two numbers": rf"^{_DAY}[-/. ]{_DAY.replace('day', 'month')}(?:[-/.]|,? ){_SHORT_YEAR}{_CLOCK}",
    "day name": rf"{_WEEKDAY}{_DAY}(?:[-/ ]|\. ?| de ){_NAME}(?:[-/ ]|[.,]+ ?| de ){_SHORT_YEAR}{_CLOCK}",
    "name day": rf"{_WEEKDAY}{_NAME}\.? {_DAY}(?:st|nd|rd|th)?,? {_YEAR}{_CLOCK}",
    "year last": rf"{_WEEKDAY}{_NAME} +{_DAY} {_HOUR}(?P<half>)(?: {_ZONE})? {_YEAR}$",  # C's, and Twitter's
}  # fmt: skip
# What stands for a space, what says nothing, and 20240301T101500 and 20240301101500 without signs in them.
_REWRITTEN = (
    (r" Uhr$|\[[\w/+-]+\]$", ""),
    (r"[\x{a0}\x{202f}]", " "),
    (r"^(\d{8})T?(\d\d)(\d\d)(\d\d)(Z?)$", r"\1T\2:\3:\4\5"),
)


@dataclass(frozen=True)
class TimeColumn:
    """How a column of times reads: numbers in a ``unit``, or dates (unit None) with day or month first.

    `moments` counts ticks of ``tick`` nanoseconds: milliseconds, or as fine as the column is.
    """

    unit: str | None = None
    order: str | None = None
    tick: int = UNITS["ms"]
    has_clock: bool = True

    def moments(self, texts: pa.Array) -> pa.Array:
        """int64 ticks since 1970 in UTC; null for an empty text and for what is no time."""
        if self.unit == SHEET_DAYS:
            days = pc.if_else(pc.equal(texts, ""), None, pc.replace_substring(texts, ",", ".")).cast(pa.float64())
            ticks = pc.multiply(pc.subtract(days, SHEET_DAY_OF_1970), 86_400_000)
            return pc.round(ticks).cast(pa.int64())
        if self.unit:
            return _ticks_of_numbers(texts, UNITS[self.unit], self.tick)
        return _divide_down(parse_dates(texts, self.order or "month_first"), self.tick)

    def __str__(self) -> str:
        if self.unit:
            return f"in {_KINDS[self.unit]}"
        order = f", {self.order.replace('_', ' ')}" if self.order else ""
        return (
            f"as dates with time of day{order}"
            if self.has_clock
            else f"as days{order}; order inside a day is the file's"
        )


def _ticks_of_numbers(texts: pa.Array, nanoseconds: int, tick: int) -> pa.Array:
    """By whole numbers alone: nineteen digits are more than a float holds."""
    has_exponent = pc.match_substring_regex(texts, "[eE]")
    if pc.any(has_exponent).as_py():
        plain = pc.if_else(has_exponent, texts, None).cast(pa.float64()).cast(pa.int64(), safe=False).cast(pa.string())
        texts = pc.if_else(has_exponent, plain, texts)
    parts = pc.extract_regex(texts, r"^(?P<sign>[+-]?)(?P<whole>\d+)(?:[.,](?P<fraction>\d{0,9})\d*)?$")
    whole = pc.struct_field(parts, "whole").cast(pa.int64())
    if nanoseconds >= tick and tick != 1:
        return _signed(pc.multiply(whole, nanoseconds // tick), parts)
    fraction = pc.utf8_rpad(pc.fill_null(pc.struct_field(parts, "fraction"), ""), 9, "0").cast(pa.int64())
    below = pc.divide(pc.multiply(fraction, nanoseconds), 10**9)
    return _divide_down(_signed(pc.add(pc.multiply(whole, nanoseconds), below), parts), tick)


def _signed(values: pa.Array, parts: pa.StructArray) -> pa.Array:
    return pc.if_else(pc.equal(pc.struct_field(parts, "sign"), "-"), pc.negate(values), values)


def _divide_down(values: pa.Array, divisor: int) -> pa.Array:
    """Arrow's division of integers rounds towards zero, which before 1970 is up."""
    whole = pc.divide(values, divisor)
    return pc.subtract(whole, pc.less(values, pc.multiply(whole, divisor)).cast(pa.int64()))


def ticks_to_milliseconds(ticks: pa.Array, time: TimeColumn) -> pa.Array:
    return _divide_down(ticks, UNITS["ms"] // time.tick)


# Dates


def parse_dates(texts: pa.Array, order: str) -> pa.Array:
    """Nanoseconds since 1970 (int64) of dates and times, UTC where no zone is given; null for what is none.

    ``order`` says which number of 1/2/2024 is the day: "day_first" or "month_first".
    """
    moments = pa.nulls(len(texts), pa.int64())
    for form, parts in _date_parts(texts):
        moments = pc.coalesce(moments, _nanoseconds(parts, form == "two numbers" and order == "month_first"))
    return moments


def _date_parts(texts: pa.Array) -> Iterator[tuple[str, dict[str, pa.Array]]]:
    """Of each form that occurs its year, month, day, hour, rest, half and zone as texts, null in all other rows."""
    for pattern, form in _REWRITTEN:
        texts = pc.replace_substring_regex(texts, pattern, form)
    for form, pattern in _DATES.items():
        if texts.null_count == len(texts):
            return
        parts = pc.extract_regex(texts, pattern)
        if parts.null_count < len(parts):
            yield form, {field.name: pc.struct_field(parts, field.name) for field in parts.type}
            texts = pc.if_else(pc.is_valid(parts), None, texts)


def _nanoseconds(parts: dict[str, pa.Array], month_is_first: bool) -> pa.Array:
    year, month, day = parts["year"], parts["month"], parts["day"]
    if month_is_first:
        month, day = day, month
    named = pc.index_in(pc.utf8_lower(month), pa.array(list(_MONTH_OF)))
    month = pc.coalesce(pa.array(list(_MONTH_OF.values())).take(named), month)
    century = pc.if_else(pc.equal(pc.utf8_length(year), 4), "", pc.if_else(pc.less(year, "69"), "20", "19"))
    rest = pc.if_else(pc.equal(parts["rest"], ""), "00", pc.replace_substring(parts["rest"], ",", "."))
    date = [pc.binary_join_element_wise(century, year, ""), *(pc.utf8_lpad(part, 2, "0") for part in (month, day))]
    iso = pc.binary_join_element_wise(pc.binary_join_element_wise(*date, "-"), rest, " 00:")
    return pc.add(_cast_or_null(iso, pa.timestamp("ns")).cast(pa.int64()), _hours(parts))


def _hours(parts: dict[str, pa.Array]) -> pa.Array:
    """The hour of the day in UTC, as nanoseconds."""
    hour = pc.if_else(pc.equal(parts["hour"], ""), "0", parts["hour"]).cast(pa.int64())
    half = pc.utf8_lower(pc.utf8_slice_codeunits(parts["half"], 0, 1))
    hour = pc.if_else(pc.and_(pc.not_equal(half, ""), pc.equal(hour, 12)), 0, hour)
    hour = pc.add(hour, pc.if_else(pc.equal(half, "p"), 12, 0))
    zone = pc.extract_regex(parts["zone"], r"^(?P<sign>[+-])(?P<hours>\d{2}):?(?P<minutes>\d{2})?$")
    minutes = pc.struct_field(zone, "minutes")
    minutes = pc.if_else(pc.equal(minutes, ""), "0", minutes).cast(pa.int64())
    ahead = pc.add(pc.multiply(pc.struct_field(zone, "hours").cast(pa.int64()), 60), minutes)
    ahead = pc.fill_null(pc.if_else(pc.equal(pc.struct_field(zone, "sign"), "-"), pc.negate(ahead), ahead), 0)
    return pc.multiply(pc.subtract(pc.multiply(hour, 60), ahead), 60 * UNITS["s"])


def _cast_or_null(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Null for the 30th of February."""
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return pa.nulls(1, kind)
        half = len(texts) // 2
        return pa.concat_arrays([_cast_or_null(part, kind) for part in (texts[:half], texts[half:])])


def to_milliseconds(texts: pa.Array, where: str) -> pa.Array:
    """Dates and times as text -> int64 milliseconds since 1970 (UTC where no zone is given).

    All forms of `parse_dates`, month first (12/1/2010 8:26): for sources whose form is known. Raises ValueError naming
    ``where`` (file and column) and the first value that is none of these.
    """
    try:
        return texts.cast(pa.timestamp("ms")).cast(pa.int64())
    except pa.ArrowInvalid:
        moments = parse_dates(texts, "month_first")
    if moments.null_count:
        bad = texts[pc.index(pc.is_null(moments), True).as_py()].as_py()
        raise ValueError(
            f"{where}: {bad!r} is not a date and time; 2010-12-01 08:26:00 and 12/1/2010 8:26 are understood"
        )
    return _divide_down(moments, UNITS["ms"])


# The whole column


_NUMBERS = {
    True: "a number of seconds, milliseconds, microseconds or nanoseconds since 1970 that lies between 1980 and 2100 "
    "(timestamp_unit= says which it is)",
    False: "in the given timestamp_unit a time between 1900 and 2100",
}


def short(text: str) -> str:
    """A value as errors show it."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


class _Evidence:
    """Where each kind of value was met first: label -> (row, text)."""

    def __init__(self):
        self.first: dict[str, tuple[int, str]] = {}
        self.rows = 0

    def add(self, texts: pa.Array, labels: Iterable[tuple[str, pa.Array]]) -> None:
        for label, found in labels:
            place = -1 if label in self.first else pc.index(pc.fill_null(found, False), True).as_py()
            if place >= 0:
                self.first[label] = (self.rows + place + 1, texts[place].as_py())
        self.rows += len(texts)

    def among(self, *labels: str) -> list[str]:
        """Those labels that were met, by row."""
        return sorted(set(labels) & set(self.first), key=self.first.get)

    def show(self, label: str) -> str:
        row, text = self.first[label]
        return f"{short(text)} (row {row})"


def read_time_column(
    read: Callable[[], Iterator[pa.Array]], where: str, unit: str = "auto", order: str | None = None
) -> TimeColumn:
    """Decides how a column reads, by all its values; empty ones do not count.

    ``read`` gives the column's texts, batch by batch; ``unit`` and ``order`` are what is known already. Raises
    ValueError that begins with ``where`` (file and column) and names the row, for a value that is no time, for units
    or zones that are mixed, and where nothing tells day from month.
    """
    seen = _Evidence()
    for texts in read():
        seen.add(texts, _labels(texts, unit))
    if "neither" in seen.first:
        row, text = seen.first["neither"]
        raise ValueError(
            f"{where}: {short(text)} is not a date and time (row {row}), nor {_NUMBERS[unit == 'auto']}; mend the "
            "row, name another column with timestamp=, or do without times by timestamp=none"
        )
    kinds = seen.among(*_KINDS)
    if len(kinds) > 1:
        one, other = kinds[:2]
        raise ValueError(
            f"{where}: {seen.show(one)} is {_KINDS[one]}, but {seen.show(other)} is {_KINDS[other]}: a column has one "
            "unit, mend the file"
        )
    if len(seen.among("zone", "no zone")) > 1:
        raise ValueError(
            f"{where}: {seen.show('zone')} has a time zone and {seen.show('no zone')} has none: give all of them one"
        )
    if "exponent" in seen.first and "exact" not in seen.first:
        raise ValueError(
            f"{where}: {seen.show('exponent')} lost its digits as a number: write the file again with all of them"
        )
    if kinds == [SHEET_DAYS]:
        return TimeColumn(SHEET_DAYS)
    if kinds and kinds[0] in UNITS:
        tick = 1 if "fraction" in seen.first else min(UNITS["ms"], UNITS[kinds[0]])
        return TimeColumn(kinds[0], None, tick)
    tick = 1 if "fraction" in seen.first else UNITS["ms"]
    return TimeColumn(None, _date_order(seen, where, order), tick, "clock" in seen.first)


def _labels(texts: pa.Array, unit: str) -> Iterator[tuple[str, pa.Array]]:
    """What the texts are, as masks: of those that are filled each is in one of the units, a date, or neither."""
    known = pc.equal(texts, "")
    numbers = pc.if_else(pc.match_substring_regex(texts, _NUMBER), pc.replace_substring(texts, ",", "."), None)
    least = EARLIEST if unit == "auto" else EARLIEST_OF_KNOWN_UNIT
    first, end = SHEET_DAYS_KNOWN if unit == "auto" else (1, 73_051)
    for name in (SHEET_DAYS,) if unit in ("auto", SHEET_DAYS) else ():
        days = numbers.cast(pa.float64())
        inside = pc.and_(pc.greater_equal(days, first), pc.less(days, end))
        known = pc.or_(known, pc.fill_null(inside, False))
        yield name, inside
    for name in UNITS if unit == "auto" else {unit} & set(UNITS):
        seconds = pc.divide(numbers.cast(pa.float64()), UNITS["s"] / UNITS[name])
        inside = pc.and_(pc.greater_equal(seconds, least), pc.less(seconds, LATEST))
        known = pc.or_(known, pc.fill_null(inside, False))
        yield name, inside
    yield "exponent", pc.match_substring_regex(texts, r"^[\d.,]+[eE]")
    yield "exact", pc.match_substring_regex(texts, r"^(\d[.,]\d{6,}[eE].*|[\d.,]+)$")
    yield "fraction", pc.and_(pc.is_valid(numbers), pc.match_substring_regex(texts, r"[.,]\d*[1-9]\d*$"))
    for form, parts in _date_parts(pc.if_else(known, None, texts)):
        known = pc.or_(known, pc.is_valid(parts["year"]))
        yield "date", pc.is_valid(parts["year"])
        yield from _date_labels(form, parts)
    yield "neither", pc.invert(known)


def _date_labels(form: str, parts: dict[str, pa.Array]) -> Iterator[tuple[str, pa.Array]]:
    has_clock, has_zone = pc.not_equal(parts["hour"], ""), pc.not_equal(parts["zone"], "")
    midnight = pc.match_substring_regex(pc.binary_join_element_wise(parts["hour"], parts["rest"], ""), r"^[0:.,]*$")
    yield "clock", pc.invert(midnight)
    yield "zone", has_zone
    yield "no zone", pc.and_(has_clock, pc.invert(has_zone))
    yield "fraction", pc.match_substring_regex(parts["rest"], r"[.,]\d*[1-9]")
    if form == "two numbers":
        yield "either", pc.is_valid(parts["year"])
        yield "day_first", pc.greater(parts["day"].cast(pa.int64()), 12)
        yield "month_first", pc.greater(parts["month"].cast(pa.int64()), 12)
        yield "long year", pc.equal(pc.utf8_length(parts["year"]), 4)
        yield "late day", pc.greater(parts["day"].cast(pa.int64()), LAST_SHORT_YEAR)


def _date_order(seen: _Evidence, where: str, order: str | None) -> str | None:
    """Which number is the day, where that is a question at all."""
    if "either" not in seen.first:
        return None
    found = seen.among(*DATE_ORDERS)
    if len(found) > 1:
        raise ValueError(
            f"{where}: {seen.show('day_first')} has the day first and {seen.show('month_first')} the month: mend "
            "the file"
        )
    if order and found and order != found[0]:
        raise ValueError(f"{where}: date_order is {order}, but {seen.show(found[0])} has no such month")
    if not (order or found):
        raise ValueError(
            f"{where}: {seen.show('either')} may have the day or the month first, and no row tells which: say "
            "date_order=day_first or date_order=month_first"
        )
    if order is None and found == ["day_first"] and not seen.among("long year", "late day"):
        raise ValueError(
            f"{where}: {seen.show('day_first')} may have the day or the year first: say date_order=day_first, or "
            "write years with four digits"
        )
    return order or found[0]


def are_times(texts: pa.Array, numbers: bool) -> bool:
    """Whether texts, those that are filled, are times throughout: dates, or with ``numbers`` also numbers."""
    met = {label for label, found in _labels(texts, "auto") if pc.any(found).as_py()}
    if not met or "neither" in met or len(met & set(_KINDS)) > 1:
        return False
    return numbers or not pc.any(pc.match_substring_regex(texts, r"^[\d.,eE+]+$")).as_py()


# Numbers


def to_numbers(texts: pa.Array, where: str) -> pa.Array:
    """Text -> float64, "" -> null, "-0" -> 0 (engines differ in which zero stands for both in a group).

    Raises ValueError naming ``where`` (file and column).
    """
    texts = pc.if_else(pc.equal(texts, ""), None, texts)
    try:
        return pc.add(texts.cast(pa.float64()), 0.0)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{where}: a value is not a number ({error})") from error


def to_ratings(texts: pa.Array, where: str, span: tuple[float, float], first_row: int) -> pa.Array:
    """The same for ratings within a span, decimal commas allowed; ValueError names the row of a value outside."""
    is_number = pc.match_substring_regex(texts, _NUMBER)
    is_number = pc.and_not(is_number, pc.match_substring_regex(texts, r"^[+-]?\d{1,3},\d{3}$"))  # or a thousand
    numbers = to_numbers(pc.if_else(is_number, pc.replace_substring(texts, ",", "."), ""), where)
    inside = pc.fill_null(pc.and_(pc.greater_equal(numbers, span[0]), pc.less_equal(numbers, span[1])), False)
    place = pc.index(pc.or_(inside, pc.equal(texts, "")), False).as_py()
    if place >= 0:
        raise ValueError(
            f"{where}: {short(texts[place].as_py())} (row {first_row + place}) is no rating between {span[0]:g} and "
            f"{span[1]:g}; mend it, say rating_range=[LOWEST, HIGHEST], or do without ratings by rating=none"
        )
    return numbers
