"""
Owns what a client does next: every decision, and no I/O. Pure: each method is told the time, and returns actions.

    Idle ──start──▶ Dialling ──greeting──▶ Live
                     ▲    │                 │
                retry│    │closed, too late │closed, silent
                     │    ▼                 ▼
                    Pausing ◀───────────────┘        from each of them: close, 4001, 4003, 401 ──▶ Over
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from . import frames
from .actions import BROKEN, Action, Actions, AskCredentials, Became, Dial, Ending, Leave, Settings, Settle, Write
from .errors import Reason, TextoError, disconnected, error
from .frames import Answer, Frame, Greeting, Received
from .incoming import Incoming
from .outgoing import Outgoing
from .pauses import Pauses
from .states import Closed, Connected, Connecting, Message, Waiting

#: Seconds from the first byte to the greeting.
GREETING_PATIENCE = 10.0
#: A frame was over the server's limit (RFC 6455, section 7.4.1).
TOO_BIG = 1009
FINAL: dict[int, Reason] = {4001: "elsewhere", 4003: "credentials"}
UNAUTHORIZED = 401
NEVER = float("inf")
ENDED = "the session was closed"


@dataclass(slots=True)
class Idle:
    """Before the start."""


@dataclass(slots=True)
class Dialling:
    """A connection without a greeting yet."""

    until: float
    is_open: bool = False
    #: What is shown; `None` until it is there.
    shown: dict[str, object] | None = field(default=None, repr=False)
    #: What the server said about them.
    refusal: str | None = None


@dataclass(slots=True)
class Live:
    """A session with a connection."""

    #: When the server is asked for a sign of life; or, once it was, given up.
    quiet_at: float
    renew_at: float
    was_asked: bool = False
    refusal: str | None = None


@dataclass(slots=True)
class Pausing:
    """Between two connections."""

    until: float


@dataclass(slots=True)
class Over:
    """The end."""

    reason: Reason | None
    why: str

    def error(self) -> TextoError:
        """Give the error of it."""
        return error("EAUTH", self.why) if self.reason == "credentials" else disconnected(self.why, self.reason)


class Machine:
    """One client: a session, and the connections that it has one after the other."""

    def __init__(
        self,
        settings: Settings,
        random: Callable[[], float],
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._settings = settings
        self._urls = list(settings.urls)
        self._new_id = new_id
        self._phase: Idle | Dialling | Live | Pausing | Over = Idle()
        self._pauses = Pauses(random)
        self._outgoing = Outgoing()
        self._incoming = Incoming(settings.inbox)
        #: Handshakes that were refused, one after the other.
        self._refusals = 0
        self._token: str | None = None
        self._window = 0.0
        self.client_id: str | None = None

    # What the program does.

    def start(self, now: float) -> Actions:
        """Begin."""
        return list(self._dial(now)) if isinstance(self._phase, Idle) else []

    def retry_now(self, now: float) -> Actions:
        """Wait no longer."""
        return list(self._dial(now)) if isinstance(self._phase, Pausing) else []

    def close(self) -> Actions:
        """End the session."""
        return list(self._end(None, ENDED)) if not isinstance(self._phase, Over) else []

    def send(self, now: float, id_: str, to: str, text: str) -> Actions:
        """Send a text; `Settle` tells what became of it. Raises what can be known at once."""
        if isinstance(self._phase, Over):
            raise self._phase.error()
        try:
            (to + text).encode()
        except UnicodeEncodeError:
            # It can't be written at all; a server would say the same.
            raise error("ESYNTAX", "the text, or the id, holds an unpaired surrogate (half of an emoji)") from None
        self._outgoing.add(now, id_, to, text)
        return list(self._pump(now))

    def give_up(self, id_: str) -> None:
        """Nobody waits for this answer any more."""
        self._outgoing.give_up(id_)

    def take(self, now: float) -> tuple[Message | None, Actions]:
        """Give the next message to the program, if there is one."""
        message = self._incoming.take(now)
        return message, list(self._catch_up(now))

    def credentials(self, now: float, token: str | None) -> Actions:
        """Credentials are there; or (`None`) can't be had now."""
        return list(self._credentials(now, token))

    @property
    def unread(self) -> int:
        """How many messages wait for the program."""
        return len(self._incoming)

    @property
    def end(self) -> Over | None:
        """Why the session is over, if it is."""
        return self._phase if isinstance(self._phase, Over) else None

    # What the connection does.

    def opened(self, now: float) -> Actions:
        """The WebSocket is open."""
        if not isinstance(self._phase, Dialling):
            return []
        self._phase.is_open = True
        self._refusals = 0
        return list(self._register())

    def came(self, now: float, text: str) -> Actions:
        """A frame has come."""
        return list(self._came(now, frames.decode(text)))

    def ended(self, now: float, ending: Ending) -> Actions:
        """The connection has ended, or there was none."""
        return list(self._ended(now, ending))

    # What time does.

    def deadline(self) -> float:
        """Until when nothing is due; then call `tick`."""
        phase = self._phase
        if isinstance(phase, Dialling | Pausing):
            return min(phase.until, self._outgoing.wake)
        if isinstance(phase, Live):
            return min(phase.quiet_at, phase.renew_at, self._outgoing.wake, self._incoming.ack_at)
        return NEVER

    def tick(self, now: float) -> Actions:
        """Do what is due."""
        return list(self._tick(now))

    def _tick(self, now: float) -> Iterator[Action]:
        if isinstance(self._phase, Idle | Over):
            return
        late, is_silent = self._outgoing.late(now)
        for id_, why in late:
            yield Settle(id_, why)
        phase = self._phase
        if is_silent:
            yield from self._drop(now, "the server did not answer")
        elif isinstance(phase, Pausing):
            if now >= phase.until:
                yield from self._dial(now)
        elif isinstance(phase, Dialling):
            if now >= phase.until:
                yield from self._drop(now, "no greeting in time")
        elif isinstance(phase, Live):
            yield from self._live(now, phase)

    def _live(self, now: float, phase: Live) -> Iterator[Action]:
        if now >= phase.quiet_at:
            if phase.was_asked:
                yield from self._drop(now, "no sign of life from the server")
                return
            phase.was_asked = True
            phase.quiet_at = now + self._settings.sign_patience
            yield Write(frames.registration(self._new_id(), None))
        if now >= phase.renew_at:
            # The answer to the registration says when it is to be done again.
            phase.renew_at = NEVER
            if self._settings.has_credentials:
                yield AskCredentials()
            else:
                yield Write(frames.registration(self._new_id(), {}))
        yield from self._catch_up(now)

    def _dial(self, now: float) -> Iterator[Action]:
        settings = self._settings
        self._phase = Dialling(now + GREETING_PATIENCE, shown=None if settings.has_credentials else {})
        yield Became(Connecting())
        if settings.has_credentials:
            yield AskCredentials()
        if not (settings.has_credentials and settings.shows_header):
            yield Dial(self._urls[0])

    def _credentials(self, now: float, token: str | None) -> Iterator[Action]:
        phase = self._phase
        if isinstance(phase, Live):
            # Without, there is a newer resume token at least.
            yield Write(frames.registration(self._new_id(), {} if token is None else {"token": token}))
        elif isinstance(phase, Dialling) and phase.shown is None:
            if token is None:
                yield from self._drop(now, "there are no credentials now")
                return
            phase.shown = {"token": token}
            if self._settings.shows_header:
                yield Dial(self._urls[0], token)
            yield from self._register()

    def _register(self) -> Iterator[Action]:
        phase = self._phase
        if not isinstance(phase, Dialling) or not phase.is_open or phase.shown is None:
            return
        wish: dict[str, object] = {"resumable": True}
        if self._token is not None:
            wish = {"resume": self._token, "seq": self._incoming.has}
        # A server without such sessions has greeted, and refuses this: that is of no harm.
        yield Write(frames.registration(self._new_id(), wish | phase.shown))

    def _came(self, now: float, frame: Frame | None) -> Iterator[Action]:
        phase = self._phase
        if isinstance(phase, Live):
            phase.was_asked = False
            phase.quiet_at = now + self._settings.quiet
        match frame:
            case Greeting():
                yield from self._greeted(now, frame)
            case Received():
                if self._incoming.came(now, frame) and frame.seq is None:
                    yield Write(frames.ack(frame.id, None))
            case Answer():
                yield from self._answered(now, frame)

    def _answered(self, now: float, answer: Answer) -> Iterator[Action]:
        if answer.error is not None and answer.error.code == "EAUTH" and isinstance(self._phase, Dialling | Live):
            self._phase.refusal = answer.error.description
        if self._outgoing.answered(answer.id):
            yield Settle(answer.id, answer.error)
        yield from self._pump(now)

    def _greeted(self, now: float, greeting: Greeting) -> Iterator[Action]:
        """Take the answer to the registration; or later, to a question for a sign of life or a newer token."""
        is_first = isinstance(self._phase, Dialling)
        if not is_first and (not isinstance(self._phase, Live) or greeting.client_id != self.client_id):
            return
        before, self.client_id = self.client_id, greeting.client_id
        if is_first or greeting.token is not None:
            self._token = greeting.token
            self._window = greeting.window
        # A connection may outlast the token, and the credentials, that it began with.
        ends = [] if greeting.token_expires is None else [greeting.token_expires / 2]
        if greeting.credentials_expire is not None and self._settings.has_credentials:
            ends.append(max(greeting.credentials_expire * 0.8, 1.0))
        renew_at = now + min(ends, default=NEVER)
        if isinstance(self._phase, Live):
            self._phase.renew_at = renew_at
            return
        self._phase = Live(quiet_at=now + self._settings.quiet, renew_at=renew_at)
        self._pauses.reset()
        self._incoming.begin(anew=not greeting.resumed)
        if greeting.token is not None:
            # The server is to know that the newer token has come.
            yield Write(frames.ack(self._new_id(), self._incoming.taken))
        # For somebody else the server would not know them again.
        yield from self._put_back(now, greeting.window if greeting.client_id == before else 0.0)
        is_missing = before is not None and not greeting.resumed
        yield Became(Connected(greeting.client_id, greeting.resumed, is_missing))
        yield from self._pump(now)

    def _pump(self, now: float) -> Iterator[Action]:
        if not isinstance(self._phase, Live) or self.client_id is None:
            return
        for send in self._outgoing.write(now):
            yield Write(frames.send(self.client_id, send.id, send.to, send.text))

    def _put_back(self, now: float, window: float) -> Iterator[Action]:
        for id_, why in self._outgoing.put_back(now, window):
            yield Settle(id_, why)

    def _catch_up(self, now: float) -> Iterator[Action]:
        """Tell the server what was taken; and let it begin anew behind that, if there was no room and is some now."""
        if not isinstance(self._phase, Live):
            return
        seq = self._incoming.ack(now)
        if seq is not None:
            yield Write(frames.ack(self._new_id(), seq))
        if self._incoming.is_over and self._incoming.has_room:
            yield Leave(None)
            yield from self._lost(now, 1012, "there was no room for what came", asked=0.0)

    def _drop(self, now: float, why: str) -> Iterator[Action]:
        """Give up a connection that leads nowhere."""
        yield Leave(None)
        yield from self._lost(now, BROKEN, why, asked=0.0)

    def _ended(self, now: float, ending: Ending) -> Iterator[Action]:
        phase = self._phase
        if not isinstance(phase, Dialling | Live):
            return
        reason: Reason | None = "credentials" if ending.status == UNAUTHORIZED else FINAL.get(ending.code)
        # Credentials that have expired are replaced; what is refused at once would be refused again.
        has_expired = reason == "credentials" and self._settings.has_credentials and isinstance(phase, Live)
        if reason is not None and not has_expired:
            yield from self._end(reason, phase.refusal or ending.why)
            return
        if ending.code == TOO_BIG:
            yield from self._refuse_longest()
        if isinstance(phase, Dialling) and not phase.is_open:
            self._refusals += 1
        # Another server may have room.
        is_everywhere = self._refusals >= len(self._urls)
        yield from self._lost(now, ending.code, ending.why, asked=ending.retry_after if is_everywhere else 0.0)

    def _refuse_longest(self) -> Iterator[Action]:
        """A frame was over the server's limit, and would be so again."""
        longest = self._outgoing.longest()
        if longest is not None and self._outgoing.answered(longest):
            yield Settle(longest, error("EMSGSIZE", "the text is too long for the server"))

    def _lost(self, now: float, code: int, why: str, *, asked: float) -> Iterator[Action]:
        yield from self._put_back(now, self._window)
        self._urls.append(self._urls.pop(0))
        pause = self._pauses.next(code, asked)
        self._phase = Pausing(now + pause)
        yield Became(Waiting(pause, why))

    def _end(self, reason: Reason | None, why: str) -> Iterator[Action]:
        self._phase = Over(reason, why)
        self._token = None
        yield Leave(1000)
        for id_ in self._outgoing.clear():
            yield Settle(id_, disconnected("the session ended before the answer; the message may have arrived", reason))
        yield Became(Closed(reason, why))
