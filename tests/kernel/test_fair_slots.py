"""Slots that callers share: no caller starves, and no caller has more than half of what the others leave."""

import asyncio
from collections import Counter
from random import Random

import pytest

from app.kernel.fairness import slots as fair_slots
from app.kernel.fairness.slots import FairSlots


def test_a_caller_has_half_of_what_the_others_leave() -> None:
    slots = FairSlots(10)
    taken = dict.fromkeys(("first", "second", "third", "fourth", "fifth"), 0)
    for caller in taken:
        while slots.try_acquire(caller):
            taken[caller] += 1
    assert taken == {"first": 5, "second": 3, "third": 1, "fourth": 1, "fifth": 0}
    slots.release("first")
    assert not slots.try_acquire("first")
    assert slots.try_acquire("fifth")


def test_the_program_itself_has_no_such_limit_and_writes_have_theirs() -> None:
    slots = FairSlots(4, max_writes=3)
    assert [slots.try_acquire(None, writes=True) for _ in range(4)] == [True, True, True, False]
    assert slots.try_acquire(None)
    assert not slots.try_acquire(None)


def test_of_one_slot_any_caller_may_have_it() -> None:
    slots = FairSlots(1)
    assert slots.try_acquire("a")
    assert not slots.try_acquire("b")


def test_idle_slots_are_lent_to_a_caller_that_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(fair_slots, "monotonic", lambda: now)
    slots = FairSlots(2, lends_idle=True)
    assert slots.try_acquire("a")
    assert slots.try_acquire("a")
    slots.release("a")
    assert slots.try_acquire("b")
    slots.release("b")
    assert not slots.try_acquire("a")
    now += 1.0
    assert slots.try_acquire("a")


async def test_waiting_callers_take_turns() -> None:
    slots = FairSlots(1)
    assert slots.try_acquire("greedy")
    order: list[str] = []

    async def work(caller: str) -> None:
        await slots.wait(caller)
        order.append(caller)
        slots.release(caller)

    tasks = [asyncio.create_task(work(caller)) for caller in ("greedy", "greedy", "greedy", "b", "b", "c")]
    await asyncio.sleep(0)
    slots.release("greedy")
    await asyncio.gather(*tasks)
    assert order == ["greedy", "b", "c", "greedy", "b", "greedy"]
    assert slots.try_acquire("greedy")


class Crowd:
    """Callers that take slots for some turns of the loop."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self.size = chance.randint(1, 6)
        self.slots = FairSlots(self.size, max_writes=chance.randint(1, self.size))
        self.held: Counter[str | None] = Counter()
        self.served = 0

    async def work(self, caller: str | None, *, writes: bool) -> None:
        if not self.slots.try_acquire(caller, writes=writes):
            slot = self.slots.wait(caller, writes=writes)
            try:
                await slot
            except asyncio.CancelledError:
                self.slots.withdraw(caller, slot, writes=writes)
                raise
        try:
            self.held[caller] += 1
            assert self.held.total() <= self.size
            for _ in range(self._chance.randint(0, 3)):
                await asyncio.sleep(0)
        finally:
            self.held[caller] -= 1
            self.slots.release(caller, writes=writes)
        self.served += 1


async def test_whatever_is_cancelled_no_slot_is_lost_and_every_caller_comes() -> None:
    chance = Random(14)
    for _ in range(30):
        crowd = Crowd(chance)
        callers = ["a", "b", "c", None]
        tasks = [
            asyncio.create_task(crowd.work(chance.choice(callers), writes=chance.random() < 0.5))
            for _ in range(chance.randint(5, 60))
        ]
        await asyncio.sleep(0)
        for task in chance.sample(tasks, len(tasks) // 4):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [result for result in results if isinstance(result, Exception)]
        assert crowd.served == results.count(None)
        slots = crowd.slots
        assert (slots._used, slots._writes, slots._held, len(slots._waiting)) == (0, 0, {}, 0)
