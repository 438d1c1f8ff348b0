"""`python -m benchmarks.overload [--quick]`: two, five and ten times what one process can do, and what becomes of it.

Writes docs/benchmarks/overload.md. Requests fall due whether or not answers come, over 2,000 connections that stand
before the first of them; meanwhile a probe asks for `/livez`; afterwards a closed loop shows when all is as before.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import overload

import orjson
import uvloop

from benchmarks import data
from benchmarks.budgets import Budget
from benchmarks.client import ask, closed_loop, open_loop, percentile
from benchmarks.load import CONNECTIONS, Sample, drive, request, settled
from benchmarks.machine import ROOT, Service, describe
from benchmarks.product import Bench

FACTORS = (2, 5, 10)
CROWD = 2000
_PEOPLE = 3000
# Each costs as much computing as several refusals.
_LIVEZ_EVERY = 0.25
_RECOVERED = 0.8
# Otherwise it is the cache, filling up, whose memory is measured.
SETTINGS = {"APP_CACHE_LOCAL_ENTRIES": "1000"}
_REPORT = ROOT / "docs/benchmarks/overload.md"


@dataclass(frozen=True, slots=True)
class Measured:
    """One overload. Times are in milliseconds, `recovered_after` is in seconds."""

    what: str
    factor: int
    capacity: float
    goodput: float
    efficiency: float
    answered: float
    normal_p99: float
    admitted_p50: float
    admitted_p99: float
    refused_p50: float
    refused_p99: float
    livez: float
    recovered_after: float
    memory: float

    @property
    def p99_ratio(self) -> float:
        return self.admitted_p99 / self.normal_p99

    def budgets(self) -> list[Budget]:
        name = f"{self.what}, {self.factor} times the capacity"
        return [
            Budget("", f"{name}: goodput ÷ capacity", self.goodput, 0.9, by_cpu=self.efficiency),
            Budget("", f"{name}: p99 of the admitted ÷ normal", self.p99_ratio, 2, at_least=False),
            Budget("", f"{name}: slowest /livez meanwhile, ms", self.livez, 100, at_least=False),
            Budget("", f"{name}: back to normal after, s", self.recovered_after, 2, at_least=False),
            Budget("", f"{name}: resident memory ÷ before", self.memory, 1.3, at_least=False),
        ]


async def measure(service: Service, what: str, requests: Sequence[bytes], factor: int, seconds: float) -> Measured:
    """Capacity, overload, and the way back. A process slows down by a tenth as it and the machine get warm, so that
    normal is the mean of before and afterwards.
    """
    await settled(service)
    before = await drive(service, requests, seconds=3)
    await settled(service)
    watches: list[asyncio.Task[float]] = []
    cpu = 0.0
    resident = service.resident_bytes()

    def begun() -> None:
        nonlocal cpu
        cpu = service.cpu_seconds()
        watches.append(asyncio.create_task(slowest_livez(service, seconds)))

    over = await open_loop(service.port, requests, seconds, before.rate * factor, CROWD, begun)
    used, memory = service.cpu_seconds() - cpu, service.resident_bytes() / resident
    recovered_after = await recovery(service, requests, before)
    await settled(service)
    after = await drive(service, requests, seconds=3)
    rate, cpu_us, p99 = ((getattr(before, name) + getattr(after, name)) / 2 for name in ("rate", "cpu_us", "p99"))
    good, refused = over.good(), sorted(over.latencies.get(503, []))
    return Measured(
        what,
        factor,
        rate,
        over.in_time / over.seconds / rate,
        len(good) * cpu_us / 1e6 / max(used, 1e-9),
        over.statuses.total() / over.seconds / rate,
        p99,
        percentile(good, 0.5),
        percentile(good, 0.99),
        percentile(refused, 0.5),
        percentile(refused, 0.99),
        await watches[0],
        recovered_after,
        memory,
    )


def middle(rounds: Sequence[Measured]) -> Measured:
    """The round with the median goodput, but of what must never be, the worst of all rounds."""
    median = sorted(rounds, key=lambda one: one.goodput)[(len(rounds) - 1) // 2]
    return replace(
        median,
        livez=max(one.livez for one in rounds),
        recovered_after=max(one.recovered_after for one in rounds),
        memory=max(one.memory for one in rounds),
    )


async def slowest_livez(service: Service, seconds: float) -> float:
    slowest = 0.0
    ends = perf_counter() + seconds
    while (began := perf_counter()) < ends:
        status, _ = await ask(service.port, request("GET", "/livez"))
        assert status == 200
        slowest = max(slowest, perf_counter() - began)
        await asyncio.sleep(_LIVEZ_EVERY)
    return slowest * 1000


async def recovery(service: Service, requests: Sequence[bytes], normal: Sample) -> float:
    """Seconds until a window of a closed loop has four fifths of the rate from before, and no refusals."""
    began = perf_counter()
    window = max(0.3, 20 / normal.rate)
    while perf_counter() - began < 30:
        outcome = await closed_loop(service.port, requests, window, CONNECTIONS)
        good = len(outcome.good())
        if good == outcome.statuses.total() and good / outcome.seconds >= normal.rate * _RECOVERED:
            break
    return max(0.0, perf_counter() - began - window)


class Fresh(Sequence[bytes]):
    """Requests that were never made before, whichever place is looked at and however often."""

    def __init__(self, make: Callable[[int], bytes]) -> None:
        self._make = make
        self._numbers = count(1)

    def __len__(self) -> int:
        # More than one window of a closed loop takes.
        return 20_000

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        places = range(len(self))[index]
        return self._make(next(self._numbers)) if isinstance(places, int) else [self[place] for place in places]


def workloads(bench: Bench) -> dict[str, Sequence[bytes]]:
    tokens = [bench.token(number) for number in range(1, 201)]

    def page(number: int) -> bytes:
        since = f"2026-01-01T00:00:{number // 1_000_000:02}.{number % 1_000_000:06}Z"
        return request("GET", f"/v1/users/me/events?limit=20&since={since}", token=tokens[number % len(tokens)])

    body = orjson.dumps({"ids": [str(data.user_id(number)) for number in range(1, 51)]})
    log_ins = [orjson.dumps({"email": data.email(number), "password": data.PASSWORD}) for number in range(1, 401)]
    return {
        "log-ins": [request("POST", "/v1/auth/login", body=log_in) for log_in in log_ins],
        "look-ups of 50 people": [request("POST", "/v1/users/lookup", token=token, body=body) for token in tokens],
        # Of a path that the cache answers, if it can.
        "pages of events asked for once": Fresh(page),
    }


def report(found: Sequence[Measured], seconds: float) -> str:
    head = (
        "| what | offered | capacity/s | goodput | by CPU time | answered | normal p99 | admitted p50, p99 "
        "| refused p50, p99 | /livez | back after | memory |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    rows = "\n".join(
        f"| {m.what} | {m.factor} times | {m.capacity:.0f} | {m.goodput:.2f} | {m.efficiency:.2f} "
        f"| {m.answered:.1f} times "
        f"| {m.normal_p99:.0f} ms | {m.admitted_p50:.0f}, {m.admitted_p99:.0f} ms "
        f"| {m.refused_p50:.0f}, {m.refused_p99:.0f} ms | {m.livez:.0f} ms "
        f"| {m.recovered_after:.1f} s | {m.memory:.2f} |"
        for m in found
    )
    verdicts = "\n".join(f"- {str(budget).strip()}" for m in found for budget in m.budgets())
    machine = ", ".join(f"{name} {value}" for name, value in describe().items())
    return (
        "# Overload\n\n"
        f"`python -m benchmarks.overload` writes this page: one process on one core, {CROWD:,} connections, windows of "
        f"{seconds:.0f} s.\nMachine: {machine}.\n\n"
        "*Capacity* is what 32 connections get, before and afterwards. *Goodput* is what was answered as wished within "
        "the window ÷\ncapacity; *by CPU time* is the part of the server's computing time that went into it, which "
        "neighbours on the machine disturb\nleast. *Answered* is all answers ÷ capacity: refusals get a hundredth of "
        "the event loop's time while there is other work, so\na client that waits for them cannot ask faster.\n\n"
        f"{head}{rows}\n\n## Verdicts\n\n{verdicts}\n"
    )


async def main(directory: Path) -> None:
    is_quick = "--quick" in sys.argv
    seconds = 3.0 if is_quick else 30.0
    found: list[Measured] = []
    async with Bench(directory) as bench:
        await bench.fill(_PEOPLE, 20)
        for what, requests in workloads(bench).items():
            for factor in FACTORS:
                async with bench.running(**SETTINGS) as service:
                    await drive(service, requests, seconds=2)
                    rounds = [
                        await measure(service, what, requests, factor, seconds) for _ in range(1 if is_quick else 3)
                    ]
                found.append(middle(rounds))
                for budget in found[-1].budgets():
                    print(budget, flush=True)
    _REPORT.write_text(report(found, seconds), encoding="utf-8")


if __name__ == "__main__":
    Path(".data").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=".data") as folder:
        uvloop.run(main(Path(folder).absolute()))
