"""Clients that keep their connections and never try again: what gets lost on the way they count as lost."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Self, cast


class HttpConnection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.is_open = True
        self._transport: Any = None
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, bool]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature.
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("closed before the answer"))

    async def ask(self, raw: bytes) -> int:
        """The status of the answer; raises `ConnectionError` if the connection ends before it is whole."""
        self._answer = asyncio.get_running_loop().create_future()
        self._received.clear()
        self._transport.write(raw)
        status, is_last = await self._answer
        if is_last:
            self.close()
        return status

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0 or self._answer is None or self._answer.done():
            return
        head = bytes(self._received[:end]).lower()
        at = head.find(b"\r\ncontent-length:")
        length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._received) >= end + 4 + length:
            self._answer.set_result((int(head[9:12]), b"\r\nconnection: close" in head))

    def close(self) -> None:
        self.is_open = False
        self._transport.close()


class KeepaliveClients:
    """`count` clients that go through `requests` again and again, each with a pause of its own.

    Use as an asynchronous context manager; at its end each has got its last answer.
    """

    def __init__(self, port: int, requests: Sequence[bytes], pauses: Sequence[float]) -> None:
        self.statuses: Counter[int] = Counter()
        # By what the client saw.
        self.lost: Counter[str] = Counter()
        self.latencies: list[float] = []
        # Good answers to each of the requests.
        self.done: Counter[int] = Counter()
        self._port = port
        self._requests = requests
        self._pauses = pauses
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def total(self) -> int:
        return self.statuses.total() + self.lost.total()

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._request_repeatedly(number, pause)) for number, pause in enumerate(self._pauses)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def until(self, total: int) -> None:
        """Until so many requests have been made."""
        while self.total < total:  # noqa: ASYNC110 - an event for each request would cost more than this
            await asyncio.sleep(0.02)

    async def _request_repeatedly(self, number: int, pause: float) -> None:
        connection: HttpConnection | None = None
        loop = asyncio.get_running_loop()
        while not self._is_over:
            number = (number + 1) % len(self._requests)
            try:
                if connection is None or not connection.is_open:
                    _, connection = await loop.create_connection(HttpConnection, "127.0.0.1", self._port)
                began = perf_counter()
                status = await connection.ask(self._requests[number])
            except OSError as error:
                self.lost[f"{type(error).__name__}: {error}"] += 1
                connection = None
                await asyncio.sleep(0.01)
                continue
            self.latencies.append((perf_counter() - began) * 1000)
            self.statuses[status] += 1
            self.done[number] += status < 400
            await asyncio.sleep(pause)
        if connection is not None:
            connection.close()
