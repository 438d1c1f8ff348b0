"""Load, and the samples it gives. wrk sends it where it is installed, otherwise the client beside this file."""

import asyncio
import json
import shutil
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import ask, run_closed
from benchmarks.machine import Service

WRK = shutil.which("wrk")
TOOL = "wrk" if WRK else "own client"
CONNECTIONS = 32
_SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True, slots=True)
class Sample:
    """One window of load. Latencies are in milliseconds; `cpu` is what the service used, in seconds."""

    requests: int
    seconds: float
    failed: int
    p50: float
    p95: float
    p99: float
    longest: float
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds of a request."""
        return self.cpu / max(self.requests, 1) * 1e6


@dataclass(frozen=True, slots=True)
class Result:
    """The samples of one side, taken in turns with the others."""

    samples: tuple[Sample, ...]

    def median(self, name: str) -> float:
        return statistics.median(float(getattr(sample, name)) for sample in self.samples)

    @property
    def spread(self) -> float:
        """(Highest - lowest) ÷ median of the rates."""
        rates = [sample.rate for sample in self.samples]
        return (max(rates) - min(rates)) / max(statistics.median(rates), 1e-9)

    @property
    def failed(self) -> int:
        return sum(sample.failed for sample in self.samples)

    def as_json(self) -> dict[str, Any]:
        names = ("rate", "cpu_us", "p50", "p95", "p99", "longest")
        summary = {name: round(self.median(name), 3) for name in names}
        return {
            **summary,
            "spread": round(self.spread, 3),
            "failed": self.failed,
            "samples": [asdict(sample) for sample in self.samples],
        }


def request(method: str, path: str, *, token: str | None = None, body: bytes | None = None, **headers: str) -> bytes:
    """An HTTP/1.1 request as it goes over the wire; `if_none_match=` becomes `If-None-Match`."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    lines.extend(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


async def drive(
    service: Service, requests: Sequence[bytes], *, seconds: float, connections: int = CONNECTIONS
) -> Sample:
    """One window of closed-loop load: each connection sends its next request when it has its answer."""
    before = service.cpu_seconds()
    if WRK is not None:
        found = await _wrk(WRK, service.port, requests, seconds, connections)
    else:
        found = await asyncio.to_thread(run_closed, service.port, requests, seconds, connections)
    return Sample(**found, cpu=service.cpu_seconds() - before)


async def _wrk(wrk: str, port: int, requests: Sequence[bytes], seconds: float, connections: int) -> Mapping[str, Any]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(b"%08d%s" % (len(item), item) for item in requests))
        file.flush()
        process = await asyncio.create_subprocess_exec(
            *(wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"),
            *("-s", str(_SCRIPT), f"http://127.0.0.1:{port}/", "--", file.name),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
    lines = output.decode().strip().splitlines()
    if process.returncode != 0 or not lines or not lines[-1].startswith("{"):
        raise RuntimeError(f"wrk failed:\n{output.decode()}")
    result: Mapping[str, Any] = json.loads(lines[-1])
    return result


async def settled(service: Service) -> None:
    """Waits until no request holds a slot any more: those whose client has gone may still be worked on."""
    for _ in range(200):
        metrics = (await ask(service.port, request("GET", "/metrics")))[1].decode()
        inside = [line for line in metrics.splitlines() if line.startswith("onehop_admission_inflight{")]
        # The gauge follows once a second.
        await asyncio.sleep(1.1)
        if inside and all(line.endswith(" 0.0") for line in inside):
            return


Side = Callable[[], Awaitable[Sample]]


async def in_turns(sides: Mapping[str, Side], rounds: int) -> dict[str, Result]:
    """Every side once a round, so that what disturbs the machine disturbs all of them."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            samples[name].append(await side())
    return {name: Result(tuple(taken)) for name, taken in samples.items()}


def ratio(top: Result, bottom: Result, name: str = "rate") -> float:
    return top.median(name) / bottom.median(name)


def ratios(top: Result, bottom: Result) -> list[float]:
    """Of each round, to show how far they lie apart."""
    return [a.rate / b.rate for a, b in zip(top.samples, bottom.samples, strict=True)]
