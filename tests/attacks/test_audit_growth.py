"""The audit trail keeps what has changed, in few bytes, and for a time."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
import pytest

from app.identity.queries.security_events import delete_old_security_events
from app.identity.service.cleanup import clean
from app.identity.settings import IdentitySettings
from app.kernel.resources import Resources
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.jobs.receiver import LOCAL

TRAIL = "SELECT action, data FROM identity.security_events WHERE action LIKE 'webhook%' ORDER BY id"


async def trail(connection: Connection) -> list[tuple[str, Any]]:
    return [(row["action"], orjson.loads(row["data"])) for row in await connection.fetch(TRAIL)]


@LOCAL
async def test_what_stays_as_it_is_leaves_no_entry(person: Person, connection: Connection) -> None:
    url = "http://127.0.0.1:9/hook?key=" + "x" * 1500
    body = {"url": url, "event_types": ["invoice.issued"], "description": "books"}
    made = await person.post("/v1/webhooks/endpoints", json=body)
    assert made.status_code == 201, made.text
    endpoint = f"/v1/webhooks/endpoints/{made.json()['id']}"
    about = {"endpoint_id": made.json()["id"]}
    created = ("webhook_endpoint_created", about | {"host": "127.0.0.1"})
    assert await trail(connection) == [created]
    for same in ({}, {"url": url}, body):
        assert (await person.patch(endpoint, json=same)).status_code in (200, 422)
    assert (await person.post(f"{endpoint}/enable")).status_code == 200
    assert await trail(connection) == [created]
    changes = {"description": None, "url": "http://127.0.0.1:9/"}
    assert (await person.patch(endpoint, json=changes)).status_code == 200
    changed = about | {"fields": ["url", "description"], "host": "127.0.0.1"}
    assert await trail(connection) == [created, ("webhook_endpoint_changed", changed)]


async def test_the_role_that_an_account_has_is_no_change(
    person: Person, make_person: MakePerson, connection: Connection, client: httpx.AsyncClient
) -> None:
    admin = await make_person()
    await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id = $1", admin.id)
    login = {"email": admin.email, "password": PASSWORD}
    tokens = (await client.post("/v1/auth/login", json=login)).json()["tokens"]
    for role, entries in (("user", 0), ("admin", 1), ("admin", 1)):
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        answer = await client.patch(f"/v1/admin/users/{person.id}", json={"role": role}, headers=headers)
        assert answer.status_code == 200, answer.text
        count = "SELECT count(*) FROM identity.security_events WHERE action = 'role_changed' AND user_id = $1"
        assert await connection.fetchval(count, person.id) == entries
        version = await connection.fetchval("SELECT version FROM identity.accounts WHERE user_id = $1", person.id)
        assert version == 1 + entries


async def test_entries_are_deleted_by_age_in_batches(
    person: Person, resources: Resources, connection: Connection
) -> None:
    now = datetime.now(UTC)
    await connection.execute("DELETE FROM identity.security_events")
    await connection.executemany(
        "INSERT INTO identity.security_events (user_id, id, action, created_at) VALUES ($1, gen_random_uuid(), $2, $3)",
        [(person.id, f"{days}", now - timedelta(days=days)) for days in (399, 401, 402, 500, 900)],
    )
    left = "SELECT array_agg(action ORDER BY created_at DESC) FROM identity.security_events"
    async with resources.db.statement("test") as tx:
        assert await delete_old_security_events(tx, now - timedelta(days=400), 2) == 2
    assert await connection.fetchval(left) == ["399", "401", "402"]
    assert IdentitySettings().audit_days == 400
    assert await clean(resources.db, resources.clock, resources.incarnation, audit_days=400) == 2
    assert await connection.fetchval(left) == ["399"]


def test_a_trail_outlives_every_session() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 90"):
        IdentitySettings(audit_days=89)
