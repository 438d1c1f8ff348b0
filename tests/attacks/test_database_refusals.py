"""PostgreSQL is there and refuses us: every answer is a bounded 503 that says when to come back, never a 500."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from inspect import isclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import httpx
import pytest
import structlog
from prometheus_client import REGISTRY

from app.dev.embedded import EmbeddedPostgres
from app.kernel.database import failures
from app.kernel.errors import Unavailable
from tests.fixtures.answers import problem_of
from tests.fixtures.people import Person
from tests.fixtures.waiting import eventually

EVENTS = "/v1/users/me/events"
EVENT = {"kind": "page.viewed"}

END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
GRANTS = """
GRANT USAGE ON SCHEMA kernel, users, identity, jobs, public TO {role};
GRANT ALL ON ALL TABLES IN SCHEMA kernel, users, identity, jobs, public TO {role};
GRANT ALL ON ALL SEQUENCES IN SCHEMA kernel, users, identity, jobs, public TO {role};
"""
FAILING_FUNCTION = """
CREATE FUNCTION public.fail() RETURNS boolean LANGUAGE plpgsql AS
'BEGIN RAISE EXCEPTION ''as told'' USING ERRCODE = ''{sqlstate}''; END'
"""
# What an administrator does, in the order of the statements, and how it is undone. Each statement runs in the test's
# database, or, with `elsewhere:` before it, in another one of the same server.
REFUSALS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "28000": (["ALTER ROLE {role} NOLOGIN", END_SESSIONS], ["ALTER ROLE {role} LOGIN"]),
    "28P01": (["ALTER ROLE {role} PASSWORD 'another'", END_SESSIONS], ["ALTER ROLE {role} PASSWORD 'right'"]),
    "3D000": (
        [
            "elsewhere:ALTER DATABASE {database} ALLOW_CONNECTIONS false",
            "elsewhere:SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'",
            "elsewhere:ALTER DATABASE {database} RENAME TO {database}_gone",
        ],
        [
            "elsewhere:ALTER DATABASE {database}_gone RENAME TO {database}",
            "elsewhere:ALTER DATABASE {database} ALLOW_CONNECTIONS true",
        ],
    ),
    "55000": (
        ["elsewhere:ALTER DATABASE {database} ALLOW_CONNECTIONS false", "elsewhere:" + END_SESSIONS],
        ["elsewhere:ALTER DATABASE {database} ALLOW_CONNECTIONS true"],
    ),
    "42501": (["REVOKE ALL ON ALL TABLES IN SCHEMA users, identity, jobs FROM {role}"], [GRANTS]),
    "42P01": (
        ["ALTER TABLE users.events RENAME TO gone", "ALTER TABLE identity.accounts RENAME TO gone"],
        ["ALTER TABLE users.gone RENAME TO events", "ALTER TABLE identity.gone RENAME TO accounts"],
    ),
    **{
        sqlstate: (
            [
                FAILING_FUNCTION.replace("{sqlstate}", sqlstate),
                "ALTER TABLE users.events RENAME TO kept",
                "CREATE VIEW users.events AS SELECT * FROM users.kept WHERE public.fail()",
                "ALTER TABLE identity.accounts RENAME TO kept",
                "CREATE VIEW identity.accounts AS SELECT * FROM identity.kept WHERE public.fail()",
                "CREATE RULE fails AS ON INSERT TO users.events DO INSTEAD SELECT public.fail()",
                GRANTS,
            ],
            [
                "DROP VIEW users.events, identity.accounts",
                "ALTER TABLE users.kept RENAME TO events",
                "ALTER TABLE identity.kept RENAME TO accounts",
                "DROP FUNCTION public.fail()",
            ],
        )
        for sqlstate in ("53100", "53200", "58030", "58P01", "F0000", "XX000", "XX001", "XX002")
    },
}

# Classes of SQLSTATE (PostgreSQL's appendix A) that are the server's or the operator's to mend, and single codes.
SERVERS_FAULT = ("08", "26", "28", "3D", "3F", "53", "55", "57", "58", "F0", "XX")
SINGLE_CODES = ("25006", "25P04", "40001", "40P01", "42501", "42703", "42P01", "42P05")


class Administrator:
    """Runs statements of a superuser about the role and the database of the program under test."""

    def __init__(self, postgres: EmbeddedPostgres, database: str, role: str) -> None:
        self._postgres = postgres
        self._names = {"database": database, "role": role}

    async def run(self, statements: Sequence[str]) -> None:
        for statement in statements:
            sql = statement.removeprefix("elsewhere:")
            database = self._names["database"] if sql == statement else "postgres"
            connection = await asyncpg.connect(self._postgres.dsn(database))
            try:
                await connection.execute(sql.format(**self._names))
            finally:
                await connection.close()


@pytest.fixture
def role(postgres: EmbeddedPostgres, servers_directory: Path) -> Iterator[str]:
    """The name of a role that has to give its password, unlike those of all other tests."""
    role = f"application_{uuid4().hex}"
    rules = servers_directory / "postgres" / "pg_hba.conf"
    before = rules.read_text(encoding="utf-8")
    rules.write_text(f"local all {role} scram-sha-256\n{before}", encoding="utf-8")
    yield role
    rules.write_text(before, encoding="utf-8")


@pytest.fixture
async def administrator(database_url: str, postgres: EmbeddedPostgres, role: str) -> AsyncIterator[Administrator]:
    """With the role of the program, which owns nothing, as in production."""
    administrator = Administrator(postgres, urlsplit(database_url).path.removeprefix("/"), role)
    await administrator.run(
        ["elsewhere:SELECT pg_reload_conf()", "CREATE ROLE {role} LOGIN PASSWORD 'right'", GRANTS],
    )
    try:
        yield administrator
    finally:
        await administrator.run([END_SESSIONS, "DROP OWNED BY {role}", "DROP ROLE {role}"])


@pytest.fixture
def environment(environment: dict[str, str], role: str, administrator: Administrator) -> dict[str, str]:
    url = environment["DATABASE_URL"].replace("//postgres@", f"//{role}:right@")
    # Without the cache every read needs the database.
    return environment | {"DATABASE_URL": f"{url}&sslmode=disable", "APP_CACHE_ENABLED": "false"}


@pytest.mark.parametrize("sqlstate", REFUSALS)
async def test_every_request_gets_503_until_it_is_mended(
    sqlstate: str, person: Person, client: httpx.AsyncClient, administrator: Administrator
) -> None:
    login = {"email": person.email, "password": person.password}

    def requests() -> list[asyncio.Task[httpx.Response]]:
        return [
            asyncio.create_task(answer)
            for answer in (
                person.get(EVENTS),
                person.get("/v1/overview"),
                person.post("/v1/events", json=EVENT),
                person.post("/v1/events", json=EVENT, headers={"Idempotency-Key": uuid4().hex}),
                client.post("/v1/auth/login", json=login),
                client.post("/v1/auth/register", json=login | {"email": f"{uuid4().hex}@example.com"}),
            )
        ]

    # Functions that fail are asked for each row.
    assert (await person.post("/v1/events", json=EVENT)).status_code == 201
    breaks, mends = REFUSALS[sqlstate]
    counted = _refusals(sqlstate)
    failures._logged_at.clear()
    with structlog.testing.capture_logs() as logs:
        await administrator.run(breaks)
        try:
            for answer in await asyncio.gather(*requests(), *requests()):
                problem_of(answer, 503, "database_unavailable")
                assert answer.headers["retry-after"] == "1"
            assert (await client.get("/livez")).status_code == 200
        finally:
            await administrator.run(mends)
    assert _refusals(sqlstate) > counted
    told = [line for line in logs if line["event"] == "database.request_refused" and line["sqlstate"] == sqlstate]
    assert [(line["log_level"], bool(line["action"])) for line in told] == [("error", True)]

    async def is_well() -> bool:
        return [answer.status_code for answer in await asyncio.gather(*requests())] == [200, 200, 201, 201, 200, 201]

    await eventually(is_well)


def test_no_error_of_the_server_is_taken_for_ours() -> None:
    """Over every SQLSTATE that the driver knows."""
    known = {
        error
        for error in vars(asyncpg.exceptions).values()
        if isclass(error) and issubclass(error, asyncpg.PostgresError) and getattr(error, "sqlstate", None)
    }
    assert len(known) > 200
    for error in known:
        is_servers = error.sqlstate.startswith(SERVERS_FAULT) or error.sqlstate in SINGLE_CODES
        assert isinstance(failures.translate(error("as told")), Unavailable) >= is_servers, error


def test_a_mistake_of_ours_stays_one() -> None:
    for error in (asyncpg.PostgresSyntaxError, asyncpg.UndefinedFunctionError, asyncpg.AmbiguousColumnError):
        raised = error("as told")
        assert failures.translate(raised) is raised


def _refusals(sqlstate: str) -> float:
    return REGISTRY.get_sample_value("onehop_database_refusals_total", {"sqlstate": sqlstate}) or 0.0
