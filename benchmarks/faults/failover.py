"""`python -m benchmarks.faults.failover`: what callers lose and notice when PostgreSQL's primary is replaced.

Two servers, the second one a synchronous standby; an API with two processes and a worker that know both addresses; and
callers who keep account of what they were told. The primary is killed, demoted, hung, and cut off; and the standby is
lost, alone and together with the primary. With `--replicas` whichever server is the standby is read, too.

Prints each figure with its verdict and writes docs/benchmarks/failover.md, or failover-replicas.md; the exit code is 1
if one is missed. Takes three minutes. Steps that are named are taken alone.
"""

import argparse
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
from tests.faults.proxy import Proxy

CALLERS = 16
PAUSE = 0.2
# As long as the watcher of the servers needs to be sure.
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
    def __init__(
        self, pair: Pair, client: httpx.AsyncClient, verdicts: Verdicts, ledger: Ledger, *, replicas: bool
    ) -> None:
        self._pair = pair
        self._replicas = replicas
        self._client = client
        self._verdicts = verdicts
        self._ledger = ledger
        self._person: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.reads, self.writes = Probes("reads"), Probes("writes")
        self._reads = 0
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
        """The former primary follows; no client writes to it or reads from it."""
        since = monotonic()
        await self._pair.follow_again()
        await asyncio.sleep(2)
        await self._pair.commit_at_both()
        await asyncio.sleep(2)
        failed = self.reads.failed(since) + self.writes.failed(since)
        self._verdicts.equal("former primary back as a standby: probes that failed", failed, 0)
        sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'onehop%'"
        title = "former primary back as a standby: connections to it"
        connections = await self._pair.ask(self._pair.standby, sql)
        if self._replicas:
            # One for each process that looks at it, and those that read.
            self._verdicts.at_least(title, connections, 4)
        else:
            self._verdicts.equal(title, connections, 0)

    async def demoted(self) -> None:
        since = monotonic()
        await self._pair.demote_primary()
        await self._pair.promote()
        await self._judge("primary demoted, its sessions kept", since, monotonic() - since)
        if not self._replicas:
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
            f"{title}: reads fail for, s", max(read_failures, default=0.0), 1, f"({len(read_failures)} probes)"
        )
        status, tokens = await refresh
        self._verdicts.equal(f"{title}: a refresh repeated until it is answered", status, 200)
        self._person |= tokens
        await self._judge_sessions(title)

    async def both_lost(self) -> None:
        """The standby, and while commits wait for it the primary; the standby takes over."""
        await self._pair.stop_standby()
        await asyncio.sleep(7)
        since = monotonic()
        await self._pair.kill_primary()
        await asyncio.sleep(DETECTION_SECONDS)
        await self._pair.start_standby()
        await self._pair.promote()
        await self._judge("primary killed while its standby is lost", since, monotonic() - since)
        await self._pair.follow_again()
        await self._pair.commit_at_both()

    async def hung(self) -> None:
        """The primary accepts everything and says nothing more."""
        await self._silence("primary hangs", Proxy.freeze, longest=5.5)
        await self._pair.follow_again()
        await self._pair.commit_at_both()

    async def cut_off(self) -> None:
        """Not even its machine says anything."""
        await self._silence("primary cut off without a word", Proxy.cut_off, longest=3.0)

    async def _silence(self, title: str, fault: Callable[[Proxy], None], *, longest: float) -> None:
        since = monotonic()
        proxy = self._pair.proxies[0]
        fault(proxy)
        await asyncio.sleep(DETECTION_SECONDS)
        # The operator that promotes makes sure that the other one is gone.
        await self._pair.kill_primary()
        await self._pair.promote()
        await self._judge(title, since, max(monotonic() - since, longest))
        await proxy.restore()

    async def _judge(self, title: str, since: float, took: float) -> None:
        """Waits until all is well again."""
        began = monotonic()
        await self._settle()
        job = await self._run_job()
        for probes in (self.reads, self.writes):
            window = probes.last_failure(since)
            bound = took + 3
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
        self._ledger.record(self._ledger.phase, answer, monotonic() - began)

    async def _read(self) -> httpx.Response:
        return await self._client.get(f"/v1/users/me/events?limit=5&{self._uncached()}", headers=_bearer(self._person))

    def _uncached(self) -> str:
        """A filter that lets everything through, and that no answer in a cache was asked with."""
        self._reads += 1
        return f"since=2026-01-01T00:00:00.{self._reads:06}Z"

    async def _write(self) -> httpx.Response:
        answer = await self._client.post("/v1/events", json={"kind": "probe"}, headers=_bearer(self._person))
        if answer.status_code < 300:
            (written,) = answer.json()["ids"]
            page = await self._client.get(
                f"/v1/users/me/events?limit=100&{self._uncached()}", headers=_bearer(self._person)
            )
            if page.status_code < 300 and written not in (event["id"] for event in page.json()["items"]):
                self._ledger.stale.append(f"an event missed by its writer while {self._ledger.phase}")
        return answer

    def _spawn(self, work: Any) -> None:
        self._tasks.add(asyncio.create_task(work))


def _bearer(tokens: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


async def run(directory: Path, verdicts: Verdicts, names: Sequence[str], *, replicas: bool) -> None:
    ledger = Ledger(phase="before")
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(Bench(directory))
        await prepare(bench)
        pair = await stack.enter_async_context(Pair(bench.postgres, directory))
        await pair.commit_at_both()
        settings = {**_SETTINGS, "DATABASE_URL": pair.url}
        if replicas:
            settings["DATABASE_REPLICA_URLS"] = ",".join(f"{proxy.url}?sslmode=disable" for proxy in pair.proxies)
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
        failover = Failover(pair, client, verdicts, ledger, replicas=replicas)
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
            "both_lost": failover.both_lost,
            "hung": failover.hung,
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
        verdicts.equal("writes with an unknown outcome", ledger.given_up, 0)
        verdicts.equal("reads older than what was acknowledged", len(ledger.stale), 0, "; ".join(ledger.stale[:3]))
        statuses = {phase: dict(sorted(counts.items())) for phase, counts in ledger.statuses.items()}
        print(f"       {statuses}")


async def main(directory: Path, names: Sequence[str], *, replicas: bool) -> int:
    verdicts = Verdicts("PostgreSQL replaced, and its standby read" if replicas else "PostgreSQL replaced")
    await run(directory, verdicts, names, replicas=replicas)
    if not names:
        verdicts.write(
            machine.ROOT / "docs" / "benchmarks" / ("failover-replicas.md" if replicas else "failover.md"),
            "What callers lose and notice when PostgreSQL's primary is killed, demoted with its sessions kept, hangs, "
            "or is cut off without a word; and while its synchronous standby is lost. Two servers, two API processes "
            f"and a worker that know both, {CALLERS} callers, and {PROBES_A_SECOND} reads past the cache and as many "
            "durable writes a second, which are not repeated, and after each of which its writer looks for it. "
            + ("Lists of events are read at the standby, whichever server that is. " if replicas else "")
            + "The successor is promoted three seconds after a primary is killed, hangs or is cut off. *Fail for* is "
            "the time until the last request that was refused began; its bound is the time without a primary and 3 s, "
            "and for a server that hangs 8.5 s, because only the time-out of a statement tells. Made by "
            f"`python -m benchmarks.faults.failover{' --replicas' if replicas else ''}`.",
        )
    return verdicts.exit_code


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", nargs="*")
    parser.add_argument("--replicas", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onehop-failover-", ignore_cleanup_errors=True) as folder:
        # The servers' user has to get in.
        Path(folder).chmod(0o755)
        sys.exit(asyncio.run(main(Path(folder), arguments.steps, replicas=arguments.replicas)))
