"""Onehop itself, as `make run` starts it: middleware, metrics and access log on."""

import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Self

import asyncpg

from app.composition import close_resources, make_resources
from app.identity.api import PasswordHashing
from app.identity.service.authentication import AUDIENCE
from app.identity.service.container import load_signing_keys
from app.identity.service.tokens import Claims, KeyRing
from app.kernel.auth import SCOPES_OF_ROLE
from app.kernel.ids import new_id
from app.kernel.schema.migrations import upgrade
from app.settings import Settings, load_settings
from benchmarks import data, machine
from benchmarks.machine import Service

_TOKEN_SECONDS = 12 * 3600
# A bench fills the queue faster than any worker empties it; refusing would be right, but is not measured here.
# All checks are made, and none of them refuses.
WIDE = {
    "APP_JOBS_BACKLOG_LIMIT": "100000000",
    "APP_JOBS_BACKLOG_AGE": "100000000",
    "APP_LIMITS_CALLER": "100000000",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """What Postgres counted of one statement."""

    sql: str
    calls: int


class Bench:
    """Servers with a migrated database, and what is needed to start the product on them.

    Use as an asynchronous context manager; everything is gone at its end.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment: dict[str, str] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        postgres, valkey = self._stack.enter_context(machine.servers(self.directory))
        self.postgres, self.valkey = postgres, valkey
        postgres.create_database("bench")
        self.database_url = postgres.dsn("bench")
        self.redis_url = valkey.url()
        await upgrade(self.database_url)
        self.environment = {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "APP_DATA_DIR": str(self.directory),
            # Several servers on ports of their own take the same tokens.
            "APP_PUBLIC_URL": "http://127.0.0.1:8000",
            "APP_SECRET_KEY": secrets.token_urlsafe(48),
            # The data are of a week that is over: a worker would prune the finished jobs among them.
            "APP_JOBS_RETENTION_DAYS": "3650",
        }
        self.settings = load_settings(self.environment)
        self.connection = await asyncpg.connect(self.database_url)
        self._stack.push_async_callback(self.connection.close)
        await self.connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        self._key_ring = await _key_ring(self.settings)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def fill(self, people: int, events: int) -> None:
        """`people` persons with `events` events each."""
        await data.add_people(self.connection, 1, people, await _password_hash(self.settings))
        await data.add_events(self.connection, 1, people, 1, events)
        await data.settle(self.connection)

    def token(self, number: int) -> str:
        """An access token as log-in would issue it, but good for the whole run."""
        issued = int(time())
        return self._key_ring.sign(
            Claims(
                iss=self.settings.base_url,
                aud=AUDIENCE,
                sub=data.user_id(number),
                sid=new_id(),
                jti=new_id(),
                iat=issued,
                exp=issued + _TOKEN_SECONDS,
                scope=" ".join(sorted(SCOPES_OF_ROLE["user"])),
                roles=("user",),
                ver=1,
            )
        )

    def serve(
        self,
        name: str = "onehop",
        *,
        command: Sequence[str] = ("-m", "app", "serve"),
        cores: frozenset[int] = machine.SERVER_CORES,
        settings: Mapping[str, str] | None = None,
    ) -> Service:
        """The API; `command` follows the interpreter, `settings` are more of the environment."""
        port = machine.free_port()
        environment = {**self.environment, "PORT": str(port), **(settings or {})}
        command = [part.format(port=port) for part in command]
        return machine.launch(
            name, [sys.executable, *command], self.directory, environment=environment, port=port, cores=cores
        )

    @asynccontextmanager
    async def running(self, **settings: str) -> AsyncIterator[Service]:
        """One process of the API on the measured core."""
        async with machine.running(self.serve(settings={**WIDE, **settings}), "/livez") as service:
            yield service

    def work(
        self,
        name: str = "worker",
        *,
        cores: frozenset[int] = machine.OTHER_CORES,
        settings: Mapping[str, str] | None = None,
    ) -> Service:
        """The background worker."""
        environment = {**self.environment, **(settings or {})}
        command = [sys.executable, "-m", "app", "worker"]
        return machine.launch(name, command, self.directory, environment=environment, cores=cores)

    async def count_statements(self) -> None:
        """Starts counting anew."""
        await self.connection.execute("SELECT pg_stat_statements_reset()")

    async def statements(self) -> list[Statement]:
        """What was counted in this database since, the most frequent first."""
        rows = await self.connection.fetch(
            """
            SELECT query, calls FROM pg_stat_statements
            WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
              AND query NOT LIKE '%pg_stat_statements%' AND toplevel
            ORDER BY calls DESC
            """
        )
        return [Statement(" ".join(row["query"].split()), row["calls"]) for row in rows]


async def _key_ring(settings: Settings) -> KeyRing:
    resources = make_resources(settings, application_name="bench")
    await resources.db.open()
    ring = KeyRing(resources.keys, resources.incarnation)
    try:
        await resources.incarnation.start(resources.db)
        await load_signing_keys(ring, resources.db, resources.keys)
    finally:
        await close_resources(resources)
    return ring


async def _password_hash(settings: Settings) -> str:
    hashing = PasswordHashing(settings.identity)
    try:
        return await hashing.hash(data.PASSWORD)
    finally:
        await hashing.close()
