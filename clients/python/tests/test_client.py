"""What is of this package alone, with real gateways: cancelled, slow and discreet programs; TLS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import subprocess
import unittest
from typing import Any

from conformance import NOBODY, Person, outcome

import texto_client
from gateways import BINARY, Gateway, Program, folder, free_port, texto, until
from texto_client import Client, Closed, Connected, Connecting, State, Waiting


class Clients(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().set_debug(False)
        self.gateway = await Gateway().restart()

    async def client(self, url: str = "", **options: Any) -> Client:
        return await self.enterAsyncContext(texto_client.connect(url or self.gateway.url, **options))

    async def test_whoever_is_cancelled_has_taken_no_message(self) -> None:
        anna, berta = await self.client(), await self.client()
        texts = [str(number) for number in range(300)]

        async def send() -> None:
            for text in texts:
                await anna.send(berta.id, text)

        taken: list[str] = []

        async def take() -> None:
            taken.append((await anext(berta)).text)

        async def is_cancelled(turns: int) -> bool:
            task = asyncio.create_task(take())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()
            return task.cancelled()

        for turns in range(20):
            self.assertTrue(await is_cancelled(turns), "nothing has come yet")
        sending = asyncio.create_task(send())
        while len(taken) < len(texts):
            # After some turns of the loop, and after about as long as a message takes.
            await is_cancelled(random.randrange(30))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.random() * 0.001):
                    await take()
            self.assertEqual(taken, texts[: len(taken)])
            if sending.done():
                sending.result()  # Nothing more would come if it had failed.
        await sending
        self.assertEqual(taken, texts)

    async def test_a_send_that_is_cancelled_before_it_is_written_is_not_sent(self) -> None:
        berta = await self.client()
        anna = await self.client(f"ws://127.0.0.1:{free_port()}/v1/texto", patience=0)
        for text in ("no", "neither"):
            with self.assertRaises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anna.send(berta.id, text)
        anna._machine._urls = [f"{self.gateway.url}?register=1"]
        await anna.send(berta.id, "yes")
        self.assertEqual((await anext(berta)).text, "yes")

    async def test_a_program_that_is_slow_gets_all_though_there_is_little_room(self) -> None:
        changes: list[State] = []
        anna, berta = await self.client(), await self.client(inbox=8, on_state=changes.append)
        texts = [str(number) for number in range(200)]
        outcomes = await asyncio.gather(*(outcome(anna.send(berta.id, text)) for text in texts))
        self.assertEqual(set(outcomes), {"ack"})
        self.assertLessEqual(berta._machine.unread, 8)
        self.assertEqual([(await anext(berta)).text for _ in texts], texts)
        again = [state for state in changes if isinstance(state, Connected)][1:]
        self.assertGreater(len(again), 10)
        self.assertEqual(set(again), {Connected(berta.id, resumed=True, missing=False)})

    async def test_a_full_server_tells_the_senders_to_a_program_that_takes_nothing(self) -> None:
        gateway = await Gateway("--outbox-messages", "40").restart()
        anna, berta = await self.client(gateway.url), await self.client(gateway.url)
        # For longer than it takes to acknowledge what was taken.
        end = asyncio.get_running_loop().time() + 1.5
        outcomes: list[str] = []
        while len(outcomes) < 60 or asyncio.get_running_loop().time() < end:
            outcomes.append(await outcome(anna.send(berta.id, str(len(outcomes)))))
            await asyncio.sleep(0.01)
        self.assertEqual(outcomes[:10], ["ack"] * 10)
        self.assertEqual(set(outcomes[10:]), {"EBUSY"})
        for _ in range(10):
            await anext(berta)

        async def is_taken() -> bool:
            return await outcome(anna.send(berta.id, "again")) == "ack"

        await until("there is room again", is_taken)

    async def test_a_program_that_answers_each_message_before_the_next_is_not_stuck(self) -> None:
        anna, berta = await self.client(), await self.client(inbox=1)

        async def answer() -> None:
            async for message in berta:
                await berta.send(message.sender, message.text)

        answering = asyncio.create_task(answer())
        texts = [str(number) for number in range(30)]
        await asyncio.gather(*(anna.send(berta.id, text) for text in texts))
        async with asyncio.timeout(20):
            self.assertEqual([(await anext(anna)).text for _ in texts], texts)
        answering.cancel()

    async def test_states_are_told_to_each_who_asks(self) -> None:
        told: list[State] = []

        def fails(state: State) -> None:
            told.append(state)
            raise RuntimeError("a callback that fails stops nobody")

        with self.assertLogs("texto_client", logging.ERROR):
            client = await self.client(on_state=fails)
            states = client.states()
            await client.close()
        now = client.id
        expected: list[State] = [Connected(now, resumed=False, missing=False), Closed(None, "the session was closed")]
        self.assertEqual([state async for state in states], expected)
        self.assertEqual(told, [Connecting(), *expected])
        self.assertEqual([state async for state in client.states()], expected[-1:])
        self.assertEqual([message async for message in client], [])
        self.assertEqual(await outcome(client.send(NOBODY, "late")), "EDISCONNECTED")

    async def test_nothing_goes_on_after_the_end(self) -> None:
        before = asyncio.all_tasks()
        for url in (self.gateway.url, f"ws://127.0.0.1:{free_port()}/v1/texto"):
            client = texto_client.connect(url, patience=0)
            async with client:
                waiting = asyncio.create_task(outcome(client.send(NOBODY, "x")))
                await asyncio.sleep(0)
            await waiting
            self.assertEqual(asyncio.all_tasks(), before)
        person = await Person(self.gateway.url).begin()
        await until("it is connected", lambda: person.is_connected)
        waiting = asyncio.create_task(outcome(person.client.send(NOBODY, "x")))
        await person.end()
        await waiting
        self.assertEqual(asyncio.all_tasks(), before)
        with self.assertRaises(RuntimeError):
            await person.client.__aenter__()

    async def test_secrets_are_not_logged(self) -> None:
        key = folder / "secret"
        key.touch(mode=0o600)
        key.write_text("0123456789abcdef" * 4)
        gateway = await Gateway("--auth-key-file", str(key)).restart()
        shown = texto("token", "--key-file", str(key), "--expires-in", "2s")
        tokens = [shown]

        async def credentials() -> str:
            if not tokens:
                raise RuntimeError("there are none")
            return tokens.pop()

        with self.assertLogs(level=logging.DEBUG) as logs:
            logging.getLogger().debug("all is logged")
            client = await self.client(gateway.url, credentials=credentials, header=True)
            await client.send(client.id, "a text is nobody's business")
            await until("the token was to be renewed", lambda: any("no credentials" in line for line in logs.output))
        said = "\n".join(logs.output) + repr(client) + repr(client._machine) + repr(client._machine._phase)
        resume = client._machine._token
        assert resume is not None
        for secret in (shown, resume, "nobody's business"):
            self.assertNotIn(secret, said)

    async def test_without_credentials_it_is_tried_again(self) -> None:
        answers = ["", "token"]

        async def credentials() -> str:
            return answers.pop() or str(1 // 0)

        answers.reverse()
        changes: list[State] = []
        with self.assertLogs("texto_client", logging.ERROR):
            await self.client(credentials=credentials, on_state=changes.append, random=lambda: 0.01)
        self.assertEqual(changes[:3], [Connecting(), Waiting(0.01, "there are no credentials now"), Connecting()])

    async def test_a_frame_that_cannot_be_written_is_a_connection_lost_and_no_silence(self) -> None:
        changes: list[State] = []
        client = await self.client(random=lambda: 0.01, on_state=changes.append)
        assert client._link is not None
        with self.assertLogs("texto_client", logging.ERROR):
            client._link.write("half an emoji: \ud83d")
            await until("it has noticed", lambda: any(isinstance(state, Waiting) for state in changes))
        await client.send(client.id, "hello")

    async def test_tls_is_believed_where_its_authority_is(self) -> None:
        certificate, key = folder / "cert.pem", folder / "key.pem"
        words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
        more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
        await asyncio.to_thread(subprocess.run, [*words.split(), *more], check=True, capture_output=True)
        key.chmod(0o600)
        address = f"127.0.0.1:{free_port()}"
        words = "--log-format json --tls-cert cert.pem --tls-key key.pem"
        program = Program(BINARY, "--listen", address, *words.split())
        await until("it listens", lambda: any("listening" in line for line in program.lines), lambda: program.lines)
        url = f"wss://{address}/v1/texto"
        trusted = await self.client(url, ssl=ssl.create_default_context(cafile=certificate))
        await trusted.send(trusted.id, "hello")
        changes: list[State] = []
        await self.client(url, patience=0, on_state=changes.append)

        def reasons() -> list[str]:
            return [state.why for state in changes if isinstance(state, Waiting)]

        await until("it says why not", reasons)
        self.assertRegex(reasons()[0].lower(), "certificate.verify.failed")


if __name__ == "__main__":
    unittest.main(verbosity=2)
