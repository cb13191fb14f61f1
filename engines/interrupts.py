"""An interrupt ends the step under way, and not a checkpoint half written."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("dreamprm")


class Interrupted:
    """False until an interrupt has arrived.

    Attributes:
        number: of the first signal; None until then.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def postponed_interrupts() -> Iterator[Interrupted]:
    """Notes SIGINT, SIGTERM and SIGHUP for the end of the step; a second one acts at once.

    But for a second SIGHUP: a terminal that is closed sends one by the shell and one by itself.
    """
    interrupted = Interrupted()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # only the main thread may set signal handlers
        return
    hang_up = getattr(signal, "SIGHUP", None)  # not of every platform
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, hang_up) if n is not None]
    before = {number: signal.getsignal(number) for number in numbers}
    # A shell makes its background jobs ignore SIGINT, nohup SIGHUP: that stays so.
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

    def note(number: int, frame: Any) -> None:
        interrupted.number = interrupted.number or number
        log.warning("stopping after the step under way; once more stops at once")
        for each, handler in before.items():
            if each != hang_up:
                signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
