"""`python -m benchmarks.faults.failover`: what callers lose and notice when PostgreSQL's primary is replaced.

Two servers, the second one a synchronous standby; an API with two processes and a worker that know both addresses; and
callers who keep account of what they were told. The primary is killed, demoted, and cut off; and the standby is lost.

Prints each figure with its verdict and writes docs/benchmarks/failover.md; the exit code is 1 if one is missed. Takes
a minute and a half.
"""

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

from app.kernel.background import end_tasks
from benchmarks import machine
from benchmarks.chaos.callers import Caller, Ledger
from benchmarks.chaos.verdict import judge, prepare
from benchmarks.faults.pair import Pair
from benchmarks.machine import Service
from benchmarks.product import Bench
from benchmarks.verdicts import Verdicts

CALLERS = 16
PAUSE = 0.2
# As long as whoever watches over the servers needs to be sure.
DETECTION_SECONDS = 3.0
PROBES_A_SECOND = 20
# A request of a caller is given up after ten seconds.
SLOWEST = 11.0
_SERVER_ERROR = 500
_POOL_SIZE = 10
_SETTINGS = {"APP_WORKERS": "2", "APP_IDENTITY_HASH_MEMORY_KIB": "4096", "APP_LOG_ACCESS": "false"}


@dataclass
class Probes:
    """Requests sent evenly over time: when each began, how long it took, what was answered."""

    kind: str
    seen: list[tuple[float, float, int]] = field(default_factory=list)

    def last_failure(self, since: float) -> float:
        """Seconds from `since` to the beginning of the last request that failed; 0 if none did."""
        return max((began - since for began, _, status in self.seen if status >= 300 and began >= since), default=0.0)

    def slowest(self, since: float) -> float:
        return max((seconds for began, seconds, _ in self.seen if began >= since - SLOWEST), default=0.0)

    def failed(self, since: float) -> int:
        return sum(status >= 300 for began, _, status in self.seen if began >= since)


class Failover:
    def __init__(self, pair: Pair, client: httpx.AsyncClient, verdicts: Verdicts, ledger: Ledger) -> None:
        self._pair = pair
        self._client = client
        self._verdicts = verdicts
        self._ledger = ledger
        self._person: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.reads, self.writes = Probes("reads"), Probes("writes")
        self._over = asyncio.Event()

    async def begin(self) -> None:
        self._person = await self._register("probe@example.com")
        self._revoked = await self._register("revoked@example.com")
        answer = await self._client.post("/v1/auth/logout", headers=_bearer(self._revoked))
        answer.raise_for_status()
        for probes, send in ((self.reads, self._read), (self.writes, self._write)):
            self._spawn(self._probe(probes, send))

    async def end(self) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def killed(self) -> None:
        since = monotonic()
        await self._pair.kill_primary()
        refresh = asyncio.create_task(self._insist_on_refresh(self._person["refresh_token"]))
        await asyncio.sleep(DETECTION_SECONDS)
        await self._pair.promote()
        await self._judge("primary killed", since, monotonic() - since)
        status, tokens = await refresh
        self._verdicts.equal("primary killed: a refresh repeated until it is answered", status, 200)
        self._person |= tokens
        await self._judge_sessions("primary killed")

    async def came_back(self) -> None:
        """The former primary follows; nobody writes to it or reads from it."""
        since = monotonic()
        await self._pair.follow_again()
        await asyncio.sleep(2)
        await self._pair.commit_at_both()
        await asyncio.sleep(2)
        failed = self.reads.failed(since) + self.writes.failed(since)
        self._verdicts.equal("former primary back as a standby: probes that failed", failed, 0)
        sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'onehop%'"
        self._verdicts.equal(
            "former primary back as a standby: connections to it", await self._pair.ask(self._pair.standby, sql), 0
        )

    async def demoted(self) -> None:
        since = monotonic()
        await self._pair.demote_primary()
        await self._pair.promote()
        await self._judge("primary demoted, its sessions kept", since, monotonic() - since)
        # It would still take reads.
        sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'onehop-api'"
        left = await self._pair.ask(self._pair.standby, sql)
        self._verdicts.equal("primary demoted, its sessions kept: sessions of the API still there", left, 0)
        await self._pair.stop_standby()
        await asyncio.sleep(1)
        await self._pair.follow_again()
        await self._pair.ask(self._pair.primary, "ALTER SYSTEM RESET default_transaction_read_only")
        await self._pair.ask(self._pair.primary, "SELECT pg_reload_conf()")
        await self._pair.commit_at_both()

    async def standby_lost(self, seconds: float) -> None:
        """Commits wait, so writes are refused; and when it is back, all goes on."""
        since = monotonic()
        await self._pair.stop_standby()
        waiting = 0
        refresh = asyncio.create_task(self._insist_on_refresh(self._person["refresh_token"]))
        while monotonic() < since + seconds:
            await asyncio.sleep(0.5)
            waiting = max(waiting, await self._pair.waiting())
        read_failures = [began - since for began, _, status in self.reads.seen if began > since and status >= 300]
        await self._pair.start_standby()
        title = f"standby lost for {seconds:.0f} s"
        await self._judge(title, since, monotonic() - since)
        bound = 3 * _POOL_SIZE
        self._verdicts.at_most(f"{title}: commits that wait at a time", waiting, bound, "(of three processes)")
        self._verdicts.at_most(
            f"{title}: reads fail for, s", max(read_failures, default=0.0), 6.5, f"({len(read_failures)} probes)"
        )
        status, tokens = await refresh
        self._verdicts.equal(f"{title}: a refresh repeated until it is answered", status, 200)
        self._person |= tokens
        await self._judge_sessions(title)

    async def cut_off(self) -> None:
        """The primary swallows everything, and what is connected to it hears nothing more."""
        since = monotonic()
        proxy = self._pair.proxies[0]
        proxy.freeze()
        await asyncio.sleep(DETECTION_SECONDS)
        # Whoever promotes makes sure that the other one is gone.
        await self._pair.kill_primary()
        await self._pair.promote()
        await self._judge("primary cut off without a word", since, monotonic() - since, silent=True)
        await proxy.restore()

    async def _judge(self, title: str, since: float, took: float, *, silent: bool = False) -> None:
        """Waits until all is well again."""
        began = monotonic()
        await self._settle()
        job = await self._run_job()
        for probes in (self.reads, self.writes):
            window = probes.last_failure(since)
            # Nobody can tell silence from slowness before the time-out of a statement.
            bound = max(took, 5.5 if silent else 0.0) + 3
            note = f"({probes.failed(since)} probes refused, failover {took:.1f} s)"
            self._verdicts.at_most(f"{title}: {probes.kind} fail for, s", window, bound, note)
            slowest = probes.slowest(since)
            self._verdicts.at_most(f"{title}: slowest of the {probes.kind}, s", slowest, SLOWEST)
        self._verdicts.at_most(f"{title}: until a job due in a second has ended, s", job - began, 15)

    async def _settle(self) -> None:
        """Until two seconds have passed without a failure."""
        async with asyncio.timeout(60):
            while True:
                now = monotonic()
                await asyncio.sleep(2.5)
                if not self.reads.failed(now) + self.writes.failed(now):
                    return

    async def _run_job(self) -> float:
        """When a job that the relay has to find has ended."""
        body = {
            "kind": "export.events",
            "args": {"format": "csv"},
            "run_at": (datetime.now(UTC) + timedelta(seconds=1)).isoformat(),
        }
        answer = await self._client.post("/v1/jobs", json=body, headers=_bearer(self._person))
        answer.raise_for_status()
        async with asyncio.timeout(60):
            while True:
                job = await self._client.get(f"/v1/jobs/{answer.json()['id']}", headers=_bearer(self._person))
                if job.status_code == 200 and job.json()["state"] == "succeeded":
                    break
                await asyncio.sleep(0.1)
        (artifact,) = job.json()["artifacts"]
        path = f"/v1/jobs/{answer.json()['id']}/artifacts/{artifact['name']}"
        file = await self._client.get(path, headers=_bearer(self._person))
        file.raise_for_status()
        return monotonic()

    async def _judge_sessions(self, title: str) -> None:
        answer = await self._client.get("/v1/users/me", headers=_bearer(self._person))
        self._verdicts.equal(f"{title}: an open session", answer.status_code, 200)
        answer = await self._client.get("/v1/users/me", headers=_bearer(self._revoked))
        self._verdicts.equal(f"{title}: an ended session", answer.status_code, 401)

    async def _insist_on_refresh(self, token: str) -> tuple[int, dict[str, Any]]:
        """As a client does that has only this one."""
        status = 0
        deadline = monotonic() + 60
        while monotonic() < deadline:
            answer = await self._client.post("/v1/auth/refresh", json={"refresh_token": token})
            status = answer.status_code
            if status < _SERVER_ERROR:
                return status, answer.json()
            await asyncio.sleep(0.5)
        return status, {}

    async def _register(self, email: str) -> dict[str, Any]:
        body = {"email": email, "password": "one of many callers"}
        answer = await self._client.post("/v1/auth/register", json=body)
        answer.raise_for_status()
        tokens: dict[str, Any] = answer.json()["tokens"]
        return tokens

    async def _probe(self, probes: Probes, send: Callable[[], Awaitable[httpx.Response]]) -> None:
        due = monotonic()
        async with asyncio.TaskGroup() as group:
            while not self._over.is_set():
                group.create_task(self._one(probes, send))
                due += 1 / PROBES_A_SECOND
                await asyncio.sleep(max(0.0, due - monotonic()))

    async def _one(self, probes: Probes, send: Callable[[], Awaitable[httpx.Response]]) -> None:
        began = monotonic()
        try:
            answer = await send()
        except httpx.TransportError as error:
            self._ledger.failures.append(f"{probes.kind}: {type(error).__name__} while {self._ledger.phase}")
            return
        probes.seen.append((began, monotonic() - began, answer.status_code))
        self._ledger.note(self._ledger.phase, answer, monotonic() - began)

    async def _read(self) -> httpx.Response:
        # Not cached.
        return await self._client.get("/v1/users/me/events?limit=5", headers=_bearer(self._person))

    async def _write(self) -> httpx.Response:
        return await self._client.post("/v1/events", json={"kind": "probe"}, headers=_bearer(self._person))

    def _spawn(self, work: Any) -> None:
        self._tasks.add(asyncio.create_task(work))


def _bearer(tokens: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


async def run(directory: Path, verdicts: Verdicts, names: Sequence[str]) -> None:
    ledger = Ledger(phase="before")
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(Bench(directory))
        await prepare(bench)
        pair = await stack.enter_async_context(Pair(bench.postgres, directory))
        await pair.commit_at_both()
        settings = {**_SETTINGS, "DATABASE_URL": pair.url}
        cores = machine.SERVER_CORES | machine.OTHER_CORES
        api = bench.serve(cores=cores, settings=settings)
        await stack.enter_async_context(machine.running(api, "/readyz"))
        worker: Service = bench.work(cores=cores, settings=settings)
        stack.push_async_callback(lambda: asyncio.to_thread(worker.stop))
        client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{api.port}",
            timeout=30,
            limits=httpx.Limits(max_connections=1000, max_keepalive_connections=200),
        )
        await stack.enter_async_context(client)
        callers = [Caller(client, ledger, f"caller{n}@example.com", "one of many callers") for n in range(CALLERS)]
        for caller in callers:
            await caller.sign_up()
        failover = Failover(pair, client, verdicts, ledger)
        stack.push_async_callback(failover.end)
        await failover.begin()
        stop = asyncio.Event()
        working = [asyncio.create_task(caller.work(stop, PAUSE)) for caller in callers]
        stack.push_async_callback(end_tasks, working)
        await asyncio.sleep(3)
        steps: dict[str, Callable[[], Awaitable[None]]] = {
            "killed": failover.killed,
            "came_back": failover.came_back,
            "demoted": failover.demoted,
            "standby_lost": lambda: failover.standby_lost(15),
            "cut_off": failover.cut_off,
        }
        for name in names or steps:
            ledger.phase = name.replace("_", " ")
            print(f"       {ledger.phase}", flush=True)
            await steps[name]()
            ledger.phase = "between"
            await asyncio.sleep(2)
        await failover.end()
        stop.set()
        await asyncio.gather(*working)
        bench.database_url = pair.primary.dsn("bench")
        await judge(bench, verdicts, ledger, callers)
        for line in ledger.failures[:10]:
            print(f"       {line}")
        verdicts.equal("answers of 500, or that nothing explains", len(ledger.failures), 0)
        verdicts.equal("writes whose outcome nobody learned", ledger.given_up, 0)
        verdicts.equal("reads older than what was acknowledged", len(ledger.stale), 0, "; ".join(ledger.stale[:3]))
        statuses = {phase: dict(sorted(counts.items())) for phase, counts in ledger.statuses.items()}
        print(f"       {statuses}")


async def main(directory: Path, names: Sequence[str]) -> int:
    verdicts = Verdicts("PostgreSQL replaced")
    await run(directory, verdicts, names)
    if not names:
        verdicts.write(
            machine.ROOT / "docs" / "benchmarks" / "failover.md",
            "What callers lose and notice when PostgreSQL's primary is killed, demoted with its sessions kept, or cut "
            "off without a word; and while its synchronous standby is lost. Two servers, two API processes and a "
            f"worker that know both, {CALLERS} callers, and {PROBES_A_SECOND} reads past the cache and as many durable "
            "writes a second, which are not repeated. The successor is promoted three seconds after a primary is "
            "killed or cut off. *Fail for* is the time until the last request that was refused began; its bound is the "
            "time without a primary and 3 s, or 8.5 s where only silence tells that it has gone. Made by "
            "`python -m benchmarks.faults.failover`.",
        )
    return verdicts.exit_code


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="onehop-failover-", ignore_cleanup_errors=True) as folder:
        # The servers' user has to get in.
        Path(folder).chmod(0o755)
        sys.exit(asyncio.run(main(Path(folder), sys.argv[1:])))
