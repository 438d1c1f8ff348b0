"""Deliveries with their attempts, replays, and what administrators do with the deliveries of others."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from app.jobs.api import JOB_KINDS
from app.jobs.queries import webhook_deliveries
from app.jobs.records.webhooks import KEPT_ATTEMPTS, MAX_PENDING
from app.kernel.ids import UserId
from app.settings import Settings
from app.worker import Worker, open_worker
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.jobs.conftest import StartWorker
from tests.jobs.kinds import Producer
from tests.jobs.receiver import LOCAL, Receiver, register, settled, try_again_now

FILL = """
WITH messages AS (
    INSERT INTO jobs.webhook_messages (user_id, id, event_type, payload, created_at)
    SELECT $1, ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'job.failed',
           '{"type": "job.failed", "timestamp": "2026-01-01T00:00:00Z", "data": {}}', now()
    FROM generate_series(1, $3::integer) AS n
)
INSERT INTO jobs.webhook_deliveries (user_id, id, endpoint_id, message_id, state, created_at)
SELECT $1, ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, $2,
       ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
       CASE WHEN n % 2 = 0 THEN 'delivered' ELSE 'failed' END, '2024-06-10T02:35:18Z'
FROM generate_series(1, $3::integer) AS n
"""


@LOCAL
async def test_a_delivery_is_shown_with_what_is_sent_and_every_attempt(
    person: Person, make_person: MakePerson, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    receiver.answers = [(500, {}), (200, {})]
    endpoint = await register(person, receiver.url)
    async with open_worker(settings, JOB_KINDS):
        tested = (await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")).json()
        await eventually(lambda: len(receiver.requests) == 1)
        await try_again_now(connection)
        await settled(person)
    path = f"/v1/webhooks/deliveries/{tested['id']}"
    shown = (await person.get(path)).json()
    assert shown["payload"]["type"] == "webhook.test"
    assert shown["payload"]["data"] == {"endpoint_id": endpoint["id"]}
    assert [(attempt["status"], attempt["error"]) for attempt in shown["history"]] == [(500, None), (200, None)]
    assert [attempt["ms"] >= 0 for attempt in shown["history"]] == [True, True]
    assert shown["history"][0]["at"] < shown["history"][1]["at"]
    (listed,) = (await person.get("/v1/webhooks/deliveries")).json()["items"]
    assert shown.items() >= listed.items()
    stranger = await make_person()
    assert (await stranger.get(path)).json()["code"] == "delivery_not_found"


async def test_the_newest_attempts_of_a_delivery_are_kept(
    person: Person, producer: Producer, connection: Connection
) -> None:
    await connection.execute(FILL, person.id, uuid4(), 1)
    delivery_id = await connection.fetchval("SELECT id FROM jobs.webhook_deliveries")
    for number in range(KEPT_ATTEMPTS + 3):
        async with producer.db.statement("test.attempt") as tx:
            await webhook_deliveries.record_attempt(
                *(tx, UserId(person.id), delivery_id),
                state="pending",
                status=number,
                error=None,
                response=None,
                milliseconds=1,
                again_in=None,
            )
    history = (await person.get(f"/v1/webhooks/deliveries/{delivery_id}")).json()["history"]
    assert [attempt["status"] for attempt in history] == list(range(3, KEPT_ATTEMPTS + 3))
    await connection.execute("DELETE FROM jobs.webhook_deliveries")
    assert await connection.fetchval("SELECT count(*) FROM jobs.webhook_attempts") == 0


@LOCAL
async def test_an_old_secret_ends_at_once_on_demand(person: Person, receiver: Receiver, connection: Connection) -> None:
    endpoint = await register(person, receiver.url)
    path = f"/v1/webhooks/endpoints/{endpoint['id']}/rotate-secret"
    left = "SELECT old_secret_until > now() FROM jobs.webhook_endpoints"
    for body, signs in ({"expire_old_now": False}, True), ({"expire_old_now": True}, False), (None, True), ({}, True):
        assert (await person.post(path, json=body) if body is not None else await person.post(path)).status_code == 200
        assert await connection.fetchval(left) is signs
    assert (await person.post(path, json={"expire_old_now": "yes"})).status_code == 422


async def replayed(person: Person, endpoint_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """The job of a replay, once it is over."""
    answer = await person.post(f"/v1/webhooks/endpoints/{endpoint_id}/replay", json=body)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["kind"], answer.headers["location"]) == ("webhook.replay", f"/v1/jobs/{job['id']}")

    async def is_over() -> bool:
        return (await person.get(f"/v1/jobs/{job['id']}")).json()["finished_at"] is not None

    await eventually(is_over)
    return dict((await person.get(f"/v1/jobs/{job['id']}")).json())


@LOCAL
@pytest.mark.parametrize(
    ("body", "done"),
    [
        ({"since": "2024-06-10T00:00:00Z"}, 6),
        ({"since": "2024-06-10T00:00:00Z", "state": "failed"}, 3),
        ({"since": "2024-06-10T00:00:00Z", "until": "2024-06-10T02:35:18Z"}, 0),
        ({"since": "2024-06-10T02:35:18Z", "until": "2024-06-11T00:00:00Z", "state": "delivered"}, 3),
        ({"since": "2024-06-11T00:00:00Z"}, 0),
    ],
)
async def test_a_replay_sends_what_is_meant_once_more(
    person: Person,
    receiver: Receiver,
    settings: Settings,
    connection: Connection,
    body: dict[str, Any],
    done: int,
) -> None:
    endpoint, other = await register(person, receiver.url), await register(person, receiver.url, "job.failed")
    await connection.execute(FILL, person.id, UUID(endpoint["id"]), 6)
    await connection.execute("UPDATE jobs.webhook_endpoints SET disabled_at = now() WHERE id = $1", UUID(other["id"]))
    async with open_worker(settings, JOB_KINDS):
        job = await replayed(person, endpoint["id"], body)
        assert (job["state"], job["result"]) == ("succeeded", {"done": done})
        await settled(person, 6)
    assert len(receiver.requests) == done
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == done


@LOCAL
async def test_one_replay_of_an_endpoint_at_a_time(person: Person, receiver: Receiver, connection: Connection) -> None:
    endpoint = await register(person, receiver.url)
    path = f"/v1/webhooks/endpoints/{endpoint['id']}/replay"
    body = {"since": "2024-06-10T00:00:00Z"}
    assert (await person.post(path, json=body)).status_code == 202
    answer = await person.post(path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "replay_in_progress")
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind = 'webhook.replay'") == 1
    empty = [body | {"until": body["since"]}, body | {"until": "2024-06-09T00:00:00Z"}, body | {"state": "pending"}]
    for wrong in ({}, {"since": "yesterday"}, body | {"state": "lost"}, *empty):
        assert (await person.post(path, json=wrong)).status_code == 422
    unknown = await person.post(f"/v1/webhooks/endpoints/{uuid4()}/replay", json=body)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "endpoint_not_found")


@LOCAL
async def test_what_was_delivered_stays_so_when_its_endpoint_is_disabled_or_deleted(
    admin: Person, person: Person, receiver: Receiver, connection: Connection
) -> None:
    endpoint = await register(person, receiver.url)
    await connection.execute(FILL, person.id, UUID(endpoint["id"]), 2)
    await connection.execute("UPDATE jobs.webhook_endpoints SET disabled_at = now()")
    before = await connection.fetch("SELECT * FROM jobs.webhook_deliveries ORDER BY id")
    replay = (person, f"/v1/webhooks/endpoints/{endpoint['id']}/replay", {"since": "2024-06-10T00:00:00Z"})
    own = (person, f"/v1/webhooks/deliveries/{before[1]['id']}/redeliver", None)
    any_ = (admin, f"/v1/admin/webhooks/deliveries/{before[1]['id']}/redeliver", None)

    async def answers() -> list[tuple[int, str]]:
        made = [await caller.post(path, json=body) for caller, path, body in (replay, own, any_)]
        return [(answer.status_code, answer.json()["code"]) for answer in made]

    assert await answers() == [(409, "endpoint_disabled")] * 3
    await connection.execute("DELETE FROM jobs.webhook_endpoints")
    assert await answers() == [(404, "endpoint_not_found")] * 3
    assert await connection.fetch("SELECT * FROM jobs.webhook_deliveries ORDER BY id") == before
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind LIKE 'webhook.%'") == 0


@LOCAL
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("UPDATE jobs.webhook_endpoints SET disabled_at = now()", "endpoint_disabled"),
        ("DELETE FROM jobs.webhook_endpoints", "endpoint_not_found"),
    ],
)
async def test_a_replay_ends_with_its_endpoint(
    person: Person, receiver: Receiver, start_worker: StartWorker, connection: Connection, change: str, error: str
) -> None:
    endpoint = await register(person, receiver.url)
    await connection.execute(FILL, person.id, UUID(endpoint["id"]), 2)
    before = await connection.fetch("SELECT * FROM jobs.webhook_deliveries ORDER BY id")
    body = {"since": "2024-06-10T00:00:00Z"}
    job_id = (await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/replay", json=body)).json()["id"]
    await connection.execute(change)
    await start_worker()

    async def is_over() -> bool:
        job = (await person.get(f"/v1/jobs/{job_id}")).json()
        return bool(job["state"] == "failed" and job["error"]["code"] == error)

    await eventually(is_over)
    assert await connection.fetch("SELECT * FROM jobs.webhook_deliveries ORDER BY id") == before


@LOCAL
async def test_a_replay_waits_for_room_and_goes_on_where_it_was(
    person: Person, receiver: Receiver, worker: Worker, connection: Connection
) -> None:
    """The user has room for two more pending deliveries, and later for all of them."""
    await connection.execute("INSERT INTO jobs.lanes (lane, paused_at) VALUES ('webhooks', now())")
    endpoint = await register(person, receiver.url)
    await connection.execute(FILL, person.id, UUID(endpoint["id"]), 5)
    full = uuid4()
    await connection.execute(
        """
        INSERT INTO jobs.webhook_deliveries (user_id, id, endpoint_id, message_id)
        SELECT $1, gen_random_uuid(), $2, gen_random_uuid() FROM generate_series(1, $3::integer)
        """,
        *(person.id, full, MAX_PENDING - 2),
    )
    body = {"since": "2024-06-10T00:00:00Z"}
    job_id = (await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/replay", json=body)).json()["id"]
    # The replay alone: what it has put into the queue of webhooks stays there.
    await connection.execute("UPDATE jobs.jobs SET lane = 'default' WHERE id = $1", UUID(job_id))
    reopened = "SELECT count(*) FROM jobs.webhook_deliveries WHERE endpoint_id = $1 AND state = 'pending'"

    async def waits() -> bool:
        snoozed = await connection.fetchval(
            "SELECT state = 0 AND run_at > now() FROM jobs.jobs WHERE id = $1", UUID(job_id)
        )
        return bool(snoozed and await connection.fetchval(reopened, UUID(endpoint["id"])) == 2)

    await eventually(waits)
    await connection.execute("DELETE FROM jobs.webhook_deliveries WHERE endpoint_id = $1", full)
    await connection.execute("UPDATE jobs.jobs SET run_at = now() WHERE id = $1", UUID(job_id))

    async def is_over() -> bool:
        return bool((await person.get(f"/v1/jobs/{job_id}")).json()["result"] == {"done": 5})

    await eventually(is_over)
    keys = await connection.fetch("SELECT unique_key FROM jobs.jobs WHERE kind = 'webhook.deliver'")
    assert len({row["unique_key"] for row in keys}) == len(keys) == 5


@LOCAL
async def test_administrators_see_the_deliveries_of_all_and_begin_them_anew(
    admin: Person, person: Person, make_person: MakePerson, receiver: Receiver, connection: Connection
) -> None:
    other = await make_person()
    endpoints = [await register(owner, receiver.url) for owner in (person, other)]
    await connection.execute(FILL, person.id, UUID(endpoints[0]["id"]), 4)
    tested = (await other.post(f"/v1/webhooks/endpoints/{endpoints[1]['id']}/test")).json()

    async def listed(query: str = "") -> list[tuple[str, str]]:
        items: list[tuple[str, str]] = []
        cursor: str | None = ""
        while cursor is not None:
            path = f"/v1/admin/webhooks/deliveries?limit=2&{query}" + (f"&cursor={cursor}" if cursor else "")
            page = (await admin.get(path)).json()
            items += [(item["user_id"], item["state"]) for item in page["items"]]
            cursor = page["next_cursor"]
        return items

    own, others = str(person.id), str(other.id)
    assert await listed() == [
        *((others, "pending"), (own, "delivered"), (own, "failed")),
        *((own, "delivered"), (own, "failed")),
    ]
    assert await listed("state=failed") == [(own, "failed")] * 2
    assert await listed("state=pending") == [(others, "pending")]
    assert await listed(f"user_id={own}&state=delivered") == [(own, "delivered")] * 2
    assert await listed(f"user_id={own}&endpoint_id={endpoints[1]['id']}") == []
    assert (await admin.get(f"/v1/admin/webhooks/deliveries?endpoint_id={endpoints[1]['id']}")).status_code == 422
    await connection.execute("UPDATE jobs.webhook_deliveries SET state = 'failed' WHERE user_id = $1", other.id)
    await connection.execute("DELETE FROM jobs.jobs")
    answer = await admin.post(f"/v1/admin/webhooks/deliveries/{tested['id']}/redeliver")
    assert (answer.status_code, answer.json()["state"], answer.json()["user_id"]) == (202, "pending", others)
    jobs = await connection.fetch("SELECT user_id, kind FROM jobs.jobs")
    assert [tuple(row) for row in jobs] == [(other.id, "webhook.deliver")]
    for trail in (admin, other):
        events = (await trail.get("/v1/auth/security-events")).json()["items"]
        assert events[0]["action"] == "webhook_redelivered_by_admin"
        assert events[0]["data"] == {"delivery_id": tested["id"]}
    answer = await admin.post(f"/v1/admin/webhooks/deliveries/{uuid4()}/redeliver")
    assert (answer.status_code, answer.json()["code"]) == (404, "delivery_not_found")
