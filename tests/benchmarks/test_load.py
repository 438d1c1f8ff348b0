"""The client that stands in for wrk, and the figures made of what it sees."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.budgets import Budget, share
from benchmarks.client import ask_all, closed_loop, open_loop
from benchmarks.load import Result, Sample, request


@asynccontextmanager
async def answering(statuses: list[int]) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that answers with `statuses` in turn; its port and what it was sent."""
    seen: list[bytes] = []
    conversations = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.add(asyncio.current_task())
        try:
            while True:
                seen.append(await reader.readuntil(b"\r\n\r\n"))
                status = statuses[(len(seen) - 1) % len(statuses)]
                # In two pieces, as it happens on a real network.
                writer.write(b"HTTP/1.1 %d X\r\nContent-Le" % status)
                await writer.drain()
                await asyncio.sleep(0)
                writer.write(b"ngth: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], seen
        await asyncio.gather(*(conversation for conversation in conversations if conversation))


async def test_a_closed_loop_counts_what_was_answered() -> None:
    async with answering([200, 503]) as (port, seen):
        outcome = await closed_loop(port, [request("GET", "/a"), request("GET", "/b")], 0.2, 4)
    assert outcome.statuses.total() == len(seen)
    assert abs(outcome.statuses[200] - outcome.statuses[503]) <= 1
    assert len(outcome.good()) == outcome.statuses[200]
    paths = {line.split()[1] for line in seen}
    assert paths == {b"/a", b"/b"}


async def test_an_open_loop_keeps_its_rate() -> None:
    async with answering([200]) as (port, seen):
        outcome = await open_loop(port, [request("GET", "/")], seconds=0.5, rate=400, connections=10)
    # Each connection asks once before the first request falls due.
    assert outcome.statuses == {200: len(seen) - 10}
    # A machine that stands still for a moment sends fewer, and none sends more.
    assert 50 <= outcome.statuses[200] <= 210


async def test_answers_come_in_the_order_of_the_requests() -> None:
    async with answering([200, 404]) as (port, seen):
        answers = await ask_all(port, [request("GET", "/1", token="t"), request("POST", "/2", body=b"")])
    assert answers == [(200, b"ok"), (404, b"ok")]
    assert b"\r\nAuthorization: Bearer t\r\n" in seen[0]
    assert b"\r\nContent-Length: 0\r\n" in seen[1]


def sample(requests: int, cpu: float = 0.0, failed: int = 0) -> Sample:
    return Sample(requests, 2.0, failed, 1, 2, 3, 4, cpu)


def test_a_share_is_one_of_medians_and_tells_how_far_the_rounds_lie_apart() -> None:
    top = Result((sample(100, 0.2), sample(120, 0.24), sample(80, 0.16)))
    bottom = Result((sample(200, 0.2), sample(200, 0.2), sample(200, 0.2)))
    found = share("P1", "one ÷ other", top, bottom, 0.6)
    assert found.value == pytest.approx(0.5)
    assert found.by_cpu == pytest.approx(0.5)
    assert found.spread == pytest.approx(0.4)
    assert not found.is_reached


def test_failed_requests_reach_no_budget() -> None:
    found = share("P1", "one ÷ other", Result((sample(100, failed=1),)), Result((sample(10),)), 0.6)
    assert (found.value, found.is_reached, found.note) == (0, False, "1 requests failed")


def test_a_budget_may_be_a_bound_from_above() -> None:
    assert Budget("P7", "stall", 20, 20, at_least=False).is_reached
    assert not Budget("P7", "stall", 20.1, 20, at_least=False).is_reached
