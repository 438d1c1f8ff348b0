"""A delivery is cancelled and made anew by those alone that manage webhooks, and ends with its job."""

from uuid import UUID

import pytest

from app.jobs.api import JOB_KINDS
from app.jobs.queries.relay import rescue_jobs
from app.jobs.records import MAX_RESCUES
from tests.attacks.test_job_scopes import key_with
from tests.fixtures.answers import problem_of
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection
from tests.jobs.kinds import Producer
from tests.jobs.receiver import LOCAL, Receiver, register

STATE = """
SELECT j.state AS job, j.version, d.state AS delivery, d.last_error
FROM jobs.jobs AS j JOIN jobs.webhook_deliveries AS d ON d.user_id = j.user_id
WHERE j.kind = 'webhook.deliver'
"""


async def send_test(person: Person, receiver: Receiver, connection: Connection) -> UUID:
    """The job of a delivery that no worker makes."""
    endpoint = await register(person, receiver.url)
    assert (await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")).status_code == 202
    job: UUID = await connection.fetchval("SELECT id FROM jobs.jobs WHERE kind = 'webhook.deliver'")
    return job


async def state(connection: Connection) -> tuple[int, int, str, str | None]:
    row = await connection.fetchrow(STATE)
    assert row is not None
    return row["job"], row["version"], row["delivery"], row["last_error"]


def test_every_kind_of_webhooks_needs_their_scope() -> None:
    kinds = [kind for kind in JOB_KINDS.values() if kind.queue == "webhooks"]
    assert {kind.name: set(kind.access.scopes) for kind in kinds} == {
        "webhook.deliver": {"webhooks:manage"},
        "webhook.publish": {"webhooks:manage"},
        "webhook.replay": {"webhooks:manage"},
    }


@LOCAL
async def test_a_key_for_jobs_alone_neither_cancels_nor_retries_a_delivery(
    person: Person, receiver: Receiver, connection: Connection
) -> None:
    job = await send_test(person, receiver, connection)
    for_jobs = await key_with(person, {"jobs:read", "jobs:write"})
    for_both = await key_with(person, {"jobs:write", "webhooks:manage"})
    before = await state(connection)
    problem_of(await person.client.post(f"/v1/jobs/{job}/cancel", headers=for_jobs), 403, "insufficient_scope")
    assert await state(connection) == before
    assert (await person.client.post(f"/v1/jobs/{job}/cancel", headers=for_both)).status_code == 200
    cancelled = await state(connection)
    assert cancelled == (4, before[1] + 1, "failed", "cancelled")
    problem_of(await person.client.post(f"/v1/jobs/{job}/retry", headers=for_jobs), 403, "insufficient_scope")
    assert await state(connection) == cancelled
    assert (await person.client.post(f"/v1/jobs/{job}/retry", headers=for_both)).status_code == 202
    assert await state(connection) == (0, before[1] + 2, "pending", None)


@LOCAL
@pytest.mark.parametrize(
    ("rescues", "delivery"), [(MAX_RESCUES - 2, ("pending", None)), (MAX_RESCUES - 1, ("failed", "worker_lost"))]
)
async def test_a_delivery_whose_workers_were_lost_ends_with_its_job(
    person: Person,
    receiver: Receiver,
    connection: Connection,
    producer: Producer,
    rescues: int,
    delivery: tuple[str, str | None],
) -> None:
    job = await send_test(person, receiver, connection)
    await connection.execute(
        """
        UPDATE jobs.jobs
        SET state = 1, attempt = 1, rescues = $2, run_token = id, worker_id = 'w', dispatched_at = NULL,
            started_at = now(), lease_until = now() - interval '1 second'
        WHERE id = $1
        """,
        job,
        rescues,
    )
    async with producer.db.transaction("test") as tx:
        (rescued,) = await rescue_jobs(tx, max_rescues=MAX_RESCUES, limit=10)
    assert rescued.id == job
    assert (await state(connection))[2:] == delivery
