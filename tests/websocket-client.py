"""A client of another make (websockets, from PyPI) chats with itself over a gateway that compresses, by each offer that
it knows. Usage: websocket-client.py HOST:PORT"""

import asyncio
import json
import sys
import uuid

from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate

URL = f"ws://{sys.argv[1]}/v1/texto"
TEXT = "Wer immer strebend sich bemüht, den können wir erlösen. " * 200
OFFERS = [
    {},
    {"client_max_window_bits": True},
    {"client_max_window_bits": 9},
    {"server_no_context_takeover": True, "client_no_context_takeover": True},
    *({"server_max_window_bits": bits} for bits in range(9, 16)),
]


async def chat(extension):
    async with connect(URL, extensions=[extension] if extension else None, compression=None) as socket:
        greeting = json.loads(await socket.recv())
        own = greeting["data"]["client_id"]
        for text in (TEXT, "short", "", TEXT[:700]):
            request = str(uuid.uuid4())
            data = {"receiver_id": own, "text": text}
            await socket.send(json.dumps({"client_id": own, "id": request, "kind": "send", "data": data}))
            # In whatever order.
            frames = {frame["kind"]: frame for frame in [json.loads(await socket.recv()) for _ in range(2)]}
            assert frames["ack"]["id"] == request, frames
            assert frames["receive"]["data"]["text"] == text, frames
        return socket.protocol.extensions


async def main():
    for offer in OFFERS:
        (agreed,) = await asyncio.wait_for(chat(ClientPerMessageDeflateFactory(**offer)), 30)
        assert isinstance(agreed, PerMessageDeflate), agreed
        assert agreed.remote_no_context_takeover and agreed.local_no_context_takeover, agreed
        assert agreed.remote_max_window_bits == offer.get("server_max_window_bits", 15), agreed
    assert await asyncio.wait_for(chat(None), 30) == []
    print(f"another client: {len(OFFERS)} offers agreed to, and none")


asyncio.run(main())
