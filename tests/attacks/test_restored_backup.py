"""An older backup is restored while Redis, memory and clients keep what was lost since."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

from app.dev.embedded import EmbeddedPostgres
from app.identity.service.cleanup import clean
from app.kernel.database.incarnation import GET_LIFE, say_restored
from app.kernel.resources import Resources
from tests.fixtures.answers import problem_of
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually

ME = "/v1/users/me"
OVERVIEW = "/v1/overview"
EVENT = {"kind": "page.viewed"}
SCHEMAS = ["kernel", "users", "identity", "jobs"]
EMPTY_ALL = """
SELECT 'TRUNCATE ' || string_agg(oid::regclass::text, ', ')
  FROM pg_class
 WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace::regnamespace::text = ANY($1)
"""


class Backup:
    """One dump of the test's database, and three ways to restore it."""

    def __init__(self, postgres: EmbeddedPostgres, url: str, file: Path) -> None:
        self._postgres = postgres
        self._url = url
        self._name = url.removeprefix("postgresql://postgres@/").partition("?")[0]
        self._file = file

    async def make(self) -> None:
        await self._run("pg_dump", "--format=custom", "--file", str(self._file), self._url)

    async def restore(self, way: str) -> None:
        if way == "another database":
            async with _connected(self._postgres.dsn()) as administrator:
                await administrator.execute(f"DROP DATABASE {self._name} WITH (FORCE)")
                await administrator.execute(f"CREATE DATABASE {self._name} TEMPLATE template0")
            await self._run("pg_restore", "--exit-on-error", "--dbname", self._url, str(self._file))
        elif way == "the same database":
            options = ("--clean", "--single-transaction", "--exit-on-error")
            await self._run("pg_restore", *options, "--dbname", self._url, str(self._file))
        else:
            # As a physical backup, it leaves every table where it was.
            async with _connected(self._url) as connection:
                await connection.execute(await connection.fetchval(EMPTY_ALL, SCHEMAS))
            schemas = [part for schema in SCHEMAS for part in ("--schema", schema)]
            data = ("--data-only", "--disable-triggers", "--single-transaction", "--exit-on-error", *schemas)
            await self._run("pg_restore", *data, "--dbname", self._url, str(self._file))
            async with _connected(self._url) as connection:
                row = await connection.fetchrow(GET_LIFE)
                assert row is not None
                assert row["is_in_place"]

    async def _run(self, program: str, *arguments: str) -> None:
        command = self._postgres._programs / program
        process = await asyncio.create_subprocess_exec(command, *arguments, stderr=subprocess.PIPE)
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
def backup(postgres: EmbeddedPostgres, database_url: str, tmp_path: Path) -> Backup:
    return Backup(postgres, database_url, tmp_path / "backup")


@pytest.fixture
def resources(app: FastAPI) -> Resources:
    resources: Resources = app.state.resources
    return resources


async def change(person: Person, bio: str) -> str:
    """The entity tag of the profile after it."""
    answer = await person.patch(ME, json={"bio": bio})
    assert answer.status_code == 200
    return answer.headers["etag"]


@pytest.mark.parametrize("way", ["another database", "the same database", "the same tables"])
async def test_nothing_of_the_lost_state_counts(
    way: str,
    backup: Backup,
    database_url: str,
    client: httpx.AsyncClient,
    make_person: MakePerson,
    resources: Resources,
) -> None:
    kept, refreshed = await make_person(), await make_person()
    key = await kept.post("/v1/auth/api-keys", json={"name": "kept", "scopes": ["profile:read"]})
    assert key.status_code == 201
    await change(kept, "before")
    await backup.make()

    # What is lost: a profile, a rotation, an account, a log-out.
    lost_tag = await change(kept, "lost")
    assert (await kept.get(OVERVIEW)).json()["user"]["bio"] == "lost"
    answer = await client.post("/v1/auth/refresh", json={"refresh_token": refreshed.tokens["refresh_token"]})
    successor = answer.json()["refresh_token"]
    gone = await make_person()
    assert (await gone.post("/v1/events", json=EVENT)).status_code == 201

    before = resources.incarnation.id
    await backup.restore(way)
    if way == "the same tables":
        await say_restored(resources.db, nothing_lost=False)
    await eventually(lambda: resources.incarnation.id != before, within=30)

    # Tokens of the lost state are refused, whether their accounts are there or not, and nothing comes of them.
    for person in (kept, refreshed, gone):
        problem_of(await person.get(ME), 401, "invalid_token")
        problem_of(await person.post("/v1/events", json=EVENT), 401, "invalid_token")
        export = {"kind": "export.events", "args": {"format": "csv"}}
        problem_of(await person.post("/v1/jobs", json=export), 401, "invalid_token")
    for token in (successor, refreshed.tokens["refresh_token"], kept.tokens["refresh_token"]):
        answer = await client.post("/v1/auth/refresh", json={"refresh_token": token})
        problem_of(answer, 401, "invalid_refresh_token")
    async with _connected(database_url) as connection:
        # And no client was told that its token was stolen.
        assert await connection.fetchval("SELECT count(*) FROM users.events") == 0
        assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind = 'export.events'") == 0
        assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE args::text LIKE '%session_reused%'") == 0
        reasons = await connection.fetch("SELECT action FROM identity.security_events WHERE action LIKE '%reused%'")
        assert reasons == []

    # The API key is older than the backup; and the profile is that of the backup, not that of Redis.
    headers = {"Authorization": f"Bearer {key.json()['key']}"}
    shown = await client.get(ME, headers=headers | {"If-None-Match": lost_tag})
    assert (shown.status_code, shown.json()["bio"]) == (200, "before")

    # The next version has the number of the lost one, and another tag.
    login = await client.post("/v1/auth/login", json={"email": kept.email, "password": kept.password})
    assert login.status_code == 200
    again = Person(client, kept.id, kept.email, kept.password, login.json()["tokens"])
    problem_of(await again.patch(ME, json={"bio": "no"}, headers={"If-Match": lost_tag}), 412, "precondition_failed")
    assert await change(again, "after") != lost_tag
    shown = await again.get(ME, headers={"If-None-Match": lost_tag})
    assert (shown.status_code, shown.json()["bio"]) == (200, "after")
    assert (await again.get(OVERVIEW)).json()["user"]["bio"] == "after"
    # A refresh in the new life rotates as ever.
    answer = await client.post("/v1/auth/refresh", json={"refresh_token": login.json()["tokens"]["refresh_token"]})
    assert answer.status_code == 200


async def test_a_move_without_loss_keeps_sessions(backup: Backup, person: Person, resources: Resources) -> None:
    before = resources.incarnation.id
    await resources.incarnation.close()
    await backup.make()
    await backup.restore("another database")
    await say_restored(resources.db, nothing_lost=True)
    await resources.incarnation.start(resources.db)
    assert (resources.incarnation.id, resources.incarnation.restored_at) == (before, None)
    assert (await person.get(ME)).status_code == 200


async def test_sessions_of_before_are_ended(
    backup: Backup, person: Person, resources: Resources, connection: Connection
) -> None:
    await say_restored(resources.db, nothing_lost=False)
    await eventually(lambda: resources.incarnation.restored_at is not None)
    assert await clean(resources.db, resources.clock, resources.incarnation, audit_days=400) == 1
    assert await connection.fetchval("SELECT revoke_reason FROM identity.sessions") == "database_restored"
    assert await clean(resources.db, resources.clock, resources.incarnation, audit_days=400) == 0
