"""Grading of final answers: every rule against a table of cases, traps included."""

from __future__ import annotations

import threading
import time

import pytest

from dreamprm.annotation import formulas
from dreamprm.annotation.grading import grade, read_choice, rule_of
from dreamprm.annotation.numbers import read_quantity
from dreamprm.annotation.prompt import final_answer

OPTIONS = ("12 cm", "a cat", "14 cm", "A dog")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("[b]", "B"),
        ("B.", "B"),
        ("B)", "B"),
        ("B) a cat", "B"),
        ("B: a cat", "B"),
        ("(C) 14 cm", "C"),
        ("**B**", "B"),
        ("**(B)** a cat", "B"),
        ("$B$", "B"),
        (r"\text{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"$\boxed{B}$", "B"),
        ("The answer is B", "B"),
        ("The answer is (b).", "B"),
        ("The correct answer is option D", "D"),
        ("answer: B", "B"),
        ("Option (C)", "C"),
        ("It is B", "B"),
        ("I would choose (D)", "D"),
        ("a cat", "B"),  # the option's text, which begins as the letter A does
        ("The answer is a cat", "B"),
        ("A dog.", "D"),
        ("12  CM.", "A"),
        ("A", "A"),
        ("A triangle", None),  # the article
        ("It is a shame", None),
        ("I", None),  # there are four options
        ("(E)", None),
        ("B or C", None),
        ("(A) or (B)", None),
        ("A, B", None),
        ("(A) 12 cm (B) a cat", None),
        ("", None),
        ("none of these", None),
        ("Because", None),
    ],
)
def test_choice(text: str, letter: str | None) -> None:
    assert read_choice(text, OPTIONS) == letter
    for right in "ABCD":
        assert grade(text, right, OPTIONS, "choice") == (right == letter)


def test_every_letter_is_a_choice() -> None:
    for letter in "ABCDEFGHIJ":
        assert read_choice(f"({letter})") == letter
        assert read_choice(f"{letter}. so") == letter
    assert read_choice("(K)") is None
    assert grade("14 cm", "14 cm", OPTIONS)  # the right answer as a text
    assert grade("C", "14 cm", OPTIONS)
    assert not grade("A", "14 cm", OPTIONS)


@pytest.mark.parametrize(
    ("right", "text", "expected"),
    [
        ("1,000", "1000", True),
        ("1000", "1,000.00", True),
        ("1,000", "1", False),
        ("1,000", "1,00", False),
        ("1000", r"1{,}000", True),
        ("0", "-0", True),
        ("0", "0.0", True),
        ("0", "", False),
        ("0", "   ", False),
        ("5", "-5", False),
        ("-5", "−5", True),
        ("18", "$18", True),
        ("18", r"\$18.00", True),
        ("18", "18 dollars per day", True),
        ("18", "$18.", True),
        ("18", "**18**", True),
        ("18", "The answer is 18.", True),
        ("18", "9 * 2 = 18", True),
        ("18", "18 or 19", False),
        ("18", "x18", False),
        ("18", "eighteen", False),
        ("18", "118", False),
        ("0.5", "1/2", True),
        ("0.5", ".5", True),
        ("0.5", r"$\frac{1}{2}$", True),
        ("0.5", r"\dfrac{1}{2}", True),
        ("1.5", "1 1/2", True),
        ("0.5", "1/0", False),
        ("50%", "0.5", True),
        ("50%", "50", True),
        ("50", "50%", True),
        ("50", r"50\%", True),
        ("50%", "50 percent", True),
        ("50%", "5%", False),
        ("0.5", "50", False),
        ("5 cm", "5", True),
        ("5", r"5\text{ cm}", True),
        ("5 cm", "5 centimetres", True),
        ("5 cm", "5 m", False),
        ("5 cm", "5 cm^2", False),
        ("5 cm²", "5 square centimeters", True),
        ("1e3", "1000", True),
        ("1", "1e99999999", False),
        ("3.14", "3.14159", False),
        ("2:30", "2", False),
        ("1.2", "1.2.3", False),
        ("0.3", "0.30000000000000004", True),
        ("3", "3.0000001", True),
        # Part of something else, or not simply stated.
        ("2", r"2\sqrt{3}", False),
        ("2", "2^3", False),
        ("10", "10^5", False),
        ("3", r"3\pi", False),
        ("3", "3x", False),
        ("5", "5!", False),
        ("2", r"\sqrt{2}/2", False),
        ("6", "x = 5 or x = 6", False),
        ("7", "not 7", False),
        ("7", "less than 7", False),
        ("3", "±3", False),
        ("3", r"\pm 3", False),
        ("90", r"90^\circ", True),
        ("7", "He has 7 more.", True),
    ],
)
def test_number(right: str, text: str, expected: bool) -> None:
    assert grade(text, right, (), "number") is expected


def test_the_tolerance_is_relative() -> None:
    assert grade("101", "100", (), "number", tolerance=0.01)
    assert not grade("102", "100", (), "number", tolerance=0.01)
    assert not grade("0.001", "0", (), "number", tolerance=0.01)
    assert read_quantity("9" * 1000) is None  # at once, not in minutes


@pytest.mark.parametrize(
    ("right", "text", "expected"),
    [
        ("Paris", "paris.", True),
        ("Paris", "  **Paris** ", True),
        ("the Nile", "Nile", True),
        ("Nile", "a Nile", True),
        ("it's", "its", True),
        ("New  York", "new york", True),
        ("ﬁn", "fin", True),
        ("Paris", "Paris, France", False),
        ("Paris", "", False),
        ("Paris", "...", False),
        ("no", "not", False),
    ],
)
def test_string(right: str, text: str, expected: bool) -> None:
    assert grade(text, right, (), "string") is expected


@pytest.mark.parametrize(
    ("right", "text", "expected"),
    [
        ("x^2+1", "1+x^2", True),
        (r"\frac{1}{2}", "0.5", True),
        (r"\sqrt{8}", r"$2\sqrt{2}$", True),
        ("2x", "x", False),
        ("(1,2)", "(1, 2)", True),
        ("(1,2)", "(2,1)", False),
        ("7", "the answer is 7", True),
        (r"\pi", "3", False),
        ("x", "", False),
    ],
)
def test_math(right: str, text: str, expected: bool) -> None:
    assert grade(text, right, (), "math", timeout=30) is expected


def test_math_in_a_thread_is_bounded_where_no_signal_reaches() -> None:
    found: list[bool] = []

    def work() -> None:
        found.append(grade("x+1", "1+x", (), "math", timeout=30))
        # One operation of C, which an alarm does not interrupt.
        begun = time.monotonic()
        found.append(grade("9^{9^{9^{9}}}", "9", (), "math", timeout=1))
        assert time.monotonic() - begun < 10
        found.append(grade("x+1", "1+x", (), "math", timeout=30))  # a new worker

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    assert found == [True, False, True]
    assert formulas._worker is not None


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        ("18", "number"),
        ("1,000", "number"),
        ("$12", "number"),
        ("50%", "number"),
        ("3/4", "number"),
        ("10 cm", "number"),
        ("60 km/h", "number"),
        (r"\frac{1}{2}", "number"),
        ("2x", "math"),
        ("x^2+1", "math"),
        (r"\sqrt{2}", "math"),
        ("(1, 2)", "math"),
        ("2π", "math"),
        ("Paris", "string"),
        ("Type 2 diabetes", "string"),
        ("A", "string"),
    ],
)
def test_auto_goes_by_the_right_answer(answer: str, rule: str) -> None:
    assert rule_of("auto", answer, ()) == rule


def test_auto_with_options() -> None:
    assert rule_of("auto", "A", OPTIONS) == "choice"
    assert rule_of("auto", "14 cm", OPTIONS) == "choice"
    assert rule_of("auto", "15 cm", OPTIONS) == "number"  # none of the options
    assert rule_of("string", "A", OPTIONS) == "string"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("Step 5: so.\nFinal answer: 18", "18"),
        ("**Final answer:** 18", "18"),
        ("### Final Answer\n: **B**", "B"),
        ("Final answer:\n18\n", "18"),
        ("Final answer: 5. Wait.\nFinal answer: 6", "6"),
        ("The final answer is 12", "12"),
        ("Final answer: \n\n", None),
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2", None),
        ("I do not know", None),
        ("", None),
    ],
)
def test_where_the_final_answer_stands(solution: str, answer: str | None) -> None:
    assert final_answer(solution) == answer
