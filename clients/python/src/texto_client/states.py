"""Owns what a client tells its program: messages, and changes of its state."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import Reason


@dataclass(frozen=True, slots=True)
class Message:
    """A message from somebody."""

    #: New for each message.
    id: str
    #: Whom to answer.
    sender: str
    text: str


@dataclass(frozen=True, slots=True)
class Connecting:
    """It tries to connect."""


@dataclass(frozen=True, slots=True)
class Connected:
    """It is connected."""

    #: The id under which others reach this client.
    client_id: str
    #: The session goes on, and nothing was missed.
    resumed: bool
    #: There was a session before, and messages for it may be missing; if `client_id` is another one, tell others.
    missing: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """It waits for the next attempt to connect."""

    #: Seconds until then.
    retry_in: float
    #: Why there is no connection, for people.
    why: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over: it was closed, or (with a `reason`) the server ended it."""

    reason: Reason | None
    #: The same for people.
    why: str


State = Connecting | Connected | Waiting | Closed
