"""What somebody writes who uses the package, checked by `mypy --strict`; each line that must be refused says so."""

import asyncio
import ssl
import uuid
from typing import assert_type

import texto_client
from texto_client import Closed, Connected, Connecting, Message, Reason, State, TextoError, Waiting


async def fresh() -> str:
    return "token"


def told(state: State) -> str | None:
    match state:
        case Connecting():
            return None
        case Connected(client_id, resumed, missing):
            assert_type(resumed, bool)
            assert_type(missing, bool)
            return client_id
        case Waiting(retry_in, why):
            assert_type(retry_in, float)
            return why
        case Closed(reason, why):
            assert_type(reason, Reason | None)
            return None if reason == "elsewhere" else why
    # Nothing is left: mypy says so if there is a state more.


def callback(state: State) -> None:
    told(state)


async def main() -> None:
    texto_client.connect("wss://chat.example.org/v1/texto")
    client = texto_client.connect(
        ["wss://a.example.org/v1/texto", "wss://b.example.org/v1/texto"],
        patience=None,
        credentials=fresh,
        header=True,
        on_state=callback,
        ssl=ssl.create_default_context(),
        inbox=10,
        quiet=5,
        sign_patience=5,
    )
    async with client as same:
        assert_type(same, texto_client.Client)
        assert_type(same.id, str)
        assert_type(same.state, State)
        await same.send(uuid.uuid4(), "hello")
        try:
            async with asyncio.timeout(1):
                assert_type(await anext(same), Message)
        except texto_client.DisconnectedError as error:
            assert_type(error.reason, Reason | None)
        except TextoError as error:
            assert_type((error.code, error.description), tuple[str, str])
            assert_type((error.retry, error.may_have_arrived), tuple[bool, bool])
        async for message in same:
            assert_type((message.id, message.sender, message.text), tuple[str, str, str])
        async for state in same.states():
            assert_type(state, State)
        same.retry_now()
        await same.close()

    texto_client.connect("wss://chat.example.org/v1/texto", patienc=1)  # type: ignore[call-arg]
    texto_client.connect("wss://chat.example.org/v1/texto", credentials=lambda: "token")  # type: ignore[arg-type, return-value]
    await client.send(uuid.uuid4(), b"hello")  # type: ignore[arg-type]
    client.id = "me"  # type: ignore[misc]
