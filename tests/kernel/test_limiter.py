"""The limiter: how many slots there are, and which request gets the next one."""

import asyncio
from collections.abc import Hashable
from time import perf_counter

import pytest

from app.kernel.fairness.limiter import AdaptiveLimit, FixedLimit, Limiter, RequestClass
from app.kernel.fairness.ticket import AdmissionTicket
from tests.fixtures.waiting import eventually, in_time, scaled


class Clocked:
    """A limit with a clock of its own; `answer` is a window of requests that took so long."""

    def __init__(self, *, lowest: int = 8, start: int = 64, highest: int = 256) -> None:
        self.limit = AdaptiveLimit(lowest=lowest, start=start, highest=highest)
        self.now = 0.0

    def answer(self, seconds: float, *, kind: str = "read", used: int | None = None, is_crowded: bool = False) -> int:
        self.now += 0.2
        for _ in range(10):
            taken = self.limit.value if used is None else used
            self.limit.observe(kind, seconds, self.now, used=taken, is_crowded=is_crowded)
        return self.limit.value


def test_the_limit_grows_while_all_places_are_used_and_latency_stays() -> None:
    clocked = Clocked()
    assert [clocked.answer(0.1) for _ in range(3)] == [66, 68, 70]
    assert [clocked.answer(0.1, used=46) for _ in range(3)] == [70, 70, 70]
    assert clocked.answer(0.1, used=47) == 72
    assert max(clocked.answer(0.1) for _ in range(100)) == 256


def test_the_limit_falls_when_requests_take_longer_than_usual_and_comes_back() -> None:
    clocked = Clocked()
    clocked.answer(0.1)
    before = clocked.limit.value
    # A quarter more is borne with.
    assert clocked.answer(0.12, is_crowded=True) > before
    fallen = [clocked.answer(0.5, is_crowded=True) for _ in range(60)]
    until = fallen.index(8)
    assert fallen[:until] == sorted(fallen[:until], reverse=True)
    assert until < 40
    again = [clocked.answer(0.1, is_crowded=True) for _ in range(32)]
    assert again[-1] >= 64


def test_nobody_minds_what_is_prompt() -> None:
    clocked = Clocked()
    clocked.answer(0.001)
    assert clocked.answer(0.012) > 64
    assert [clocked.answer(0.030, is_crowded=True) for _ in range(5)][-1] < 64


def test_each_kind_of_request_has_its_own_usual_latency() -> None:
    clocked = Clocked()
    values = [clocked.answer(seconds, kind=kind) for _ in range(10) for kind, seconds in (("a", 0.02), ("b", 0.8))]
    assert values == sorted(values)


def test_an_overload_does_not_become_usual() -> None:
    clocked = Clocked()
    clocked.answer(0.1)
    for _ in range(200):
        clocked.answer(0.1 * clocked.limit.value / 32, is_crowded=True)
    assert 40 <= clocked.limit.value <= 52


def test_an_overload_does_not_make_forget_what_is_usual() -> None:
    clocked = Clocked()
    for _ in range(10):
        clocked.answer(0.1, used=30)
    # Fewer slots, and each request is quicker.
    for _ in range(300):
        clocked.answer(0.04, used=8, is_crowded=True)
    assert [clocked.answer(0.12) for _ in range(3)] == [66, 68, 70]


def test_what_is_slow_whatever_is_let_in_becomes_usual() -> None:
    clocked = Clocked()
    clocked.answer(0.05)
    assert [clocked.answer(0.3, is_crowded=True) for _ in range(60)].count(8) > 0
    assert max(clocked.answer(0.3, is_crowded=True) for _ in range(60)) > 64


class Noting(FixedLimit):
    """Notes whether it was told of a crowd."""

    crowds: list[bool]

    def observe(self, kind: Hashable, seconds: float, now: float, *, used: int, is_crowded: bool) -> None:  # noqa: ARG002
        self.crowds.append(is_crowded)


def test_a_full_gate_is_a_crowd_before_anybody_is_refused() -> None:
    limit = Noting(2)
    limit.crowds = []
    limiter = Limiter("test", limit, queue_size=10, max_wait=5.0)
    request_class = RequestClass("read", limiter)
    for _ in range(2):
        assert limiter.try_acquire(request_class)
        limiter.observe("kind", 0.1, 1.0)
    assert limit.crowds == [False, True]


def make_limiter(slots: int, *, queue_size: int = 10, max_wait: float = 5.0) -> Limiter:
    return Limiter("test", FixedLimit(slots), queue_size=queue_size, max_wait=max_wait)


async def wait_for_slot(limiter: Limiter, request_class: RequestClass, name: str, order: list[str]) -> bool:
    if not await limiter.wait(request_class):
        return False
    order.append(name)
    return True


async def line_up(
    limiter: Limiter, request_class: RequestClass, names: str, order: list[str]
) -> "list[asyncio.Task[bool]]":
    tasks = [asyncio.create_task(wait_for_slot(limiter, request_class, name, order)) for name in names]
    await asyncio.sleep(0)
    return tasks


async def test_first_come_first_served_and_no_seats_once_somebody_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = make_limiter(1, queue_size=4)
    request_class = RequestClass("read", limiter, 1.0)
    assert limiter.try_acquire(request_class)
    assert not limiter.try_acquire(request_class)
    order: list[str] = []
    tasks = await line_up(limiter, request_class, "abcd", order)
    limiter.release(request_class)
    await asyncio.sleep(0)
    assert order == ["a"]
    tasks += await line_up(limiter, request_class, "e", order)
    assert not limiter.can_queue(request_class)
    for _ in range(4):
        limiter.release(request_class)
        await asyncio.sleep(0)
    assert order == ["a", "b", "c", "d", "e"]
    assert await asyncio.gather(*tasks) == [True] * 5
    assert not limiter.can_queue(request_class)
    limiter.release(request_class)
    assert (limiter.used, request_class.used) == (0, 0)
    monkeypatch.setattr("app.kernel.fairness.limiter.perf_counter", lambda: perf_counter() + 0.25)
    assert limiter.can_queue(request_class)


async def test_a_few_try_whether_the_overload_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("app.kernel.fairness.limiter.perf_counter", lambda: now)
    limiter = make_limiter(1, queue_size=20)
    request_class = RequestClass("read", limiter)
    assert limiter.try_acquire(request_class)

    def sit_down(wanted: int) -> int:
        """How many of the requests that ask one after the other may queue."""
        for _ in range(wanted):
            request_class.promised += limiter.can_queue(request_class)
        found, request_class.promised = request_class.promised, 0
        return found

    now = 10.0
    assert sit_down(30) == 20
    # Refused, they ask again and again.
    found = []
    for _ in range(24):
        now += 0.1
        found.append(sit_down(30))
    assert [count for count in found if count] == [16, 16]
    # Those few are all there are.
    found = []
    for _ in range(14):
        now += 0.1
        found.append(sit_down(15))
    assert found[-3:] == [15, 15, 15]
    assert sit_down(20) == 20


async def test_who_waits_too_long_is_turned_away() -> None:
    limiter = make_limiter(1, max_wait=0.05)
    request_class = RequestClass("read", limiter, 1.0)
    assert limiter.try_acquire(request_class)
    started = perf_counter()
    tasks = await line_up(limiter, request_class, "ab", [])
    async with in_time():
        assert await asyncio.gather(*tasks) == [False, False]
    assert perf_counter() - started >= 0.05
    assert (request_class.waited_too_long, len(request_class.waiting)) == (2, 0)


async def test_who_gives_up_waiting_takes_no_place() -> None:
    limiter = make_limiter(1)
    request_class = RequestClass("read", limiter, 1.0)
    assert limiter.try_acquire(request_class)
    order: list[str] = []
    gone, handed, stays = await line_up(limiter, request_class, "abc", order)
    gone.cancel()
    await asyncio.sleep(0)
    limiter.release(request_class)
    # Its slot has come, but it does not know yet.
    handed.cancel()
    await eventually(lambda: order == ["c"])
    outcomes = await asyncio.gather(gone, handed, stays, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, asyncio.CancelledError, bool]
    limiter.release(request_class)
    assert (limiter.used, request_class.used, len(request_class.waiting)) == (0, 0, 0)


async def test_a_place_that_comes_in_the_moment_of_a_disconnect_goes_to_the_next() -> None:
    limiter = make_limiter(1)
    request_class = RequestClass("read", limiter, 1.0)
    assert limiter.try_acquire(request_class)
    order: list[str] = []
    gone, stays = await line_up(limiter, request_class, "ab", order)
    # In the same turn of the loop: the task that was cancelled has not run yet, and still stands in the queue.
    gone.cancel()
    limiter.release(request_class)
    outcomes = await asyncio.gather(gone, stays, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, bool]
    assert order == ["b"]
    limiter.release(request_class)
    assert (limiter.used, request_class.used, len(request_class.waiting)) == (0, 0, 0)


async def test_a_disconnect_in_the_moment_of_a_refusal_leaves_the_others_their_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limiter = make_limiter(1)
    request_class = RequestClass("read", limiter, 1.0)
    assert limiter.try_acquire(request_class)
    gone, *stay = await line_up(limiter, request_class, "abc", [])
    gone.cancel()
    monkeypatch.setattr("app.kernel.fairness.limiter.perf_counter", lambda: perf_counter() + 5.0)
    limiter._expire()
    assert await asyncio.gather(*stay) == [False, False]
    await asyncio.gather(gone, return_exceptions=True)
    assert (limiter.used, request_class.waited_too_long, len(request_class.waiting)) == (1, 2, 0)


async def test_a_class_keeps_its_part() -> None:
    limiter = make_limiter(10)
    reads, writes = RequestClass("read", limiter, 0.4), RequestClass("write", limiter, 0.4)
    assert [limiter.try_acquire(reads) for _ in range(11)] == [True] * 10 + [False]
    assert [limiter.try_acquire(writes) for _ in range(5)] == [True] * 4 + [False]
    order: list[str] = []
    tasks = await line_up(limiter, reads, "r", order) + await line_up(limiter, writes, "w", order)
    for _ in range(4):
        # There are more inside than slots, so no request follows a read.
        limiter.release(reads)
    await asyncio.sleep(0)
    assert order == []
    limiter.release(writes)
    await asyncio.sleep(0)
    assert order == ["w"]
    limiter.release(reads)
    await eventually(lambda: order == ["w", "r"])
    await asyncio.gather(*tasks)


async def test_a_promised_seat_is_taken() -> None:
    limiter = make_limiter(1, queue_size=2)
    request_class = RequestClass("read", limiter)
    assert limiter.try_acquire(request_class)
    assert limiter.can_queue(request_class)
    request_class.promised += 1
    assert limiter.can_queue(request_class)
    request_class.promised += 1
    assert [limiter.can_queue(request_class) for _ in range(3)] == [False] * 3
    assert request_class.queue_full == 3


async def test_a_request_that_is_cancelled_while_it_waits_for_its_share_has_no_slot_to_give_back() -> None:
    limiter = Limiter("test", FixedLimit(1), queue_size=0, max_wait=scaled(10), max_parked=4)
    request_class = RequestClass("test", limiter)
    limiter._shares._contended_until = float("inf")
    limiter.held["one"] = 4
    ticket = AdmissionTicket(request_class)
    waiting = asyncio.create_task(ticket.acquire("one"))
    await asyncio.sleep(0)
    assert (limiter.used, list(limiter._parked)) == (0, ["one"])
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    ticket.release("test")
    assert (limiter.used, request_class.used, limiter._parked) == (0, 0, {})
