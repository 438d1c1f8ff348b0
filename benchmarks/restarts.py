"""`python -m benchmarks.restarts`: what is lost when processes are replaced, stopped and killed under load.

Prints each figure with its verdict and writes docs/benchmarks/restarts.md; the exit code is 1 if one is missed. Takes
about two minutes.
"""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import orjson
import psutil
import uvloop

from benchmarks import machine
from benchmarks.client import ask
from benchmarks.keepalive_clients import KeepaliveClients
from benchmarks.load import request
from benchmarks.machine import Service
from benchmarks.product import Bench
from benchmarks.verdicts import Verdicts

REQUESTS = 10_000
RESTARTS = 3
# Half of the clients ask again at once, half after a pause that leaves the connection idle in between.
_PAUSES = [0.0] * 8 + [0.05] * 8
_EVERYWHERE = frozenset(os.sched_getaffinity(0))
_SETTINGS = {
    "APP_HTTP_REQUEST_TIMEOUT": "90",
    "APP_DATABASE_STATEMENT_TIMEOUT": "90",
    "APP_DATABASE_LOCK_TIMEOUT": "60",
}


class Restarts:
    def __init__(self, bench: Bench, verdicts: Verdicts) -> None:
        self._bench = bench
        self._verdicts = verdicts
        self._tokens = [bench.token(number) for number in range(1, 5)]

    async def run(self) -> None:
        await self.rolling()
        await self.takeovers()
        await self.killed()
        await self.long_request()

    async def rolling(self) -> None:
        """SIGHUP: two processes, each replaced three times."""
        service = self._serve("rolling", APP_WORKERS="2")
        async with machine.running(service, "/readyz"):
            before = await self._events()
            async with self._clients(service.port) as clients:
                for number in range(RESTARTS):
                    await clients.until(REQUESTS * (number + 1) // (RESTARTS + 2))
                    await _replace(service)
                await clients.until(REQUESTS)
            await self._judge(f"{RESTARTS} rolling restarts (SIGHUP), 2 processes", clients, before)

    async def takeovers(self) -> None:
        """Another `python -m app serve` takes the port, three times."""
        service = self._serve("takeover-0")
        generations = [service]
        try:
            await service.until_ready("/readyz")
            before = await self._events()
            async with self._clients(service.port) as clients:
                for number in range(1, RESTARTS + 1):
                    await clients.until(REQUESTS * number // (RESTARTS + 2))
                    command = ("-m", "app", "serve", "--takeover")
                    generations.append(self._serve(f"takeover-{number}", command=command, PORT=str(service.port)))
                    await _until(lambda: not generations[-2].is_running(), 60)
                await clients.until(REQUESTS)
            await self._judge(f"{RESTARTS} takeovers by a new `serve --takeover`", clients, before)
        finally:
            for generation in generations:
                generation.stop()

    async def killed(self) -> None:
        """Kill -9 of one of two processes: only what was inside it may be lost."""
        service = self._serve("killed", APP_WORKERS="2")
        async with machine.running(service, "/readyz"):
            before = await self._events()
            async with self._clients(service.port) as clients:
                await clients.until(1000)
                # One of them has taken most of the connections.
                victim = max(_children(service), key=lambda child: child.cpu_times().user)
                victim.kill()
                began = monotonic()
                await clients.until(clients.total + 1000)
                await _until(lambda: len(_children(service)) == 2, 30)
                self._verdicts.at_most("kill -9 of one of two: seconds until it is replaced", monotonic() - began, 5)
            lost = clients.lost.total()
            self._verdicts.at_most("kill -9 of one of two: requests lost, of at most 16 under way", lost, len(_PAUSES))
            self._verdicts.at_most("… answers other than good ones", _bad(clients), 0)
            self._verdicts.at_most("… acknowledged writes that are not there", await self._missing(clients, before), 0)

    async def long_request(self) -> None:
        """SIGTERM while a request waits for a lock of 60 s."""
        service = self._serve("long", APP_CONNECTIONS_DRAIN_DELAY="2")
        async with machine.running(service, "/readyz"):
            body = orjson.dumps({"display_name": "Late"})
            late = request("PATCH", "/v1/users/me", token=self._tokens[0], body=body)
            async with self._bench.connection.transaction():
                await self._bench.connection.execute("LOCK TABLE users.users IN ACCESS EXCLUSIVE MODE")
                waiting = asyncio.ensure_future(ask(service.port, late))
                await asyncio.sleep(1)
                process = _process(service)
                process.send_signal(signal.SIGTERM)
                began = monotonic()
                await asyncio.sleep(0.3)
                not_ready, _ = await ask(service.port, request("GET", "/readyz"))
                alive, _ = await ask(service.port, request("GET", "/livez"))
                self._verdicts.equal("SIGTERM: status of /readyz afterwards", not_ready, 503)
                self._verdicts.equal("… of /livez, on a new connection", alive, 200)
                code = await asyncio.to_thread(process.wait, 60)
                self._verdicts.at_most(
                    "SIGTERM with a request of 60 s inside: seconds to the end", monotonic() - began, 30
                )
                self._verdicts.equal("… exit code", code, 0)
                status, _ = await waiting
                self._verdicts.equal("… status of the request", status, 503)

    def _serve(self, name: str, command: Sequence[str] = ("-m", "app", "serve"), **settings: str) -> Service:
        return self._bench.serve(name, command=command, cores=_EVERYWHERE, settings={**_SETTINGS, **settings})

    def _clients(self, port: int) -> KeepaliveClients:
        event = orjson.dumps({"kind": "page.viewed"})
        reads = [request("GET", "/v1/overview", token=token) for token in self._tokens]
        writes = [request("POST", "/v1/events", token=token, body=event) for token in self._tokens[:1]]
        return KeepaliveClients(port, [*writes, *reads], _PAUSES)

    async def _events(self) -> int:
        count: int = await self._bench.connection.fetchval("SELECT count(*) FROM users.events")
        return count

    async def _missing(self, clients: KeepaliveClients, before: int) -> int:
        return max(0, clients.done[0] - (await self._events() - before))

    async def _judge(self, what: str, clients: KeepaliveClients, before: int) -> None:
        self._verdicts.at_least(f"{what}: requests", clients.total, REQUESTS)
        self._verdicts.at_most("… lost", clients.lost.total(), 0, note=str(dict(clients.lost) or ""))
        self._verdicts.at_most("… answers other than good ones", _bad(clients), 0, note=str(dict(clients.statuses)))
        self._verdicts.at_most("… acknowledged writes that are not there", await self._missing(clients, before), 0)


def _bad(clients: KeepaliveClients) -> int:
    return sum(count for status, count in clients.statuses.items() if status >= 400)


def _process(service: Service) -> Any:
    return service.processes[0]


def _children(service: Service) -> list[Any]:
    """The server processes below the one that supervises them."""
    return [child for child in _process(service).children() if "multiprocessing.spawn" in " ".join(child.cmdline())]


async def _replace(service: Service) -> None:
    old = {child.pid for child in _children(service)}
    _process(service).send_signal(signal.SIGHUP)
    await _until(lambda: len(new := {child.pid for child in _children(service)}) == len(old) and not new & old, 90)


async def _until(condition: Any, seconds: float) -> None:
    deadline = monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except psutil.NoSuchProcess:
            pass
        if monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(0.05)


async def main() -> int:
    verdicts = Verdicts("Restarts")
    with tempfile.TemporaryDirectory(dir=machine.ROOT / ".data", prefix="bench-") as temporary:
        async with Bench(Path(temporary)) as bench:
            await bench.fill(10, 20)
            await Restarts(bench, verdicts).run()
    verdicts.write(
        machine.ROOT / "docs" / "benchmarks" / "restarts.md",
        "What is lost when server processes are replaced, stopped and killed while 16 clients, which keep their "
        "connections and never try again, read and write. Made by `python -m benchmarks.restarts`.",
    )
    return verdicts.exit_code


if __name__ == "__main__":
    (machine.ROOT / ".data").mkdir(exist_ok=True)
    sys.exit(uvloop.run(main()))
