"""A webhook receiver that sends without end gets neither the worker's time nor its memory."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import pytest

from app.jobs.service.bounded_responses import MAX_INFORMATIONAL, BoundedResponseHandler
from app.jobs.service.sending import WebhookResponse, WebhookSender
from app.jobs.settings import JobsSettings
from app.kernel.ids import UserId
from tests.fixtures.waiting import scaled

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def receiver(handle: Handle) -> AsyncIterator[str]:
    """A server that calls `handle` for each connection; its URL."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await handle(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.fixture
async def sender() -> AsyncIterator[WebhookSender]:
    sender = WebhookSender(JobsSettings(webhook_allow=("127.0.0.1/32",), webhook_http=True))
    yield sender
    await sender.close()


async def send(sender: WebhookSender, url: str) -> WebhookResponse:
    return await sender.send(url, "id", 1, b"{}", [bytes(32)], owner=UserId(uuid4()))


async def request_of(reader: asyncio.StreamReader) -> None:
    await reader.readuntil(b"\r\n\r\n{}")


@pytest.mark.parametrize(
    ("informational", "status", "error"),
    [(MAX_INFORMATIONAL, 200, None), (MAX_INFORMATIONAL + 2, None, "protocol_error")],
)
async def test_informational_responses_have_a_bound(
    sender: WebhookSender, informational: int, status: int | None, error: str | None
) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(CONTINUE * informational + OK)
        await reader.read()

    async with receiver(handle) as url:
        answer = await send(sender, url)
        assert (answer.status, answer.error) == (status, error)


async def test_informational_responses_without_end_are_cut_off(sender: WebhookSender) -> None:
    is_cut_off = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        try:
            while True:
                writer.write(CONTINUE * 1000)
                await writer.drain()
        finally:
            is_cut_off.set()

    async with receiver(handle) as url:
        answer = await send(sender, url)
        assert (answer.status, answer.error) == (None, "protocol_error")
        await asyncio.wait_for(is_cut_off.wait(), scaled(20))


async def test_an_answer_that_nothing_asked_for_ends_the_connection(sender: WebhookSender) -> None:
    connections = 0
    is_cut_off = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await request_of(reader)
        writer.write(OK)
        await writer.drain()
        if connections > 1:
            return
        try:
            while True:
                await asyncio.sleep(0.01)
                writer.write(OK)
                await writer.drain()
        finally:
            is_cut_off.set()

    async with receiver(handle) as url:
        assert (await send(sender, url)).status == 200
        await asyncio.wait_for(is_cut_off.wait(), scaled(20))
        # The next message has a connection of its own.
        assert (await send(sender, url)).status == 200
    assert connections == 2


async def test_what_comes_at_once_is_parsed_in_pieces() -> None:
    class Parser:
        def __init__(self) -> None:
            self.pieces: list[int] = []

        def feed_data(self, data: bytes) -> tuple[list[Any], bool, bytes]:
            self.pieces.append(len(data))
            return [], False, b""

    handler: Any = BoundedResponseHandler(asyncio.get_running_loop())
    handler._parser = parser = Parser()
    handler.data_received(bytes(20 * 1024))
    handler.data_received(b"")
    assert parser.pieces == [8192, 8192, 4096, 0]
