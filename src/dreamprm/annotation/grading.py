"""Whether a final answer is right: one rule per kind of answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from dreamprm.annotation.formulas import need_math_verify, same_formula
from dreamprm.annotation.numbers import is_quantity, read_quantity, same_quantity
from dreamprm.annotation.questions import LETTERS

RULES = ("auto", "math", "choice", "number", "string")

_LETTER = f"[{LETTERS}{LETTERS.lower()}]"
# What the whole answer may look like, or its beginning: "B", "(B)", "[b]", "B.", "B) 12 cm".
_ALONE = re.compile(rf"[(\[]?\s*({_LETTER})\s*[)\]]?\s*[.:]?")
_LEADING = re.compile(rf"(?:[(\[]\s*({_LETTER})\s*[)\]]|({_LETTER})\s*[).:](?=\s|$))")
# "the answer is B", "option (C)", "choice: d"; a small letter only in brackets, for "a" is a word.
_NAMED = re.compile(
    rf"(?i:\banswer\s*(?:is|:)|\bis|\boption|\bchoice)\s*:?\s*(?i:option|choice)?\s*"
    rf"(?:[(\[]\s*({_LETTER})\s*[)\]]|([{LETTERS}])(?![\w'’]))"
)
_BRACKETED = re.compile(rf"[(\[]\s*({_LETTER})\s*[)\]]")
_LATEX_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}")
_FORMULA = re.compile(
    r"\\[a-zA-Z]+|\^|[=√π]|\d\s*[*+]\s*\w|\w\s*[*+/]\s*[a-z]\b|\d[a-z]\b|^\s*[(\[].*,"
)
_PREAMBLE = re.compile(
    r"(?i)^(?:so|thus|hence|therefore)?,?\s*(?:the|my)?\s*(?:final |correct )?answer\s*(?:is|:)\s*"
)


def rule_of(rule: str, answer: str, options: Sequence[str]) -> str:
    """The rule that ``auto`` stands for with this right answer; any other rule is itself."""
    if rule != "auto":
        return rule
    if options and read_choice(answer, options) is not None:
        return "choice"
    if is_quantity(answer):
        return "number"
    return "math" if _FORMULA.search(answer) else "string"


def check_rules(rules: Sequence[str]) -> None:
    """Refuses rules whose package is missing, before anything is sampled."""
    if "math" in rules:
        need_math_verify()


def grade(
    found: str | None,
    answer: str,
    options: Sequence[str] = (),
    rule: str = "auto",
    tolerance: float = 1e-6,
    timeout: float = 5.0,
) -> bool:
    """Whether an answer is right.

    Args:
        found: the answer that is judged; None or empty is wrong.
        answer: the right one.
        options: of the question.
        rule: a name of ``RULES``. ``choice``: a letter or an option's text; ``number``: equal
            quantities, whatever the spelling; ``math``: equal formulas, by math-verify;
            ``string``: equal but for case, white space, quotes, articles and final stops.
        tolerance: relative, of ``number``.
        timeout: seconds, of ``math``.

    Raises:
        UserError: the rule is ``math`` and math-verify is not installed.
    """
    if found is None or not _plain(found):
        return False
    rule = rule_of(rule, answer, options)
    if rule == "choice":
        right = read_choice(answer, options)
        return right is not None and read_choice(found, options) == right
    if rule == "number":
        expected, number = read_quantity(answer), read_quantity(_PREAMBLE.sub("", found))
        return (
            expected is not None
            and number is not None
            and same_quantity(expected, number, tolerance)
        )
    if rule == "math":
        right, judged = _PREAMBLE.sub("", answer.strip()), _PREAMBLE.sub("", found.strip())
        return right == judged or same_formula(right, judged, timeout)
    return normalised(found) == normalised(answer)


def read_choice(text: str, options: Sequence[str] = ()) -> str | None:
    """The letter that an answer chooses; None for none, several, or one beyond the options."""
    text = _plain(text)
    known = LETTERS[: len(options)] if options else LETTERS
    texts = [normalised(option) for option in options]
    alone = _ALONE.fullmatch(text)
    if alone is None and texts.count(normalised(_PREAMBLE.sub("", text))) == 1:
        return known[texts.index(normalised(_PREAMBLE.sub("", text)))]
    leading = alone or _LEADING.match(text)
    named = {"".join(g for g in groups if g).upper() for groups in _NAMED.findall(text)}
    if leading is not None:
        named = {next(group for group in leading.groups() if group).upper()}
        # "(A) or (B)" chooses nothing; "(A) 3 (B)" neither.
        named |= {letter.upper() for letter in _BRACKETED.findall(text)}
        if re.match(rf"\s*(?:or|and|/|,)\s*[(\[]?{_LETTER}\b", text[leading.end() :]):
            return None
    elif not named:
        named = {letter.upper() for letter in _BRACKETED.findall(text)}
    return named.pop() if len(named) == 1 and named <= set(known) else None


def normalised(text: str) -> str:
    """A text without what makes no difference between answers."""
    text = unicodedata.normalize("NFKC", _plain(text)).casefold()
    text = re.sub(r"[\"'“”‘’`]", "", text)
    text = re.sub(r"^(?:the|an|a)\s+(?=\S)", "", text)
    return re.sub(r"\s+", " ", text).strip(" .,;:!?")


def _plain(text: str) -> str:
    """Without the marks of Markdown and LaTeX around words."""
    before = None
    while before != text:  # \boxed{\text{B}}
        before, text = text, _LATEX_WORDS.sub(r"\1", text)
    return re.sub(r"\*\*|__|\\[()\[\]]|\$(?!\d)|(?<=\D)\$$", "", text).strip().strip("*_ ")
