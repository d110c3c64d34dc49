"""Owns what has come: once, in order, bounded; and what the server is to hear of it. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from .frames import Received
from .states import Message

#: The server hears what the program has taken after so many messages, or seconds.
ACK_EVERY = 64
ACK_AFTER = 1.0
#: While the program takes nothing, it hears as often that this client lives (it ends a session after 30 s).
ACK_AGAIN = 10.0
MOST_SEEN = 2048
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class _Kept:
    message: Message
    seq: int | None
    numbering: int


class Incoming:
    """
    The messages that the program has not taken yet.

    `has` is what has come, `taken` what the program took; only that is acknowledged, so that senders to a program that
    is too slow are told (`EBUSY`), and nothing is lost with what is kept here.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: deque[_Kept] = deque()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._numbering = 0
        self.has = 0
        self.taken = 0
        self._acked = 0
        #: When the server is to hear of it.
        self.ack_at = NEVER
        #: There was no room: what came since then was not taken, and must come again over another connection.
        self.is_over = False

    def __len__(self) -> int:
        return len(self._kept)

    def begin(self, *, anew: bool) -> None:
        """Another connection is there; with a numbering of its own if it is another session."""
        self.is_over = False
        if anew:
            self._numbering += 1
            self.has = self.taken = 0
        self._acked = self.taken
        self.ack_at = NEVER

    def came(self, now: float, frame: Received) -> bool:
        """Keep a message, unless it has come before. Returns whether it is here, or was."""
        if self.is_over:
            return False
        is_new = frame.id not in self._seen if frame.seq is None else frame.seq > self.has
        if is_new and len(self._kept) >= self._most:
            self.is_over = True
            return False
        if frame.seq is not None:
            self.ack_at = min(self.ack_at, now + ACK_AFTER)
        if not is_new:
            return True
        if frame.seq is not None:
            self.has = frame.seq
        else:
            self._seen[frame.id] = None
            if len(self._seen) > MOST_SEEN:
                self._seen.popitem(last=False)
        self._kept.append(_Kept(Message(frame.id, frame.sender, frame.text), frame.seq, self._numbering))
        return True

    def take(self, now: float) -> Message | None:
        """Give the next message to the program."""
        if not self._kept:
            return None
        kept = self._kept.popleft()
        if kept.seq is not None and kept.numbering == self._numbering:
            self.taken = kept.seq
            is_much = self.taken - self._acked >= ACK_EVERY
            self.ack_at = now if is_much else min(self.ack_at, now + ACK_AFTER)
        return kept.message

    @property
    def has_room(self) -> bool:
        """Whether it is worth while to let come again what there was no room for."""
        return len(self._kept) <= self._most // 2

    def ack(self, now: float) -> int | None:
        """Up to where the server is to hear now that the program has taken it, if that is due."""
        if now < self.ack_at:
            return None
        self._acked = self.taken
        self.ack_at = now + ACK_AGAIN if self.taken < self.has else NEVER
        return self.taken
