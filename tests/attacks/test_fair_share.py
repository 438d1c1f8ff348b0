"""One caller never holds all of what is scarce while others want some of it."""

import asyncio
from collections.abc import Sequence

import pytest
from fastapi import FastAPI

from app.kernel.group_commit import GroupCommit
from app.kernel.middleware.gate import FixedLimit, Gate, Share
from app.users import service
from tests.fixtures.answers import problem_of
from tests.fixtures.people import MakePerson
from tests.fixtures.waiting import eventually


async def test_a_caller_holds_half_of_the_places_while_others_come() -> None:
    gate = Gate("test", FixedLimit(20), seats=0, max_wait=0)
    share = Share("test", gate)

    async def take(caller: str) -> bool:
        return gate.enters(share) and await gate.hold(share, caller)

    def give(caller: str) -> None:
        gate.leave(share)
        gate.release(caller)

    # Alone, all of them.
    assert [await take("greedy") for _ in range(21)] == [True] * 20 + [False]
    give("greedy")
    assert await take("other")
    # From now on what comes free is for the others.
    for _ in range(9):
        give("greedy")
        assert not await take("greedy") or gate.used < 20
        assert await take("other") or gate.used == 20
    assert gate.held["greedy"] <= 12
    assert gate.held["greedy"] + gate.held["other"] == gate.used
    for caller in ("greedy", "other"):
        while caller in gate.held:
            give(caller)
    assert (gate.used, gate.held) == (0, {})


async def test_a_burst_of_one_caller_waits_for_its_own_part() -> None:
    gate = Gate("test", FixedLimit(8), seats=50, max_wait=60)
    share = Share("test", gate)
    go = asyncio.Event()
    most = 0

    async def request(caller: str) -> bool:
        nonlocal most
        assert gate.enters(share) or await gate.waits(share)
        if not await gate.hold(share, caller):
            return False
        most = max(most, gate.held.get("greedy", 0))
        await go.wait()
        await asyncio.sleep(0)
        gate.leave(share)
        gate.release(caller)
        return True

    other = asyncio.create_task(request("other"))
    await asyncio.sleep(0)
    burst = [asyncio.create_task(request("greedy")) for _ in range(50)]
    await asyncio.sleep(0)
    gone = burst.pop()
    gone.cancel()
    go.set()
    assert await asyncio.gather(other, *burst) == [True] * 50
    with pytest.raises(asyncio.CancelledError):
        await gone
    # Of eight places one was the other's, and one was left for others to come.
    assert (gate.used, share.used, gate.held, gate._parked, most) == (0, 0, {}, {}, 6)


@pytest.mark.settings(APP_HTTP_MAX_IN_FLIGHT="8", APP_HTTP_MAX_WAITING="0", APP_CACHE_ENABLED="false")
async def test_requests_of_one_user_leave_places_for_others(
    app: FastAPI, make_person: MakePerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy, other = [await make_person() for _ in range(2)]
    go = asyncio.Event()
    inside = 0
    read = service.list_events

    async def hold(*args: object, **options: object) -> object:
        nonlocal inside
        inside += 1
        await go.wait()
        return await read(*args, **options)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(service, "list_events", hold)
    path = "/v1/users/me/events"
    assert (await other.get("/v1/users/me")).status_code == 200
    first = [asyncio.create_task(greedy.get(path)) for _ in range(7)]
    await eventually(lambda: inside == 7)
    assert (await other.get("/v1/users/me")).status_code == 200
    # The last place is not for who has the others.
    problem_of(await greedy.get("/v1/users/me"), 503, "overloaded")
    assert (await other.get("/v1/users/me")).status_code == 200
    go.set()
    assert {answer.status_code for answer in await asyncio.gather(*first)} == {200}
    assert (await greedy.get("/v1/users/me")).status_code == 200


async def test_owners_take_turns_in_a_group_commit() -> None:
    groups: list[list[str]] = []
    go = asyncio.Event()

    async def write(items: Sequence[str]) -> list[str]:
        await go.wait()
        groups.append(list(items))
        return list(items)

    group = GroupCommit(write, weight=len, owner=lambda item: item[0], max_weight=6)
    first = asyncio.create_task(group.submit("a0"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = [asyncio.create_task(group.submit(item)) for item in ("a1", "a2", "a3", "a4", "b1", "b2", "c1")]
    await asyncio.sleep(0)
    go.set()
    assert [await task for task in (first, *rest)] == ["a0", "a1", "a2", "a3", "a4", "b1", "b2", "c1"]
    assert groups == [["a0"], ["a1", "b1", "c1"], ["a2", "b2", "a3"], ["a4"]]
    await group.close()
