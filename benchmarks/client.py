"""A small HTTP client for load: closed loop where wrk is missing, open loop for overload, and answers to look at."""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, cast

import uvloop

_TICK_SECONDS = 0.002
_CONNECT_SECONDS = 60
_LIGHT = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def percentile(sorted_values: Sequence[float], share: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))] if sorted_values else 0.0


class Connection(asyncio.Protocol):
    """One request at a time; `done` is told status, body and the connection itself."""

    def __init__(self, done: Callable[["Connection", int, bytes], None], lost: Callable[["Connection"], None]) -> None:
        self._done = done
        self._lost = lost
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports only behave as if they were asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature.
        self._lost(self)

    def send(self, raw: bytes, at: float) -> None:
        assert self._transport is not None
        self.sent_at = at
        self._transport.write(raw)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        at = head.find(b"\r\ncontent-length:")
        length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._received) < end + 4 + length:
            return
        body = bytes(self._received[end + 4 : end + 4 + length])
        self._received.clear()
        self._done(self, int(head[9:12]), body)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@dataclass
class Outcome:
    """Statuses with their latencies in milliseconds; `unsent` requests were due and found no free connection."""

    latencies: dict[int, list[float]] = field(default_factory=dict)
    unsent: int = 0
    seconds: float = 0.0
    # Good answers that came within these seconds; the others only tell how long they took.
    in_time: int = 0

    def add(self, status: int, milliseconds: float) -> None:
        self.latencies.setdefault(status, []).append(milliseconds)

    @property
    def statuses(self) -> Counter[int]:
        return Counter({status: len(values) for status, values in self.latencies.items()})

    def take(self, other: "Outcome") -> None:
        """Adds what another load saw."""
        self.unsent += other.unsent
        for status, values in other.latencies.items():
            self.latencies.setdefault(status, []).extend(values)

    def good(self) -> list[float]:
        """Sorted latencies of what was answered as wished."""
        return sorted(value for status, values in self.latencies.items() if status < 400 for value in values)


def run_closed(port: int, requests: Sequence[bytes], seconds: float, connections: int) -> dict[str, Any]:
    """What wrk would report; to be called in a thread."""
    outcome = uvloop.run(closed_loop(port, requests, seconds, connections))
    good = outcome.good()
    return {
        "requests": outcome.statuses.total(),
        "seconds": outcome.seconds,
        "failed": outcome.statuses.total() - len(good),
        "p50": percentile(good, 0.5),
        "p95": percentile(good, 0.95),
        "p99": percentile(good, 0.99),
        "longest": good[-1] if good else 0.0,
    }


async def closed_loop(port: int, requests: Sequence[bytes], seconds: float, connections: int) -> Outcome:
    """Each connection sends its next request when it has its answer."""
    loop = asyncio.get_running_loop()
    outcome = Outcome()
    position = 0
    began = perf_counter()
    active = connections
    finished = loop.create_future()

    def leave(_: Connection) -> None:
        nonlocal active
        active -= 1
        if active == 0 and not finished.done():
            finished.set_result(None)

    def next_one(connection: Connection) -> None:
        nonlocal position
        position = (position + 1) % len(requests)
        connection.send(requests[position], perf_counter())

    def done(connection: Connection, status: int, _: bytes) -> None:
        now = perf_counter()
        outcome.add(status, (now - connection.sent_at) * 1000)
        if now - began < seconds:
            next_one(connection)
        else:
            connection.close()

    opened = [
        (await loop.create_connection(lambda: Connection(done, leave), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    began = perf_counter()
    for connection in opened:
        next_one(connection)
    await finished
    outcome.seconds = perf_counter() - began
    return outcome


async def open_loop(
    port: int,
    requests: Sequence[bytes],
    seconds: float,
    rate: float,
    connections: int,
    begun: Callable[[], None] | None = None,
) -> Outcome:
    """`rate` requests a second fall due whether or not the answers come; due ones wait for a free connection.

    `begun` is called when all connections stand and before the first request falls due.
    """
    crowd = _Crowd(requests)
    await crowd.connect(port, connections)
    if begun is not None:
        begun()
    began = perf_counter()
    sent = 0
    while (elapsed := perf_counter() - began) < seconds:
        while sent < elapsed * rate:
            crowd.request(began + sent / rate)
            sent += 1
        await asyncio.sleep(_TICK_SECONDS)
    crowd.outcome.seconds = perf_counter() - began
    crowd.outcome.in_time = len(crowd.outcome.good())
    crowd.outcome.unsent = crowd.waiting
    await crowd.leave(connections)
    return crowd.outcome


async def open_loop_until(
    over: asyncio.Event, port: int, requests: Sequence[bytes], rate: float, connections: int
) -> Outcome:
    """One second of `open_loop` after the other, until the caller ends it."""
    total = Outcome()
    runs: list[asyncio.Task[Outcome]] = []
    loop = asyncio.get_running_loop()
    due = loop.time()
    while not runs or not over.is_set():
        runs.append(asyncio.create_task(open_loop(port, requests, 1, rate, connections)))
        due += 1
        await asyncio.sleep(max(0.0, due - loop.time()))
    for outcome in await asyncio.gather(*runs):
        total.take(outcome)
    return total


class _Crowd:
    """Connections, those that are free, and requests that wait for one."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        self.outcome = Outcome()
        self.waiting = 0
        self._requests = requests
        self._idle: deque[Connection] = deque()
        self._lost = 0

    async def connect(self, port: int, count: int) -> None:
        """Each connection asks for something light first: the system says that it stands before the server has
        accepted it, and accepting a thousand takes as long as many requests.
        """
        loop = asyncio.get_running_loop()
        for _ in range(count):
            made = await loop.create_connection(lambda: Connection(self._done, self._note_loss), "127.0.0.1", port)
            made[1].send(_LIGHT, perf_counter())
        for _ in range(round(_CONNECT_SECONDS / _TICK_SECONDS)):
            if len(self._idle) + self._lost >= count:
                break
            await asyncio.sleep(_TICK_SECONDS)
        self.outcome.latencies.clear()

    def request(self, at: float) -> None:
        if self._idle:
            self._idle.popleft().send(random.choice(self._requests), at)
        else:
            self.waiting += 1

    async def leave(self, count: int) -> None:
        """Answers on their way count, and are not waited for long."""
        self.waiting = 0
        for _ in range(100):
            if len(self._idle) + self._lost >= count:
                break
            await asyncio.sleep(0.02)
        for connection in tuple(self._idle):
            connection.close()

    def _done(self, connection: Connection, status: int, _: bytes) -> None:
        self.outcome.add(status, (perf_counter() - connection.sent_at) * 1000)
        if self.waiting:
            # Its latency counts from now: that no connection was free says more of this client than of the server.
            self.waiting -= 1
            connection.send(random.choice(self._requests), perf_counter())
        else:
            self._idle.append(connection)

    def _note_loss(self, connection: Connection) -> None:
        self._lost += 1
        if connection in self._idle:
            self._idle.remove(connection)


async def ask(port: int, raw: bytes) -> tuple[int, bytes]:
    """One request on a connection of its own; status and body."""
    (answer,) = await ask_all(port, [raw])
    return answer


async def ask_all(port: int, requests: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """One after another on one connection; statuses and bodies."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[int, bytes]] = loop.create_future()

    def done(_: Connection, status: int, body: bytes) -> None:
        answer.set_result((status, body))

    def lost(_: Connection) -> None:
        if not answer.done():
            answer.set_exception(ConnectionError("the server closed the connection"))

    _, connection = await loop.create_connection(lambda: Connection(done, lost), "127.0.0.1", port)
    answers = []
    for raw in requests:
        answer = loop.create_future()
        connection.send(raw, perf_counter())
        answers.append(await answer)
    connection.close()
    return answers
