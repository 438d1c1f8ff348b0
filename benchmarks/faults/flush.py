"""`python -m benchmarks.faults.flush`: what a fleet asks the database for when Redis loses everything.

Four processes under a steady load of overviews, with writes that end cached answers now and then. Two faults: Redis is
emptied; and it is emptied while the messages of the cache are cut, after which all processes have lost their memory
too, as behind a restart. Each is compared with the same seconds without a fault, in turns.
"""

import asyncio
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import redis.asyncio as redis
import uvloop

from benchmarks import machine
from benchmarks.client import Outcome, ask, ask_all, open_loop, percentile
from benchmarks.load import request
from benchmarks.machine import Service
from benchmarks.product import Bench
from benchmarks.verdicts import Verdicts

PROCESSES = 4
PEOPLE = 50
READS = 100
WRITES = 10
SECONDS = 2.0
ROUNDS = 5
# Answers that came neither out of memory nor out of Redis, so that the database was asked.
_READ = re.compile(r'^onehop_cache_requests_total\{result="(?:miss|bypass)".*\} (\S+)$', re.MULTILINE)
FAULTS = {"no fault": (), "emptied": ("FLUSHALL",), "emptied, messages cut": ("FLUSHALL", "CLIENT KILL TYPE pubsub")}


@dataclass
class Window:
    """What was seen in some seconds."""

    reads: float
    p99: float
    failed: int


class Fleet:
    """Processes on one database and one Redis."""

    def __init__(self, bench: Bench, services: Sequence[Service]) -> None:
        self._bench = bench
        self._services = services
        self._overviews = [request("GET", "/v1/overview", token=bench.token(number)) for number in range(1, PEOPLE + 1)]
        self._events = [
            request("POST", "/v1/events", token=bench.token(number), body=b'{"kind":"a.b"}')
            for number in range(1, PEOPLE + 1)
        ]

    async def warm_up(self) -> None:
        for service in self._services:
            await ask_all(service.port, self._overviews)

    async def watch(self, fault: Sequence[str]) -> Window:
        before = await self._count()
        load = [asyncio.create_task(open_loop(one.port, self._overviews, SECONDS, READS, 8)) for one in self._services]
        load += [asyncio.create_task(open_loop(one.port, self._events, SECONDS, WRITES, 2)) for one in self._services]
        await asyncio.sleep(0.3)
        await self._meet(fault)
        outcomes: list[Outcome] = await asyncio.gather(*load)
        good = sorted(value for outcome in outcomes[:PROCESSES] for value in outcome.good())
        failed = sum(outcome.statuses.total() - len(outcome.good()) + outcome.unsent for outcome in outcomes)
        return Window(await self._count() - before, percentile(good, 0.99), failed)

    async def stampede(self) -> float:
        """Reads of the database for each person when all processes are asked for them in the same moment."""
        await self._meet(FAULTS["emptied, messages cut"])
        # Until all of them hear messages again.
        await asyncio.sleep(1)
        before = await self._count()
        for raw in self._overviews:
            await asyncio.gather(*(ask(service.port, raw) for service in self._services))
        return (await self._count() - before) / PEOPLE

    async def _meet(self, fault: Sequence[str]) -> None:
        async with redis.Redis.from_url(self._bench.redis_url) as server:
            for command in fault:
                await server.execute_command(*command.split())

    async def _count(self) -> float:
        texts = [(await ask(service.port, request("GET", "/metrics")))[1].decode() for service in self._services]
        return sum(float(value) for text in texts for value in _READ.findall(text))


async def main(directory: Path) -> int:
    verdicts = Verdicts("Redis emptied under load")
    async with Bench(directory) as bench, AsyncExitStack() as stack:
        await bench.fill(PEOPLE, 20)
        settings = {"APP_LIMITS_CALLER": "1000000"}
        services = [
            await stack.enter_async_context(machine.running(bench.serve(f"api-{number}", settings=settings)))
            for number in range(PROCESSES)
        ]
        fleet = Fleet(bench, services)
        await fleet.warm_up()
        windows: dict[str, list[Window]] = {name: [] for name in FAULTS}
        for _ in range(ROUNDS):
            for name, fault in FAULTS.items():
                windows[name].append(await fleet.watch(fault))
        steady = statistics.median(window.reads for window in windows["no fault"])
        normal = statistics.median(window.p99 for window in windows["no fault"])
        for name, seen in windows.items():
            verdicts.at_most(f"{name}: failed requests", sum(window.failed for window in seen), 0)
            if name != "no fault":
                reads = statistics.median(window.reads for window in seen)
                p99 = statistics.median(window.p99 for window in seen)
                verdicts.at_most(
                    f"{name}: reads of the database in {SECONDS:.0f} s ÷ without ({reads:.0f} ÷ {steady:.0f})",
                    reads / steady,
                    2,
                )
                verdicts.at_most(f"{name}: reads more than without, for each person", (reads - steady) / PEOPLE, 2)
                verdicts.at_most(f"{name}: p99 of overviews ÷ without ({p99:.1f} ÷ {normal:.1f} ms)", p99 / normal, 3)
        verdicts.at_most(
            f"all {PROCESSES} processes without memory and asked for one person at once: reads for each person",
            await fleet.stampede(),
            PROCESSES,
        )
    verdicts.write(
        machine.ROOT / "docs" / "benchmarks" / "flush.md",
        f"{PROCESSES} processes, {PEOPLE} people, {PROCESSES * READS} overviews and {PROCESSES * WRITES} writes a "
        f"second; medians of {ROUNDS} windows, in turns. Made by `python -m benchmarks.faults.flush`.",
    )
    return verdicts.exit_code


if __name__ == "__main__":
    Path(".data").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=".data") as folder:
        sys.exit(uvloop.run(main(Path(folder).absolute())))
