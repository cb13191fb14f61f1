"""Formulas compared by math-verify, in a process of its own that can be stopped.

math-verify bounds its time by signals, which work in a main thread only, and not while one long
operation of C is under way, as with 9^{9^{9^9}}. So a worker process compares, and is killed where
it takes too long. It starts with the first comparison and ends with this process.

    python -m dreamprm.annotation.formulas      # the worker: a JSON line in, a JSON line out
"""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
import threading
from importlib.util import find_spec

from dreamprm.errors import UserError

STARTING = 60.0  # seconds that the worker has for its imports

_lock = threading.Lock()
_worker: subprocess.Popen[str] | None = None


def need_math_verify() -> None:
    """Refuses to go on without the package.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("math_verify") is None:
        raise UserError(
            "grading formulas needs the package math-verify: pip install 'dreamprm[annotate]', "
            "or choose another rule by grading.rule"
        )


def same_formula(right: str, found: str, timeout: float) -> bool:
    """Whether two answers are the same by math-verify; not, where that takes too long.

    Args:
        right: the right answer, LaTeX or plain.
        found: the answer that is judged.
        timeout: seconds.

    Raises:
        UserError: math-verify is not installed.
    """
    global _worker
    with _lock:
        if _worker is None or _worker.poll() is not None:
            need_math_verify()
            _worker = _start()
        assert _worker.stdin is not None
        _worker.stdin.write(json.dumps([right, found]) + "\n")
        _worker.stdin.flush()
        answer = _answer(_worker, timeout)
        if not answer:  # late, or the worker died of the formula
            _stop()
    return answer == "true"


def _start() -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "dreamprm.annotation.formulas"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C is for this process to meet.
        start_new_session=True,
    )
    if _answer(worker, STARTING) != "ready":
        worker.kill()
        raise UserError("math-verify does not start: the worker's message stands above")
    return worker


def _stop() -> None:
    global _worker
    if _worker is not None:
        _worker.kill()
        _worker.communicate()
        _worker = None


atexit.register(_stop)


def _answer(worker: subprocess.Popen[str], timeout: float) -> str | None:
    """One line of the worker; None if there is none in time."""
    assert worker.stdout is not None
    if not select.select([worker.stdout], [], [], timeout)[0]:
        return None
    return worker.stdout.readline().strip()


def _work() -> None:
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)  # of every text that is no formula
    print("ready", flush=True)
    for line in sys.stdin:
        # Its own time limit is off: the other side of the pipe has one that holds.
        right, found = (parse(_math(text), parsing_timeout=None) for text in json.loads(line))
        print(json.dumps(bool(verify(right, found, timeout_seconds=None))), flush=True)


def _math(text: str) -> str:
    """LaTeX is only read between dollars."""
    return text if "$" in text or "\\boxed" in text or "\\(" in text else f"${text}$"


if __name__ == "__main__":
    _work()
