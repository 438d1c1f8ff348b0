"""Several processes share one pair of servers; the last to leave stops them.

Every user of the servers holds a shared lock on `<data>/lock`, which the kernel releases even after kill -9.
Starting and stopping happen under an exclusive lock on `<data>/run/change.lock`. A process that leaves and then gets
the first lock exclusively was the last, and stops Valkey, then PostgreSQL. A small keeper process (`python -m
app.dev.embedded`) tries the same twice a second, for the case that the last user was killed.

A reloader (`uvicorn --reload`, `fastapi dev`) ends a user with each change and starts the next one. It cannot hold the
lock, because no code of ours runs in it; a file in `<data>/run/reloaders` stands for it while it lives. Then the keeper
stops the servers, within a second of its end.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from app.dev.embedded.postgres import EmbeddedPostgres
from app.dev.embedded.processes import EmbeddedServerError, is_running, started_at, wait_until_gone
from app.dev.embedded.valkey import EmbeddedValkey

_DATABASE = "onehop"
_CHANGE_SECONDS = 90.0
_KEEPER_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers are; None for the one that was not asked for. `were_running`: all of them, before."""

    database_url: str | None
    redis_url: str | None
    were_running: bool = field(default=False, compare=False)


Progress = Callable[[str], None]
Announce = Callable[[Servers], None]


class _Server(Protocol):
    def launch(self) -> None: ...
    def wait_ready(self) -> None: ...
    def pid(self) -> int | None: ...
    def stop(self) -> None: ...


@contextmanager
def servers(
    data_dir: Path,
    *,
    postgres: bool = True,
    valkey: bool = True,
    reloader: int | None = None,
    progress: Progress = lambda _line: None,
    announce: Announce = lambda _addresses: None,
) -> Iterator[Servers]:
    """PostgreSQL and Valkey below `data_dir`, started unless they run, stopped by the last process that
    leaves.

    They outlive that one while the process with the number `reloader` lives, which will start another. `announce` is
    called with the addresses before any server is started, so that their clients can be loaded meanwhile.

    Both ends wait for processes by sleeping, as all of this package does, so an event loop calls them in a thread.

    Raises EmbeddedServerError, also when the folder belongs to another user.
    """
    data_dir = Path(data_dir).absolute()
    try:
        (data_dir / "run").mkdir(parents=True, exist_ok=True)
        in_use = _open_lock(data_dir / "lock")
        change = _open_lock(data_dir / "run" / "change.lock")
    except PermissionError as error:
        raise EmbeddedServerError(
            f"{error.filename} is not ours: {data_dir} was made by another user. "
            "Run as that user, or remove the folder to start afresh."
        ) from error
    try:
        with _locked(change):
            fcntl.flock(in_use, fcntl.LOCK_SH)
            if reloader is not None:
                _note_reloader(data_dir, reloader)
            addresses = _start(data_dir, postgres=postgres, valkey=valkey, progress=progress, announce=announce)
            _start_keeper(data_dir)
        yield addresses
    finally:
        with _locked(change):
            fcntl.flock(in_use, fcntl.LOCK_UN)
            if _is_last(in_use) and not _has_reloader(data_dir):
                stop_servers(data_dir, progress)
                _stop_keeper(data_dir)
        os.close(change)
        os.close(in_use)


def stop_servers(data_dir: Path, progress: Progress = lambda _line: None) -> None:
    """Stop whatever runs below `data_dir`: Valkey first, because PostgreSQL holds the truth."""
    for name, folder, server in (
        ("Valkey", "valkey", EmbeddedValkey),
        ("PostgreSQL", "postgres", EmbeddedPostgres),
    ):
        if (data_dir / folder).is_dir():
            running = server(data_dir / folder)
            if running.pid() is not None:
                started = time.monotonic()
                running.stop()
                progress(f"{name} stopped ({time.monotonic() - started:.1f} s)")


def keep(data_dir: Path) -> None:
    """What the keeper process does: stop the servers once no process uses them any more."""
    in_use = _open_lock(data_dir / "lock")
    change = _open_lock(data_dir / "run" / "change.lock")
    while (data_dir / "run").is_dir():
        # The keeper is a process of its own without an event loop, and has nothing else to do.
        time.sleep(_KEEPER_PAUSE_SECONDS)
        with suppress(BlockingIOError):
            fcntl.flock(change, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_last(in_use) and not _has_reloader(data_dir):
                stop_servers(data_dir)
                return
            # Held on, it would keep the next user out.
            fcntl.flock(in_use, fcntl.LOCK_UN)
            fcntl.flock(change, fcntl.LOCK_UN)


def _start(data_dir: Path, *, postgres: bool, valkey: bool, progress: Progress, announce: Announce) -> Servers:
    database_server = EmbeddedPostgres(data_dir / "postgres") if postgres else None
    redis_server = EmbeddedValkey(data_dir / "valkey") if valkey else None
    wanted: list[tuple[str, _Server]] = []
    if redis_server is not None:
        wanted.append(("Valkey", redis_server))
    if database_server is not None:
        wanted.append(("PostgreSQL", database_server))
    started = time.monotonic()
    found = {name for name, server in wanted if server.pid() is not None}
    addresses = Servers(
        database_url=database_server.dsn(_DATABASE) if database_server is not None else None,
        redis_url=redis_server.url() if redis_server is not None else None,
        were_running=len(found) == len(wanted),
    )
    announce(addresses)
    if database_server is not None and not (data_dir / "postgres").exists():
        progress("PostgreSQL: creating a new database cluster")
    try:
        for _name, server in wanted:
            server.launch()
        for name, server in wanted:
            server.wait_ready()
            progress(f"{name} {'was running' if name in found else 'started'} ({time.monotonic() - started:.1f} s)")
    except BaseException:
        # One that does not answer yet is known to its launcher alone.
        for name, server in wanted:
            if name not in found:
                server.stop()
        raise
    if database_server is not None:
        database_server.create_database(_DATABASE)
    return addresses


def _start_keeper(data_dir: Path) -> None:
    """Start a keeper unless there is one. It holds its lock from its first moment on, because it inherits it."""
    lock = _open_lock(data_dir / "run" / "keeper.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (data_dir / "run" / "keeper.pid").unlink(missing_ok=True)
        keeper = subprocess.Popen(
            [sys.executable, "-m", "app.dev.embedded", str(data_dir)],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[lock],
        )
    except BlockingIOError:
        return
    finally:
        os.close(lock)
    (data_dir / "run" / "keeper.pid").write_text(str(keeper.pid), encoding="ascii")
    # Its end does not matter here; a set return code keeps Popen from complaining when it is collected.
    keeper.returncode = 0


def _stop_keeper(data_dir: Path) -> None:
    lock = _open_lock(data_dir / "run" / "keeper.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # The lock is held, hence the keeper lives and the number is its own. Without a number, because the process that
        # started it was killed at that moment, it ends by itself within a second.
        with suppress(FileNotFoundError):
            pid = int((data_dir / "run" / "keeper.pid").read_text(encoding="ascii"))
            if is_running(pid):
                os.kill(pid, signal.SIGTERM)
                wait_until_gone(pid, 2.0)
    finally:
        os.close(lock)


def _note_reloader(data_dir: Path, pid: int) -> None:
    directory = data_dir / "run" / "reloaders"
    directory.mkdir(exist_ok=True)
    (directory / str(pid)).write_text(started_at(pid) or "", encoding="utf-8")


def _has_reloader(data_dir: Path) -> bool:
    """Whether one of those noted still lives. The others are forgotten: their numbers may be given to strangers."""
    is_alive = False
    with suppress(FileNotFoundError):
        for note in (data_dir / "run" / "reloaders").iterdir():
            if note.read_text(encoding="utf-8") == started_at(int(note.name)):
                is_alive = True
            else:
                note.unlink()
    return is_alive


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _is_last(in_use: int) -> bool:
    try:
        fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    deadline = time.monotonic() + _CHANGE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    "another process has been starting or stopping the servers for too long"
                ) from None
            # A blocking `flock` knows no deadline. Never on an event loop: see `servers`.
            time.sleep(0.02)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
