"""
Chats in the terminal. In two of them:

    python chat.py ws://localhost:8398/v1/texto
    python chat.py ws://localhost:8398/v1/texto ID-OF-THE-OTHER

Several addresses stand with commas between them. TEXTO_TOKEN holds credentials, where the gateway demands some.
"""

import asyncio
import os
import sys

import texto_client
from texto_client import Client, Connected, State, TextoError, Waiting


class Chat:
    def __init__(self, receiver: str | None) -> None:
        self.receiver = receiver
        self.id: str | None = None

    def on_state(self, state: State) -> None:
        match state:
            case Waiting(retry_in, why):
                print(f"* no connection ({why}); the next attempt is in {retry_in * 1000:.0f} ms", flush=True)
            case Connected(client_id, _, missing):
                print("* connected again" if client_id == self.id else f"* you are {client_id}", flush=True)
                if missing:
                    print("* some messages may be missing", flush=True)
                self.id = client_id

    async def listen(self, client: Client) -> None:
        async for message in client:
            print(f"{message.sender[:8]}: {message.text}", flush=True)
            if self.receiver is None:
                print(f"* what you write goes to {message.sender}", flush=True)
                self.receiver = message.sender

    async def send(self, client: Client, line: str) -> None:
        if self.receiver is None:
            print("* nobody has written to you yet: start with an id to write first", flush=True)
            return
        try:
            await client.send(self.receiver, line)
        except TextoError as error:
            print(f'* not sent: "{line}" ({error})', flush=True)


async def main(addresses: str = "ws://localhost:8398/v1/texto", to: str | None = None) -> None:
    token = os.environ.get("TEXTO_TOKEN")

    async def credentials() -> str:
        return token or ""

    chat = Chat(to)
    urls = addresses.split(",")
    async with texto_client.connect(
        urls, patience=None, credentials=credentials if token else None, on_state=chat.on_state
    ) as client:
        listening = asyncio.create_task(chat.listen(client))
        reading = asyncio.create_task(read(client, chat))
        done, _ = await asyncio.wait([listening, reading], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def read(client: Client, chat: Chat) -> None:
    """Send what is typed, until there is no more."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with asyncio.TaskGroup() as sends:
        while line := await lines.readline():
            if text := line.decode(errors="replace").strip():
                sends.create_task(chat.send(client, text))


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:3]))
    except TextoError as error:
        sys.exit(f"* the server ended it: {error}")
    except KeyboardInterrupt:
        pass
