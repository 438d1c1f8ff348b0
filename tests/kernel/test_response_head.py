"""Answers that come whole with a prepared head: what our server writes of them, and what any other one is told."""

import asyncio
from typing import Any

import pytest
from uvicorn.server import ServerState

from app.kernel.headers.response_head import PreparedHead
from app.kernel.server.process import Config
from app.kernel.server.protocol import GuardedProtocol
from app.kernel.settings import ConnectionSettings

HEAD = PreparedHead(200, [(b"content-length", b"4"), (b"etag", b'"x"')])
REQUEST = b"GET / HTTP/1.1\r\nHost: onehop.example\r\n\r\n"


async def answer_of(change: Any, request: bytes = REQUEST) -> list[bytes]:
    """What comes back, in pieces of one request each; `change` is what a layer between does to the message."""

    async def app(_: Any, __: Any, send: Any) -> None:
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": HEAD.headers,
            "prepared": HEAD,
            "whole_body": b"text",
        }
        change(start)
        await send(start)
        if "is_sent_whole" not in start:
            await send({"type": "http.response.body", "body": b"text"})

    config = Config("unused:unused", connections=ConnectionSettings(), grace=1, interface="asgi3", log_config=None)
    config.loaded, config.loaded_app, config.ws_protocol_class = True, app, None
    loop = asyncio.get_running_loop()
    state = ServerState()
    listener = await loop.create_server(lambda: GuardedProtocol(config, state, {}), "127.0.0.1", 0)
    async with listener:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        pieces = []
        for _ in range(2):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            pieces.append(head + await reader.readexactly(4))
            if b"connection: close" in head.lower():
                pieces.append(await reader.read())
                break
        writer.close()
        await writer.wait_closed()
    return pieces


def nothing(_: Any) -> None:
    """No layer is between."""


def append(message: Any) -> None:
    message["headers"] = [*message["headers"], (b"x-request-id", b"1")]


def prepend(message: Any) -> None:
    message["headers"] = [(b"vary", b"origin"), *message["headers"]]


def take_body(message: Any) -> None:
    message["whole_body"] = None


def take_prepared(message: Any) -> None:
    del message["prepared"]


def take_both(message: Any) -> None:
    del message["prepared"], message["whole_body"]


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (nothing, b'content-length: 4\r\netag: "x"'),
        (append, b'content-length: 4\r\netag: "x"\r\nx-request-id: 1'),
        (prepend, b'vary: origin\r\ncontent-length: 4\r\netag: "x"'),
        (take_body, b'content-length: 4\r\netag: "x"'),
        (take_prepared, b'content-length: 4\r\netag: "x"'),
        (take_both, b'content-length: 4\r\netag: "x"'),
    ],
)
async def test_a_whole_answer_is_written_as_any_other(change: Any, lines: bytes) -> None:
    assert await answer_of(change) == [b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n\r\ntext"] * 2


async def test_the_last_answer_says_so_and_ends_the_connection() -> None:
    piece, rest = await answer_of(nothing, REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert rest == b""
    assert piece == b'HTTP/1.1 200 OK\r\ncontent-length: 4\r\netag: "x"\r\nconnection: close\r\n\r\ntext'


def test_a_header_cannot_break_the_message() -> None:
    for header in ((b"x", b"a\r\nb: c"), (b"x\r\n", b"a"), (b"x y", b"a"), (b"x", b"a\0")):
        with pytest.raises(ValueError, match="cannot be sent"):
            PreparedHead(200, [header])
