"""Owns what was sent and has no answer yet: the order, what is written, and until when. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import TextoError, disconnected, error

#: Sends that a server takes before it has answered the first.
MOST_OPEN = 64
MOST_WAITING = 1024
#: Seconds for which a message waits for a connection, and then for its answer: the server answers every send.
CONNECTION_PATIENCE = 30.0
ANSWER_PATIENCE = 20.0
LOST = "the session was lost before an answer; the message may have arrived"


@dataclass(slots=True)
class Send:
    """A message without an answer."""

    id: str
    to: str
    text: str = field(repr=False)
    #: Until when it waits: for a connection, for its answer, or (written before) for the session to go on.
    until: float
    #: When it was written first.
    written: float | None = None
    #: Written to the connection that there is now.
    is_open: bool = False
    #: Nobody waits for the answer any more, but the server counts it until it has given one.
    is_given_up: bool = False


Outcome = tuple[str, TextoError | None]


class Outgoing:
    """What waits, in the order in which it was sent."""

    def __init__(self) -> None:
        self._sends: dict[str, Send] = {}
        #: Those that are not open, in order; and some that nobody waits for any more.
        self._waiting: deque[Send] = deque()
        self._open = 0
        #: When something may be too late: never later than that is so.
        self.wake = float("inf")

    def __len__(self) -> int:
        return len(self._sends)

    def add(self, now: float, id_: str, to: str, text: str) -> None:
        """Take a message that is to be written."""
        if len(self._sends) >= MOST_WAITING:
            raise error("EAGAIN", f"{MOST_WAITING} messages wait for their answers already")
        send = Send(id_, to, text, now + CONNECTION_PATIENCE)
        self._sends[id_] = send
        self._waiting.append(send)
        self.wake = min(self.wake, send.until)

    def write(self, now: float) -> Iterator[Send]:
        """Go through those that are to be written now, which counts as done: as many as the server takes."""
        while self._waiting and self._open < MOST_OPEN:
            send = self._waiting.popleft()
            if send.id not in self._sends:
                continue
            send.is_open = True
            send.written = now if send.written is None else send.written
            send.until = now + ANSWER_PATIENCE
            self.wake = min(self.wake, send.until)
            self._open += 1
            yield send

    def answered(self, id_: str) -> bool:
        """Whether somebody waits for this answer. It does so no longer."""
        send = self._sends.pop(id_, None)
        if send is None:
            return False
        self._open -= send.is_open
        return not send.is_given_up

    def give_up(self, id_: str) -> None:
        """Nobody waits for the answer any more. What is not written will not be."""
        send = self._sends.get(id_)
        if send is None:
            return
        if send.is_open:
            send.is_given_up = True
        else:
            del self._sends[id_]

    def put_back(self, now: float, window: float) -> list[Outcome]:
        """
        The connection is gone, or another one there, whose server knows what was written up to `window` seconds ago.

        It will be written again. Returns what can't be.
        """
        self._open = 0
        lost: list[Outcome] = []
        for send in list(self._sends.values()):
            send.is_open = False
            if send.written is None:
                continue
            send.until = send.written + window
            self.wake = min(self.wake, send.until)
            if send.is_given_up or send.until <= now:
                del self._sends[send.id]
                if not send.is_given_up:
                    lost.append((send.id, disconnected(LOST)))
        self._waiting = deque(self._sends.values())
        return lost

    def late(self, now: float) -> tuple[list[Outcome], bool]:
        """Give what has waited too long; and whether the server owes an answer for too long."""
        if now < self.wake:
            return [], False
        late: list[Outcome] = []
        is_silent = False
        for send in [send for send in self._sends.values() if send.until <= now]:
            if send.is_open:
                is_silent = True
                continue
            why = error("ETIMEOUT", "no connection for too long") if send.written is None else disconnected(LOST)
            del self._sends[send.id]
            late.append((send.id, why))
        self.wake = min((send.until for send in self._sends.values()), default=float("inf"))
        return late, is_silent

    def longest(self) -> str | None:
        """Name the longest that is written: a frame was over the server's limit, and would be so again."""
        written = (send for send in self._sends.values() if send.is_open)
        longest = max(written, key=lambda send: len(send.text.encode()), default=None)
        return None if longest is None else longest.id

    def clear(self) -> list[str]:
        """Nothing waits any more: the session is over. Returns what did."""
        ids = [send.id for send in self._sends.values() if not send.is_given_up]
        self._sends.clear()
        self._waiting.clear()
        self._open = 0
        self.wake = float("inf")
        return ids
