"""Owns one WebSocket: frames to and from the machine, and how it ended. It decides nothing."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from datetime import UTC, datetime
from typing import Any, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from .actions import Dial, Ending
from .pauses import retry_after

#: Seconds for the closing handshake.
CLOSE_PATIENCE = 2.0
#: Frames that wait to be written: 64 sends and lazy acknowledgements need few.
MOST_UNWRITTEN = 4096
#: Bytes of a message; the gateway's own limit is much lower.
MOST_BYTES = 2**24
WHY_LENGTH = 200

_logger = logging.getLogger("texto_client")
# What websockets logs for debugging are frames and headers, and in them are tokens.
_quiet_logger = logging.getLogger("texto_client.websocket")
_quiet_logger.setLevel(logging.INFO)


class Observer(Protocol):
    """Who hears of a link."""

    def opened(self, link: Link) -> None:
        """Hear that it is open."""

    def came(self, link: Link, text: str) -> None:
        """Hear what came."""

    def ended(self, link: Link, ending: Ending) -> None:
        """Hear that it is over: the last call."""


class Link:
    """A connection from its first byte to its end: `run`."""

    def __init__(self, dial: Dial, tls: ssl.SSLContext | None, observer: Observer) -> None:
        self._dial = dial
        self._tls = tls
        self._observer = observer
        self._socket: ClientConnection | None = None
        self._unwritten: deque[str] = deque()
        self._has_unwritten = asyncio.Event()
        self._talk: asyncio.Task[Ending] | None = None
        self._farewell: int | None = None
        self._is_left = False

    def write(self, text: str) -> None:
        """Write a frame, as soon as those before it are written."""
        if len(self._unwritten) >= MOST_UNWRITTEN:
            self.leave(None)
            return
        self._unwritten.append(text)
        self._has_unwritten.set()

    def leave(self, code: int | None) -> None:
        """End it: with the closing handshake if there is a code, else at once."""
        self._is_left = True
        self._farewell = code
        if self._talk is not None:
            self._talk.cancel()

    async def run(self) -> None:
        """Serve the connection until its end. Cancelled, it breaks the connection off."""
        if self._is_left:
            return
        self._talk = asyncio.create_task(self._connect_and_talk())
        try:
            await asyncio.wait([self._talk])
            if self._socket is not None and self._farewell is not None:
                async with asyncio.timeout(CLOSE_PATIENCE):
                    await self._socket.close(self._farewell)
        except TimeoutError:
            pass
        finally:
            self._talk.cancel()
            if self._socket is not None:
                self._socket.transport.abort()
        if self._talk.cancelled():
            ending = Ending(why="it was given up")
        elif (error := self._talk.exception()) is not None:
            _logger.error("the client has a flaw: it connects anew", exc_info=error)
            ending = Ending(why="the client has a flaw")
        else:
            ending = self._talk.result()
        self._observer.ended(self, ending)

    async def _connect_and_talk(self) -> Ending:
        try:
            socket = self._socket = await self._connect()
        except InvalidStatus as refused:
            return _refusal(refused)
        except Exception as error:  # noqa: BLE001 - Whatever it is, the program is told, and it is tried again.
            return Ending(why=(str(error) or type(error).__name__)[:WHY_LENGTH])
        writer = asyncio.create_task(self._write(socket))
        try:
            return await self._read(socket)
        finally:
            writer.cancel()

    async def _connect(self) -> ClientConnection:
        token = self._dial.token
        options: dict[str, Any] = {}
        if self._tls is not None and self._dial.url.startswith("wss:"):
            options["ssl"] = self._tls
        # The machine looks at the clock, and asks for signs of life as the protocol has it.
        return await connect(
            self._dial.url,
            additional_headers={} if token is None else {"Authorization": f"Bearer {token}"},
            open_timeout=None,
            ping_interval=None,
            close_timeout=CLOSE_PATIENCE,
            max_size=MOST_BYTES,
            logger=_quiet_logger,
            **options,
        )

    async def _read(self, socket: ClientConnection) -> Ending:
        self._observer.opened(self)
        try:
            while True:
                self._observer.came(self, await socket.recv(decode=True))
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                return Ending(why=str(closed.__cause__ or "the connection broke")[:WHY_LENGTH])
            return Ending(closed.rcvd.code, f"{closed.rcvd.code}: {closed.rcvd.reason or 'no reason given'}")

    async def _write(self, socket: ClientConnection) -> None:
        try:
            while await self._has_unwritten.wait():
                self._has_unwritten.clear()
                while self._unwritten:
                    await socket.send(self._unwritten.popleft())
        except ConnectionClosed:
            pass  # Whoever reads is told why.
        except Exception:
            _logger.exception("a frame can't be written: the client connects anew")
            socket.transport.abort()


def _refusal(refused: InvalidStatus) -> Ending:
    response = refused.response
    said = bytes(response.body or b"").decode(errors="replace").strip().splitlines()
    asked = retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
    why = f"HTTP {response.status_code} {response.reason_phrase}" + (f": {said[0]}" if said else "")
    return Ending(why=why[:WHY_LENGTH], status=response.status_code, retry_after=asked)
