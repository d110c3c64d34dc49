"""Owns what the machine is told, and what it decides: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import TextoError
from .states import State

#: What a connection ends with that broke (RFC 6455, section 7.4.1).
BROKEN = 1006


@dataclass(frozen=True, slots=True)
class Settings:
    """What a program may choose; times are in seconds."""

    urls: tuple[str, ...]
    has_credentials: bool = False
    #: They are shown in the handshake, as a header, too.
    shows_header: bool = False
    quiet: float = 10.0
    sign_patience: float = 5.0
    inbox: int = 1024


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended, or a handshake: with a close code, or the status and `Retry-After` of an HTTP answer."""

    code: int = BROKEN
    why: str = "the connection broke"
    status: int | None = None
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect, showing `token` in the handshake if there is one."""

    url: str
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AskCredentials:
    """Ask the program for fresh credentials."""


@dataclass(frozen=True, slots=True)
class Write:
    """Write a frame to the connection."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Leave:
    """Let go of the connection; in an orderly way with a `code`. Nothing that it says from now on counts."""

    code: int | None


@dataclass(frozen=True, slots=True)
class Settle:
    """Tell whoever waits for a send what became of it."""

    id: str
    error: TextoError | None


@dataclass(frozen=True, slots=True)
class Became:
    """Tell the program of a change."""

    state: State


Action = Dial | AskCredentials | Write | Leave | Settle | Became
Actions = list[Action]
