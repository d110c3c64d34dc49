"""Owns the errors: the server's codes, and those of this side."""

from __future__ import annotations

from typing import ClassVar, Literal

#: Why the server ended a session. `elsewhere`: it goes on over a newer connection (4001). `credentials`: they are
#: missing, refused or expired (4003, or 401).
Reason = Literal["elsewhere", "credentials"]


class TextoError(Exception):
    """Why a message was not sent: none of these means that it was not shown, unless `may_have_arrived` is false."""

    #: Whether the same message may go through if it is sent again (later, for most).
    retry: ClassVar[bool] = False
    #: Whether the receiver may have been shown it all the same.
    may_have_arrived: ClassVar[bool] = False

    #: What went wrong, for programs: a code of the protocol, or one of this side.
    code: str
    #: What went wrong, for people.
    description: str

    def __init__(self, code: str, description: str) -> None:
        super().__init__(code, description)
        self.code = code
        self.description = description

    def __str__(self) -> str:
        return f"{self.code}: {self.description}"


class NotConnectedError(TextoError):
    """`ENOTCONN`: nobody is connected as the receiver."""


class BrokerError(TextoError):
    """`EBROKER`: it could not be handed over in time."""

    retry = True
    may_have_arrived = True


class BusyError(TextoError):
    """`EBUSY`: the receiver reads more slowly than it is written to."""

    retry = True
    may_have_arrived = True


class RateError(TextoError):
    """`EAGAIN`: this client is over its rate limit, or 1,024 of its messages wait already."""

    retry = True


class SizeError(TextoError):
    """`EMSGSIZE`: the text is too long; the limit is in the description."""


class InvalidError(TextoError):
    """`EINVAL`, `ESYNTAX`: the receiver's id is no UUID, or the text no text (half of an emoji)."""


class AuthError(TextoError):
    """`EAUTH`: credentials are required, refused or expired."""


class DisconnectedError(TextoError):
    """`EDISCONNECTED`: the session ended before the answer, or is over."""

    may_have_arrived = True
    #: Why, when the server ended it.
    reason: Reason | None

    def __init__(self, code: str, description: str, reason: Reason | None = None) -> None:
        super().__init__(code, description)
        self.reason = reason


class NoConnectionError(TextoError):
    """`ETIMEOUT`: there was no connection for too long; it was never written."""

    retry = True


_CLASSES: dict[str, type[TextoError]] = {
    "ENOTCONN": NotConnectedError,
    "EBROKER": BrokerError,
    "EBUSY": BusyError,
    "EAGAIN": RateError,
    "EMSGSIZE": SizeError,
    "EINVAL": InvalidError,
    "ESYNTAX": InvalidError,
    "EAUTH": AuthError,
}


def error(code: str, description: str) -> TextoError:
    """Give the error of a server's code; of one that a newer server has, the base class."""
    return _CLASSES.get(code, TextoError)(code, description)


def disconnected(description: str, reason: Reason | None = None) -> DisconnectedError:
    """Give the error of a session that is over."""
    return DisconnectedError("EDISCONNECTED", description, reason)
