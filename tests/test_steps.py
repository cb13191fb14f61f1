"""The step splitter: no character is lost, and every spelling of a step is found."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamprm.data.steps import STRATEGIES, split_steps, stripped_steps
from dreamprm.errors import UserError

# Fragments that the strategies look for, between any characters.
FRAGMENTS = [
    "Step 1:",
    "\n",
    "\n\n",
    "\r\n",
    "\n \t\n",
    "## ",
    "**",
    "1. ",
    "(2) ",
    "$",
    "\\(",
    "\\)",
    "e.g. ",
    "3.5",
    ". ",
    "。",
    "```",
    "def f():\n  pass\n",
    "@d\n",
    "# c\n",
    "class A: x = 1\n",
    "\x0c",
    "\x1c",
    "\u2028",
    "\\\n",
    "'''",
]
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=14).map("".join),
)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(TEXTS)
def test_joined_steps_are_the_text(strategy: str, text: str) -> None:
    steps = split_steps(text, strategy)
    # White space alone is no step.
    assert "".join(steps) == (text if text.strip() else "")
    assert all(step.strip() for step in steps)


@pytest.mark.parametrize(
    ("strategy", "text", "steps"),
    [
        ("auto", "Intro\nStep 1: a\nb\n\nStep 2: c", ["Intro", "Step 1: a\nb", "Step 2: c"]),
        ("auto", "**Step 1:** a\n### STEP 2 b", ["**Step 1:** a", "### STEP 2 b"]),
        ("auto", "step 1. a\n**Step 2**\nb", ["step 1. a", "**Step 2**\nb"]),
        (
            "auto",
            "Step One: a\nStep two - b\n Step #3 c",
            ["Step One: a", "Step two - b", "Step #3 c"],
        ),
        ("auto", "第1步:甲\n第 二 步:乙\n步骤3 丙", ["第1步:甲", "第 二 步:乙", "步骤3 丙"]),
        ("auto", "Steps one takes", ["Steps one takes"]),
        ("auto", "1. a\n2. b", ["1. a", "2. b"]),
        ("auto", "1) a\n(2) b\n**3.** c\n④ d", ["1) a", "(2) b", "**3.** c", "④ d"]),
        ("auto", "a 1. b\n\nc", ["a 1. b", "c"]),
        ("auto", "1. a\n\nb", ["1. a", "b"]),
        ("auto", "3.5 is one number", ["3.5 is one number"]),
        ("auto", " \n", []),
        ("auto", "", []),
        ("numbered", "1. a\n\nb", ["1. a\n\nb"]),
        ("numbered", "a\n2) b", ["a", "2) b"]),
        (
            "markdown",
            "# A\nx\n```\n# no\n```\n## B\n**C**\ny",
            ["# A\nx\n```\n# no\n```", "## B", "**C**\ny"],
        ),
        ("paragraphs", "a\nb\r\n\r\n \nc", ["a\nb", "c"]),
        (
            "sentences",
            "It is 3.5. Then, e.g. by Fig. 2, Dr. A. Smith left!",
            ["It is 3.5.", "Then, e.g. by Fig. 2, Dr. A. Smith left!"],
        ),
        (
            "sentences",
            "So $a. B$ holds. And \\(c. D\\) too.",
            ["So $a. B$ holds.", "And \\(c. D\\) too."],
        ),
        ("sentences", "It costs $5. He pays $6. Done", ["It costs $5.", "He pays $6.", "Done"]),
        ("sentences", 'He said "no." Why? 好。对！', ['He said "no."', "Why?", "好。", "对！"]),
        ("sentences", "1. First. 2\n2. Second", ["1. First.", "2\n2. Second"]),
        (
            "functions",
            "import x\n\n# of f\n@d\ndef f():\n    def g(): pass\n\n"
            "class A:\n    y = 1\nprint(f())\nz = 2\n",
            [
                "import x",
                "# of f\n@d\ndef f():\n    def g(): pass",
                "class A:\n    y = 1",
                "print(f())\nz = 2",
            ],
        ),
        (
            "functions",
            "x = '\x0c'\r\ndef f(): pass\rdef g(): pass",
            ["x = '\x0c'", "def f(): pass", "def g(): pass"],
        ),
        ("functions", "def f(:", ["def f(:"]),
    ],
)
def test_where_steps_begin(strategy: str, text: str, steps: list[str]) -> None:
    assert stripped_steps(text, strategy) == steps


def test_white_space_goes_with_a_neighbour() -> None:
    assert split_steps(" \n\nStep 1: a\n\n\nStep 2: b \n") == [
        " \n\nStep 1: a\n\n\n",
        "Step 2: b \n",
    ]


@pytest.mark.parametrize(
    "unit",
    ["\\(", "$", "$a ", " \n", "a. ", ".", "...", "1. ", "e.g. ", "Step 1: ", '"."', "A.\n", "("],
)
def test_a_million_characters_take_no_longer_than_they_must(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    for strategy in STRATEGIES:
        begin = time.perf_counter()
        split_steps(text, strategy)
        # A pattern that goes back over the text takes minutes.
        assert time.perf_counter() - begin < 20


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'paragraphs'"):
        split_steps("a", "paragraph")
