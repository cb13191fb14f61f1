"""Numbers as people write them in answers, and whether two of them are equal."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

# Thousands have a comma before each three digits: "1,000" is one number, "1, 2" and "1,00" two.
_PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_LATEX = r"\\[dt]?frac\s*\{\s*(?P<top>\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}"
_NUMBER = re.compile(
    rf"(?P<sign>[-−+]\s*)?(?:{_LATEX}"
    rf"|(?P<whole>\d+)\s+(?P<a>\d+)\s*/\s*(?P<b>\d+)"
    rf"|(?P<number>{_PLAIN})(?:\s*/\s*(?P<under>\d+(?:\.\d+)?))?)"
    r"(?P<percent>\s*\\?%|\s*percent\b)?"
)

# Units by their first word after the number; those that are not here are not compared.
_UNITS = {
    unit: names.split()[0]
    for names in (
        "mm millimeter millimeters millimetre millimetres",
        "cm centimeter centimeters centimetre centimetres",
        "m meter meters metre metres",
        "km kilometer kilometers kilometre kilometres",
        "in inch inches",
        "ft foot feet",
        "yd yard yards",
        "mi mile miles",
        "mg milligram milligrams",
        "g gram grams",
        "kg kilogram kilograms",
        "lb lbs pound pounds",
        "oz ounce ounces",
        "ml milliliter milliliters millilitre millilitres",
        "l liter liters litre litres",
        "ms millisecond milliseconds",
        "s sec second seconds",
        "min minute minutes",
        "h hr hour hours",
        "d day days",
        "week weeks",
        "month months",
        "year years",
    )
    for unit in names.split()
}
# "\text{ cm}" and "\mathrm{cm}" are "cm"; "\," and "\$" are spaces and "$" of LaTeX.
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}")
_LATEX_SPACE = re.compile(r"\\[,;!: ]|\{,\}|~")
_NOT_STATED = re.compile(
    r"\b(?:or|not|(?:less|fewer|greater|more) than|at (?:least|most))\b|[<>≤≥≠±∓]"
    r"|\\(?:pm|mp|neq?|leq?|geq?|lt|gt)(?![A-Za-z])",
    re.I,
)
_ALTERNATIVES = re.compile(r"\b(?:or|and)\b", re.I)
_UNIT_POWER = re.compile(r"[A-Za-z]\s*\^\s*\{?\s*$")  # before the 2 of "cm^2"
_TOUCHED_BEFORE = re.compile(r"[\w^.{\\√_]\s*$(?<!\s)")  # "x2", "2^3", "\sqrt{2}", "√2"
# "5!", "2^3", "2\sqrt", "3\pi", "2(x"; but degrees.
_TOUCHED_AFTER = re.compile(r"[.,:]\d|!|√|π|[(\[]|\s*\^(?!\s*\{?\s*\\circ)|\s*\\(?!circ|%)")
MOST_DIGITS = 400  # longer numbers and powers of ten are no answer of a question


@dataclass(frozen=True)
class Quantity:
    """A number with what stands after it.

    Attributes:
        value: of it, exact; a percentage is not divided.
        percent: whether it has a percent sign.
        unit: the short name of a common unit, else "".
        power: of the unit, as 2 of "cm²".
    """

    value: Fraction
    percent: bool = False
    unit: str = ""
    power: int = 1


def read_quantity(text: str) -> Quantity | None:
    """The one number of an answer, of what is right of its last "="; None for none or several.

    A number that is part of something else (2√3, 2³, 5!, 3x, ±3), or that the text does not simply
    state (not 7, less than 7, x = 5 or x = 6), is none: another rule may know what it means.
    """
    text = _LATEX_SPACE.sub(lambda m: "," if m[0] == "{,}" else " ", text)
    text = _LATEX_TEXT.sub(r" \1", text).replace("\\$", "$")
    before, _, text = text.rpartition("=")
    if _NOT_STATED.search(text) or _ALTERNATIVES.search(before):
        return None
    found = []
    for match in _NUMBER.finditer(text):
        before, after = text[: match.start()], text[match.end() :]
        if _UNIT_POWER.search(before):
            continue
        if _TOUCHED_BEFORE.search(before) and not match["sign"]:
            return None
        value = _value(match)
        if value is None or _TOUCHED_AFTER.match(after) or not _ends(after):
            return None
        unit, power = _unit(after)
        found.append(Quantity(value, bool(match["percent"]), unit, power))
    if not found or any(item.value != found[0].value for item in found):
        return None
    return found[0]


def _ends(after: str) -> bool:
    """Whether a number is not the factor of a name, as in "3x"; "3m" has a unit."""
    word = re.match(r"[A-Za-z]+", after)
    return word is None or word[0] in _UNITS or word[0].lower() in _UNITS


def is_quantity(text: str) -> bool:
    """Whether a text is one number with at most a sign of money before it and words after it."""
    text = _LATEX_TEXT.sub(r" \1", text).replace("\\$", "$").strip().strip("$€£ ")
    match = _NUMBER.match(text)
    if match is None or read_quantity(text) is None:
        return False
    after = text[match.end() :]
    # "2x" is a formula, "2m" has a unit.
    if re.match(r"[A-Za-z](?![A-Za-z])", after) and after[0] not in _UNITS:
        return False
    return (
        re.fullmatch(
            r"[A-Za-z°²³ .]*(?:\^\{?[23]\}?)?(?:(?:(?<=[A-Za-z²³])/| per )[A-Za-z ]+)?", after
        )
        is not None
    )


def same_quantity(right: Quantity, found: Quantity, tolerance: float) -> bool:
    """Whether two quantities are equal.

    50 % is equal to 0.5 and, where one of them has no percent sign, to 50. Two different common
    units are unequal; a missing one is taken for the other's.

    Args:
        right: the right answer.
        found: the answer that is judged.
        tolerance: largest difference over the right value.
    """
    if right.unit and found.unit and (right.unit, right.power) != (found.unit, found.power):
        return False
    if _close(right.value, found.value, tolerance):
        return True
    if right.percent == found.percent:
        return False
    return _close(_part(right), _part(found), tolerance)


def _part(item: Quantity) -> Fraction:
    return item.value / 100 if item.percent else item.value


def _close(right: Fraction, found: Fraction, tolerance: float) -> bool:
    if math.isinf(tolerance):
        return True
    return abs(right - found) <= Fraction(tolerance) * abs(right)


def _value(match: re.Match[str]) -> Fraction | None:
    number = (match["number"] or "").replace(",", "").rstrip(".")
    power = re.search(r"[eE]([+-]?\d+)$", number)
    if len(match[0]) > MOST_DIGITS or (power and abs(int(power[1])) > MOST_DIGITS):
        return None
    try:
        if match["top"]:
            value = Fraction(int(match["top"]), int(match["bottom"]))
        elif match["whole"]:
            value = int(match["whole"]) + Fraction(int(match["a"]), int(match["b"]))
        else:
            value = Fraction(number) / Fraction(match["under"] or 1)
    except ZeroDivisionError:
        return None
    return -value if match["sign"] and match["sign"][0] in "-−" else value


def _unit(after: str) -> tuple[str, int]:
    word = re.match(
        r"\s*\$?\s*(?:(square|cubic)\s+)?([A-Za-z]+)\$?(?:\s*\^?\s*\{?([23²³]))?", after
    )
    if word is None:
        return "", 1
    name = word[2] if word[2] in _UNITS else word[2].lower()
    powers = {"square": 2, "cubic": 3, "2": 2, "²": 2, "3": 3, "³": 3, None: 1}
    return _UNITS.get(name, ""), max(powers[word[1]], powers[word[3]])
