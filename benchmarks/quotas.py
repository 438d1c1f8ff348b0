"""`python -m benchmarks.quotas [--noise]`: what quotas promise, against real processes. Writes
docs/benchmarks/quotas.md, unless only the second part is asked for.

1. One quota over four processes: how much of it is accepted, and how many exchanges with Redis that takes.
2. One caller at 50 times its quota: what the others notice. In turns with and without that caller, whose requests come
   from a process of their own.
"""

import asyncio
import re
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import uvloop

from benchmarks import machine
from benchmarks.client import ask, closed_loop, open_loop, percentile
from benchmarks.load import request
from benchmarks.machine import Service
from benchmarks.product import Bench

_REPORT = machine.ROOT / "docs" / "benchmarks" / "quotas.md"
_PROCESSES = 4
_WINDOW = 60
# One unit, no I/O: as many of them as possible.
_PATH = "/v1/webhooks/event-types"
_EXCHANGES = re.compile(r"^onehop_rate_limit_exchanges_total\{.*\} (\S+)$", re.MULTILINE)
_OTHERS = 30
_MOST = 1.2


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the report."""

    what: str
    value: str
    wanted: str
    is_reached: bool

    def __str__(self) -> str:
        return f"| {self.what} | {self.value} | {self.wanted} | {'yes' if self.is_reached else '**no**'} |"


async def main(directory: Path) -> None:
    lines: list[Figure] = []
    async with Bench(directory) as bench:
        await bench.fill(2 * _OTHERS, 20)
        if "--noise" not in sys.argv:
            for number, (quota, seconds) in enumerate([(1_000, 6), (5_000, 12), (20_000, 12)], start=1):
                lines += await share_quota(bench, bench.token(number), quota, seconds)
        lines += await noisy_caller(bench, quota=600, rounds=30, seconds=2.0)
    if "--noise" not in sys.argv:
        _write(lines)


async def share_quota(bench: Bench, token: str, quota: int, seconds: float) -> list[Figure]:
    """Four processes asked for all they can answer, by the same caller."""
    settings = {"APP_LIMITS_CALLER": str(quota), "APP_LIMITS_WINDOW": str(_WINDOW)}
    raw = [request("GET", _PATH, token=token)]
    async with AsyncExitStack() as stack:
        services = [
            await stack.enter_async_context(machine.running(bench.serve(f"api-{quota}-{n}", settings=settings)))
            for n in range(_PROCESSES)
        ]
        began = perf_counter()
        outcomes = await asyncio.gather(*(closed_loop(service.port, raw, seconds, 4) for service in services))
        took = perf_counter() - began
        exchanges = sum([await _exchanges(service) for service in services])
    statuses = sum((outcome.statuses for outcome in outcomes), Counter[int]())
    asked, accepted = statuses.total(), statuses[200]
    due = min(asked, quota + quota / _WINDOW * took)
    name = f"{quota} a minute, {_PROCESSES} processes, {asked / took:.0f} requests a second for {took:.0f} s"
    share = accepted / due
    lines = [
        Figure(
            f"{name}: accepted ÷ due", f"{accepted} ÷ {due:.0f} = {share:.3f}", "0.95 to 1.05", abs(share - 1) <= 0.05
        ),
        Figure(f"{name}: exchanges with Redis a request", f"{exchanges / asked:.4f}", "< 0.1", exchanges < 0.1 * asked),
    ]
    if set(statuses) - {200, 429}:
        lines.append(Figure(f"{name}: other answers", str(dict(statuses)), "none", is_reached=False))
    return _said(lines)


async def noisy_caller(bench: Bench, *, quota: int, rounds: int, seconds: float) -> list[Figure]:
    """Thirty callers at half of their quota, in turns with and without one at 50 times its own."""
    settings = {"APP_LIMITS_CALLER": str(quota), "APP_LIMITS_WINDOW": str(_WINDOW)}
    allowed = quota / _WINDOW
    others = [
        request("GET", path, token=bench.token(number))
        for number in range(10, 10 + _OTHERS)
        for path in ("/v1/jobs", "/v1/overview", "/v1/users/me/events")
    ]
    noise = [request("GET", "/v1/jobs", token=bench.token(9))]
    rate = _OTHERS * allowed / 2
    latencies: dict[str, list[list[float]]] = {"alone": [], "beside": []}
    computing = dict.fromkeys(latencies, 0.0)
    failed = 0
    refused: Counter[int] = Counter()
    service = bench.serve("api-noise", settings=settings)
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1) as pool:
        async with machine.running(service):
            await loop.run_in_executor(pool, _make_noise, service.port, noise, 3.0, 50 * allowed)
            await open_loop(service.port, others, 2.0, rate, 32)
            for _ in range(rounds):
                for name, found in latencies.items():
                    noisy = None
                    if name == "beside":
                        noisy = loop.run_in_executor(pool, _make_noise, service.port, noise, seconds, 50 * allowed)
                        await asyncio.sleep(0.3)
                    before = service.cpu_seconds()
                    outcome = await open_loop(service.port, others, seconds - 0.6, rate, 32)
                    computing[name] += service.cpu_seconds() - before
                    found.append(outcome.good())
                    failed += outcome.statuses.total() - len(outcome.good()) + outcome.unsent
                    if noisy is not None:
                        refused += await noisy
    p99 = {name: statistics.median(percentile(each, 0.99) for each in found) for name, found in latencies.items()}
    p50 = {name: statistics.median(percentile(each, 0.5) for each in found) for name, found in latencies.items()}
    name = f"one caller at 50 times its quota of {quota} a minute beside {_OTHERS} others"
    taken = (computing["beside"] - computing["alone"]) / (rounds * (seconds - 0.6))
    return _said(
        [
            Figure(f"{name}: computing time that the caller takes", f"{taken:.1%} of a core", "", is_reached=True),
            Figure(f"{name}: the caller's answers", _counted(refused), "", is_reached=refused[429] > 20 * refused[200]),
            Figure(f"{name}: errors of the others", str(failed), "0", is_reached=failed == 0),
            _compared(f"{name}: p50 of the others", p50),
            _compared(f"{name}: p99 of the others", p99),
        ]
    )


def _make_noise(port: int, requests: Sequence[bytes], seconds: float, rate: float) -> Counter[int]:
    return uvloop.run(open_loop(port, requests, seconds, rate, 16)).statuses


def _compared(what: str, found: dict[str, float]) -> Figure:
    ratio = found["beside"] / found["alone"]
    value = f"{found['alone']:.2f} → {found['beside']:.2f} ms = {ratio:.2f}"
    return Figure(what, value, "≤ 1.2", ratio <= _MOST)


def _counted(statuses: Counter[int]) -> str:
    return ", ".join(f"{count} of {status}" for status, count in sorted(statuses.items()))


async def _exchanges(service: Service) -> int:
    """Exchanges of units that a process has counted."""
    _, body = await ask(service.port, request("GET", "/metrics"))
    return int(sum(float(value) for value in _EXCHANGES.findall(body.decode())))


def _said(lines: list[Figure]) -> list[Figure]:
    for line in lines:
        print(line, flush=True)
    return lines


def _write(lines: Sequence[Figure]) -> None:
    on = machine.describe()
    _REPORT.write_text(
        f"""# What quotas promise

`python -m benchmarks.quotas`, on {on["cores"]} cores ({on["cpu"]}), with a load of {on["load before"]}
before. All processes, the servers and the load share that machine; ratios are of one run, in turns.

| Measure | Result | Must be | Reached |
|---|---|---|---|
"""
        + "\n".join(map(str, lines))
        + """

*Due* is what an exact counter would have let through: the quota at once, and what came back during the run.
""",
        encoding="utf-8",
    )
    if not all(line.is_reached for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    Path(".data").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=".data") as folder:
        uvloop.run(main(Path(folder).absolute()))
