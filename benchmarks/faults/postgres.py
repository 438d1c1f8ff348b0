"""`python -m benchmarks.faults.postgres`: what callers see while PostgreSQL is frozen, stopped, restarted or replaced.

Prints each figure with its verdict and writes docs/benchmarks/faults.md; the exit code is 1 if one is missed. Takes
about two minutes. `--seconds` is how long the server stays frozen (20).
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import asyncpg
import orjson
import uvloop

from app.dev.embedded import EmbeddedPostgres
from benchmarks import data, machine
from benchmarks.client import Outcome, ask, open_loop, open_loop_until
from benchmarks.load import request
from benchmarks.product import Bench
from benchmarks.verdicts import Verdicts
from tests.faults.signals import frozen
from tests.faults.standby import make_standby

PEOPLE = 100
# Requests a second of each kind.
RATE = 40
_CONNECTIONS = 300
_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'onehop-api'"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the three kinds of callers got."""

    cached: Outcome
    reads: Outcome
    writes: Outcome

    @property
    def all(self) -> list[Outcome]:
        return [self.cached, self.reads, self.writes]

    def slowest(self, *outcomes: Outcome) -> float:
        """Seconds."""
        return max(max(values) for outcome in outcomes or self.all for values in outcome.latencies.values()) / 1000

    def strange(self) -> int:
        """Answers that are neither good nor an orderly 503, and requests without any."""
        expected = {200, 201, 503}
        return sum(
            outcome.statuses.total() - sum(outcome.statuses[status] for status in expected) + outcome.unsent
            for outcome in self.all
        )


class Faults:
    def __init__(self, bench: Bench, verdicts: Verdicts, servers: ThreadPoolExecutor) -> None:
        self._bench = bench
        self._verdicts = verdicts
        # A server ends with the thread that started it, so that thread has to live as long as this program.
        self._servers = servers
        self._postgres = EmbeddedPostgres(bench.directory / "postgres", settings=machine.POSTGRES, die_with_parent=True)
        self._tokens = [bench.token(number) for number in range(1, PEOPLE + 1)]
        self._port = 0
        self._ends = asyncio.Event()

    async def run(self, seconds: float) -> None:
        service = self._bench.serve()
        async with machine.running(service, "/readyz"):
            self._port = service.port
            await self.frozen(seconds)
            await self.stopped(8)
            await self.restarted()
            await self.terminated()
        await self.replica()

    async def frozen(self, seconds: float) -> None:
        pid = self._postgres.pid()
        assert pid is not None

        async def freeze() -> None:
            with frozen(pid):
                await asyncio.sleep(seconds)

        title = f"frozen for {seconds:g} s"
        seen, whole = await self._under_load(freeze)
        self._verdicts.at_most(f"{title}: slowest request, s", seen.slowest(), 11, "(budget of a request 10 s)")
        self._judge(title, seen)
        self._verdicts.at_most(f"{title}: all connections work again after, s", whole, 5)

    async def stopped(self, seconds: float) -> None:
        async def stop() -> None:
            await self._do(self._postgres.stop)
            await asyncio.sleep(seconds)
            await self._do(self._postgres.start)

        title = f"stopped for {seconds:g} s"
        seen, whole = await self._under_load(stop)
        self._verdicts.at_most(f"{title}: slowest 503, s", _slowest_refusal(seen), 0.5)
        self._judge(title, seen)
        self._verdicts.at_most(f"{title}: all connections work again after, s", whole, 5)

    async def restarted(self) -> None:
        async def restart() -> None:
            await self._do(self._postgres.stop)
            await self._do(self._postgres.start)

        seen, whole = await self._under_load(restart)
        self._judge("restarted", seen)
        self._verdicts.at_most("restarted: all connections work again after, s", whole, 2)

    async def terminated(self) -> None:
        """Every connection is ended five times, whatever it does."""

        async def terminate() -> None:
            connection = await asyncpg.connect(self._bench.database_url)
            for _ in range(5):
                await connection.execute(_TERMINATE)
                await asyncio.sleep(1)
            await connection.close()

        seen, _ = await self._under_load(terminate)
        refused = seen.reads.statuses.total() - seen.reads.statuses[200]
        self._verdicts.at_most("all backends terminated 5 times: reads that failed", refused, 0)
        self._judge("all backends terminated 5 times", seen)

    async def replica(self) -> None:
        """Reads from a replica, which is killed, started again, and frozen."""
        folder = self._bench.directory / "standby"
        standby = await asyncio.get_running_loop().run_in_executor(
            self._servers, make_standby, self._postgres, folder, machine.POSTGRES
        )
        settings = {"DATABASE_REPLICA_URLS": standby.dsn("bench"), "APP_CACHE_ENABLED": "false"}
        service = self._bench.serve("with-replica", settings=settings)
        try:
            async with machine.running(service, "/readyz"):
                self._port = service.port
                await asyncio.sleep(1)
                requests = [request("GET", "/v1/users/me/events", token=token) for token in self._tokens]
                load = asyncio.create_task(open_loop(self._port, requests, 12, 3 * RATE, _CONNECTIONS))
                await asyncio.sleep(3)
                await self._do(standby.stop)
                await asyncio.sleep(2)
                await self._do(standby.start)
                await asyncio.sleep(2)
                pid = standby.pid()
                assert pid is not None
                with frozen(pid):
                    await asyncio.sleep(3)
                seen = await load
                _, text = await ask(self._port, request("GET", "/metrics"))
            served = _metric(text.decode(), 'onehop_database_replica_reads_total{outcome="replica"}')
            failed = seen.statuses.total() - seen.statuses[200] + seen.unsent
            note = f"of {seen.statuses.total():,} {dict(seen.statuses)}, {served:,.0f} of them sent to the replica"
            self._verdicts.at_most("replica killed and frozen: reads that failed", failed, 0, note)
            slowest = max(max(values) for values in seen.latencies.values()) / 1000
            self._verdicts.at_most("replica killed and frozen: slowest read, s", slowest, 2.5)
        finally:
            await self._do(standby.stop)

    async def _under_load(self, fault: Callable[[], Awaitable[None]]) -> tuple[Seen, float]:
        """What callers see from two seconds before `fault` to two after, and when all was well again after it."""
        stored = await self._count_events()
        self._ends.clear()
        kinds = [
            asyncio.create_task(open_loop_until(self._ends, self._port, requests, RATE, _CONNECTIONS // 5))
            for requests in self._kinds()
        ]
        await asyncio.sleep(2)
        await fault()
        began = perf_counter()
        while not await self._is_whole():  # noqa: ASYNC110 - it has to ask.
            await asyncio.sleep(0.05)
        whole = perf_counter() - began
        await asyncio.sleep(2)
        self._ends.set()
        seen = Seen(*await asyncio.gather(*kinds))
        missing = seen.writes.statuses[201] - (await self._count_events() - stored)
        self._verdicts.at_most("… acknowledged writes that are not there", max(missing, 0), 0)
        return seen, whole

    def _kinds(self) -> Iterator[list[bytes]]:
        # No request writes what the first one reads.
        yield [request("GET", "/v1/overview", token=self._tokens[0])]
        yield [
            request(
                "POST", "/v1/users/lookup", token=token, body=orjson.dumps({"ids": [str(data.user_id(number + 1))]})
            )
            for number, token in enumerate(self._tokens)
        ]
        yield [request("POST", "/v1/events", token=token, body=b'{"kind": "fault.test"}') for token in self._tokens[1:]]

    async def _is_whole(self) -> bool:
        """As many reads at once as the pool has connections."""
        requests = [
            request("GET", f"/v1/users/me/events?limit={limit + 1}", token=self._tokens[1]) for limit in range(10)
        ]
        answers = await asyncio.gather(*(ask(self._port, raw) for raw in requests), return_exceptions=True)
        return all(isinstance(answer, tuple) and answer[0] == 200 for answer in answers)

    def _judge(self, title: str, seen: Seen) -> None:
        statuses = {kind: dict(outcome.statuses) for kind, outcome in zip(_KINDS, seen.all, strict=True)}
        self._verdicts.at_most(f"{title}: neither good nor 503", seen.strange(), 0, f"({statuses})")
        missed = seen.cached.statuses.total() - seen.cached.statuses[200]
        self._verdicts.at_most(f"{title}: cached reads that failed", missed, 0)

    async def _count_events(self) -> int:
        connection = await asyncpg.connect(self._bench.database_url)
        try:
            number: int = await connection.fetchval("SELECT count(*) FROM users.events WHERE kind = 'fault.test'")
            return number
        finally:
            await connection.close()

    async def _do(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._servers, work)


_KINDS = ("cached reads", "reads", "writes")


def _slowest_refusal(seen: Seen) -> float:
    return max((max(outcome.latencies.get(503, [0.0])) for outcome in seen.all), default=0.0) / 1000


def _metric(text: str, name: str) -> float:
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)), 0.0)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="onehop-faults-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        # The servers' user has to get in.
        folder.chmod(0o755)
        yield folder


async def main(seconds: float) -> int:
    verdicts = Verdicts("PostgreSQL away")
    with _folder() as folder, ThreadPoolExecutor(1) as servers:
        async with Bench(folder) as bench:
            await bench.fill(PEOPLE, 20)
            await Faults(bench, verdicts, servers).run(seconds)
    path = machine.ROOT / "docs" / "benchmarks" / "faults.md"
    verdicts.write(
        path,
        f"What callers see while PostgreSQL is frozen, stopped and restarted: {RATE} requests a second each of a "
        "cached read, a read that is not cached and a durable write, whether or not the answers come; and while a "
        "read replica is killed and frozen. Made by `python -m benchmarks.faults.postgres`. What migrations do to "
        "callers is in [migrations.md](migrations.md).",
    )
    return verdicts.exit_code


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    sys.exit(uvloop.run(main(parser.parse_args().seconds)))
