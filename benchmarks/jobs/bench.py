"""What the measures of jobs share: servers with fsync on, workers and API as processes, and lines with a verdict."""

import asyncio
import http
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg
import psutil

from app.composition import close_resources, make_resources
from app.dev.embedded import servers
from app.kernel.ids import UserId
from app.kernel.resources import Resources
from app.kernel.schema import migrations
from app.settings import load_settings
from benchmarks.machine import free_port

Measure = Callable[["Bench"], Awaitable[None]]


@dataclass
class Bench:
    """Servers, a producer and as many workers as asked for."""

    environment: dict[str, str]
    resources: Resources
    connection: "asyncpg.Connection[asyncpg.Record]"
    misses: int = 0

    def tell(self, name: str, figures: str, *, ok: bool | None = None) -> None:
        """Prints a line; `ok` says whether what must be reached was."""
        self.misses += ok is False
        verdict = {None: "", True: "  ok", False: "  MISSED"}[ok]
        print(f"{name:<44} {figures}{verdict}", flush=True)

    async def put(
        self,
        kind: str,
        count: int,
        *,
        seconds: float = 0.0,
        batch: int = 500,
        queue: str = "default",
        user_id: UserId | None = None,
    ) -> None:
        for start in range(0, count, batch):
            rows = [
                self.resources.queue.new_job(kind, {"seconds": seconds}, user_id=user_id, queue=queue)
                for _ in range(min(batch, count - start))
            ]
            async with self.resources.db.statement("bench.enqueue") as tx:
                await self.resources.queue.enqueue_rows(tx, rows)

    async def clear(self) -> None:
        await self.connection.execute("TRUNCATE jobs.jobs CASCADE")
        await self.resources.redis.client.flushdb()

    async def finished(self, count: int) -> None:
        while await self.connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state = 2") < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    @asynccontextmanager
    async def workers(self, count: int, **variables: str) -> AsyncIterator[list[asyncio.subprocess.Process]]:
        """Worker processes that are ready; ended by SIGTERM."""
        command = [sys.executable, "-m", "benchmarks.jobs.worker"]
        async with self._processes(command, count, variables, until=b"worker_ready") as processes:
            await asyncio.sleep(1.5)
            yield processes

    @asynccontextmanager
    async def api(self) -> AsyncIterator[str]:
        """One API process that is ready; the base of its addresses."""
        port = free_port()
        command = [sys.executable, "-m", "app", "serve", "--grace", "1"]
        variables = {"HOST": "127.0.0.1", "PORT": str(port)}
        async with self._processes(command, 1, variables, until=b"") as _, aiohttp.ClientSession() as session:
            base = f"http://127.0.0.1:{port}"
            async with asyncio.timeout(60):
                while not await _is_ready(session, base):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            yield base

    @asynccontextmanager
    async def _processes(
        self, command: Sequence[str], count: int, variables: dict[str, str], *, until: bytes
    ) -> AsyncIterator[list[asyncio.subprocess.Process]]:
        environment = self.environment | variables
        processes = [
            await asyncio.create_subprocess_exec(
                *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            for _ in range(count)
        ]
        for process in processes:
            assert process.stdout is not None
            while until not in await process.stdout.readline():
                assert process.returncode is None
        readers = [asyncio.create_task(process.stdout.read()) for process in processes if process.stdout is not None]
        try:
            yield processes
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                await process.wait()
            await asyncio.gather(*readers)


async def _is_ready(session: aiohttp.ClientSession, base: str) -> bool:
    try:
        async with session.get(f"{base}/readyz") as answer:
            return answer.status == http.HTTPStatus.OK
    except aiohttp.ClientError:
        return False


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes so far."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


async def run(measures: Sequence[Measure]) -> None:
    """Runs those that the command line names, or all; the program fails if one of them missed what it must reach."""
    wanted = sys.argv[1:]
    names = [measure.__name__.removeprefix("measure_") for measure in measures]
    if unknown := set(wanted) - set(names):
        raise SystemExit(f"no such measure: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    with tempfile.TemporaryDirectory() as directory, servers(Path(directory)) as running:
        if running.database_url is None or running.redis_url is None:
            raise SystemExit("both servers are needed")
        await migrations.upgrade(running.database_url)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("APP_", "DATABASE_", "REDIS_"))
        } | {
            "DATABASE_URL": running.database_url,
            "REDIS_URL": running.redis_url,
            "APP_DATA_DIR": directory,
            "APP_LOG_FORMAT": "json",
        }
        resources = make_resources(load_settings(environment), application_name="bench")
        await resources.db.open()
        bench = Bench(environment, resources, await asyncpg.connect(running.database_url))
        print(f"load before: {' '.join(f'{value:.1f}' for value in os.getloadavg())}", flush=True)
        for name, measure in zip(names, measures, strict=True):
            if not wanted or name in wanted:
                await measure(bench)
        await bench.connection.close()
        await close_resources(resources)
    if bench.misses:
        raise SystemExit(f"{bench.misses} missed")
