"""Real gateways and a real Redis, on free ports, that a test can let die. They end with the tests."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

BINARY = os.environ["TEXTO_BINARY"]
LIMIT = 20.0
#: Nothing of what is set for gateways, or about proxies, where the tests run.
ENV = {name: value for name, value in os.environ.items() if not name.startswith("TEXTO_")}

folder = Path(tempfile.mkdtemp(prefix="texto-python-"))
_running: set[subprocess.Popen[str]] = set()


def _stop_all() -> None:
    for child in _running:
        if child.poll() is None:
            child.kill()
            child.wait()
    shutil.rmtree(folder, ignore_errors=True)


atexit.register(_stop_all)


class Program:
    """A program, and what it says line by line."""

    def __init__(self, *words: str) -> None:
        self._log = folder / f"{time.monotonic_ns()}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                words, cwd=folder, env=ENV, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True
            )
        _running.add(self.process)

    @property
    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    async def ended(self) -> int:
        """Wait for the end; the exit code."""
        await until("it ends", lambda: self.process.poll() is not None, lambda: "\n".join(self.lines))
        return self.process.returncode


async def until(what: str, found: Callable[..., Any], describe: Callable[..., object] = str) -> Any:
    """What `found` gives, as soon as it gives something; asked again and again."""
    waited, now = 0.0, time.monotonic()
    while True:
        value = found()
        value = await value if isinstance(value, Awaitable) else value
        if value:
            return value
        if waited > LIMIT:
            raise AssertionError(f"not within {LIMIT} s: {what}; {describe()}")
        await asyncio.sleep(0.01)
        # What this process stood still for (a machine that is suspended) does not count.
        before, now = now, time.monotonic()
        waited += min(now - before, 1.0)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


async def redis() -> str:
    port = free_port()
    program = Program(
        "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"
    )  # fmt: skip
    await until(
        "Redis is there", lambda: any("Ready to accept" in line for line in program.lines), lambda: program.lines
    )
    return f"127.0.0.1:{port}"


class Gateway:
    """A gateway, which `restart` starts again at the same address."""

    def __init__(self, *args: str, address: str = "127.0.0.1:0") -> None:
        self._args = args
        self.address = address

    @property
    def url(self) -> str:
        return f"ws://{self.address}/v1/texto"

    async def restart(self) -> Gateway:
        self.program = Program(BINARY, "--listen", self.address, "--log-format", "json", *self._args)

        def listening() -> str | None:
            return next((line for line in self.program.lines if '"message":"listening"' in line), None)

        line = await until("the gateway listens", listening, lambda: self.program.lines)
        self.address = json.loads(line)["fields"]["address"]
        await until("the gateway is ready", lambda: self._get("/readyz"), lambda: self.program.lines)
        return self

    def kill(self, number: signal.Signals) -> None:
        self.program.process.send_signal(number)

    async def ended(self) -> None:
        await self.program.ended()

    async def metric(self, name: str) -> float | None:
        text = await self._get("/metrics")
        found = (line.split(" ")[1] for line in text.splitlines() if line.startswith(f"{name} "))
        return next(map(float, found), None)

    async def _get(self, path: str) -> str:
        """What is there, or nothing."""

        def get() -> str:
            try:
                with urllib.request.urlopen(f"http://{self.address}{path}", timeout=LIMIT) as answer:
                    return str(answer.read().decode())
            except (OSError, urllib.error.HTTPError):
                return ""

        return await asyncio.to_thread(get)


def made(name: str, *args: str) -> Path:
    """A file of what `texto` prints when it is asked by `args`."""
    file = folder / name
    file.touch(mode=0o600)
    file.write_text(texto(*args))
    return file


def texto(*args: str) -> str:
    return subprocess.run([BINARY, *args], env=ENV, check=True, capture_output=True, text=True).stdout.strip()
