"""The application behind both servers that speak to it, and a client that sends bytes as they are."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
import uvicorn
from fastapi import FastAPI

from app.kernel.server.protocol import GuardedProtocol
from tests.attacks.blockade import Blockade
from tests.fixtures.application import free_port
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.identity.conftest import admin, clock, identity, log_in, mailbox, resources, worker

__all__ = ["admin", "clock", "identity", "log_in", "mailbox", "resources", "worker"]


@dataclass(frozen=True)
class RawAnswer:
    """One HTTP answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class RawClient:
    """Sends each request over a connection of its own. `server` is `serve` (ours) or `uvicorn`."""

    server: str
    port: int

    async def request(
        self, method: str, target: str, fields: Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> RawAnswer:
        """The fields go out in this order, behind `Host` and with `Content-Length` where there is a body."""
        sent = [("Host", "localhost"), *fields, *([("Content-Length", str(len(body)))] if body else [])]
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent)
        return await self.exchange(f"{method} {target} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode() + body)

    async def exchange(self, message: bytes) -> RawAnswer:
        """The answer to a whole message, read until the server ends the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(message)
            raw = await asyncio.wait_for(reader.read(), 60)
        finally:
            writer.close()
        head, _, answer = raw.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return RawAnswer(int(status_line.split()[1]), headers, answer)


@pytest.fixture(params=["serve", "uvicorn"])
async def raw(request: pytest.FixtureRequest, app: FastAPI) -> AsyncIterator[RawClient]:
    """The running application behind our protocol, and behind uvicorn's own."""
    port = free_port()
    protocol: Any = GuardedProtocol if request.param == "serve" else "httptools"
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, http=protocol, ws="websockets-sansio", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    # The signals are pytest's.
    serving = asyncio.create_task(server._serve())
    try:
        await eventually(lambda: server.started)
        yield RawClient(request.param, port)
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
async def blockade(database_url: str, connection: Connection) -> AsyncIterator[Blockade]:
    holder = await asyncpg.connect(database_url)
    try:
        yield Blockade(holder, connection)
    finally:
        await holder.close()
