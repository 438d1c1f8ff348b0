"""`python -m benchmarks.faults.cluster`: what callers see while a Valkey Cluster that caches loses nodes.

Three primaries with a replica each, two API processes, and a steady load of reads and writes. In turns: a primary is
killed, by hand its replica takes over, a slot in use moves, and a primary is killed that has no replica left. Each
caller of a watched few reads what they have just written, from both processes. Prints each figure with its verdict and
writes docs/benchmarks/cluster.md; the exit code is 1 if one is missed. `--rounds` is how often (8: about 30 faults).
"""

import argparse
import asyncio
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import orjson
import uvloop

from benchmarks import data, machine
from benchmarks.client import Outcome, ask, open_loop_until
from benchmarks.load import request
from benchmarks.machine import Service
from benchmarks.product import Bench
from benchmarks.verdicts import Verdicts
from tests.faults.cluster import NODE_TIMEOUT, Cluster, Node, running_cluster, slot_of, until
from tests.faults.signals import frozen

PEOPLE = 60
# They write and read one after another; the load is of the others.
WATCHED = 6
READS = 60
WRITES = 15
# After a write another process may answer for so long from memory.
_LAG_SECONDS = 2.0
_USE = re.compile(r'^onehop_cache_requests_total\{result="(hit|bypass)",tier="remote"\} (\S+)$', re.MULTILINE)


@dataclass
class Seen:
    """What came of one kind of fault."""

    load: Outcome = field(default_factory=Outcome)
    # Seconds without use of the cache beyond the cluster's own failover.
    gaps: list[float] = field(default_factory=list)
    old: Counter[str] = field(default_factory=Counter)
    watched: Counter[int] = field(default_factory=Counter)
    faults: int = 0

    def wrong(self) -> int:
        """Answers that are not good, and requests without any."""
        good = sum(count for status, count in (self.load.statuses + self.watched).items() if status < 400)
        return (self.load.statuses + self.watched).total() - good + self.load.unsent


class Faults:
    def __init__(self, bench: Bench, services: Sequence[Service], cluster: Cluster) -> None:
        self._bench = bench
        self._services = services
        self._cluster = cluster
        self._names = iter(range(10**9))
        # A node that is to be started again after its fault.
        self._killed: list[Node] = []
        tokens = [bench.token(number) for number in range(WATCHED + 1, PEOPLE + 1)]
        self._reads = [
            request("GET", path, token=token) for token in tokens for path in ("/v1/overview", "/v1/users/me")
        ]
        self._writes = [request("POST", "/v1/events", token=token, body=b'{"kind":"a.b"}') for token in tokens]

    async def primary_killed(self, number: int) -> float:
        """The replica takes over; the seconds until it has."""
        lost = await self._cluster.primary(number)
        (other,) = (node for node in self._cluster.pairs()[number] if node is not lost)
        # What was written last is only where it is lost: the replica hears nothing of it.
        with frozen(other.process.pid):
            await asyncio.sleep(0.3)
            lost.kill()
        spent = await until(other.is_primary)
        self._killed.append(lost)
        return spent

    async def taken_over(self, number: int) -> float:
        primary = await self._cluster.primary(number)
        (other,) = (node for node in self._cluster.pairs()[number] if node is not primary)
        await other.ask("CLUSTER", "FAILOVER")
        return await until(other.is_primary)

    async def slot_moved(self, _: int) -> float:
        """Of a watched person, there and back."""
        slot = slot_of(str(data.user_id(1)))
        owners = [await self._cluster.primary(place) for place in range(3)]
        (source,) = [node for node in owners if await _has(node, slot)]
        target = next(node for node in owners if node is not source)

        async def wait() -> None:
            await asyncio.sleep(0.3)

        began = monotonic()
        await self._cluster.move(slot, source, target, wait)
        return monotonic() - began

    async def lost(self, number: int) -> float:
        """No server takes over until both are back."""
        primary = await self._cluster.primary(number)
        (other,) = (node for node in self._cluster.pairs()[number] if node is not primary)
        began = monotonic()
        other.kill()
        primary.kill()
        await asyncio.sleep(3)
        other.start()
        primary.start()
        await until(self._cluster.is_whole)
        return monotonic() - began

    async def everything_lost(self, _: int) -> float:
        began = monotonic()
        for node in self._cluster.nodes:
            node.kill()
        await asyncio.sleep(3)
        for node in self._cluster.nodes:
            node.start()
        await until(self._cluster.is_whole)
        return monotonic() - began

    async def meet(self, fault: Callable[[int], Awaitable[float]], number: int, seen: Seen) -> None:
        """One fault under load, and the time until the cache is in use again."""
        over = asyncio.Event()
        load = [
            asyncio.create_task(open_loop_until(over, service.port, requests, rate, 32))
            for service in self._services
            for requests, rate in ((self._reads, READS), (self._writes, WRITES))
        ]
        watches = [asyncio.create_task(self._watch(person, over, seen)) for person in range(1, WATCHED + 1)]
        await asyncio.sleep(0.5)
        bypasses = Bypasses(self._services)
        async with bypasses.watched():
            began = monotonic()
            failover = await fault(number)
            await asyncio.sleep(2.5)
        seen.gaps.append(max(0.0, bypasses.last_seen - began - failover))
        seen.faults += 1
        while self._killed:
            self._killed.pop().start()
        await until(self._cluster.is_whole)
        over.set()
        for outcome in await asyncio.gather(*load):
            seen.load.take(outcome)
        await asyncio.gather(*watches)

    async def _watch(self, person: int, over: asyncio.Event, seen: Seen) -> None:
        """Writes by one process and reads by both, again and again."""
        token = self._bench.token(person)
        read = request("GET", "/v1/users/me", token=token)
        while not over.is_set():
            one, other = (self._services[index].port for index in ((0, 1) if person % 2 else (1, 0)))
            name = f"Name {next(self._names)}"
            body = orjson.dumps({"display_name": name})
            status, _ = await ask(one, request("PATCH", "/v1/users/me", token=token, body=body))
            seen.watched[status] += 1
            deadline = monotonic() + _LAG_SECONDS
            for _ in range(3):
                if await self._name(one, read, seen) != name:
                    seen.old["who wrote"] += 1
            while await self._name(other, read, seen) != name:
                if monotonic() > deadline:
                    seen.old["the other process"] += 1
                    break
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)

    async def _name(self, port: int, read: bytes, seen: Seen) -> str:
        status, body = await ask(port, read)
        seen.watched[status] += 1
        name: str = orjson.loads(body).get("display_name", "")
        return name


async def _has(node: Node, slot: int) -> bool:
    known = await node.ask("CLUSTER NODES")
    return any(int(part[0]) <= slot <= int(part[-1]) for part in known[f"127.0.0.1:{node.port}"]["slots"])


class Bypasses:
    """When a look-up last went past Redis, as the processes count them."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = services
        self.last_seen = 0.0

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        over = asyncio.Event()
        task = asyncio.create_task(self._look(over))
        try:
            yield
        finally:
            over.set()
            await task

    async def _look(self, over: asyncio.Event) -> None:
        before = await self._count()
        while not over.is_set():
            await asyncio.sleep(0.1)
            now = await self._count()
            if now > before:
                self.last_seen = monotonic()
            before = now

    async def _count(self) -> float:
        texts = [(await ask(one.port, request("GET", "/metrics")))[1].decode() for one in self._services]
        return sum(float(value) for text in texts for kind, value in _USE.findall(text) if kind == "bypass")


async def main(directory: Path, rounds: int) -> int:
    verdicts = Verdicts("Nodes of a Valkey Cluster lost under load")
    async with Bench(directory) as bench, AsyncExitStack() as stack:
        await bench.fill(PEOPLE, 20)
        cluster = await stack.enter_async_context(running_cluster(directory / "cluster", replicas=True))
        settings = {"APP_REDIS_CACHE_URL": cluster.nodes[0].url, "APP_REDIS_CACHE_CLUSTER": "true"}
        services = [
            await stack.enter_async_context(machine.running(bench.serve(f"api-{number}", settings=settings), "/readyz"))
            for number in range(2)
        ]
        faults = Faults(bench, services, cluster)
        kinds = {
            "primary killed": faults.primary_killed,
            "replica takes over by hand": faults.taken_over,
            "slot moved": faults.slot_moved,
            "primary and replica killed": faults.lost,
        }
        seen = {name: Seen() for name in kinds} | {"all nodes killed": Seen()}
        for number in range(rounds):
            for name, fault in kinds.items():
                await faults.meet(fault, number % 3, seen[name])
        await faults.meet(faults.everything_lost, 0, seen["all nodes killed"])
    for name, one in seen.items():
        requests = one.load.statuses + one.watched
        verdicts.at_most(
            f"{name}, {one.faults} times: requests that failed", one.wrong(), 0, f"of {requests.total():,}"
        )
        verdicts.at_most(f"{name}: answers older than the caller's own write", one.old["who wrote"], 0)
        verdicts.at_most(
            f"{name}: older than another process's write for more than {_LAG_SECONDS:g} s",
            one.old["the other process"],
            0,
        )
        verdicts.at_most(f"{name}: seconds past Redis after the cluster served again, longest", max(one.gaps), 1)
    verdicts.write(
        machine.ROOT / "docs" / "benchmarks" / "cluster.md",
        f"Three primaries with a replica each, `cluster-node-timeout` {NODE_TIMEOUT:g} s; {2 * READS} reads and "
        f"{2 * WRITES} writes a second at two processes, and {WATCHED} people who read what they have just written, "
        "from both. Where a primary is killed, its replica has not heard of the last writes. Made by "
        "`python -m benchmarks.faults.cluster`.",
    )
    return verdicts.exit_code


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    Path(".data").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=".data") as folder:
        sys.exit(uvloop.run(main(Path(folder).absolute(), parser.parse_args().rounds)))
