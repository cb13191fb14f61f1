"""Asking a server again: which failures pass, and how long to wait."""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from dreamprm.annotation.config import OpenAIConfig
from dreamprm.errors import UserError

Result = TypeVar("Result")

MOST_PATIENT = 3600.0  # seconds of a Retry-After that are waited for


class PassingFailure(Exception):
    """A failure that may be gone with the next try.

    Args:
        message: for the user.
        wait: seconds that the server asks for; None where it asks for none.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def with_retries(
    call: Callable[[], Result],
    config: OpenAIConfig,
    stop: threading.Event,
    report: Callable[[str], None],
) -> Result:
    """The result of a call, after as many tries as it takes.

    Before try n + 1 lie min(first_delay · 2ⁿ, longest_delay) seconds, less a random share of up to
    a half, so that requests that failed together do not come back together; or what the server asks
    for, where that is more.

    Args:
        call: what is tried.
        config: how often and how long.
        stop: ends the waiting.
        report: takes a line for each failure.

    Raises:
        UserError: the last try failed, or ``stop`` was set.
    """
    for tries in range(config.retries + 1):
        try:
            return call()
        except PassingFailure as failure:
            if stop.is_set() or tries == config.retries:
                raise UserError(
                    f"{failure}; gave up after {tries + 1} tries (openai.retries is "
                    f"{config.retries}); what is done is kept, --resume continues"
                ) from failure
            delay = min(config.first_delay * 2**tries, config.longest_delay)
            delay *= 1 - random.random() / 2
            wait = max(delay, failure.wait or 0.0)
            if wait > MOST_PATIENT:
                raise UserError(
                    f"{failure}; the server asks to wait {wait:.0f} seconds: --resume continues"
                ) from failure
            report(f"{failure}; try {tries + 2} of {config.retries + 1} in {wait:.1f} s")
            stop.wait(wait)
    raise AssertionError("unreachable")


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds of the header Retry-After, a number or a date (RFC 9110, 10.2.3), if it is there."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - (time.time() if now is None else now))
