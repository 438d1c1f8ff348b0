"""Group commit: when each caller is answered, and what one's failure means to the others."""

import asyncio
from collections.abc import Sequence

import pytest

from app.kernel.batching.group_commit import GroupCommit
from app.kernel.errors import Unavailable


class Store:
    """Takes items in groups; `bad` ones are refused together with everything in their group."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def write(self, items: Sequence[str]) -> list[str]:
        await self.gate.wait()
        self.groups.append(list(items))
        if "away" in items:
            raise Unavailable
        if any(item.startswith("bad") for item in items):
            raise ValueError(items[0])
        return [item.upper() for item in items]

    def committed(self) -> list[str]:
        return [item for group in self.groups for item in group if not any(name.startswith("bad") for name in group)]


async def test_what_comes_during_a_commit_becomes_the_next_one() -> None:
    store = Store()
    group = GroupCommit(store.write, weight=lambda _: 1)
    store.gate.clear()
    first = asyncio.create_task(group.submit("a"))
    await asyncio.sleep(0.01)
    others = [asyncio.create_task(group.submit(name)) for name in "bcd"]
    await asyncio.sleep(0.01)
    assert not first.done()
    store.gate.set()
    await asyncio.gather(first, *others)
    assert store.groups == [["a"], ["b", "c", "d"]]


async def test_requests_of_one_turn_share_a_commit() -> None:
    store = Store()
    group = GroupCommit(store.write, weight=lambda _: 1)
    assert await asyncio.gather(*(group.submit(name) for name in "abc")) == ["A", "B", "C"]
    assert store.groups == [["a", "b", "c"]]


async def test_a_group_is_no_heavier_than_allowed_unless_one_item_is() -> None:
    store = Store()
    group = GroupCommit(store.write, weight=len, max_weight=4)
    await asyncio.gather(*(group.submit(name) for name in ("aa", "bb", "c", "dddddd", "e")))
    assert store.groups == [["aa", "bb"], ["c"], ["dddddd"], ["e"]]


async def test_one_bad_item_fails_alone() -> None:
    store = Store()
    group = GroupCommit(store.write, weight=lambda _: 1)
    outcomes = await asyncio.gather(*(group.submit(name) for name in ("a", "bad", "c")), return_exceptions=True)
    assert outcomes[0] == "A"
    assert isinstance(outcomes[1], ValueError)
    assert outcomes[2] == "C"
    assert store.committed() == ["a", "c"]


async def test_a_bad_item_is_found_by_halves() -> None:
    store = Store()
    group = GroupCommit(store.write, weight=lambda _: 1)
    names = [f"item{number}" for number in range(100)] + ["bad"] + [f"item{number}" for number in range(100, 200)]
    outcomes = await asyncio.gather(*(group.submit(name) for name in names), return_exceptions=True)
    assert [outcome for outcome in outcomes if isinstance(outcome, str)] == [
        name.upper() for name in names if name != "bad"
    ]
    assert len(store.groups) < 20


async def test_when_nothing_can_be_written_nobody_waits_for_another_try() -> None:
    store = Store()
    group = GroupCommit(store.write, weight=lambda _: 1)
    outcomes = await asyncio.gather(*(group.submit(name) for name in ("a", "away", "c")), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
    assert store.groups == [["a", "away", "c"]]


async def test_a_caller_that_goes_away_takes_nothing_with_it() -> None:
    store = Store()
    group = GroupCommit(store.write, weight=lambda _: 1)
    store.gate.clear()
    leaving = asyncio.create_task(group.submit("a"))
    staying = asyncio.create_task(group.submit("b"))
    await asyncio.sleep(0.01)
    leaving.cancel()
    store.gate.set()
    await staying
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert store.committed() == ["a", "b"]


async def test_it_goes_on_after_a_failure() -> None:
    store = Store()
    group = GroupCommit(store.write, weight=lambda _: 1)
    with pytest.raises(ValueError, match="bad"):
        await group.submit("bad")
    await group.submit("a")
    assert store.committed() == ["a"]
