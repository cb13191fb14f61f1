"""What is asked of a generator, and where its answer stands: the paper's five structured steps."""

from __future__ import annotations

import re

from dreamprm.annotation.questions import Question
from dreamprm.data.steps import split_steps

# The order of the steps is the DreamPRM paper's (arXiv 2505.20241, appendix); the words are ours.
FIVE_STEPS = """\
Solve the problem below in exactly five steps. Begin each one on a new line with its heading.

Step 1: Restate the question in your own words, with what is given and what is asked.
Step 2: Gather evidence: everything in the image (if there is one) or the text that bears on it.
Step 3: Background knowledge: the facts, rules or formulas that are needed.
Step 4: Reason from the evidence and the knowledge towards the answer, showing the work.
Step 5: Conclude from what was found.

Then end with one line "Final answer:" followed by the answer alone; for a question with options, by
the letter of the right one."""

CONTINUE = """\
A solution to this problem has been begun. Take its steps as they stand and write what comes next, \
from exactly where it stops: repeat nothing of it, and end with the line "Final answer:".

The solution so far:

"""

_FINAL = re.compile(r"\bfinal\s+answer\b[\s*_]*(?:[::]|is\b[\s:]*)[\s*_]*([^\n]*)", re.I)
_BOXED = re.compile(r"\\boxed\s*\{")


def ask(question: Question, instructions: str | None) -> str:
    """The user's turn that asks a question."""
    return f"{instructions or FIVE_STEPS}\n\nProblem:\n{question.text}"


def final_answer(solution: str) -> str | None:
    """What follows the last "Final answer:", else is in the last \\boxed{}; else None."""
    for found in reversed(_FINAL.findall(solution)):
        text = found.strip().strip("*_").strip()
        if text:
            return text
    starts = [match.end() for match in _BOXED.finditer(solution)]
    return _braced(solution, starts[-1]) if starts else None


def _braced(text: str, start: int) -> str | None:
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end].strip() or None
    return None


def cut(solution: str) -> tuple[list[str], list[str]]:
    """A solution's steps, and for each the text from the beginning to where the next one starts.

    The white space between two steps belongs to the prefix: it is what ends the step, and with it
    the prefix has the tokens that it has in the whole solution.
    """
    steps = split_steps(solution)
    starts, place = [], 0
    for step in steps:
        start = solution.index(step, place)
        starts.append(start)
        place = start + len(step)
    return steps, [solution[:end] for end in [*starts[1:], len(solution)]] if steps else []
