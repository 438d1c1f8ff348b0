"""`python -m benchmarks.hostile`: what clients that keep silent, dribble or send too much cost all others, and what the
guard against them costs.

Prints each figure with its verdict and writes docs/benchmarks/hostile.md; the exit code is 1 if one is missed. Takes
about four minutes.
"""

import argparse
import asyncio
import os
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

import orjson
import uvloop

from benchmarks import machine
from benchmarks.client import percentile
from benchmarks.keepalive_clients import KeepaliveClients
from benchmarks.load import Result, Sample, Side, drive, in_turns, request
from benchmarks.machine import Service
from benchmarks.product import Bench
from benchmarks.verdicts import Verdicts

SILENT = 2000
DRIBBLING = 500
_ROUNDS = 3
_CALM_SECONDS = 12.0
_OPENING_SECONDS = 3.0
# The limits in force, the sweep, and what a busy machine may add.
_HEAD_SECONDS = 10.0
_LATEST_SECONDS = _HEAD_SECONDS + 0.5 + 2.5
_HALF_A_HEAD = b"GET /v1/overview HTTP/1.1\r\nHost: a\r\nX-Slow: "
_HALF_A_BODY = (
    b"POST /v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
)
_PAUSES = [0.02] * 8
_COST_ROUNDS = 7
_COST_SECONDS = 2.0
_UVICORN = ("--loop", "uvloop", "--no-access-log", "--log-level", "error", "--ws", "none", "--no-proxy-headers")
_HTTP = {"stock": "httptools", "guarded": "app.kernel.server.protocol:GuardedProtocol"}


class _Attacker(asyncio.Protocol):
    """A connection that sends nothing but what it is told to, and remembers how long it was kept."""

    def __init__(self, kept: list[float]) -> None:
        self._kept = kept
        self._began = monotonic()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature.
        self._kept.append(monotonic() - self._began)


async def attack(port: int) -> dict[str, list[float]]:
    """Opens the connections, and tells how long each was kept, in seconds."""
    loop = asyncio.get_running_loop()
    number = SILENT + DRIBBLING
    kept: dict[str, list[float]] = {"silent": [], "dribbling": []}
    dribbling: list[_Attacker] = []
    for place in range(number):
        is_silent = place % number % (number // DRIBBLING) != 0
        found = kept["silent" if is_silent else "dribbling"]
        _, attacker = await loop.create_connection(lambda: _Attacker(found), "127.0.0.1", port)  # noqa: B023 - at once
        if not is_silent:
            attacker.transport.write(_HALF_A_HEAD if len(dribbling) % 2 else _HALF_A_BODY)
            dribbling.append(attacker)
        await asyncio.sleep(_OPENING_SECONDS / number)
    while sum(map(len, kept.values())) < number:
        for attacker in dribbling:
            if not attacker.transport.is_closing():
                attacker.transport.write(b"a")
            await asyncio.sleep(1.0 / DRIBBLING)
    return kept


class Hostile:
    def __init__(self, bench: Bench, verdicts: Verdicts) -> None:
        self._bench = bench
        self._verdicts = verdicts
        self._tokens = [bench.token(number) for number in range(1, 33)]
        self._reads = [request("GET", "/v1/overview", token=token) for token in self._tokens]

    async def run(self, only: str | None) -> None:
        if only in {None, "cost"}:
            await self.cost()
        async with machine.running(self._bench.serve(), "/readyz") as service:
            if only in {None, "slow"}:
                await self.slow_clients(service)
            if only in {None, "large"}:
                await self.large_heads(service)

    async def cost(self) -> None:
        """The same program on uvicorn's own protocol and on ours, in turns; by CPU time, which other work hardly
        moves.
        """
        for what, target, raw in (
            ("bare ASGI", "benchmarks.limits.references:bare", [request("GET", "/", token=self._tokens[0])]),
            ("hot overview", "app.main:app", self._reads),
        ):
            services = {name: self._uvicorn(f"{name}-{what[:4]}", target, http) for name, http in _HTTP.items()}
            async with machine.running(services["stock"], "/"), machine.running(services["guarded"], "/"):
                sides = {name: _side(service, raw) for name, service in services.items()}
                for side in sides.values():
                    await side()
                found = await in_turns(sides, _COST_ROUNDS)
            # The least of each, because other work on the machine only adds to it.
            stock, guarded = (min(sample.cpu_us for sample in found[name].samples) for name in ("stock", "guarded"))
            note = f"({guarded:.1f} µs ÷ {stock:.1f} µs of CPU; rate {_rate(found):.2f})"
            self._verdicts.at_most(f"{what}: guarded ÷ uvicorn's own protocol", guarded / stock, 1.03, note)

    def _uvicorn(self, name: str, target: str, http: str) -> Service:
        command = ("-m", "uvicorn", target, "--host", "127.0.0.1", "--port", "{port}", "--http", http, *_UVICORN)
        return self._bench.serve(name, command=command, settings={"BENCH_BODY": "1500"})

    async def slow_clients(self, service: Service) -> None:
        calm, attacked = [], []
        kept: dict[str, list[float]] = {"silent": [], "dribbling": []}
        for _ in range(_ROUNDS):
            calm.append(await self._latency(service, _CALM_SECONDS))
            attackers = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.hostile", "--attack", str(service.port)),
                cwd=machine.ROOT,
                stdout=asyncio.subprocess.PIPE,
            )
            # Not the start of the other process, only its connections.
            await asyncio.sleep(1.0)
            attacked.append(await self._latency(service, _OPENING_SECONDS + _HEAD_SECONDS))
            output, _ = await attackers.communicate()
            for kind, seconds in orjson.loads(output).items():
                kept[kind] += seconds
        note = f"({statistics.median(attacked):.1f} ms ÷ {statistics.median(calm):.1f} ms; "
        note += f"by round {', '.join(f'{a / c:.2f}' for a, c in zip(attacked, calm, strict=True))})"
        ratio = statistics.median(attacked) / statistics.median(calm)
        what = f"p99 beside {SILENT} silent and {DRIBBLING} dribbling sockets ÷ calm"
        self._verdicts.at_most(what, ratio, 1.5, note)
        for kind, number in (("silent", SILENT), ("dribbling", DRIBBLING)):
            self._verdicts.equal(f"{kind} sockets closed", len(kept[kind]), number * _ROUNDS)
            self._verdicts.at_most(
                f"… the last after seconds (limit {_HEAD_SECONDS:g})", max(kept[kind]), _LATEST_SECONDS
            )

    async def _latency(self, service: Service, seconds: float) -> float:
        """The 99th percentile in milliseconds of a moderate load."""
        async with KeepaliveClients(service.port, self._reads, _PAUSES) as clients:
            await asyncio.sleep(seconds)
        assert not clients.lost, clients.lost
        assert set(clients.statuses) == {200}, clients.statuses
        return percentile(sorted(clients.latencies), 0.99)

    async def large_heads(self, service: Service) -> None:
        before = service.resident_bytes()
        for what, raw, status in (
            ("a header of 10 MB", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 10_000_000 + b"\r\n\r\n", 431),
            ("20,000 headers", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", 431),
            ("a URL of 1 MB", b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        ):
            began = monotonic()
            self._verdicts.equal(f"{what}: status", await _status(service.port, raw), status)
            self._verdicts.at_most("… seconds until it was there", monotonic() - began, 1)
        grown = (service.resident_bytes() - before) / 2**20
        self._verdicts.at_most("… resident memory afterwards, MiB more", grown, 4)


def _side(service: Service, raw: list[bytes]) -> Side:
    async def side() -> Sample:
        return await drive(service, raw, seconds=_COST_SECONDS)

    return side


def _rate(found: dict[str, Result]) -> float:
    return found["guarded"].median("rate") / found["stock"].median("rate")


async def _status(port: int, raw: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return int(answer[9:12])


async def main(only: str | None) -> int:
    verdicts = Verdicts("Hostile clients")
    with tempfile.TemporaryDirectory(dir=machine.ROOT / ".data", prefix="bench-") as temporary:
        async with Bench(Path(temporary)) as bench:
            await bench.fill(50, 20)
            await Hostile(bench, verdicts).run(only)
    if only is not None:
        return verdicts.exit_code
    verdicts.write(
        machine.ROOT / "docs" / "benchmarks" / "hostile.md",
        "What clients that keep silent, dribble or send too much cost all others, and what the guard against them "
        "costs a request. Made by `python -m benchmarks.hostile`.",
    )
    return verdicts.exit_code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile")
    parser.add_argument("--only", choices=("cost", "slow", "large"), help="one part; writes no report")
    parser.add_argument("--attack", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.attack:
        os.nice(10)
        print(orjson.dumps(uvloop.run(attack(options.attack))).decode())
    else:
        (machine.ROOT / ".data").mkdir(exist_ok=True)
        sys.exit(uvloop.run(main(options.only)))
