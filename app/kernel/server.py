"""uvicorn as `dev`, `serve` and the image run it."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.supervisors import ChangeReload, Multiprocess

from app.kernel.embedded.privileges import become

_METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"


class Config(uvicorn.Config):
    """Loads the application in a process that ends when the one above it does."""

    def load(self) -> None:
        if self.workers > 1 or self.should_reload:
            # uvicorn's processes would go on for ever after a kill -9 of their parent.
            follow = become(None, death_signal=signal.SIGTERM)
            if follow is not None:
                follow()
        super().load()


class Group(Multiprocess):
    """uvicorn's processes; the gauges of those that have gone are no longer counted."""

    def keep_subprocess_alive(self) -> None:
        with self._forgetting_the_gone():
            super().keep_subprocess_alive()

    def restart_all(self) -> None:
        with self._forgetting_the_gone():
            super().restart_all()

    @contextmanager
    def _forgetting_the_gone(self) -> Iterator[None]:
        before = {process.pid for process in self.processes}
        yield
        for pid in before - {process.pid for process in self.processes}:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped


def serve(
    application: str,
    *,
    host: str,
    port: int,
    workers: int = 1,
    grace_seconds: int = 25,
    reload_dir: Path | None = None,
) -> None:
    """Serve `application` (`module:name`) until SIGTERM or SIGINT; requests in flight get `grace_seconds` to
    end.

    With a `reload_dir` one process serves and starts anew when a file in there changes.
    """
    config = Config(
        application,
        host=host,
        port=port,
        workers=workers,
        loop="uvloop",
        http="httptools",
        # There are no WebSockets, and importing their library takes a tenth of a second.
        ws="none",
        lifespan="on",
        # Both are the application's: it logs structured lines with the request's id.
        log_config=None,
        access_log=False,
        server_header=False,
        # Addresses are taken from proxies in one place, kernel/middleware, where trusted ones are configured.
        proxy_headers=False,
        timeout_graceful_shutdown=grace_seconds,
        reload=reload_dir is not None,
        reload_dirs=[str(reload_dir)] if reload_dir is not None else None,
    )
    # uvicorn raises the signal again when it has drained; a clean end is exit code 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    if reload_dir is not None:
        ChangeReload(config, target=uvicorn.Server(config).run, sockets=[config.bind_socket()]).run()
    elif workers > 1:
        with _metrics_dir():
            group = Group(config, sockets=[config.bind_socket()])
            group.run()
        if any(process.exitcode == uvicorn.config.STARTUP_FAILURE for process in group.processes):
            raise SystemExit(uvicorn.config.STARTUP_FAILURE)
    else:
        server = uvicorn.Server(config)
        server.run()
        if not server.started:
            raise SystemExit(uvicorn.config.STARTUP_FAILURE)


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def port_problem(host: str, port: int) -> str | None:
    """Why nothing can listen there now, or None."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        return f"{host} is no address of this machine ({error.strerror})"
    with socket.socket(family, kind, protocol) as probe:
        # The same option as uvicorn's, or a port in TIME_WAIT would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return f"port {port} on {host} cannot be used: {error.strerror}"
    return None


@contextmanager
def _metrics_dir() -> Iterator[None]:
    """Where several processes add up their metrics, unless whoever started us gave a folder."""
    if os.environ.get(_METRICS_DIR):
        yield
        return
    directory = tempfile.mkdtemp(prefix="onehop-metrics-")
    os.environ[_METRICS_DIR] = directory
    try:
        yield
    finally:
        del os.environ[_METRICS_DIR]
        with suppress(OSError):
            shutil.rmtree(directory)
