"""Every process knows the subscribers."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from app.composition import close_resources, make_resources, open_resources
from app.kernel.ids import UserId, new_id
from app.kernel.resources import Resources
from app.settings import Settings
from tests.fixtures.waiting import eventually

ENDPOINT = """
INSERT INTO jobs.webhook_endpoints (user_id, id, url, event_types, secret)
VALUES ($1, gen_random_uuid(), 'https://example.com/', '{*}', '')
"""


@pytest.fixture
async def processes(settings: Settings) -> AsyncIterator[list[Resources]]:
    made = [make_resources(settings, application_name=f"test-{number}") for number in range(2)]
    for resources in made:
        await open_resources(resources)
    yield made
    for resources in made:
        await close_resources(resources)


async def test_a_listener_is_known_everywhere(
    processes: list[Resources], connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    one, other = processes
    user_id = UserId(new_id())
    assert one.webhook_subscribers.has(user_id)
    for resources in processes:
        await resources.webhook_subscribers.start()
        assert not resources.webhook_subscribers.has(user_id)
    async with one.db.transaction("test.listen") as tx:
        await tx.execute(ENDPOINT, user_id)
        one.webhook_subscribers.add(tx, user_id)
        assert not one.webhook_subscribers.has(user_id)
    assert one.webhook_subscribers.has(user_id)
    await eventually(lambda: other.webhook_subscribers.has(user_id))

    # A unit that was begun before stays one statement, and says nothing.
    late = UserId(new_id())
    async with one.webhook_subscribers.unit(one.db, late, "test.late") as tx:
        await tx.execute("SELECT 1")
        await connection.execute(ENDPOINT, late)
        one.webhook_subscribers._add(late)
        await one.webhook_subscribers.publish(tx, late, "user.updated", [{}])
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs") == 0
    async with one.webhook_subscribers.unit(one.db, late, "test.late") as tx:
        await tx.execute("SELECT 1")
        await one.webhook_subscribers.publish(tx, late, "user.updated", [{}, {}])
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE user_id = $1", late) == 2

    # Of a unit of another kind the second statement would never be sent, so that is said instead of losing the event.
    with pytest.raises(RuntimeError, match=r"test\.single: an event is a second statement"):
        async with one.db.statement("test.single") as tx:
            await tx.execute("SELECT 1")
            await one.webhook_subscribers.publish(tx, late, "user.updated", [{}])
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE user_id = $1", late) == 2
