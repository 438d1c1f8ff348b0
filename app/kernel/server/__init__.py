"""uvicorn as `dev`, `serve` and the image run it."""

import os
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.supervisors import ChangeReload

from app.kernel.server.handover import offered, take_over
from app.kernel.server.process import RETIRE, Config, Server, end_with_parent
from app.kernel.server.worker_group import FINAL_EXITS, WorkerGroup
from app.kernel.settings import ConnectionSettings

_METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"
# Files other than connections: pools, logs, artifacts.
_OTHER_FILES = 512


def serve(
    application: str,
    connections: ConnectionSettings,
    *,
    host: str,
    port: int,
    workers: int = 1,
    grace_seconds: int = 25,
    reload_dir: Path | None = None,
    takes_over: bool = False,
    max_stall: float = 0.0,
) -> None:
    """Serve `application` (`module:name`) until SIGTERM or SIGINT; requests in flight get `grace_seconds` to
    end.

    With a `reload_dir` one process serves and starts anew when a file in there changes. If it `takes_over`, the socket
    is that of the server which runs there, and that one ends as soon as this one serves. A process whose event loop
    stands still for `max_stall` seconds ends (0: never); there are no others while files are watched, and perhaps a
    debugger.
    """
    config = Config(
        application,
        connections=_within_file_limit(connections, is_reloading=reload_dir is not None),
        grace=grace_seconds,
        max_stall=max_stall if reload_dir is None else 0.0,
        host=host,
        port=port,
        workers=workers,
        loop="uvloop",
        # By its name, so that only serving processes import it.
        http="app.kernel.server.protocol:GuardedProtocol",
        # There are no WebSockets, and importing their library takes a tenth of a second.
        ws="none",
        lifespan="on",
        # Both are the application's: it logs structured lines with the request's id.
        log_config=None,
        access_log=False,
        server_header=False,
        # Addresses are taken from proxies in one place, kernel/middleware, where trusted ones are configured.
        proxy_headers=False,
        reload=reload_dir is not None,
        reload_dirs=[str(reload_dir)] if reload_dir is not None else None,
    )
    # uvicorn raises the signal again when it has drained; a clean end is exit code 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    taken = take_over(host, port) if takes_over else None
    server_socket, on_started = taken or (config.bind_socket(), _nothing)
    if reload_dir is not None:
        ChangeReload(config, target=Server(config).run, sockets=[server_socket]).run()
        return
    # Until a handler is installed.
    signal.signal(RETIRE, signal.SIG_IGN)
    with offered(server_socket, host, port, _retire):
        run = _serve_together if workers > 1 else _serve_alone
        if code := run(config, server_socket, on_started):
            raise SystemExit(code)


def reload_on_changes(run: Callable[[], None], directory: Path) -> None:
    """Calls `run`, a function of a module, in a process of its own until SIGTERM or SIGINT.

    That process is told to end by SIGTERM and started anew when a Python file below `directory` changes. One that fails
    is left alone until then.
    """
    # Without an address: uvicorn's reloader takes from it no more than what to watch.
    config = uvicorn.Config("", reload=True, reload_dirs=[str(directory)], log_config=None)
    ChangeReload(config, target=_Reloaded(run), sockets=[]).run()


class _Reloaded:
    """What the new process runs; it can be pickled."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run

    def __call__(self, sockets: list[socket.socket] | None) -> None:  # noqa: ARG002 - uvicorn names it
        end_with_parent()
        self._run()


def _serve_alone(config: Config, server_socket: socket.socket, on_started: Callable[[], None]) -> int:
    server = Server(config, on_started)
    server.run([server_socket])
    return 0 if server.started else uvicorn.config.STARTUP_FAILURE


def _serve_together(config: Config, server_socket: socket.socket, on_started: Callable[[], None]) -> int:
    with _metrics_dir():
        group = WorkerGroup(config, [server_socket], on_started)
        group.run()
    return next((process.exitcode for process in group.processes if process.exitcode in FINAL_EXITS), 0)


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _retire() -> None:
    os.kill(os.getpid(), RETIRE)


def _nothing() -> None:
    """No other process waits for this one to start."""


def _within_file_limit(connections: ConnectionSettings, *, is_reloading: bool) -> ConnectionSettings:
    """The limits, with no more connections than this process may have files; raises that limit if it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections.max_connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        connections = connections.model_copy(update={"max_connections": max(soft - _OTHER_FILES, soft // 2)})
    # A developer who changes a file waits for the new process.
    return connections.model_copy(update={"drain_delay": 0.0}) if is_reloading else connections


@contextmanager
def _metrics_dir() -> Iterator[None]:
    """Where several processes add up their metrics, unless the environment names a folder."""
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
