"""
The package, as it was installed, against real gateways that die meanwhile. Run by tests/client-python.

The cases are those of clients/CONFORMANCE.md, under the same names.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import unittest
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import gateways
import texto_client
import texto_client.link
from gateways import Gateway, Program, folder, free_port, redis, until
from texto_client import Client, Closed, Connected, Message, State, TextoError, Waiting
from texto_client.actions import Ending

NOBODY = "00000000-0000-4000-8000-000000000000"


class Person:
    """Somebody who remembers all that they hear."""

    def __init__(self, url: str | list[str], **options: Any) -> None:
        self.heard: list[Message] = []
        self.changes: list[State] = []
        self.failure: TextoError | None = None
        self.luck = 0.5
        options.update(patience=0, random=lambda: self.luck, on_state=self.changes.append)
        self.client = texto_client.connect(url, **options)

    async def begin(self) -> Person:
        await self.client.__aenter__()
        self._listening = asyncio.create_task(self._listen())
        return self

    async def _listen(self) -> None:
        try:
            async for message in self.client:
                self.heard.append(message)
        except TextoError as error:
            self.failure = error

    async def end(self) -> None:
        await self.client.close()
        await self._listening

    def send(self, to: str, text: str) -> asyncio.Task[str]:
        """Begin to send; what became of it."""
        return asyncio.create_task(outcome(self.client.send(to, text)))

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.heard]

    @property
    def pauses(self) -> list[float]:
        return [state.retry_in for state in self.changes if isinstance(state, Waiting)]

    @property
    def is_connected(self) -> bool:
        return isinstance(self.client.state, Connected)


async def outcome(sending: Awaitable[None]) -> str:
    try:
        await sending
    except TextoError as error:
        return error.code
    return "ack"


class Conformance(unittest.IsolatedAsyncioTestCase):
    maxDiff = 2_000

    async def asyncSetUp(self) -> None:
        # The test case sets it, and then each wait for the processor is a line.
        asyncio.get_running_loop().set_debug(False)

    async def person(self, url: str | list[str], *, waits: bool = True, **options: Any) -> Person:
        person = await Person(url, **options).begin()
        self.addAsyncCleanup(person.end)
        if waits:
            await self.connected(person)
        return person

    async def connected(self, *people: Person) -> None:
        for person in people:
            await until("they are connected", lambda one=person: one.is_connected, lambda one=person: one.changes)

    async def gateway(self, *args: str) -> Gateway:
        return await Gateway(*args).restart()

    async def test_what_cannot_work_is_told_at_once(self) -> None:
        urls: list[str | list[str]] = ["nowhere", "ftp://localhost/v1/texto", "ws://localhost:99999/", []]
        for url in urls:
            with self.assertRaisesRegex(ValueError, "wss://HOST/v1/texto"):
                texto_client.connect(url)
        with self.assertRaises(texto_client.DisconnectedError):
            await texto_client.connect("wss://localhost/v1/texto").send(NOBODY, "hello")
        with self.assertRaisesRegex(texto_client.NoConnectionError, "Connect call failed"):
            async with texto_client.connect(f"ws://127.0.0.1:{free_port()}/v1/texto", patience=1.0):
                self.fail("nobody is there")

    async def test_two_people_talk_and_each_error_has_its_code(self) -> None:
        gateway = await self.gateway()
        anna = await self.person(gateway.url)
        berta = await self.person(gateway.url.replace("ws:", "http:"))
        self.assertNotEqual(anna.client.id, berta.client.id)
        texts = [f'{number} <&> "ü" 🙂' for number in range(300)]
        await asyncio.gather(*(anna.client.send(berta.client.id.upper(), text) for text in texts))
        await until("all has come", lambda: len(berta.heard) == len(texts))
        self.assertEqual(berta.texts, texts)
        self.assertEqual({message.sender for message in berta.heard}, {anna.client.id})
        await anna.client.send(uuid.UUID(anna.client.id), "to myself")
        await until("it has come", lambda: anna.texts == ["to myself"])

        for to, text, kind, code in [
            (NOBODY, "anybody?", texto_client.NotConnectedError, "ENOTCONN"),
            ("nonsense", "x", texto_client.InvalidError, "EINVAL"),
            (berta.client.id, "half an emoji: \ud83d", texto_client.InvalidError, "ESYNTAX"),
            (berta.client.id, "x" * 20_000, texto_client.SizeError, "EMSGSIZE"),
        ]:
            with self.assertRaises(kind) as caught:
                await anna.client.send(to, text)
            error = caught.exception
            self.assertEqual((error.code, error.retry, error.may_have_arrived), (code, False, False))
            self.assertEqual(str(error), f"{code}: {error.description}")
            self.assertGreater(len(error.description), 10)
        outcomes = await asyncio.gather(*(anna.send(berta.client.id, "much") for _ in range(1_100)))
        self.assertEqual(outcomes.count("EAGAIN"), 1_100 - 1_024)

    async def test_what_comes_twice_is_shown_once_with_numbers_and_without(self) -> None:
        gateway = await self.gateway()

        def with_numbers(text: str) -> str:
            return text

        def without(text: str) -> str:
            return re.sub(r'"seq":\d+,|,"seq":\d+', "", text)

        for change in (with_numbers, without):
            anna, berta = await self.person(gateway.url), await self.person(gateway.url)
            twice(anna.client, change)
            texts = [str(number) for number in range(100)]
            await asyncio.gather(*(berta.client.send(anna.client.id, text) for text in texts))
            await until("all has come", lambda one=anna: len(one.heard) >= 100)
            await outcome(anna.client.send(NOBODY, "x"))  # What came before its answer has come by then.
            self.assertEqual(anna.texts, texts)

    async def test_a_frame_over_the_limit_1009_fails_and_nothing_else_does(self) -> None:
        gateway = await self.gateway("--max-frame-bytes", "20000")
        anna, berta = await self.person(gateway.url), await self.person(gateway.url)
        texts = ["before", "x" * 30_000, "after"]
        outcomes = await asyncio.gather(*(anna.send(berta.client.id, text) for text in texts))
        self.assertEqual(outcomes, ["ack", "EMSGSIZE", "ack"])
        await until("the rest has come", lambda: len(berta.heard) == 2)
        self.assertEqual(berta.texts, ["before", "after"])

    async def test_nobody_there_pauses_grow_to_15_s_with_full_jitter_and_what_is_sent_waits(self) -> None:
        address = f"127.0.0.1:{free_port()}"
        anna = Person(f"ws://{address}/v1/texto")
        anna.luck = 0.001
        await anna.begin()
        self.addAsyncCleanup(anna.end)
        sent = anna.send(NOBODY, "it waits")
        await until("it has tried seven times", lambda: len(anna.pauses) >= 7, lambda: anna.changes)
        pauses = [round(pause * 1000) for pause in anna.pauses[:7]]
        self.assertEqual(pauses, [1, 2, 4, 8, 15, 15, 15])
        anna.luck = 0.02
        gateway = await Gateway(address=address).restart()
        await self.connected(anna)
        self.assertEqual(await sent, "ENOTCONN")
        # Once it was connected they begin anew.
        before = len(anna.pauses)
        gateway.kill(signal.SIGKILL)
        await until("it tries again", lambda: len(anna.pauses) > before)
        self.assertEqual(anna.pauses[before], 0.02)

    async def test_a_server_that_is_full_says_when_to_come_back(self) -> None:
        gateway = await self.gateway("--max-connections", "1")
        first = await self.person(gateway.url)
        second = Person(gateway.url)
        second.luck = 0.01
        await second.begin()
        self.addAsyncCleanup(second.end)
        await until("it waits for a second more", lambda: any(pause >= 1 for pause in second.pauses))
        self.assertTrue(all(pause < 1.15 for pause in second.pauses), second.pauses)
        waiting = next(state for state in second.changes if isinstance(state, Waiting))
        self.assertIn("HTTP 503", waiting.why)
        await first.client.close()
        await self.connected(second)

    async def test_whoever_is_asked_to_go_1012_comes_back_within_a_quarter_of_a_second(self) -> None:
        gateway = await self.gateway("--drain-delay", "100ms", "--drain-window", "200ms")
        anna = await self.person(gateway.url)
        anna.luck = 0.999
        gateway.kill(signal.SIGTERM)
        await until("it is asked to go", lambda: anna.pauses)
        self.assertAlmostEqual(anna.pauses[0], 0.25, places=3)

    async def test_whoever_is_told_to_come_later_1013_does_and_keeps_the_id(self) -> None:
        gateway = await self.gateway("--resumes-per-address", "10")
        anna = await self.person(gateway.url)
        id_ = anna.client.id
        anna.luck = 0.02

        def told() -> list[float]:
            return [pause for pause in anna.pauses if pause != 0.02]

        while not told():
            break_connection(anna.client)
            await until("it is connected, or told", lambda: anna.is_connected or told())
        self.assertEqual(told()[0], 0.1)
        await self.connected(anna)
        self.assertEqual(anna.client.id, id_)

    async def test_whoever_is_replaced_4001_does_not_come_back(self) -> None:
        gateway, token = await self.guarded()
        id_ = str(uuid.uuid4())

        async def credentials() -> str:
            return token(id_, "1h")

        for header in (False, True):
            before = await gateway.metric(ACCEPTED) or 0
            older = await self.person(gateway.url, credentials=credentials, header=header)
            newer = await self.person(gateway.url, credentials=credentials, header=header)
            await until("the older one is told", lambda one=older: isinstance(one.client.state, Closed))
            state = older.client.state
            assert isinstance(state, Closed)
            self.assertEqual(state.reason, "elsewhere")
            await until("its program is told", lambda one=older: one.failure)
            assert isinstance(older.failure, texto_client.DisconnectedError)
            self.assertEqual(older.failure.reason, "elsewhere")
            self.assertEqual(await outcome(older.client.send(id_, "x")), "EDISCONNECTED")
            self.assertEqual(newer.client.id, id_)
            self.assertEqual(await gateway.metric(ACCEPTED), before + 2)
            await newer.client.close()

    async def test_whoever_is_not_let_in_4003_does_not_come_back(self) -> None:
        gateway, token = await self.guarded()
        with self.assertRaisesRegex(texto_client.AuthError, "credentials"):
            async with texto_client.connect(gateway.url):
                self.fail("it is not let in")
        self.assertEqual(await gateway.metric(ACCEPTED), 1)

        async def wrong() -> str:
            return token("berta", "1h")[:-8] + "AAAAAAAA"

        for header in (False, True):
            with self.assertRaises(texto_client.AuthError):
                async with texto_client.connect(gateway.url, credentials=wrong, header=header):
                    self.fail("it is not let in")
        self.assertEqual(await gateway.metric(ACCEPTED), 2)

    async def test_credentials_are_renewed_in_time(self) -> None:
        gateway, token = await self.guarded()
        tokens = [token("berta", "1h"), token("berta", "6s")]
        loop = asyncio.get_running_loop()
        end = loop.time() + 6.5

        async def credentials() -> str:
            return tokens.pop()

        berta = await self.person(gateway.url, credentials=credentials)
        await until("the first is over", lambda: loop.time() > end)
        await berta.client.send(berta.client.id, "still here")
        self.assertEqual([type(state).__name__ for state in berta.changes], ["Connecting", "Connected"])

    async def test_nothing_is_lost_and_nothing_comes_twice_while_gateways_are_killed_drained_and_stopped(self) -> None:
        keys = gateways.made("session-keys", "session-key")
        flags = ["--redis", await redis(), "--session-key-file", str(keys)]
        flags += ["--drain-delay", "100ms", "--drain-window", "200ms"]
        # Nobody is to hear EBUSY because the other one was away: what waits from one sender is a quarter of this.
        flags += ["--outbox-messages", "8192"]
        nodes = await asyncio.gather(self.gateway(*flags), self.gateway(*flags))

        async def is_together() -> bool:
            return all(
                [
                    await node.metric("texto_other_nodes") == 1
                    and await node.metric("texto_sessions_without_standby") == 0
                    for node in nodes
                ]
            )

        await until("there are two copies", is_together)
        urls = [node.url for node in nodes]
        anna = await self.person(urls, quiet=1.0, sign_patience=1.0)
        berta = await self.person(urls[::-1], quiet=1.0, sign_patience=1.0)
        ids = [anna.client.id, berta.client.id]
        outcomes: list[asyncio.Task[str]] = []

        async def talk() -> None:
            number = 0
            while True:
                # Whoever writes more than fits while the other is away is told EBUSY, and rightly.
                if sum(not task.done() for task in outcomes[-200:]) <= 100:
                    number += 1
                    outcomes.append(anna.send(ids[1], f"anna {number}"))
                    outcomes.append(berta.send(ids[0], f"berta {number}"))
                await asyncio.sleep(0.02)

        talking = asyncio.create_task(talk())
        ends = [
            (0, signal.SIGKILL),  # Anna's.
            (1, signal.SIGTERM),  # Now of both.
            (0, signal.SIGSTOP),
            (1, signal.SIGKILL),
        ]
        try:
            for at, number in ends:
                await until("there are two copies", is_together)
                other = urls[1 - at]
                nodes[at].kill(number)
                await until(
                    f"all are at the other one after {number.name}",
                    lambda url=other: all(one.is_connected and server(one.client) == url for one in (anna, berta)),
                    lambda: [one.changes[-6:] for one in (anna, berta)],
                )
                if number == signal.SIGSTOP:
                    nodes[at].kill(signal.SIGKILL)
                await nodes[at].ended()
                await nodes[at].restart()
        finally:
            talking.cancel()
        wrong = [code for code in await asyncio.gather(*outcomes) if code != "ack"]
        self.assertEqual(wrong, [])
        many = len(outcomes) // 2
        for one, name, id_ in [(anna, "berta", ids[0]), (berta, "anna", ids[1])]:
            await until("all has come", lambda one=one: len(one.heard) >= many)
            self.assertEqual(one.texts, [f"{name} {number + 1}" for number in range(many)])
            self.assertEqual(len({message.id for message in one.heard}), many)
            again = [state for state in one.changes if isinstance(state, Connected)][1:]
            self.assertGreaterEqual(len(again), 2)
            self.assertTrue(all(state == Connected(id_, resumed=True, missing=False) for state in again), again)
        print(f"{2 * many} messages, each shown once and in order, over {len(ends)} ends of gateways")

    async def test_the_example_chats_and_a_program_ends_when_its_client_is_closed(self) -> None:
        gateway = await self.gateway()
        example = Path(__file__).with_name("chat.py")

        def chat(*to: str) -> Program:
            return Program(sys.executable, str(example), gateway.url, *to)

        async def said(program: Program, pattern: str) -> re.Match[str]:
            def found() -> re.Match[str] | None:
                return next(filter(None, (re.search(pattern, line) for line in program.lines)), None)

            match: re.Match[str] = await until(pattern, found, lambda: program.lines)
            return match

        anna = chat()
        berta = chat((await said(anna, r"you are (\S{36})"))[1])
        await said(berta, "you are")
        berta.say("hello, you")
        await said(anna, "^[0-9a-f]{8}: hello, you$")
        anna.say("hello yourself")
        await said(berta, "^[0-9a-f]{8}: hello yourself$")
        for program in (anna, berta):
            program.process.communicate("and goodbye\n")
            self.assertEqual(await program.ended(), 0, program.lines)

    async def guarded(self) -> tuple[Gateway, Callable[[str, str], str]]:
        """A gateway that demands credentials, and who makes some."""
        key = folder / "secret"
        key.touch(mode=0o600)
        key.write_text("0123456789abcdef" * 4)

        def token(subject: str, lifetime: str) -> str:
            return gateways.texto("token", "--key-file", str(key), "--subject", subject, "--expires-in", lifetime)

        return await self.gateway("--auth-key-file", str(key), "--auth-leeway", "0s"), token


ACCEPTED = 'texto_handshakes_total{result="accepted"}'


def server(client: Client) -> str:
    """Where it is connected."""
    link = client._link
    return "" if link is None else link._dial.url.partition("?")[0]


def break_connection(client: Client) -> None:
    """As if the network had broken."""
    link = client._link
    if link is not None and link._socket is not None:
        link._socket.transport.abort()
        client.ended(link, Ending())


def twice(client: Client, change: Callable[[str], str]) -> None:
    """Let come twice what comes, changed."""
    came = client.came

    def hear(link: texto_client.link.Link, text: str) -> None:
        came(link, change(text))
        came(link, change(text))

    client.came = hear  # type: ignore[method-assign]


if __name__ == "__main__":
    unittest.main(verbosity=2)
