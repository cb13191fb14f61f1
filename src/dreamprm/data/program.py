"""Where the functions and classes of a Python program begin, for cutting it into steps."""

from __future__ import annotations

import ast
import itertools
import re
import warnings

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")


def function_starts(text: str) -> list[int]:
    """The places where a top-level function, a class, or code after one begins.

    Decorators, and comments that stand right above, belong to what follows them. A text that is no
    Python program has no such places.

    Returns:
        Positions in the text, ascending.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of the program, not of this one
            body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    # ast counts the lines that Python knows, which are fewer than str.splitlines knows.
    lines = [match[0] for match in _LINE.finditer(text)]
    offsets = [0, *itertools.accumulate(map(len, lines))]
    starts = []
    after_definition = False
    for statement in body:
        definition = isinstance(
            statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        )  # fmt: skip
        if definition or after_definition:
            decorators = getattr(statement, "decorator_list", [])
            line = min([statement.lineno, *(d.lineno for d in decorators)]) - 1
            while line > 0 and lines[line - 1].startswith("#"):
                line -= 1
            starts.append(offsets[line])
        after_definition = definition
    return starts
