"""Two PostgreSQL servers, one of which follows the other, as seen through a proxy each; and their change of roles."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import asyncpg
import psutil

from app.dev.embedded import EmbeddedPostgres
from benchmarks import machine
from tests.faults.proxy import Proxy
from tests.faults.standby import make_standby, promote, rewind

T = TypeVar("T")
DATABASE = "bench"
_TURN_SECONDS = 60.0
_WAITS_FOR_STANDBY = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


class Pair:
    """Use as an asynchronous context manager; `url` names both servers. The first of `servers` is the primary."""

    def __init__(self, primary: EmbeddedPostgres, directory: Path) -> None:
        self.servers = [primary]
        self.proxies: list[Proxy] = []
        self._directory = directory
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        # What pg_rewind looks at later, recovery would otherwise throw away.
        await self.ask(self.primary, "ALTER SYSTEM SET wal_keep_size = '1GB'")
        await self.ask(self.primary, "SELECT pg_reload_conf()")
        standby = await _in_thread(make_standby, self.servers[0], self._directory / "standby", machine.POSTGRES)
        self._stack.push_async_callback(_in_thread, partial(standby.stop, mode="immediate"))
        self.servers.append(standby)
        for server in self.servers:
            self.proxies.append(await self._stack.enter_async_context(Proxy.before(server.dsn(DATABASE))))
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.proxies)
        self.url = f"postgresql://postgres@{hosts}/{DATABASE}?sslmode=disable"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def primary(self) -> EmbeddedPostgres:
        return self.servers[0]

    @property
    def standby(self) -> EmbeddedPostgres:
        return self.servers[1]

    async def ask(self, server: EmbeddedPostgres, sql: str) -> Any:
        connection = await asyncpg.connect(server.dsn(DATABASE))
        try:
            # So that the question itself never waits for the standby.
            await connection.execute("SET synchronous_commit = local")
            return await connection.fetchval(sql)
        finally:
            connection.terminate()

    async def commit_at_both(self) -> None:
        """From now on the primary acknowledges what the standby has too. Returns when that works."""
        await self.ask(self.primary, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        await self.ask(self.primary, "SELECT pg_reload_conf()")
        await self._until(self.primary, "SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'")

    async def kill_primary(self) -> None:
        """With everything that belongs to it, as when the machine loses its power."""
        pid = self.primary.pid()
        assert pid is not None
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            os.kill(process.pid, signal.SIGKILL)

    async def promote(self) -> None:
        """The standby takes writes when this returns, and is the primary."""
        await _in_thread(promote, self.standby)
        self.servers.reverse()
        self.proxies.reverse()

    async def follow_again(self) -> None:
        """The former primary, which does not run, becomes a standby of the present one."""
        await _in_thread(rewind, self.standby, self.primary)
        await _in_thread(self.standby.start)
        await self._until(self.primary, "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")

    async def demote_primary(self) -> None:
        """It stays up and keeps its sessions, but takes no writes, as managed services do before a switch-over."""
        await self.ask(self.primary, "ALTER SYSTEM SET default_transaction_read_only = on")
        await self.ask(self.primary, "SELECT pg_reload_conf()")
        written = await self.ask(self.primary, "SELECT pg_current_wal_flush_lsn()::text")
        await self._until(self.standby, f"SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn")

    async def waiting(self) -> int:
        """How many commits of the primary wait for the standby."""
        number: int = await self.ask(self.primary, _WAITS_FOR_STANDBY)
        return number

    async def stop_standby(self) -> None:
        await _in_thread(partial(self.standby.stop, mode="immediate"))

    async def start_standby(self) -> None:
        await _in_thread(self.standby.start)

    async def _until(self, server: EmbeddedPostgres, question: str) -> None:
        async with asyncio.timeout(_TURN_SECONDS):
            while not await self.ask(server, question):  # noqa: ASYNC110 - it has to ask.
                await asyncio.sleep(0.05)


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.to_thread(work, *arguments)
