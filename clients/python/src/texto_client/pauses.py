"""Owns how long to wait before the next attempt to connect. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: Seconds over which clients come back, by close code: a node that drains spreads them itself.
BY_CODE = {1001: 0.25, 1012: 0.25, 1013: 5.0}
BROKEN = 1.0
LONGEST = 15.0
LONGEST_ASKED = 60.0


class Pauses:
    """They double up to 15 s, with full jitter, for thousands may be coming back at the same moment."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._most = 0.0

    def next(self, code: int, asked: float = 0.0) -> float:
        """Seconds to wait after a connection that ended with `code`; `asked` is what the server wants at least."""
        most = max(self._most, BY_CODE.get(code, BROKEN))
        self._most = min(most * 2, LONGEST)
        return min(asked, LONGEST_ASKED) + most * self._random()

    def reset(self) -> None:
        """Begin anew, once a server has greeted: one that accepts and drops is not hammered."""
        self._most = 0.0


def retry_after(header: str | None, now: datetime) -> float:
    """Seconds that a `Retry-After` asks for, a number or a date (RFC 9110, section 10.2.3); 0 if unreadable."""
    if header is None:
        return 0.0
    if header.strip().isascii() and header.strip().isdigit():
        return min(float(header), LONGEST_ASKED)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return min(max((date - now).total_seconds(), 0.0), LONGEST_ASKED)
