"""Events for receivers that take nothing pile up to a limit, come back spread over time, and stay visible."""

from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from app.jobs.api import JOB_KINDS
from app.jobs.records.webhooks import CALLS_BURST, MAX_PENDING
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.answers import problem_of
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually
from tests.jobs.receiver import LOCAL, Receiver, register

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

INSERT_PENDING = """
INSERT INTO jobs.webhook_deliveries (user_id, id, endpoint_id, message_id)
SELECT $1, gen_random_uuid(), $2, gen_random_uuid() FROM generate_series(1, $3)
"""


async def send_test(person: Person, endpoint: dict[str, Any]) -> dict[str, Any]:
    answer = await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")
    assert answer.status_code == 202
    delivery: dict[str, Any] = answer.json()
    return delivery


async def count_jobs(connection: Connection, person: Person) -> int:
    count: int = await connection.fetchval(
        "SELECT count(*) FROM jobs.jobs WHERE user_id = $1 AND kind = 'webhook.deliver'", person.id
    )
    return count


@LOCAL
async def test_the_pending_deliveries_of_a_user_are_limited_for_all_to_see(
    person: Person, make_person: MakePerson, receiver: Receiver, connection: Connection
) -> None:
    endpoint = await register(person, receiver.url)
    await connection.execute(INSERT_PENDING, person.id, UUID(endpoint["id"]), MAX_PENDING - 1)
    last, beyond = [await send_test(person, endpoint) for _ in range(2)]
    assert (last["state"], last["last_error"]) == ("pending", None)
    assert (beyond["state"], beyond["last_error"], beyond["attempts"]) == ("failed", "backlog_full", 0)
    assert await count_jobs(connection, person) == 1
    url = f"/v1/webhooks/deliveries/{beyond['id']}/redeliver"
    answer = await person.post(url)
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (429, "backlog_full", "60")
    assert await count_jobs(connection, person) == 1
    other = await make_person()
    assert (await send_test(other, await register(other, receiver.url)))["state"] == "pending"
    await connection.execute("UPDATE jobs.webhook_deliveries SET state = 'delivered' WHERE id = $1", UUID(last["id"]))
    answer = await person.post(url)
    assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    assert await count_jobs(connection, person) == 2


@LOCAL
async def test_a_delivery_that_is_asked_for_again_and_again_is_one_job(
    person: Person, receiver: Receiver, connection: Connection
) -> None:
    delivery = await send_test(person, await register(person, receiver.url))
    await connection.execute("DELETE FROM jobs.jobs")
    for _ in range(3):
        assert (await person.post(f"/v1/webhooks/deliveries/{delivery['id']}/redeliver")).status_code == 202
    assert await count_jobs(connection, person) == 1
    # One that waits for its next attempt is made at once.
    await connection.execute(
        "UPDATE jobs.jobs SET attempt = 3, run_at = now() + interval '5 hours', is_due = false, dispatched_at = NULL"
    )
    assert (await person.post(f"/v1/webhooks/deliveries/{delivery['id']}/redeliver")).status_code == 202
    row = await connection.fetchrow("SELECT attempt, run_at <= now() AS is_now, is_due FROM jobs.jobs")
    assert row is not None
    assert tuple(row) == (0, True, True)


@LOCAL
async def test_what_waits_for_a_breaker_comes_back_spread(
    person: Person, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    endpoints = [await register(person, receiver.url) for _ in range(2)]
    await connection.execute(INSERT_PENDING, person.id, UUID(endpoints[0]["id"]), 2000)
    for endpoint in endpoints * 6:
        await send_test(person, endpoint)
    until = datetime.now(UTC) + timedelta(hours=1)
    await connection.execute("UPDATE jobs.webhook_endpoints SET failures = 12, open_until = $1", until)
    async with open_worker(settings, JOB_KINDS):

        async def are_put_off() -> bool:
            query = "SELECT count(*) FROM jobs.jobs WHERE state = 0 AND attempt = 0 AND run_at > $1"
            return bool(await connection.fetchval(query, until) == 12)

        await eventually(are_put_off)
        spread = await connection.fetchval(
            "SELECT extract(epoch FROM max(run_at) - min(run_at))::float8 FROM jobs.jobs"
        )
    # Of 201 s; twelve of them are within 20 s of each other once in many millions.
    assert 20 < spread < 400
    assert receiver.requests == []


# A hundredth is on credit, which is all that this test uses: what is left changes by nothing else.
@pytest.mark.settings(APP_LIMITS_CALLER="5000", **LOCAL.kwargs)
async def test_a_change_that_webhooks_tell_of_costs_more(person: Person, receiver: Receiver) -> None:
    async def left() -> int:
        answer = await person.patch("/v1/users/me", json={"display_name": "Ada"})
        assert answer.status_code == 200
        return int(answer.headers["ratelimit"].partition("r=")[2].partition(";")[0])

    before = await left()
    assert before - await left() == 1
    await register(person, receiver.url)
    before = await left()
    assert before - await left() == 5


@LOCAL
async def test_tests_and_enabling_of_an_endpoint_share_a_few_calls(
    person: Person, make_person: MakePerson, receiver: Receiver, connection: Connection
) -> None:
    endpoint, other = [await register(person, receiver.url) for _ in range(2)]
    url = f"/v1/webhooks/endpoints/{endpoint['id']}"
    for number in range(CALLS_BURST):
        path = "enable" if number % 2 else "test"
        assert (await person.post(f"{url}/{path}")).is_success
    before = await connection.fetchrow("SELECT * FROM jobs.webhook_endpoints WHERE id = $1", UUID(endpoint["id"]))
    for path in ("test", "enable"):
        answer = await person.post(f"{url}/{path}")
        problem_of(answer, 429, "too_many_requests")
        assert answer.headers["retry-after"] == "6"
    stranger = await make_person()
    problem_of(await stranger.post(f"{url}/test"), 404, "endpoint_not_found")
    assert before == await connection.fetchrow(
        "SELECT * FROM jobs.webhook_endpoints WHERE id = $1", UUID(endpoint["id"])
    )
    assert await count_jobs(connection, person) == CALLS_BURST // 2
    await send_test(person, other)
    # One interval gives one call back.
    await connection.execute("UPDATE jobs.webhook_endpoints SET calls_until = calls_until - interval '6 seconds'")
    await send_test(person, endpoint)
    problem_of(await person.post(f"{url}/test"), 429, "too_many_requests")


@LOCAL
async def test_an_endpoint_that_is_enabled_keeps_its_breaker(
    person: Person, receiver: Receiver, connection: Connection
) -> None:
    endpoint = await register(person, receiver.url)
    await connection.execute(
        "UPDATE jobs.webhook_endpoints SET failures = 12, failing_since = now(), open_until = now() + interval '1 hour'"
    )
    select = "SELECT disabled_at, disabled_reason, failing_since, failures, open_until FROM jobs.webhook_endpoints"
    before = await connection.fetchrow(select)
    url = f"/v1/webhooks/endpoints/{endpoint['id']}/enable"
    assert (await person.post(url)).json() == {name: endpoint[name] for name in endpoint if name != "secret"}
    assert await connection.fetchrow(select) == before
    entries = "SELECT count(*) FROM identity.security_events WHERE action = 'webhook_endpoint_enabled'"
    assert await connection.fetchval(entries) == 0

    await connection.execute("UPDATE jobs.webhook_endpoints SET disabled_at = now(), disabled_reason = 'failing'")
    assert (await person.post(url)).json()["status"] == "active"
    row = await connection.fetchrow(select)
    assert row is not None
    assert tuple(row) == (None, None, None, 0, None)
    assert await connection.fetchval(entries) == 1
