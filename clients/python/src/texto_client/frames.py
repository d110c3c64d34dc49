"""Owns the JSON of frames: nothing else knows it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .errors import TextoError, error

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Greeting:
    """`connection`: who this client is. Times are in seconds."""

    client_id: str
    resumed: bool = False
    token: str | None = field(default=None, repr=False)
    #: For how long the server knows what was sent before.
    window: float = 0.0
    token_expires: float | None = None
    credentials_expire: float | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """`receive`: a message for this client."""

    id: str
    sender: str
    text: str
    seq: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """`ack`, or `error`: what became of a request."""

    id: str
    error: TextoError | None


Frame = Greeting | Received | Answer


def decode(text: str) -> Frame | None:
    """Read a frame of the server; `None` where it is of a kind or a form that this client does not know."""
    try:
        frame = json.loads(text)
        return _read(frame["kind"], frame["id"], frame.get("data"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _read(kind: object, id_: object, data: Any) -> Frame | None:
    match kind:
        case "connection":
            return _greeting(data)
        case "receive":
            seq = data.get("seq")
            return Received(_is(str, id_), _is(str, data["sender_id"]), _is(str, data["text"]), seq and _is(int, seq))
        case "ack":
            return Answer(_is(str, id_), None)
        case "error":
            return Answer(_is(str, id_), error(_is(str, data["code"]), str(data.get("description", ""))))
    return None


def _greeting(data: Any) -> Greeting:
    resume, credentials = data.get("resume"), data.get("credentials")
    return Greeting(
        client_id=_is(str, data["client_id"]),
        resumed=data.get("resumed") is True,
        token=_is(str, resume["token"]) if resume else None,
        window=resume["window_ms"] / 1000 if resume else 0.0,
        token_expires=resume["expires_ms"] / 1000 if resume else None,
        credentials_expire=credentials["expires_ms"] / 1000 if credentials else None,
    )


def _is(kind: type[_T], value: object) -> _T:
    if not isinstance(value, kind):
        raise TypeError
    return value


def registration(id_: str, data: dict[str, object] | None) -> str:
    """Who am I? With `data`: who I want to be, and may be."""
    return _encode(None, id_, "registration", data)


def send(client_id: str, id_: str, to: str, text: str) -> str:
    """Write a message for somebody."""
    return _encode(client_id, id_, "send", {"receiver_id": to, "text": text})


def ack(id_: str, seq: int | None) -> str:
    """Acknowledge all messages up to `seq`, or the one with this id."""
    return _encode(None, id_, "ack", None if seq is None else {"seq": seq})


def _encode(client_id: str | None, id_: str, kind: str, data: dict[str, object] | None) -> str:
    frame = {"client_id": client_id, "id": id_, "kind": kind, "data": data}
    # As it is: escaped, most of the world's letters take six bytes.
    return json.dumps(frame, ensure_ascii=False, separators=(",", ":"))
