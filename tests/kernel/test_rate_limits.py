"""Quotas: how the processes share one, what a refusal looks like, and what happens without Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle, islice
from time import monotonic
from typing import Any

import httpx
import pytest

from app.dev.embedded import EmbeddedValkey
from app.kernel.rate_limits import Policy, QuotaBucket, QuotaExceeded, RateLimits
from app.kernel.rate_limits.buckets import LeaseGrant
from app.kernel.redis.gateway import RedisGateway
from app.kernel.settings import LimitsSettings
from tests.faults.signals import frozen
from tests.fixtures.answers import problem_of
from tests.fixtures.application import Lifespan
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually, in_time
from tests.kernel.conftest import OpenRedis

Process = tuple[RateLimits, RedisGateway]
OpenProcesses = Callable[..., Awaitable[list[Process]]]


@pytest.fixture
async def open_processes(open_redis: OpenRedis) -> AsyncIterator[OpenProcesses]:
    """Makes a coroutine that starts the limits of so many processes on one Redis."""
    async with AsyncExitStack() as stack:

        async def start(
            number: int, *, quota: int, window: int = 60, longest_wait: float = 5, **redis: object
        ) -> list[Process]:
            processes = []
            for _ in range(number):
                gateway = await open_redis(**redis)
                settings = LimitsSettings(caller=quota, window=window)
                limits = RateLimits(settings, gateway, processes=number, network_quota=1, longest_wait=longest_wait)
                limits.start()
                stack.push_async_callback(limits.close)
                processes.append((limits, gateway))
            return processes

        yield start


def bucket_of(process: Process, key: str = "limits:user:1") -> QuotaBucket:
    limits = process[0]
    return limits.buckets.get(key) or limits.open(limits.caller, key)


async def spend(process: Process, cost: float = 1) -> bool:
    return await process[0].spend(bucket_of(process), cost)


def left_for(process: Process) -> int:
    return _left(bucket_of(process).headers()[1][1].decode())


def left_in(answer: httpx.Response) -> int:
    return _left(answer.headers["ratelimit"])


def _left(value: str) -> int:
    return int(value.partition("r=")[2].partition(";")[0])


async def test_processes_share_one_quota(open_processes: OpenProcesses) -> None:
    quota = 2_000
    processes = await open_processes(4, quota=quota)
    began = monotonic()
    outcomes = [await spend(process) for process in islice(cycle(processes), 2 * quota)]
    regained = (monotonic() - began) * quota / 60
    assert 0.95 * quota <= sum(outcomes) <= 1.05 * quota + regained
    assert sum(gateway.calls for _, gateway in processes) < 0.1 * len(outcomes)


async def test_a_crowd_at_once_gets_what_there_is(open_processes: OpenProcesses) -> None:
    processes = await open_processes(2, quota=60, window=60)
    began = monotonic()
    outcomes = await asyncio.gather(*(spend(process) for process in processes for _ in range(50)))
    assert 60 <= sum(outcomes) <= 62 + (monotonic() - began)
    assert sum(gateway.calls for _, gateway in processes) < 30


async def test_a_refusal_says_when_to_come_back(open_processes: OpenProcesses) -> None:
    (process,) = await open_processes(1, quota=3, window=6)
    assert [await spend(process) for _ in range(5)] == [True, True, True, False, False]
    assert bucket_of(process).seconds_refused() == 2
    assert bucket_of(process).headers() == (
        (b"ratelimit-policy", b'"caller";q=3;w=6'),
        (b"ratelimit", b'"caller";r=0;t=2'),
    )
    calls = process[1].calls
    assert not await spend(process)
    assert process[1].calls == calls
    await asyncio.sleep(2.05)
    assert await spend(process)


async def test_what_costs_more_than_is_left_is_refused_and_less_is_not(open_processes: OpenProcesses) -> None:
    (process,) = await open_processes(1, quota=10)
    assert await spend(process, 6)
    assert not await spend(process, 6)
    assert await spend(process, 4)
    assert not await spend(process, 1)


async def test_a_cost_above_the_quota_takes_all_of_it(open_processes: OpenProcesses) -> None:
    (process,) = await open_processes(1, quota=10)
    assert await spend(process, 100)
    assert not await spend(process, 1)


async def test_costs_of_a_route_may_make_debts_that_are_paid(open_processes: OpenProcesses) -> None:
    (process,) = await open_processes(1, quota=10)
    bucket = bucket_of(process)
    assert await spend(process)
    bucket.charge(9)
    assert not await spend(process)
    with pytest.raises(QuotaExceeded) as raised:
        bucket.charge(1)
    assert raised.value.retry_after == 6


async def test_idle_units_are_given_back(open_processes: OpenProcesses) -> None:
    # Hardly anything comes back by itself meanwhile.
    idle, busy = await open_processes(2, quota=100, window=3600)
    used = sum([await spend(idle) for _ in range(4)])
    assert bucket_of(idle).tokens > 1

    async def the_rest_is_used() -> bool:
        nonlocal used
        bucket_of(busy).refused_until = 0.0
        while await spend(busy):
            used += 1
        return used >= 100

    await eventually(the_rest_is_used)
    assert used == 100


async def test_a_process_that_ends_gives_back_what_it_has(open_processes: OpenProcesses) -> None:
    ending, staying = await open_processes(2, quota=50)
    for _ in range(5):
        assert await spend(ending)
    assert bucket_of(ending).tokens > 1
    await ending[0].close()
    assert await spend(staying)
    assert left_for(staying) == 44


async def test_who_has_used_next_to_nothing_is_forgotten(open_processes: OpenProcesses) -> None:
    (process,) = await open_processes(1, quota=60_000)
    assert await spend(process)
    await eventually(lambda: not process[0].buckets)
    assert process[1].calls == 0


async def test_other_processes_see_what_was_used(open_processes: OpenProcesses) -> None:
    first, second = await open_processes(2, quota=100)
    for _ in range(50):
        assert await spend(first)
    for _ in range(3):
        assert await spend(second)
    assert 35 <= left_for(second) <= 50


async def test_a_clock_that_was_set_back_refuses_nobody_for_long(open_processes: OpenProcesses) -> None:
    (process,) = await open_processes(1, quota=10, window=60)
    seconds, _ = await process[1].call(lambda client: client.time())
    await process[1].call(lambda client: client.set("limits:user:1", (int(seconds) + 3600) * 1_000_000))
    assert not await spend(process)
    assert bucket_of(process).seconds_refused() <= 67


async def test_without_redis_each_process_grants_its_share(
    open_processes: OpenProcesses, valkey: EmbeddedValkey
) -> None:
    processes = await open_processes(2, quota=40, window=60, breaker_cooldown=0.1)
    valkey.stop()
    try:
        outcomes = [[await spend(process) for _ in range(30)] for process in processes]
        assert [sum(each) for each in outcomes] == [20, 20]
    finally:
        valkey.start()
    for process in processes:
        bucket_of(process).refused_until = 0.0

    async def asks_redis_again() -> bool:
        bucket_of(processes[0]).refused_until = 0.0
        return await spend(processes[0])

    await eventually(asks_redis_again)


async def test_nobody_waits_long_for_a_frozen_redis(open_processes: OpenProcesses, valkey: EmbeddedValkey) -> None:
    (process,) = await open_processes(1, quota=10, longest_wait=0.1)
    pid = valkey.pid()
    assert pid is not None
    with frozen(pid):
        # Redis stays frozen until they are let through.
        async with in_time():
            outcomes = await asyncio.gather(*(spend(process) for _ in range(5)))
    assert all(outcomes)


@asynccontextmanager
async def client_from(app: Lifespan, address: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def limits_of(answer: httpx.Response) -> tuple[str, str]:
    return answer.headers["ratelimit-policy"], answer.headers["ratelimit"]


@pytest.mark.settings(APP_LIMITS_CALLER="3")
async def test_a_caller_is_told_and_refused(make_person: MakePerson, statements: Any) -> None:
    person, other = await make_person(), await make_person()
    for left, lasts in ((2, 40), (1, 20), (0, 1)):
        answer = await person.get("/v1/jobs")
        assert answer.status_code == 200
        assert limits_of(answer) == ('"caller";q=3;w=60', f'"caller";r={left};t={lasts}')
    with statements() as seen:
        refused = await person.post("/v1/events", json={"kind": "page.viewed"})
    assert seen == []
    problem_of(refused, 429, "quota_exceeded")
    assert refused.json()["title"] == "Quota exceeded"
    assert int(refused.headers["retry-after"]) in range(19, 21)
    assert limits_of(refused) == ('"caller";q=3;w=60', f'"caller";r=0;t={refused.headers["retry-after"]}')
    assert refused.headers["x-content-type-options"] == "nosniff"
    assert refused.headers["cache-control"] == "no-store"
    # Reads from memory cost something too.
    problem_of(await person.get("/v1/overview"), 429, "quota_exceeded")
    assert (await other.get("/v1/jobs")).status_code == 200


@pytest.mark.settings(APP_LIMITS_CALLER="100")
async def test_answers_from_memory_cost_a_fraction(person: Person) -> None:
    answers = [await person.get("/v1/users/me/preferences") for _ in range(24)]
    # The first ones may have to be read, or wait for the cache to be connected.
    assert left_in(answers[0]) == 99
    assert left_in(answers[3]) - left_in(answers[23]) == 1
    unchanged = await person.get("/v1/users/me/preferences", headers={"If-None-Match": answers[0].headers["etag"]})
    assert unchanged.status_code == 304
    assert left_in(unchanged) in {left_in(answers[23]), left_in(answers[23]) - 1}


COSTS: list[tuple[str, str, Any, int]] = [
    ("GET", "/v1/jobs", None, 1),
    ("POST", "/v1/jobs", {"kind": "export.account", "args": {}}, 5),
    ("POST", "/v1/users/lookup", {"ids": ["0198f000-0000-7000-8000-000000000001"] * 40}, 3),
    ("POST", "/v1/events", {"events": [{"kind": "page.viewed"}] * 41}, 3),
    ("GET", "/v1/nowhere", None, 1),
    ("GET", "/v1/admin/queues", None, 1),
]


# A hundredth is on credit, which is all that this test uses: what is left changes by nothing else.
@pytest.mark.settings(APP_LIMITS_CALLER="5000")
async def test_costs(person: Person) -> None:
    left = 5000
    for method, path, body, cost in COSTS:
        answer = await person.request(method, path, json=body)
        assert (path, left - left_in(answer)) == (path, cost)
        left -= cost


@pytest.mark.settings(APP_LIMITS_CALLER="4")
async def test_a_route_that_costs_more_than_is_left_is_refused(person: Person) -> None:
    # It costs five, of which the quota has four; afterwards the rest is owed.
    assert (await person.post("/v1/jobs", json={"kind": "export.account", "args": {}})).status_code == 202
    problem_of(await person.get("/v1/jobs"), 429, "quota_exceeded")


@pytest.mark.settings(APP_LIMITS_CALLER="3")
async def test_an_api_key_has_a_quota_of_its_own(client: httpx.AsyncClient, person: Person) -> None:
    created = await person.post("/v1/auth/api-keys", json={"name": "robot", "scopes": ["jobs:read"]})
    headers = {"Authorization": f"Bearer {created.json()['key']}"}
    assert [(await client.get("/v1/jobs", headers=headers)).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert (await person.get("/v1/jobs")).status_code == 200


@pytest.mark.settings(APP_LIMITS_NETWORK="12")
async def test_a_network_is_limited_where_nobody_proves_who_calls(running_app: Lifespan) -> None:
    async with client_from(running_app, "203.0.113.7") as client:
        person = Person(client, **await _registered(client))
        answer = await client.get("/v1/users/me")
        problem_of(answer, 401, "unauthenticated")
        assert limits_of(answer) == ('"network";q=12;w=60', '"network";r=1;t=5')
        problem_of(await client.get("/v1/users/me", headers={"Authorization": "Bearer no"}), 401, "invalid_token")
        problem_of(await client.get("/v1/users/me", headers={"Authorization": "Bearer no"}), 429, "quota_exceeded")
        refused = await client.post("/v1/auth/login", json={"email": "a@example.com", "password": "x"})
        problem_of(refused, 429, "quota_exceeded")
        assert limits_of(refused)[1].startswith('"network";r=0;')
        # A caller that has been recognised before goes on, and so do probes.
        assert (await person.get("/v1/users/me")).status_code == 200
        for token in ({}, {"Authorization": "Bearer never-seen"}):
            assert (await client.get("/livez", headers=token)).status_code == 200
    async with client_from(running_app, "203.0.113.8") as neighbour:
        problem_of(await neighbour.get("/v1/users/me"), 401, "unauthenticated")


async def _registered(client: httpx.AsyncClient) -> dict[str, Any]:
    """A user whose token this process knows; costs their network ten units."""
    body = {"email": "person@example.com", "password": "correct horse battery staple"}
    created = (await client.post("/v1/auth/register", json=body)).json()
    headers = {"Authorization": f"Bearer {created['tokens']['access_token']}"}
    assert (await client.get("/v1/users/me", headers=headers)).status_code == 200
    return {"id": created["user"]["id"], "tokens": created["tokens"], **body}


@pytest.mark.settings(APP_LIMITS_NETWORK="2")
async def test_an_invented_sender_changes_nothing(running_app: Lifespan) -> None:
    async with client_from(running_app, "203.0.113.7") as client:
        statuses = [
            (
                await client.get(
                    "/", headers={"X-Forwarded-For": f"10.0.0.{number}", "Forwarded": f"for=10.0.0.{number}"}
                )
            )
            for number in range(3)
        ]
    assert [answer.status_code for answer in statuses] == [200, 200, 429]


@pytest.mark.settings(APP_LIMITS_NETWORK="2", APP_HTTP_TRUSTED_PROXIES="10.0.0.0/8")
async def test_behind_a_proxy_each_client_has_a_quota(running_app: Lifespan) -> None:
    async with client_from(running_app, "10.0.0.1") as proxy:

        async def ask(sender: str) -> int:
            return (await proxy.get("/", headers={"X-Forwarded-For": sender})).status_code

        # What the client wrote itself stands to the left of what the proxy added.
        assert [await ask(f"1.1.1.{n}, 203.0.113.7") for n in range(3)] == [200, 200, 429]
        assert await ask("203.0.113.8") == 200
        # One network is a /64.
        assert [await ask(f"2001:db8:0:1::{n}") for n in range(1, 4)] == [200, 200, 429]
        assert await ask("2001:db8:0:2::1") == 200


@pytest.mark.settings(APP_LIMITS_CALLER="4", APP_WORKERS="2", APP_REDIS_OPERATION_TIMEOUT="0.1")
async def test_requests_without_redis(person: Person, valkey: EmbeddedValkey) -> None:
    await asyncio.to_thread(valkey.stop)
    try:
        statuses = [(await person.get("/v1/jobs")).status_code for _ in range(4)]
    finally:
        await asyncio.to_thread(valkey.start)
    assert statuses == [200, 200, 429, 429]


@pytest.mark.parametrize("tokens", [-9999.05, -0.5, 0.95])
def test_a_refusal_holds_for_what_was_asked_whatever_fraction_is_left(tokens: float) -> None:
    bucket = QuotaBucket(Policy("caller", 5000, 60), "key")
    bucket.tokens, bucket.needed = tokens, 5.0
    order = bucket.order()
    bucket.receive(order, LeaseGrant(units=0.0, remaining=3.0, wait=60.0))
    assert bucket.is_refused(5.0)
    assert not bucket.is_refused(4.0)
