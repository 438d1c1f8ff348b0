"""Which core does what, processes held to their cores, and what they cost.

The measured program has cores of its own; load and databases have the others, and so has this process. What is
compared runs on the same cores, in turns, in one run.
"""

import asyncio
import http.client
import os
import platform
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil

from app.dev.embedded import DEVELOPMENT_POSTGRES, DEVELOPMENT_VALKEY, EmbeddedPostgres, EmbeddedValkey
from app.dev.embedded.privileges import become

ROOT = Path(__file__).resolve().parents[1]
_ALL = sorted(os.sched_getaffinity(0))
# One core for what is measured, so that a figure is one of a core and not of a machine.
SERVER_CORES = frozenset(_ALL[:1])
OTHER_CORES = frozenset(_ALL[1:] or _ALL)
# Fourteen services start at once on one core.
START_SECONDS = 90.0
# Durable as in production; only checkpoints are kept out of the short windows that are measured.
POSTGRES = {
    **DEVELOPMENT_POSTGRES,
    "max_connections": "300",
    "shared_buffers": "512MB",
    "checkpoint_timeout": "30min",
    "max_wal_size": "8GB",
    # Statements of other programs must not push out those that are counted.
    "pg_stat_statements.max": "10000",
}


def describe() -> dict[str, str]:
    """What a reader must know of the machine."""
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    return {
        "cpu": model,
        "cores": str(len(_ALL)),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
        "load before": " ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


def _lines(path: str) -> Sequence[str]:
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8").splitlines()
    return ()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def servers(directory: Path) -> Iterator[tuple[EmbeddedPostgres, EmbeddedValkey]]:
    """PostgreSQL and Valkey on the other cores, ended with this process at the latest."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, OTHER_CORES)
    postgres = EmbeddedPostgres(directory / "postgres", settings=POSTGRES, die_with_parent=True)
    valkey = EmbeddedValkey(directory / "valkey", settings=DEVELOPMENT_VALKEY, die_with_parent=True)
    try:
        valkey.start()
        postgres.start()
        yield postgres, valkey
    finally:
        valkey.stop()
        postgres.stop(mode="immediate")
        os.sched_setaffinity(0, before)


class Service:
    """A running program that answers HTTP, with all of its processes."""

    def __init__(self, name: str, port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.name = name
        self.port = port
        self.log = log
        self._process = process
        self._root = psutil.Process(process.pid)

    @property
    def processes(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time of all processes so far."""
        total = 0.0
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def is_running(self) -> bool:
        return self._process.poll() is None

    def resident_bytes(self) -> int:
        return sum(process.memory_info().rss for process in self.processes)

    async def until_ready(self, path: str) -> None:
        """Raises `RuntimeError` with the end of the log if it does not come up."""
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while not await asyncio.to_thread(_answers, self.port, path):
            if self._process.poll() is not None or asyncio.get_running_loop().time() > deadline:
                tail = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
                raise RuntimeError(f"{self.name} did not start:\n{tail}")
            await asyncio.sleep(0.05)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status < http.HTTPStatus.INTERNAL_SERVER_ERROR
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def launch(
    name: str,
    command: Sequence[str],
    directory: Path,
    *,
    environment: Mapping[str, str],
    port: int = 0,
    cores: frozenset[int] = SERVER_CORES,
) -> Service:
    """Starts `command` on `cores`, its output in `directory`. Stop it."""
    log = directory / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**_clean_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=_pinner(cores),  # noqa: PLW1509 - system calls alone.
        )
    return Service(name, port, process, log)


@asynccontextmanager
async def running(service: Service, ready_path: str = "/") -> AsyncIterator[Service]:
    """The service when it answers, stopped at the end of the block."""
    try:
        await service.until_ready(ready_path)
        yield service
    finally:
        await asyncio.to_thread(service.stop)


def _pinner(cores: frozenset[int]) -> Callable[[], None]:
    # A measurement that is killed must leave nothing behind that computes beside the next one.
    end_with_parent = become(None, death_signal=signal.SIGTERM)

    def pin() -> None:
        if end_with_parent is not None:
            end_with_parent()
        os.sched_setaffinity(0, cores)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    return pin


def _clean_environment() -> dict[str, str]:
    """Nothing of ours and no coverage, so that the caller's settings change no figure."""
    ours = ("APP_", "DATABASE_URL", "REDIS_URL", "HOST", "PORT", "PROMETHEUS_", "COVERAGE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
