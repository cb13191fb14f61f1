"""Cutting a solution's text into steps, by a named strategy; no character is lost.

Every strategy says where steps begin. The pieces between those places, joined, are the text again:
steps keep their white space, and a piece of white space only goes with the step before it (the
first with the step after it). A text of white space only has no steps. Who wants steps without the
white space around them takes ``stripped_steps``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

from dreamprm.data.program import function_starts
from dreamprm.errors import UserError, unknown_name

_MARKUP = r"^[ \t]*(?:#+[ \t]*)?(?:\*\*|__)?"
_WORDS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
_CHINESE = "[0-9一二三四五六七八九十]+"

# Where a line starts: "Step 1:", "step 2.", "**Step 3**", "### Step 4", "Step Five", "第1步",
# "步骤一".
STEP_HEADING = re.compile(
    rf"{_MARKUP}(?:step[ \t:#]*(?:\d+|(?:{_WORDS}))\b"
    rf"|第[ \t]*{_CHINESE}[ \t]*步|步骤[ \t]*{_CHINESE})",
    re.I | re.M,
)
# Where a line starts: "1. ", "2) ", "(3) ", "**4.** ", "### 5. ", "⑥".
_NUMBERED_LINE = re.compile(
    rf"{_MARKUP}(?:(?:\d{{1,2}}[.)]|\(\d{{1,2}}\))(?:\*\*|__)?(?=[ \t])|[①-⑳])", re.M
)
_MARKDOWN_LINE = re.compile(r"^(?:(```|~~~)|#{1,6}[ \t]+\S|\*\*[^*\n]+\*\*:?[ \t]*$)", re.M)
_BLANK_LINES = re.compile(r"\n(?:[ \t\r]*\n)+")
# A formula: as in pandoc, a dollar sign with white space inside or a digit after it closes none,
# so that "$5 and $6" is money. Nothing that opens again stands within, which keeps this linear.
_FORMULA = re.compile(
    r"(?<!\\)\$\$(?:[^$\\]|\\.)+\$\$"
    r"|(?<![\\$])\$(?![\s$])(?:[^$\\\n]|\\.|\n(?!\s*\n))+(?<!\s)\$(?!\d)"
    r"|\\\((?:(?!\\[()]).)*\\\)"
    r"|\\\[(?:(?!\\[\[\]]).)*\\\]",
    re.S,
)
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]*]*+(?=\s)|[。！？]+[”’」』）]*")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|etc|et al|ca|approx|resp|w\.r\.t|Dr|Mr|Mrs|Ms|Prof|St|Jr|Sr"
    r"|Nos?|Figs?|Eqs?|Sec|Ch|Thm|Def|Prop|Vol|pp?|[A-Z])|^[ \t]*\(?\d{1,2})\.$",
    re.M,
)


def split_steps(text: str, strategy: str = "auto") -> list[str]:
    """The steps of a solution, whose texts joined are the text.

    Args:
        text: of the solution; one of white space only has no steps.
        strategy: a key of ``STRATEGIES``: ``numbered`` cuts at "Step n" headings in all their
            spellings, else at numbered lines; ``markdown`` at headings and lines in bold;
            ``paragraphs`` at blank lines; ``sentences`` after full stops, but not those of
            decimals, abbreviations and formulas; ``functions`` at the functions and classes of a
            Python program; ``auto`` at "Step n" headings, else at two or more numbered lines, else
            at blank lines. A text without such places is one step.

    Raises:
        UserError: there is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise UserError(unknown_name("strategy of splitting", strategy, STRATEGIES))
    return pieces(text, STRATEGIES[strategy](text))


def stripped_steps(text: str, strategy: str = "auto") -> list[str]:
    """The steps of ``split_steps`` without the white space around them."""
    return [step.strip() for step in split_steps(text, strategy)]


def pieces(text: str, starts: list[int]) -> list[str]:
    """The text cut at the given places; white space alone goes with a neighbour."""
    edges = sorted({0, *(start for start in starts if 0 < start < len(text)), len(text)})
    found: list[str] = []
    for begin, end in itertools.pairwise(edges):
        piece = text[begin:end]
        if found and (not piece.strip() or not found[-1].strip()):
            found[-1] += piece
        else:
            found.append(piece)
    return [piece for piece in found if piece.strip()]


def _starts(pattern: re.Pattern[str], text: str) -> list[int]:
    return [match.start() for match in pattern.finditer(text)]


def _numbered(text: str) -> list[int]:
    return _starts(STEP_HEADING, text) or _starts(_NUMBERED_LINE, text)


def _markdown(text: str) -> list[int]:
    starts, fenced = [], False
    for match in _MARKDOWN_LINE.finditer(text):
        if match[1]:
            fenced = not fenced
        elif not fenced:  # a "# comment" in a program is no heading
            starts.append(match.start())
    return starts


def _paragraphs(text: str) -> list[int]:
    return [match.end() for match in _BLANK_LINES.finditer(text)]


def _sentences(text: str) -> list[int]:
    # Formulas are masked by letters of the same length: what stands in them ends no sentence.
    masked = _FORMULA.sub(lambda match: "x" * len(match[0]), text)
    starts = _paragraphs(text)
    for match in _SENTENCE_END.finditer(masked):
        line = masked.rfind("\n", max(0, match.start() - 20), match.start()) + 1
        before = masked[max(line, match.start() - 20) : match.start() + 1]
        if match[0] == "." and _ABBREVIATION.search(before):
            continue
        starts.append(match.end() + _width_of_space(masked, match.end()))
    return starts


def _width_of_space(text: str, begin: int) -> int:
    end = begin
    while end < len(text) and text[end].isspace():
        end += 1
    return end - begin


def _auto(text: str) -> list[int]:
    headings = _starts(STEP_HEADING, text)
    if headings:
        return headings
    lines = _starts(_NUMBERED_LINE, text)
    return lines if len(lines) >= 2 else _paragraphs(text)


STRATEGIES: dict[str, Callable[[str], list[int]]] = {
    "auto": _auto,
    "numbered": _numbered,
    "markdown": _markdown,
    "paragraphs": _paragraphs,
    "sentences": _sentences,
    "functions": function_starts,
}
