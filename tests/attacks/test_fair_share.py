"""One caller never holds all of what is scarce while others want some of it."""

import asyncio
from collections.abc import Sequence

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

from app.kernel.batching.group_commit import GroupCommit
from app.kernel.fairness.limiter import FixedLimit, Limiter, RequestClass
from app.kernel.fairness.time_shares import TimeShares
from app.users import service
from tests.fixtures.answers import problem_of
from tests.fixtures.people import MakePerson
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually


async def test_a_caller_holds_half_of_the_places_while_others_come() -> None:
    limiter = Limiter("test", FixedLimit(20), queue_size=0, max_wait=0)
    request_class = RequestClass("test", limiter)

    async def take(caller: str) -> bool:
        return limiter.try_acquire(request_class) and await limiter.assign(request_class, caller)

    def give(caller: str) -> None:
        limiter.release(request_class)
        limiter.unassign(caller)

    # Alone, all of them.
    assert [await take("greedy") for _ in range(21)] == [True] * 20 + [False]
    give("greedy")
    assert await take("other")
    # From now on what comes free is for the others.
    for _ in range(9):
        give("greedy")
        assert not await take("greedy") or limiter.used < 20
        assert await take("other") or limiter.used == 20
    assert limiter.held["greedy"] <= 12
    assert limiter.held["greedy"] + limiter.held["other"] == limiter.used
    for caller in ("greedy", "other"):
        while caller in limiter.held:
            give(caller)
    assert (limiter.used, limiter.held) == (0, {})


async def test_a_burst_of_one_caller_waits_for_its_own_part() -> None:
    limiter = Limiter("test", FixedLimit(8), queue_size=50, max_wait=60, max_parked=100)
    request_class = RequestClass("test", limiter)
    go = asyncio.Event()
    most = 0

    async def request(caller: str) -> bool:
        nonlocal most
        assert limiter.try_acquire(request_class) or await limiter.wait(request_class)
        if not await limiter.assign(request_class, caller):
            return False
        most = max(most, limiter.held.get("greedy", 0))
        await go.wait()
        await asyncio.sleep(0)
        limiter.release(request_class)
        limiter.unassign(caller)
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
    # Of eight slots one was the other's, and one was left for others to come.
    assert (limiter.used, request_class.used, limiter.held, limiter._parked, most) == (0, 0, {}, {}, 6)


@pytest.mark.settings(APP_HTTP_MAX_IN_FLIGHT="8", APP_HTTP_MAX_WAITING="0", APP_CACHE_ENABLED="false")
async def test_requests_of_one_user_leave_places_for_others(
    app: FastAPI, make_person: MakePerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy, other = [await make_person() for _ in range(2)]
    go = asyncio.Event()
    inside = 0
    read = service.list_events

    async def assign(*args: object, **options: object) -> object:
        nonlocal inside
        inside += 1
        await go.wait()
        return await read(*args, **options)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(service, "list_events", assign)
    path = "/v1/users/me/events"
    assert (await other.get("/v1/users/me")).status_code == 200
    first = [asyncio.create_task(greedy.get(path)) for _ in range(7)]
    await eventually(lambda: inside == 7)
    assert (await other.get("/v1/users/me")).status_code == 200
    # The last slot is not for the holder of the others.
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


WAITING_READS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%users.events%'
"""


@pytest.mark.settings(APP_DATABASE_POOL_SIZE="6", APP_CACHE_ENABLED="false")
async def test_long_reads_of_one_user_leave_connections_for_others(
    app: FastAPI, client: httpx.AsyncClient, make_person: MakePerson, connection: Connection, database_url: str
) -> None:
    greedy, other = [await make_person() for _ in range(2)]
    body = {"name": "k", "scopes": ["events:read"]}
    key = (await greedy.post("/v1/auth/api-keys", json=body)).json()["key"]
    headers = [greedy.headers, {"Authorization": f"Bearer {key}"}]
    locker = await asyncpg.connect(database_url)
    try:
        await locker.execute("BEGIN")
        await locker.execute("LOCK TABLE users.events IN ACCESS EXCLUSIVE MODE")
        reads = [
            asyncio.create_task(client.get(f"/v1/users/me/events?limit={number + 1}", headers=headers[number % 2]))
            for number in range(14)
        ]

        async def three_wait() -> bool:
            return bool(await connection.fetchval(WAITING_READS) == 3)

        await eventually(three_wait)
        # Whatever number of reads the one has sent, the other's find a connection; and so do the other's writes.
        for number in range(5):
            assert (await other.get(f"/v1/jobs?limit={number + 1}")).status_code == 200
        assert (await other.patch("/v1/users/me", json={"display_name": "Ann"})).status_code == 200
        assert await connection.fetchval(WAITING_READS) == 3
    finally:
        await locker.close()
    # None of the burst was refused for what the rest of it held.
    assert [answer.status_code for answer in await asyncio.gather(*reads)] == [200] * 14


@pytest.mark.settings(
    APP_HTTP_TRUSTED_PROXIES="127.0.0.1", APP_IDENTITY_HASH_THREADS="2", APP_IDENTITY_HASH_QUEUE="6",
    APP_HTTP_MAX_WAITING="0",
)  # fmt: skip
async def test_log_ins_of_one_network_leave_slots_and_threads_for_others(
    app: FastAPI, client: httpx.AsyncClient, make_person: MakePerson
) -> None:
    person = await make_person()
    hashing = app.state.identity.hashing._threads
    # However long a hash takes here, no caller is beyond its share of the time.
    hashing._shares = TimeShares(burst=1e6)

    async def log_in(network: str, email: str) -> httpx.Response:
        body = {"email": email, "password": person.password}
        return await client.post("/v1/auth/login", json=body, headers={"X-Forwarded-For": network})

    for network in ("2001:db8:1::1", "192.0.2.1"):
        assert (await log_in(network, person.email)).status_code == 200
    assert all(hashing._first.turns.try_acquire(None) for _ in range(2))
    # A /64 is one network, however many addresses it has.
    first = [asyncio.create_task(log_in(f"2001:db8:1::{number}", f"{number}@example.com")) for number in range(7)]
    await eventually(lambda: hashing._used == 7)
    other = asyncio.create_task(log_in("192.0.2.1", person.email))
    await eventually(lambda: hashing._used == 8)
    hashing._first.turns.release(None)
    hashing._first.turns.release(None)
    # It comes second, not behind the seven that were there before.
    assert hashing._first.turns._held == {"2001:db8:1::/64": 1, "192.0.2.1/32": 1}
    assert (await other).status_code == 200
    assert [answer.status_code for answer in await asyncio.gather(*first)] == [401] * 7
