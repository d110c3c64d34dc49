"""The machine over a network that breaks, with a seed: each message is shown once, and each send settled once."""

from __future__ import annotations

import json
import random
import unittest
from collections.abc import Callable

from test_machine import Bench

from texto_client.actions import Actions, Dial, Leave, Write


class Server:
    """A server as the protocol has it, of one session and one sender to it, behind a network that breaks."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.had = 0
        self.requests: list[str] = []
        self.written = 0

    def serve(self, bench: Bench, text: str, is_lost: Callable[[], bool]) -> None:
        frame = json.loads(text)
        data = frame["data"] or {}
        match frame["kind"]:
            case "registration" if frame["data"] is not None:
                self.had = max(self.had, data.get("seq", 0))
                self.written = self.had
                resume = {"token": "t", "window_ms": 1e9, "expires_ms": 1e9}
                bench.hear("connection", {"client_id": "me", "resumed": "resume" in data, "resume": resume})
            case "registration":
                bench.hear("connection", {"client_id": "me", "resumed": True})
            case "send":
                if frame["id"] not in self.requests:
                    self.requests.append(frame["id"])
                if not is_lost():
                    bench.hear("ack", None, frame["id"])
            case "ack":
                assert data["seq"] <= self.written
                self.had = max(self.had, data["seq"])


class Simulation(unittest.TestCase):
    def test_whatever_the_network_does_each_message_is_shown_once_and_each_send_settled_once(self) -> None:
        for seed in range(300):
            with self.subTest(seed=seed):
                self.run_with(random.Random(seed))

    def run_with(self, dice: random.Random) -> None:
        inbox = dice.choice([2, 16, 1024])
        bench, server = Bench(luck=0.1, inbox=inbox, quiet=3.0), Server()
        shown: list[str] = []
        sent: list[str] = []
        loss = dice.choice([0.0, 0.02, 0.2])
        is_up, todo = False, bench.actions

        def carry_out(actions: Actions) -> None:
            nonlocal is_up
            queue = list(actions)
            while queue:
                match queue.pop(0):
                    case Dial():
                        is_up = True
                        queue += bench.note(bench.machine.opened(bench.now))
                    case Leave():
                        is_up = False
                    case Write(text) if is_up:
                        if dice.random() < loss:
                            is_up = False
                            queue += bench.end()
                            continue
                        server.serve(bench, text, lambda: dice.random() < loss)
                        queue += bench.actions
                        bench.actions = []

        def calm() -> bool:
            return len(bench.settled) == len(sent) and len(shown) == len(server.messages)

        carry_out(todo)
        for step in range(2_000):
            if step == 300:
                loss = 0.0
            elif step > 300 and calm():
                break
            choice = dice.randrange(5)
            if choice == 0 and step < 300:
                sent.append(f"send-{step}")
                carry_out(bench.send(sent[-1]))
            elif choice == 1 and step < 300:
                server.messages.append(str(len(server.messages) + 1))
            elif choice == 2:
                while (text := bench.take()) is not None and dice.random() < 0.8:
                    shown.append(text)
                    carry_out(bench.actions)
                if text is not None:
                    shown.append(text)
                carry_out(bench.actions)
            else:
                bench.pass_time(dice.random(), carry_out)
            while is_up and bench.machine.client_id and server.written < len(server.messages):
                server.written += 1
                for _ in range(dice.choice([1, 1, 2])):
                    carry_out(bench.receive(server.written))
        self.assertTrue(calm(), (len(shown), len(server.messages), len(bench.settled), len(sent)))
        self.assertEqual(shown, server.messages)
        self.assertEqual([error for error in bench.settled.values() if error is not None], [])
        # None was handed over twice, and all stand in order.
        self.assertEqual(server.requests, sent)
        self.assertLessEqual(server.had, len(shown))


if __name__ == "__main__":
    unittest.main()
