"""`python -m benchmarks.chaos [seconds] [--runs N]`: all that can break breaks under load; then the books are checked.

Two API processes and a worker, with proxies before Postgres and Redis. Prints each figure with its verdict and writes
docs/benchmarks/chaos.md, or `--output`; the exit code is 1 if anything was lost, doubled or answered with 500.
"""

import argparse
import asyncio
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import httpx

from benchmarks import machine
from benchmarks.chaos.callers import Caller, Ledger
from benchmarks.chaos.faults import FAULTS, Stage
from benchmarks.chaos.verdict import judge, prepare
from benchmarks.machine import Service
from benchmarks.product import Bench
from benchmarks.verdicts import Verdicts
from tests.faults.proxy import Proxy

CALLERS = 24
PAUSE = 0.2
FAULT_SECONDS = 4.0
REST_SECONDS = 3.0
BEFORE = "before"
_EVERYWHERE = frozenset(os.sched_getaffinity(0))
_SETTINGS = {"APP_WORKERS": "2", "APP_IDENTITY_HASH_MEMORY_KIB": "4096", "APP_LOG_ACCESS": "false"}
_SERVER_ERROR = "5"
_KEPT_LOG = Path(tempfile.gettempdir()) / "onehop-chaos-api.log"


async def run(seconds: float, seed: int, output: Path) -> int:
    """The whole scenario, written to `output`; the answer is the exit code."""
    verdicts = Verdicts(f"Chaos, seed {seed}")
    ledger = Ledger(phase=BEFORE)
    # The order of faults is that of the list, and then by this chance.
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="onehop-chaos-") as directory:
        async with _staged(Path(directory)) as (bench, stage, client):
            await prepare(bench)
            callers = [Caller(client, ledger, f"chaos{n}@example.com", "one of many callers") for n in range(CALLERS)]
            for caller in callers:
                await caller.sign_up()
            stop = asyncio.Event()
            working = [asyncio.create_task(caller.work(stop, PAUSE)) for caller in callers]
            broken = await _break_things(stage, ledger, chance, seconds)
            ledger.phase = "after"
            stop.set()
            await asyncio.gather(*working)
            await judge(bench, verdicts, ledger, callers)
            _judge_answers(verdicts, ledger)
            if ledger.failures:
                shutil.copy(stage.api.log, _KEPT_LOG)
                print(f"       what the API logged: {_KEPT_LOG}")
    about = (
        f"`make chaos`: {CALLERS} callers, two API processes and a worker for {seconds:.0f} s, with {broken.total()} "
        f"faults of {FAULT_SECONDS:.0f} s and {REST_SECONDS:.0f} s between them (seed {seed}). Figures of time are "
        "those of a machine that also runs the callers, the servers and the proxies."
    )
    verdicts.write(output, about)
    with output.open("a", encoding="utf-8") as page:
        page.write("\n".join(["", *_table(ledger), ""]))
    return verdicts.exit_code


@asynccontextmanager
async def _staged(directory: Path) -> AsyncIterator[tuple[Bench, Stage, httpx.AsyncClient]]:
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(Bench(directory))
        database_proxy = await stack.enter_async_context(Proxy.before(bench.database_url))
        redis_proxy = await stack.enter_async_context(Proxy.before(bench.redis_url))
        settings = {**_SETTINGS, "DATABASE_URL": database_proxy.url, "REDIS_URL": redis_proxy.url}

        def start_worker() -> Service:
            return bench.work(cores=_EVERYWHERE, settings=settings)

        api = bench.serve(cores=_EVERYWHERE, settings=settings)
        await stack.enter_async_context(machine.running(api, "/readyz"))
        stage = Stage(
            bench.postgres,
            bench.valkey,
            database_proxy,
            redis_proxy,
            api,
            worker=start_worker(),
            start_worker=start_worker,
        )
        stack.push_async_callback(lambda: asyncio.to_thread(stage.worker.stop))
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}", timeout=20)
        await stack.enter_async_context(client)
        yield bench, stage, client


async def _break_things(stage: Stage, ledger: Ledger, chance: random.Random, seconds: float) -> Counter[str]:
    deadline = monotonic() + seconds
    broken: Counter[str] = Counter()
    await asyncio.sleep(2 * REST_SECONDS)
    order = list(FAULTS)
    while monotonic() < deadline:
        for fault in order:
            if monotonic() > deadline:
                break
            name = fault.__name__.replace("_", " ")
            print(f"{deadline - monotonic():5.0f} s left   {name}", flush=True)
            ledger.phase = name
            broken[name] += 1
            async with fault(stage):
                await asyncio.sleep(FAULT_SECONDS)
            ledger.phase = "between"
            await asyncio.sleep(REST_SECONDS)
        chance.shuffle(order)
    return broken


def _judge_answers(verdicts: Verdicts, ledger: Ledger) -> None:
    for line in ledger.failures[:10]:
        print(f"       {line}")
    verdicts.equal("answers of 500, or that nothing explains", len(ledger.failures), 0)
    verdicts.equal("writes with an unknown outcome", ledger.given_up, 0)
    verdicts.equal("reads older than what was acknowledged", len(ledger.stale), 0, "; ".join(ledger.stale[:3]))
    by_redis = {phase: counts for phase, counts in ledger.statuses.items() if phase.startswith("redis")}
    errors = sum(
        count for counts in by_redis.values() for status, count in counts.items() if status[0] == _SERVER_ERROR
    )
    verdicts.equal(
        "5xx while only Redis was ill", errors, 0, f"of {sum(c.total() for c in by_redis.values()):,} requests"
    )
    calm = _p99(ledger.seconds[BEFORE])
    worst = max((_p99(ledger.seconds[phase]) for phase in by_redis if ledger.seconds[phase]), default=0.0)
    verdicts.at_most("p99 of reads while Redis was ill, beyond that before, in ms", (worst - calm) * 1e3, 150)


def _table(ledger: Ledger) -> list[str]:
    """What callers met in each phase."""
    lines = [
        "| while | requests | refused with 5xx | without an answer | reads p50 | reads p99 |",
        "|---|---|---|---|---|---|",
    ]
    for phase, counts in ledger.statuses.items():
        refused = sum(count for status, count in counts.items() if status[0] == _SERVER_ERROR)
        unanswered = sum(count for status, count in counts.items() if not status.isdigit())
        seconds = ledger.seconds[phase] or [0.0]
        lines.append(
            f"| {phase} | {counts.total():,} | {refused:,} | {unanswered:,} "
            f"| {statistics.median(seconds) * 1e3:.0f} ms | {_p99(seconds) * 1e3:.0f} ms |"
        )
    return lines


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)] if seconds else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos")
    parser.add_argument("seconds", type=float, nargs="?", default=300)
    parser.add_argument("--seed", type=int, default=1, help="of the first run; each further one has the next")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=machine.ROOT / "docs" / "benchmarks" / "chaos.md")
    options = parser.parse_args()
    pages = []
    worst = 0
    for seed in range(options.seed, options.seed + options.runs):
        worst = max(worst, asyncio.run(run(options.seconds, seed, options.output)))
        pages.append(options.output.read_text(encoding="utf-8"))
        options.output.write_text("\n".join(pages), encoding="utf-8")
    return worst


if __name__ == "__main__":
    sys.exit(main())
