"""The proxy does what the tests of faults rely on."""

import asyncio
import math
import os
import socket
from collections.abc import AsyncIterator
from time import perf_counter
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis.asyncio as redis

from tests.faults.proxy import Proxy, black_hole
from tests.fixtures.waiting import SCALE, eventually, in_time

PAYLOAD = os.urandom(300_000)


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """The port of a server that sends back what it gets."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def proxy(echo: int) -> AsyncIterator[Proxy]:
    async with Proxy(("127.0.0.1", echo)) as proxy:
        yield proxy


class Caller:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def exchange(self, data: bytes = b"ping") -> float:
        """Sends and gets it back; the answer is how many seconds that took."""
        started = perf_counter()
        self.writer.write(data)
        assert await self.reader.readexactly(len(data)) == data
        return perf_counter() - started


@pytest.fixture
async def caller(proxy: Proxy) -> AsyncIterator[Caller]:
    caller = Caller(*await asyncio.open_connection("127.0.0.1", proxy.port))
    yield caller
    caller.writer.transport.abort()


async def test_passes_on_what_it_gets(proxy: Proxy, caller: Caller) -> None:
    await caller.exchange(PAYLOAD)
    assert (proxy.connections, proxy.accepted) == (1, 1)
    caller.writer.write_eof()
    assert await caller.reader.read() == b""
    await eventually(lambda: proxy.connections == 0)


async def test_latency_is_that_of_the_way_and_not_of_each_chunk(proxy: Proxy, caller: Caller) -> None:
    proxy.slow_down(towards="client", latency=0.2, jitter=0.05)
    assert await caller.exchange() >= 0.2
    proxy.slow_down(towards="client", latency=0.5)
    # Many chunks, all under way at once: one after the other they would not be through in time.
    async with in_time():
        assert await caller.exchange(PAYLOAD * 20 * math.ceil(SCALE)) >= 0.5


async def test_slices_and_bandwidth(proxy: Proxy, caller: Caller) -> None:
    proxy.slow_down(towards="server", slice_bytes=1, slice_pause=0.001)
    assert await caller.exchange(PAYLOAD[:50]) >= 0.05
    proxy.slow_down(bandwidth=100_000)
    assert await caller.exchange(PAYLOAD[:20_000]) >= 0.1


async def test_frozen_connections_go_on_afterwards(proxy: Proxy, caller: Caller) -> None:
    await caller.exchange()
    async with proxy.frozen():
        late = Caller(*await asyncio.open_connection("127.0.0.1", proxy.port))
        waiting = [asyncio.create_task(each.exchange()) for each in (caller, late)]
        assert await asyncio.wait(waiting, timeout=0.2) == (set(), set(waiting))
    assert min(await asyncio.gather(*waiting)) >= 0.2
    late.writer.close()


async def test_down_and_up_again_on_the_same_port(proxy: Proxy, caller: Caller) -> None:
    await caller.exchange()
    port = proxy.port
    async with proxy.refusing():
        with pytest.raises(ConnectionResetError):
            await caller.exchange()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
    again = Caller(*await asyncio.open_connection("127.0.0.1", port))
    await again.exchange()
    again.writer.close()


async def test_reset_ends_what_is_there_and_nothing_else(proxy: Proxy, caller: Caller) -> None:
    await caller.exchange()
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await caller.exchange()
    await eventually(lambda: proxy.connections == 0)
    again = Caller(*await asyncio.open_connection("127.0.0.1", proxy.port))
    await again.exchange()
    again.writer.close()


async def test_an_end_may_come_late(proxy: Proxy, caller: Caller) -> None:
    proxy.slow_down(close_delay=0.1)
    caller.writer.write_eof()
    started = perf_counter()
    assert await caller.reader.read() == b""
    assert perf_counter() - started >= 0.2


async def test_a_server_that_is_not_there() -> None:
    async with Proxy("/nowhere/socket") as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()


async def test_black_hole() -> None:
    with black_hole() as port, socket.socket() as caller:
        caller.setblocking(False)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(caller, ("127.0.0.1", port)), 0.3)


async def test_stands_before_the_server_of_a_url(database_url: str, redis_url: str) -> None:
    async with Proxy.before(database_url) as to_postgres, Proxy.before(redis_url) as to_redis:
        connection = await asyncpg.connect(to_postgres.url)
        assert await connection.fetchval("SELECT current_database()") == urlsplit(database_url).path.lstrip("/")
        await connection.close()
        async with redis.Redis.from_url(to_redis.url) as client:
            assert await client.ping() is True
        assert (to_postgres.accepted, to_redis.accepted) == (1, 1)
    proxy = Proxy.before("http://user@127.0.0.1:81/path?q=1")
    assert proxy.url == "http://user@127.0.0.1:0/path?q=1"
