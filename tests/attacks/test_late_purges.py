"""A closed account is purged in the end, whatever became of the job that was to do it."""

from datetime import UTC, datetime, timedelta

import pytest

from app.identity.service import purging
from app.kernel.resources import Resources
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection

STATES = "SELECT state FROM jobs.jobs WHERE kind = 'users.purge' AND args ->> 'user_id' = $1 ORDER BY id"


async def close(person: Person, connection: Connection, purge_at: datetime) -> None:
    assert (await person.delete("/v1/users/me", json={"current_password": PASSWORD})).status_code == 202
    await connection.execute("UPDATE identity.accounts SET purge_at = $2 WHERE user_id = $1", person.id, purge_at)


async def states(connection: Connection, person: Person) -> list[int]:
    return [row["state"] for row in await connection.fetch(STATES, str(person.id))]


async def test_a_purge_that_failed_for_good_is_asked_for_again(
    resources: Resources, connection: Connection, make_person: MakePerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several pages of one.
    monkeypatch.setattr(purging, "_PAGE", 1)
    now = datetime.now(UTC)
    failed, forgotten, waiting, early = [await make_person() for _ in range(4)]
    for person in (failed, forgotten, waiting):
        await close(person, connection, now - timedelta(hours=2))
    await close(early, connection, now + timedelta(days=1))
    await connection.execute(
        "UPDATE jobs.jobs SET state = 3, finished_at = now() WHERE args ->> 'user_id' = ANY($1)",
        [str(failed.id), str(early.id)],
    )
    await connection.execute("DELETE FROM jobs.jobs WHERE args ->> 'user_id' = $1", str(forgotten.id))
    assert await purging.renew_purges(resources.db, resources.queue, resources.clock) == 2
    assert await states(connection, failed) == [3, 0]
    assert await states(connection, forgotten) == [0]
    assert await states(connection, waiting) == [0]
    assert await states(connection, early) == [3]
    # Whatever processes look at the same time: one job for each account.
    assert await purging.renew_purges(resources.db, resources.queue, resources.clock) == 0
    await connection.execute("UPDATE identity.accounts SET purge_at = NULL WHERE user_id = $1", failed.id)
    await connection.execute("DELETE FROM jobs.jobs WHERE args ->> 'user_id' = $1", str(failed.id))
    assert await purging.renew_purges(resources.db, resources.queue, resources.clock) == 0
    assert await states(connection, failed) == []
