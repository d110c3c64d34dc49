"""A client for Texto: a session that outlives its connection and its server. How to use it: README.md."""

from .client import Client, Credentials, connect
from .errors import (
    AuthError,
    BrokerError,
    BusyError,
    DisconnectedError,
    InvalidError,
    NoConnectionError,
    NotConnectedError,
    RateError,
    Reason,
    SizeError,
    TextoError,
)
from .states import Closed, Connected, Connecting, Message, State, Waiting

__all__ = [
    "AuthError",
    "BrokerError",
    "BusyError",
    "Client",
    "Closed",
    "Connected",
    "Connecting",
    "Credentials",
    "DisconnectedError",
    "InvalidError",
    "Message",
    "NoConnectionError",
    "NotConnectedError",
    "RateError",
    "Reason",
    "SizeError",
    "State",
    "TextoError",
    "Waiting",
    "connect",
]
