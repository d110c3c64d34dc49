"""Owns what a program uses: it carries out what the machine decides, and waits for it."""

from __future__ import annotations

import asyncio
import logging
import random as randomness
import ssl
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from weakref import WeakSet

from .actions import Action, Actions, AskCredentials, Became, Dial, Ending, Leave, Settings, Settle, Write
from .errors import NoConnectionError, TextoError, disconnected
from .link import CLOSE_PATIENCE, Link
from .machine import Machine
from .states import Closed, Connected, Message, State, Waiting

Credentials = Callable[[], Awaitable[str]]

#: Seconds that fresh credentials may take.
CREDENTIALS_PATIENCE = 10.0
#: Changes that wait for whoever iterates over them; then the oldest go.
MOST_STATES = 64

_logger = logging.getLogger("texto_client")


def connect(
    url: str | Sequence[str],
    *,
    patience: float | None = 30.0,
    credentials: Credentials | None = None,
    header: bool = False,
    on_state: Callable[[State], None] | None = None,
    ssl: ssl.SSLContext | None = None,
    inbox: int = 1024,
    quiet: float = 10.0,
    sign_patience: float = 5.0,
    random: Callable[[], float] = randomness.random,
) -> Client:
    """
    Give a client, which connects in `async with` and stays connected until the block is left.

    :param url: where the gateway is, such as `wss://chat.example.org/v1/texto`; of several it goes on to the next one
        after each failure.
    :param patience: seconds for which `async with` waits for the first connection; then it raises `NoConnectionError`.
        `None`: as long as it takes; 0: not at all (what is sent waits).
    :param credentials: gives a fresh JWT each time it is called: for each connection, and before the last one expires.
        If it raises, or takes longer than 10 s, the client tries again later.
    :param header: show them in the handshake's `Authorization`, too, and not only in the first frame.
    :param on_state: called with each change of `state`. It must not block.
    :param ssl: whom to trust, for `wss`.
    :param inbox: messages that may wait for the program; what comes beyond is fetched again when there is room.
    :param quiet: seconds of silence after which the server is asked for a sign of life.
    :param sign_patience: seconds that the sign may take before the connection is given up.
    :param random: from 0 to 1: where in its range a pause is.
    :raises ValueError: when a URL is none of a WebSocket, or `inbox` is below 1.
    """
    urls = (url,) if isinstance(url, str) else tuple(url)
    if not urls:
        raise ValueError("where to? connect('wss://HOST/v1/texto')")
    if inbox < 1:
        raise ValueError("inbox: room for one message at least is needed")
    settings = Settings(
        urls=tuple(map(_address, urls)),
        has_credentials=credentials is not None,
        shows_header=header,
        quiet=quiet,
        sign_patience=sign_patience,
        inbox=inbox,
    )
    return Client(Machine(settings, random), patience, credentials, on_state, ssl)


def _address(url: str) -> str:
    expected = "a URL is none of a WebSocket: one like wss://HOST/v1/texto is expected"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(expected) from None
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.hostname:
        raise ValueError(expected)
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != "register"]
    return urlunsplit((scheme, parts.netloc, parts.path, urlencode([*query, ("register", "1")]), ""))


class Client:
    """
    A client of Texto: a session that outlives its connection and its server. Made by `connect`.

    It is an asynchronous iterator of messages, each once and in order. A message that was given out counts as taken:
    only then is it acknowledged to the server. The iteration ends when the client is closed, and raises
    `DisconnectedError` or `AuthError` when the server has ended the session.

    Cancel safe: `anext(client)` under `asyncio.timeout` loses no message. Use it in one event loop.
    """

    def __init__(
        self,
        machine: Machine,
        patience: float | None,
        credentials: Credentials | None,
        on_state: Callable[[State], None] | None,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._machine = machine
        self._patience = patience
        self._provider = credentials
        self._on_state = on_state
        self._tls = tls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._state: State = Closed(None, "it has not begun")
        self._link: Link | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: asyncio.Task[None] | None = None
        self._unanswered: dict[str, asyncio.Future[None]] = {}
        self._watchers: WeakSet[_States] = WeakSet()
        self._news = asyncio.Event()
        self._todo: deque[Action] = deque()
        self._is_busy = False

    # The program's side.

    @property
    def id(self) -> str:
        """
        The id under which others reach this client.

        :raises DisconnectedError: before the first connection, which is possible in `async with` if `patience` is 0.
        """
        if self._machine.client_id is None:
            raise disconnected("there is no id before the first connection")
        return self._machine.client_id

    @property
    def state(self) -> State:
        """What it does now."""
        return self._state

    async def send(self, to: str | uuid.UUID, text: str) -> None:
        """
        Send a text; returns when the server vouches that the receiver gets it.

        Without a connection it waits for one (30 s), and what was not answered is sent again, in the same order; it is
        shown once. Sends that are begun one after the other (tasks, `asyncio.gather`) go out in that order.

        Cancelled, it is not sent if it is not yet written; else it may have arrived.

        :raises TextoError: why not; the subclass and `code` say more, `retry` whether it may be sent again.
        """
        if not isinstance(text, str):
            raise TypeError("a text is a str")
        loop = self._running()
        id_ = str(uuid.uuid4())
        actions = self._machine.send(loop.time(), id_, str(to), text)
        answer = self._unanswered[id_] = loop.create_future()
        self._do(actions)
        try:
            await answer
        finally:
            if self._unanswered.pop(id_, None) is not None:
                self._machine.give_up(id_)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        loop = self._running()
        while True:
            message, actions = self._machine.take(loop.time())
            self._do(actions)
            # Nothing is awaited between taking a message and giving it out: whoever is cancelled has taken none.
            if message is not None:
                return message
            end = self._machine.end
            if end is not None:
                if end.reason is None:
                    raise StopAsyncIteration
                raise end.error()
            self._news.clear()
            await self._news.wait()

    def states(self) -> AsyncIterator[State]:
        """
        Iterate over the state as it is now, and each change; the last one is `Closed`.

        Cancel safe. Whoever is more than 64 changes behind misses the oldest.
        """
        self._running()
        return _States(self._state, self._watchers)

    def retry_now(self) -> None:
        """Try to connect now instead of after the pause."""
        self._do(self._machine.retry_now(self._running().time()))

    async def close(self) -> None:
        """
        End the session, for good: unanswered sends fail with `DisconnectedError`. Leaving `async with` does it.

        Cancelled, it breaks the connection off instead of closing it in order (within 2 s).
        """
        self._do(self._machine.close())
        tasks = self._tasks - {asyncio.current_task()}
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=CLOSE_PATIENCE + 0.5)
        finally:
            for task in tasks:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise RuntimeError("a client is used once: connect() gives another one")
        self._loop = asyncio.get_running_loop()
        self._do(self._machine.start(self._loop.time()))
        try:
            if self._patience != 0:
                await self._connected(self._patience)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _connected(self, patience: float | None) -> None:
        why = "no answer"
        try:
            async with asyncio.timeout(patience):
                async for state in self.states():
                    if isinstance(state, Connected):
                        return
                    if isinstance(state, Waiting):
                        why = state.why
        except TimeoutError:
            message = f"no connection within {patience:g} s; the last attempt: {why}"
            raise NoConnectionError("ETIMEOUT", message) from None
        end = self._machine.end
        raise end.error() if end is not None else disconnected("the session was closed")

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise disconnected("not connected: async with connect(…) as client")
        return self._loop

    # The machine's side.

    def _do(self, actions: Actions) -> None:
        """Carry out what the machine has decided, in order, also when that makes the program ask for more."""
        self._todo.extend(actions)
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._todo:
                self._carry_out(self._todo.popleft())
        finally:
            self._is_busy = False
        if self._machine.unread or self._machine.end is not None:
            self._news.set()
        self._arm()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Dial():
                self._link = Link(action, self._tls, self)
                self._spawn(self._link.run())
            case AskCredentials():
                if self._asking is None or self._asking.done():
                    self._asking = self._spawn(self._ask())
            case Write(text):
                if self._link is not None:
                    self._link.write(text)
            case Leave(code):
                if self._link is not None:
                    self._link.leave(code)
                self._link = None
            case Settle(id_, error):
                self._settle(id_, error)
            case Became(state):
                self._became(state)

    def _settle(self, id_: str, error: TextoError | None) -> None:
        answer = self._unanswered.pop(id_, None)
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)

    def _became(self, state: State) -> None:
        self._state = state
        for watcher in list(self._watchers):
            watcher.add(state)
        if isinstance(state, Closed) and self._asking is not None:
            self._asking.cancel()
        if self._on_state is None:
            return
        try:
            self._on_state(state)
        except Exception:
            _logger.exception("on_state failed at %s", type(state).__name__)

    async def _ask(self) -> None:
        assert self._provider is not None
        token = None
        try:
            async with asyncio.timeout(CREDENTIALS_PATIENCE):
                token = await self._provider()
        except Exception:
            _logger.exception("there are no credentials now: it is tried again later")
        self._asking = None
        self._do(self._machine.credentials(self._running().time(), token))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _arm(self) -> None:
        """See to it that the machine is told when something is due. A timer that is too early does no harm."""
        deadline = self._machine.deadline()
        if self._timer is not None:
            if self._timer.when() <= deadline and self._machine.end is None:
                return
            self._timer.cancel()
            self._timer = None
        if deadline != float("inf"):
            self._timer = self._running().call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._do(self._machine.tick(self._running().time()))

    # The link's side. What an older one says does not count.

    def opened(self, link: Link) -> None:
        """See `Observer`."""
        if link is self._link:
            self._do(self._machine.opened(self._running().time()))

    def came(self, link: Link, text: str) -> None:
        """See `Observer`."""
        if link is self._link:
            self._do(self._machine.came(self._running().time(), text))

    def ended(self, link: Link, ending: Ending) -> None:
        """See `Observer`."""
        if link is self._link:
            self._link = None
            self._do(self._machine.ended(self._running().time(), ending))


class _States(AsyncIterator[State]):
    """Changes, for one who iterates over them."""

    def __init__(self, now: State, watchers: WeakSet[_States]) -> None:
        self._changes = deque([now], maxlen=MOST_STATES)
        self._news = asyncio.Event()
        self._watchers = watchers
        watchers.add(self)

    def add(self, state: State) -> None:
        self._changes.append(state)
        self._news.set()

    async def __anext__(self) -> State:
        while not self._changes:
            if self not in self._watchers:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        state = self._changes.popleft()
        if isinstance(state, Closed) and not self._changes:
            self._watchers.discard(self)
        return state
