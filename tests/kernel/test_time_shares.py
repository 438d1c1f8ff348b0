"""Shares of the process's time: what is charged, and who has to wait for how long."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Generator
from time import perf_counter
from typing import Any

import pytest

from app.kernel.batching.group_commit import GroupCommit
from app.kernel.errors import Unavailable
from app.kernel.fairness.callers import Caller, caller_var
from app.kernel.fairness.limiter import FixedLimit, Limiter, RequestClass
from app.kernel.fairness.threads import FairThreads
from app.kernel.fairness.ticket import AdmissionTicket
from app.kernel.fairness.time_shares import StepTimer, TimeShares
from tests.fixtures.waiting import eventually, in_time


def test_a_caller_alone_is_not_contended_and_two_are_for_a_second() -> None:
    shares = TimeShares()
    for now in (0.0, 1.0, 2.0):
        shares.note("one", now)
        assert not shares.is_contended(now)
    shares.note("two", 2.0)
    assert shares.is_contended(2.0)
    assert shares.is_contended(2.9)
    assert not shares.is_contended(3.0)
    # Answers from memory count as well.
    shares.last_caller = "one"
    shares.note("two", 4.0)
    assert shares.is_contended(4.5)


def test_a_caller_waits_until_its_share_has_paid_for_what_it_used() -> None:
    shares = TimeShares(share=0.25, burst=0.1)
    assert shares.delay("one", 0.0) == 0.0
    shares.begin("one", 0.0)
    shares.end("one", 0.2, 0.0)
    # 0.2 seconds are paid for after 0.8, of which the burst is 0.4.
    assert shares.delay("one", 0.0) == pytest.approx(0.4)
    assert shares.delay("one", 0.3) == pytest.approx(0.1)
    assert shares.delay("one", 0.4) == pytest.approx(0.0)
    assert shares.delay("two", 0.0) == 0.0


def test_over_a_long_time_a_caller_gets_its_share() -> None:
    shares = TimeShares(share=0.25, burst=0.1)
    now = used = 0.0
    while now < 100.0:
        now += shares.delay("one", now)
        shares.begin("one", now)
        now += 0.01
        shares.end("one", 0.01, now)
        used += 0.01
    assert used == pytest.approx(25.0, rel=0.01)


def test_requests_that_begin_at_one_moment_are_charged_what_is_usual() -> None:
    shares = TimeShares(share=0.25, burst=0.1)
    for _ in range(50):
        shares.begin("one", 0.0)
        shares.end("one", 0.02, 0.0)
    now = 100.0
    begun = 0
    while not shares.delay("one", now):
        shares.begin("one", now)
        begun += 1
    # The burst is worth five of them, and the one that uses it up begins too.
    assert begun == 6
    for _ in range(begun):
        shares.end("one", 0.02, now)
    assert shares.delay("one", now) == pytest.approx(0.08, rel=0.01)


def test_a_debt_is_bounded_and_who_has_none_is_forgotten() -> None:
    shares = TimeShares(share=0.25, burst=0.1)
    shares.charge("one", 1000.0, 0.0)
    shares.charge("two", 0.001, 0.0)
    assert shares.delay("one", 0.0) == pytest.approx(1.0)
    shares.forget(0.5)
    assert shares._uses.keys() == {"one"}
    shares.forget(2.0)
    assert not shares._uses
    shares.begin("one", 3.0)
    shares.forget(4.0)
    assert shares._uses.keys() == {"one"}


def test_requests_of_a_new_caller_that_begin_at_one_moment_pay_at_their_ends() -> None:
    shares = TimeShares(share=0.25, burst=0.1)
    for _ in range(50):
        shares.begin("one", 0.0)
    for _ in range(50):
        shares.end("one", 0.01, 0.0)
    # Half a second, of which a tenth is free.
    assert shares.delay("one", 0.0) == pytest.approx(min(1.0, (0.5 - 0.1) / 0.25))
    assert shares._uses["one"].begun == 0
    assert shares._uses["one"].charged == pytest.approx(0.0)


class _Steps:
    """Computes for `seconds` before and after it waits for `event`."""

    def __init__(self, event: asyncio.Event, seconds: float) -> None:
        self._event = event
        self._seconds = seconds

    def __await__(self) -> Generator[Any, Any, str]:
        return self._run().__await__()

    async def _run(self) -> str:
        _compute(self._seconds)
        await self._event.wait()
        _compute(self._seconds)
        return "done"


def _compute(seconds: float) -> None:
    until = perf_counter() + seconds
    while perf_counter() < until:
        pass


async def test_waiting_between_two_steps_costs_nothing() -> None:
    event = asyncio.Event()
    timer = StepTimer(_Steps(event, 0.002))

    async def work() -> Any:
        return await timer

    task = asyncio.create_task(work())
    await eventually(lambda: timer.seconds() > 0)
    first = timer.seconds()
    await asyncio.sleep(0.05)
    assert timer.seconds() == first >= 0.002
    event.set()
    assert await task == "done"
    assert timer.seconds() >= first + 0.002


async def test_a_cancelled_and_a_failing_coroutine_end_as_without_a_timer() -> None:
    event = asyncio.Event()

    async def wait() -> Any:
        return await StepTimer(event.wait())

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await StepTimer(fail())


async def test_a_caller_beyond_its_share_waits_for_it_only_while_others_come() -> None:
    shares = TimeShares(share=0.5, burst=0.0)
    limiter = Limiter("test", FixedLimit(20), queue_size=0, max_wait=0, max_parked=10, shares=shares)
    request_class = RequestClass("test", limiter)
    order = []

    async def request(caller: str, seconds: float = 0.0) -> None:
        assert limiter.try_acquire(request_class)
        assert await limiter.assign(request_class, caller)
        order.append(caller)
        limiter.release(request_class)
        limiter.unassign(caller, seconds)

    async with in_time():
        # Alone, whatever it takes.
        await request("greedy", 10.0)
        await request("greedy", 10.0)
        assert order == ["greedy"] * 2
        await request("other")
        later = [asyncio.create_task(request("greedy")) for _ in range(2)]
        await asyncio.sleep(0)
        await request("other")
        assert order == ["greedy"] * 2 + ["other"] * 2
        # Meanwhile it has given its slots up.
        assert limiter.used == 0
        await asyncio.gather(*later)
    assert order[-2:] == ["greedy"] * 2
    assert (limiter.used, request_class.used, limiter.held, limiter._parked) == (0, 0, {}, {})


async def test_a_slot_that_no_caller_held_goes_to_the_request_that_waits_for_its_share() -> None:
    shares = TimeShares()
    shares._contended_until = float("inf")
    limiter = Limiter("test", FixedLimit(9), queue_size=0, max_wait=0, max_parked=10, shares=shares)
    request_class = RequestClass("test", limiter)
    limiter.held["one"] = 9
    for _ in range(9):
        assert limiter.try_acquire(request_class)
    async with in_time():
        waiting = asyncio.create_task(limiter.assign(request_class, "one"))
        await asyncio.sleep(0)
        limiter.held["one"] = 3
        assert limiter.try_acquire(request_class)
        # Its request was refused before its caller was known.
        limiter.release(request_class)
        await asyncio.sleep(0)
        assert waiting.done()
        assert await waiting


async def test_a_group_commit_is_charged_to_its_callers_by_weight() -> None:
    async def write(items: list[str]) -> list[str]:
        # A lease of the database adds what it has held to the caller at hand.
        together = caller_var.get()
        assert together is not None
        assert together.key is None
        together.used += 0.4
        return items

    group: GroupCommit[str, str] = GroupCommit(write, weight=len)  # type: ignore[arg-type]  # lists are what it gives

    async def submit(caller: Caller, item: str) -> None:
        caller_var.set(caller)
        await group.submit(item)

    small, large = Caller("small"), Caller("large")
    await asyncio.gather(submit(small, "a"), submit(large, "bbb"))
    assert small.used >= 0.1
    assert large.used == pytest.approx(small.used * 3)
    assert small.used + large.used < 0.5
    await group.close()


async def test_callers_beyond_their_share_of_the_threads_run_behind_the_others() -> None:
    threads = FairThreads("test", 1, queue=9, overloaded=Unavailable)

    async def run(caller: str | None) -> int:
        caller_var.set(None if caller is None else Caller(caller))
        return await threads.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    try:
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        assert await run("greedy") == min(19, usual + 5)
        # Alone it is as before, whatever it has used.
        threads._shares.charge("greedy", 1000.0, perf_counter())
        assert await run("greedy") == min(19, usual + 5)
        threads._shares._contended_until = float("inf")
        threads._shares.charge("greedy", 1000.0, perf_counter())
        assert await run("greedy") == min(19, usual + 15)
        assert await run("other") == min(19, usual + 5)
        assert await run(None) == min(19, usual + 5)
    finally:
        await threads.close()


async def test_a_short_computation_pays_for_no_long_one() -> None:
    threads = FairThreads("test", 1, queue=9, overloaded=Unavailable)
    caller_var.set(Caller("one"))
    try:
        for seconds in (0.05, 0.05, 0.0):
            await threads.run(lambda seconds=seconds: _compute(seconds))  # type: ignore[misc]  # no type for a default
            await asyncio.sleep(0)
        assert threads._shares._uses["one"].paid_at >= perf_counter() + 0.5
    finally:
        await threads.close()


async def test_what_computes_in_python_is_charged_and_as_important_as_the_loop() -> None:
    threads = FairThreads("test", 1, queue=9, overloaded=Unavailable, holds_interpreter=True)
    caller = Caller("one")
    caller_var.set(caller)

    def work() -> int:
        _compute(0.01)
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    try:
        assert await threads.run(work) == os.getpriority(os.PRIO_PROCESS, 0)
        assert caller.used >= 0.01
    finally:
        await threads.close()


@pytest.mark.parametrize("is_contended", [False, True])
async def test_a_stream_goes_on_at_its_callers_share_while_others_come(is_contended: bool) -> None:
    shares = TimeShares(share=0.01, burst=0.0)
    limiter = Limiter("test", FixedLimit(1), queue_size=0, max_wait=0, shares=shares)
    if is_contended:
        shares._contended_until = float("inf")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(50_000)

    request_class = RequestClass("test", limiter)
    ticket = AdmissionTicket(request_class)
    await ticket.acquire("one")
    ticket.release("test")
    began = perf_counter()
    sizes = []
    async for chunk in ticket.pace(chunks(), is_compressed=False):
        sizes.append(len(chunk))
        if is_contended:
            # 50,000 bytes count 0.2 ms, for which a hundredth of the time pays in 20 ms.
            assert perf_counter() - began >= 0.02 * (len(sizes) - 1)
    assert sizes == [50_000] * 3
    assert shares._uses["one"].paid_at >= began + 0.06
    # A stream that belongs to no caller is not slowed down.
    of_none = AdmissionTicket(request_class)
    assert [len(chunk) async for chunk in of_none.pace(chunks(), is_compressed=True)] == sizes
