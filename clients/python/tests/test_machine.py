"""The machine alone: no sockets, and a clock that the test turns."""

from __future__ import annotations

import json
import unittest
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from texto_client import Closed, Connected, Connecting, State, TextoError, Waiting
from texto_client.actions import Actions, AskCredentials, Became, Dial, Ending, Leave, Settings, Settle, Write
from texto_client.frames import decode
from texto_client.machine import Machine
from texto_client.pauses import retry_after

URL = "ws://a/v1/texto?register=1"


class Bench:
    """A machine, and what it has decided."""

    def __init__(self, *, luck: float = 1.0, **settings: Any) -> None:
        self.now = 100.0
        self.ids = 0
        self.luck = luck
        self.machine = Machine(Settings(**({"urls": (URL,)} | settings)), lambda: self.luck, self._id)
        self.actions: Actions = []
        self.settled: dict[str, TextoError | None] = {}
        self.note(self.machine.start(self.now))

    def _id(self) -> str:
        self.ids += 1
        return f"own-{self.ids}"

    def note(self, actions: Actions) -> Actions:
        self.actions = actions
        for action in actions:
            if isinstance(action, Settle):
                assert action.id not in self.settled, "settled twice"
                self.settled[action.id] = action.error
        return actions

    def wait(self, seconds: float) -> Actions:
        """Let time pass, and what is due be done in time."""
        actions: Actions = []
        self.pass_time(seconds, actions.extend)
        return actions

    def pass_time(self, seconds: float, carry_out: Callable[[Actions], None]) -> None:
        end = self.now + seconds
        while (due := self.machine.deadline()) <= end:
            self.now = max(self.now, due)
            carry_out(self.note(self.machine.tick(self.now)))
        self.now = end

    def hear(self, kind: str, data: object, id_: str = "x") -> Actions:
        frame = {"client_id": None, "id": id_, "kind": kind, "data": data}
        return self.note(self.machine.came(self.now, json.dumps(frame)))

    def greet(self, client: str = "me", *, resumed: bool = False, window: float = 30.0, **more: Any) -> Actions:
        """Open the connection, and let the server greet."""
        self.note(self.machine.opened(self.now))
        resume = {"token": "token", "window_ms": window * 1000, "expires_ms": 86_400_000, "standby": True}
        return self.hear("connection", {"client_id": client, "resumed": resumed, "resume": resume} | more)

    def receive(self, seq: int | None, id_: str = "") -> Actions:
        more = {} if seq is None else {"seq": seq}
        return self.hear("receive", {"sender_id": "you", "text": str(seq)} | more, id_ or f"message-{seq}")

    def send(self, id_: str, text: str = "hello") -> Actions:
        return self.note(self.machine.send(self.now, id_, "you", text))

    def end(self, code: int = 1006, **more: Any) -> Actions:
        return self.note(self.machine.ended(self.now, Ending(code, **more)))

    def take(self) -> str | None:
        message, actions = self.machine.take(self.now)
        self.note(actions)
        return None if message is None else message.text


def written(actions: Actions, kind: str | None = None) -> list[Any]:
    frames = [json.loads(action.text) for action in actions if isinstance(action, Write)]
    return [frame for frame in frames if kind in (None, frame["kind"])]


def states(actions: Actions) -> list[State]:
    return [action.state for action in actions if isinstance(action, Became)]


def of(kind: type, actions: Actions) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


class Connections(unittest.TestCase):
    def test_it_asks_for_a_session_that_can_be_resumed_and_then_resumes_it(self) -> None:
        bench = Bench()
        self.assertEqual(bench.actions, [Became(Connecting()), Dial(URL)])
        opened = bench.machine.opened(bench.now)
        self.assertEqual([frame["data"] for frame in written(opened)], [{"resumable": True}])
        greeted = bench.greet()
        self.assertEqual(states(greeted), [Connected("me", resumed=False, missing=False)])
        bench.receive(1)
        bench.receive(2)
        self.assertEqual(states(bench.end()), [Waiting(1.0, "the connection broke")])
        self.assertEqual(of(Dial, bench.wait(1.0)), [Dial(URL)])
        opened = bench.machine.opened(bench.now)
        # What waits for the program is here: it need not come again.
        self.assertEqual([frame["data"] for frame in written(opened)], [{"resume": "token", "seq": 2}])
        self.assertEqual(states(bench.greet(resumed=True)), [Connected("me", resumed=True, missing=False)])

    def test_a_session_that_could_not_be_resumed_says_that_something_may_be_missing(self) -> None:
        for client in ("me", "somebody else"):
            bench = Bench()
            bench.greet()
            bench.receive(1)
            bench.end()
            bench.wait(1.0)
            self.assertEqual(states(bench.greet(client)), [Connected(client, resumed=False, missing=True)])
            # The numbering begins anew.
            bench.receive(1, "another")
            self.assertEqual([bench.take(), bench.take(), bench.take()], ["1", "1", None])
            self.assertEqual([frame["data"] for frame in written(bench.wait(1.0))], [{"seq": 1}])

    def test_what_an_older_session_left_is_not_acknowledged_to_a_newer_one(self) -> None:
        bench = Bench(quiet=1e9)
        bench.greet()
        for seq in (1, 2):
            bench.receive(seq)
        bench.end()
        bench.wait(1.0)
        bench.greet()
        bench.receive(1, "another")
        self.assertEqual([bench.take(), bench.take()], ["1", "2"])
        self.assertEqual([frame["data"] for frame in written(bench.wait(1.0))], [{"seq": 0}])
        self.assertEqual(bench.take(), "1")
        self.assertEqual([frame["data"] for frame in written(bench.wait(1.0))], [{"seq": 1}])

    def test_no_greeting_is_waited_for_10_s(self) -> None:
        bench = Bench()
        bench.machine.opened(bench.now)
        self.assertEqual(bench.wait(9.9), [])
        self.assertEqual(bench.wait(0.1), [Leave(None), Became(Waiting(1.0, "no greeting in time"))])

    def test_silence_is_asked_about_after_10_s_and_left_after_5_more(self) -> None:
        bench = Bench()
        bench.greet()
        self.assertEqual(bench.wait(9.9), [])
        asked = bench.wait(0.1)
        self.assertEqual([(frame["kind"], frame["data"]) for frame in written(asked)], [("registration", None)])
        bench.hear("connection", {"client_id": "me", "resumed": True})
        self.assertEqual(len(written(bench.wait(10.0))), 1)
        self.assertEqual(bench.wait(4.9), [])
        self.assertEqual(bench.wait(0.1), [Leave(None), Became(Waiting(1.0, "no sign of life from the server"))])

    def test_a_server_that_greets_and_drops_is_come_back_to_with_pauses_from_the_beginning(self) -> None:
        bench = Bench()
        pauses = []
        for _ in range(6):
            (state,) = states(bench.end())
            assert isinstance(state, Waiting)
            pauses.append(state.retry_in)
            bench.wait(state.retry_in)
        self.assertEqual(pauses, [1, 2, 4, 8, 15, 15])
        bench.greet()
        self.assertEqual(states(bench.end(1012)), [Waiting(0.25, "the connection broke")])

    def test_of_several_servers_the_next_one_is_tried_after_each_failure(self) -> None:
        bench = Bench(urls=("ws://a", "ws://b", "ws://c"))
        dialled = of(Dial, bench.actions)
        for _ in range(3):
            bench.end()
            dialled += of(Dial, bench.machine.retry_now(bench.now))
        self.assertEqual([dial.url for dial in dialled], ["ws://a", "ws://b", "ws://c", "ws://a"])

    def test_retry_after_counts_when_every_server_has_refused(self) -> None:
        bench = Bench(urls=("ws://a", "ws://b"), luck=0.5)
        self.assertEqual(states(bench.end(status=503, retry_after=7.0, why="full")), [Waiting(0.5, "full")])
        bench.wait(0.5)
        self.assertEqual(states(bench.end(status=503, retry_after=7.0, why="full")), [Waiting(8.0, "full")])
        bench.wait(8.0)
        self.assertEqual(states(bench.end(status=503, retry_after=1e9, why="full")), [Waiting(62.0, "full")])

    def test_whoever_retries_now_waits_no_longer(self) -> None:
        bench = Bench()
        bench.end()
        self.assertEqual(len(of(Dial, bench.machine.retry_now(bench.now))), 1)
        self.assertEqual(bench.machine.retry_now(bench.now), [])

    def test_the_token_is_renewed_in_half_of_its_time(self) -> None:
        bench = Bench(quiet=1e9)
        bench.greet()
        self.assertEqual(bench.wait(43_199), [])
        self.assertEqual([frame["data"] for frame in written(bench.wait(1))], [{}])


class Credentials(unittest.TestCase):
    def test_they_are_asked_for_while_it_dials_and_shown_in_the_first_frame(self) -> None:
        bench = Bench(has_credentials=True)
        self.assertEqual(bench.actions[1:], [AskCredentials(), Dial(URL)])
        self.assertEqual(bench.machine.opened(bench.now), [])
        shown = bench.machine.credentials(bench.now, "secret")
        self.assertEqual([frame["data"] for frame in written(shown)], [{"resumable": True, "token": "secret"}])
        self.assertNotIn("secret", repr(shown))

    def test_for_a_header_they_are_waited_for(self) -> None:
        bench = Bench(has_credentials=True, shows_header=True)
        self.assertEqual(bench.actions[1:], [AskCredentials()])
        dial = bench.machine.credentials(bench.now, "secret")
        self.assertEqual(dial, [Dial(URL, "secret")])
        self.assertNotIn("secret", repr(dial))

    def test_without_some_it_is_tried_again_later(self) -> None:
        bench = Bench(has_credentials=True)
        gone = bench.machine.credentials(bench.now, None)
        self.assertEqual(gone, [Leave(None), Became(Waiting(1.0, "there are no credentials now"))])

    def test_they_are_renewed_before_they_end_and_their_end_is_not_that_of_the_session(self) -> None:
        bench = Bench(has_credentials=True)
        bench.machine.credentials(bench.now, "secret")
        bench.greet(credentials={"expires_ms": 10_000})
        self.assertEqual(bench.wait(7.9), [])
        self.assertEqual(bench.wait(0.1), [AskCredentials()])
        renewed = bench.machine.credentials(bench.now, "newer")
        self.assertEqual([frame["data"] for frame in written(renewed)], [{"token": "newer"}])
        self.assertIsInstance(states(bench.end(4003))[0], Waiting)

    def test_what_is_refused_at_once_would_be_refused_again(self) -> None:
        for ending in ({"code": 4003}, {"status": 401}):
            bench = Bench(has_credentials=True)
            bench.machine.credentials(bench.now, "secret")
            bench.machine.opened(bench.now)
            bench.hear("error", {"code": "EAUTH", "description": "they have expired"})
            self.assertEqual(states(bench.end(**ending)), [Closed("credentials", "they have expired")])
            with self.assertRaises(TextoError) as caught:
                bench.send("late")
            self.assertEqual(caught.exception.code, "EAUTH")


class Sends(unittest.TestCase):
    def test_64_are_open_at_a_time_and_1024_wait(self) -> None:
        bench = Bench()
        bench.greet()
        for number in range(1024):
            bench.send(str(number))
        with self.assertRaises(TextoError) as caught:
            bench.send("too many")
        self.assertEqual(caught.exception.code, "EAGAIN")
        self.assertEqual([frame["id"] for frame in written(bench.hear("ack", None, "0"))], ["64"])

    def test_what_was_not_answered_is_written_again_in_order_and_before_anything_newer(self) -> None:
        bench = Bench()
        bench.greet()
        for id_ in "abc":
            bench.send(id_)
        bench.hear("ack", None, "b")
        bench.end()
        bench.send("d")
        bench.wait(1.0)
        self.assertEqual([frame["id"] for frame in written(bench.greet(resumed=True), "send")], ["a", "c", "d"])
        self.assertEqual(bench.settled, {"b": None})

    def test_to_somebody_else_s_session_nothing_is_written_again(self) -> None:
        bench = Bench()
        bench.greet()
        bench.send("old")
        bench.end()
        bench.send("new")
        bench.wait(1.0)
        greeted = bench.greet("another")
        self.assertEqual([frame["id"] for frame in written(greeted, "send")], ["new"])
        self.assertEqual(str(bench.settled["old"])[:13], "EDISCONNECTED")

    def test_after_the_window_nothing_is_written_again(self) -> None:
        bench = Bench()
        bench.greet(window=5.0)
        bench.send("a")
        bench.wait(2.0)
        bench.end()
        bench.wait(2.9)
        self.assertEqual(bench.settled, {})
        bench.wait(0.1)
        self.assertEqual(str(bench.settled["a"])[:13], "EDISCONNECTED")

    def test_without_a_connection_it_waits_for_30_s(self) -> None:
        bench = Bench()
        bench.send("a")
        bench.wait(29.9)
        self.assertEqual(bench.settled, {})
        bench.wait(0.1)
        self.assertEqual(str(bench.settled["a"])[:8], "ETIMEOUT")

    def test_a_server_that_does_not_answer_is_left_after_20_s(self) -> None:
        bench = Bench(quiet=1e9)
        bench.greet()
        bench.send("a")
        self.assertEqual(bench.wait(19.9), [])
        self.assertEqual(bench.wait(0.1), [Leave(None), Became(Waiting(1.0, "the server did not answer"))])
        bench.wait(1.0)
        self.assertEqual([frame["id"] for frame in written(bench.greet(resumed=True), "send")], ["a"])

    def test_what_nobody_waits_for_is_not_written_but_counts_once_it_was(self) -> None:
        bench = Bench()
        bench.greet()
        for number in range(66):
            bench.send(str(number))
        bench.machine.give_up("0")
        bench.machine.give_up("64")
        self.assertEqual([frame["id"] for frame in written(bench.hear("ack", None, "0"))], ["65"])
        self.assertEqual(bench.settled, {})
        bench.machine.give_up("1")
        bench.end()
        bench.wait(1.0)
        self.assertEqual(written(bench.greet(resumed=True), "send")[0]["id"], "2")

    def test_what_cannot_be_written_is_refused_at_once(self) -> None:
        bench = Bench()
        bench.greet()
        for to, text in [("you", "half an emoji: \ud83d"), ("\ud83d", "hello")]:
            with self.assertRaises(TextoError) as caught:
                bench.machine.send(bench.now, "a", to, text)
            self.assertEqual(caught.exception.code, "ESYNTAX")

    def test_1009_fails_the_longest(self) -> None:
        bench = Bench()
        bench.greet()
        for id_, text in [("a", "x"), ("b", "üüüü"), ("c", "xxxxx")]:
            bench.send(id_, text)
        bench.end(1009)
        self.assertEqual({id_: str(error)[:8] for id_, error in bench.settled.items()}, {"b": "EMSGSIZE"})

    def test_the_end_settles_everything(self) -> None:
        bench = Bench()
        bench.greet()
        for number in range(100):
            bench.send(str(number))
        ended = bench.note(bench.machine.close())
        self.assertEqual(ended[0], Leave(1000))
        self.assertEqual(states(ended), [Closed(None, "the session was closed")])
        self.assertEqual({str(error)[:13] for error in bench.settled.values()}, {"EDISCONNECTED"})
        self.assertEqual((len(bench.settled), bench.machine.deadline()), (100, float("inf")))


class Messages(unittest.TestCase):
    def test_only_what_the_program_took_is_acknowledged_within_a_second(self) -> None:
        bench = Bench(quiet=1e9)
        bench.greet()
        for seq in (1, 2, 3):
            bench.receive(seq)
        self.assertEqual((bench.take(), bench.take()), ("1", "2"))
        self.assertEqual([frame["data"] for frame in written(bench.wait(1.0))], [{"seq": 2}])
        # A program that takes nothing is no dead client: its server hears so, long before the 30 s that it gives.
        self.assertEqual([frame["data"] for frame in written(bench.wait(30.0))], [{"seq": 2}] * 3)
        self.assertEqual(bench.take(), "3")
        self.assertEqual([frame["data"] for frame in written(bench.wait(60.0))], [{"seq": 3}])

    def test_64_that_were_taken_are_acknowledged_at_once(self) -> None:
        bench = Bench()
        bench.greet()
        for seq in range(1, 65):
            bench.receive(seq)
        for _ in range(63):
            bench.take()
        self.assertEqual(bench.actions, [])
        bench.take()
        self.assertEqual([frame["data"] for frame in written(bench.actions)], [{"seq": 64}])

    def test_what_comes_twice_is_shown_once(self) -> None:
        bench = Bench()
        bench.greet()
        for seq in (1, 2, 1, 2, 3):
            bench.receive(seq)
        self.assertEqual([bench.take() for _ in range(4)], ["1", "2", "3", None])
        for id_ in ("a", "b", "a"):
            self.assertEqual([frame["kind"] for frame in written(bench.receive(None, id_))], ["ack"])
        self.assertEqual(bench.machine.unread, 2)

    def test_what_there_is_no_room_for_comes_again_when_there_is_some(self) -> None:
        bench = Bench(inbox=4)
        bench.greet()
        for seq in range(1, 8):
            bench.receive(seq)
        self.assertEqual(bench.machine.unread, 4)
        # Sends go on meanwhile: a program that answers each message before it takes the next is not stuck.
        bench.send("answer")
        bench.hear("ack", None, "answer")
        self.assertEqual(bench.settled, {"answer": None})
        bench.take()
        # There is room for it, but what came before it is not here.
        bench.receive(8)
        self.assertEqual(bench.machine.unread, 3)
        self.assertEqual(of(Leave, bench.actions), [])
        bench.take()
        self.assertEqual(of(Leave, bench.actions), [Leave(None)])
        bench.wait(0.25)
        bench.machine.opened(bench.now)
        opened = bench.machine.opened(bench.now)
        self.assertEqual([frame["data"]["seq"] for frame in written(opened)], [4])
        bench.greet(resumed=True)
        for seq in (5, 6):
            bench.receive(seq)
        self.assertEqual([bench.take() for _ in range(5)], ["3", "4", "5", "6", None])

    def test_a_server_of_version_1_greets_by_itself(self) -> None:
        bench = Bench()
        bench.machine.opened(bench.now)
        self.assertEqual(len(states(bench.hear("connection", {"client_id": "me"}))), 1)
        self.assertEqual(bench.hear("error", {"code": "EINVAL", "description": "no data"}), [])
        bench.send("a")
        bench.end()
        self.assertEqual(str(bench.settled["a"])[:13], "EDISCONNECTED")
        bench.wait(1.0)
        bench.machine.opened(bench.now)
        greeted = bench.hear("connection", {"client_id": "another"})
        self.assertEqual(states(greeted), [Connected("another", resumed=False, missing=True)])

    def test_frames_that_nobody_can_read_are_left_alone(self) -> None:
        for text in (
            "",
            "[]",
            "null",
            "7",
            "{",
            '{"kind":"receive"}',
            '{"kind":"new","id":"x","data":{}}',
            "[" * 100_000,
        ):
            self.assertIsNone(decode(text))
        for kind, data in [
            ("connection", None),
            ("connection", {"client_id": 7}),
            ("connection", {"client_id": "me", "resume": {"token": "t", "window_ms": "30"}}),
            ("receive", {"sender_id": "you", "text": 7}),
            ("receive", {"sender_id": "you", "text": "x", "seq": "7"}),
            ("error", {}),
        ]:
            self.assertIsNone(decode(json.dumps({"kind": kind, "id": "x", "data": data})), (kind, data))


class Time(unittest.TestCase):
    def test_retry_after_is_a_number_or_a_date(self) -> None:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        for header, seconds in [
            (None, 0),
            ("3", 3),
            ("100000", 60),
            ("-1", 0),
            ("soon", 0),
            ("Thu, 01 Jan 2026 00:00:05 GMT", 5),
            ("Wed, 31 Dec 2025 00:00:05 GMT", 0),
        ]:
            self.assertEqual(retry_after(header, now), seconds, header)


if __name__ == "__main__":
    unittest.main()
