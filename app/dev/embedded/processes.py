"""Server processes by number: they may have been started by another process than the one that stops them."""

import hashlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from app.dev.embedded.privileges import ServerUser, become, make_private_dir

# sun_path holds 108 bytes with the closing NUL.
_LONGEST_SOCKET_PATH = 107
_PLAIN_PATH = re.compile(rb"[A-Za-z0-9/._+-]*")
_LOG_LIMIT_BYTES = 10 * 1024 * 1024
# For Linux a process that is to die with its parent dies with the thread that started it; this one ends with us.
_starter = ThreadPoolExecutor(1, thread_name_prefix="server-starter")


class EmbeddedServerError(RuntimeError):
    """A server did not start or stop; the message holds the end of its log."""


def spawn(
    command: Sequence[str | Path],
    log: Path,
    *,
    user: ServerUser | None,
    die_with_parent: int | None = None,
) -> int:
    """Start a server in its own session, out of reach of a Ctrl-C in the terminal; return its pid."""
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:

        def start() -> "subprocess.Popen[bytes]":
            return subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=server_environment(),
                start_new_session=True,
                preexec_fn=become(user, death_signal=die_with_parent),  # noqa: PLW1509 - system calls alone take no lock
            )

        try:
            process = start() if die_with_parent is None else _starter.submit(start).result()
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedServerError(f"cannot start {command[0]}{_as_whom(user)}: {error}") from error
    # From here on the process is known by its number alone: the last process to leave stops it, which may be
    # another process. A set return code keeps Popen from complaining when it is collected.
    process.returncode = 0
    return process.pid


def run_to_end(command: Sequence[str | Path], *, user: ServerUser | None, stdin: str = "") -> str:
    """Run a server tool; return its output. Raises EmbeddedServerError with what it wrote if it fails."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=server_environment(),
            timeout=120,
            # Out of reach of a Ctrl-C in the terminal: the caller decides what that means.
            start_new_session=True,
            preexec_fn=become(user),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedServerError(f"cannot run {command[0]}{_as_whom(user)}: {error}") from error
    if done.returncode != 0:
        raise EmbeddedServerError(
            f"{Path(command[0]).name} failed{_as_whom(user)}:\n{done.stdout}{done.stderr}".strip()
        )
    return done.stdout


def server_environment() -> dict[str, str]:
    """Nothing of ours: settings such as PGDATA or LC_ALL must not change the servers."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie. Collects it when it was our child and has ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != pid
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The state is the first field after the name, which may itself contain spaces and brackets.
        return stat.rpartition(")")[2].split()[0] != "Z"
    return True


def working_dir_is(pid: int, directory: Path) -> bool:
    """Whether the process works in `directory`: tells a postmaster from another process with its old number."""
    if Path("/proc/self/cwd").exists():
        try:
            return Path(f"/proc/{pid}/cwd").samefile(directory)
        except OSError:
            return False
    listed = subprocess.run(["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return str(directory) in listed.stdout


def find_server(program: Path, directory: Path) -> int | None:
    """The number of the server that runs `program` and works in `directory`, whatever became of its files; or None.

    A pid file or a socket can be deleted under a running server. Only Linux tells without them.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The children of both servers work in the same folder, under titles that begin otherwise.
            command = (entry / "cmdline").read_bytes()
            if command.startswith(os.fsencode(program)) and (entry / "cwd").samefile(directory):
                return int(entry.name)
    return None


def started_at(pid: int) -> str | None:
    """When the process started, in the system's own form: with its number it names one process. None: it is gone."""
    if not is_running(pid):
        return None
    try:
        # The 22nd field; the second, the name, may itself contain spaces and brackets.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        command = ["/bin/ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def wait_until_gone(pid: int, seconds: float) -> bool:
    """True as soon as the process has ended, False if it is still there after `seconds`."""
    deadline = time.monotonic() + seconds
    while is_running(pid):
        if time.monotonic() >= deadline:
            return False
        # The process may be no child of ours, so there is nothing to wait on. Never on an event loop: see `servers`.
        time.sleep(0.01)
    return True


def stop_process(pid: int, steps: Sequence[tuple[signal.Signals, float]]) -> None:
    """Send each signal and wait its seconds for the end; the last step should be SIGKILL."""
    for number, seconds in steps:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        if wait_until_gone(pid, seconds):
            return
    raise EmbeddedServerError(f"process {pid} does not end")


def log_tail(log: Path, lines: int = 15) -> str:
    with suppress(OSError):
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    return ""


def socket_dir(data_dir: Path, wanted: Path, file_name: str, user: ServerUser | None) -> Path:
    """A private folder for one server's socket: `wanted`, or one below the temporary folder if its path is
    too long for a socket or has characters that mean something inside a connection URL. The name follows from
    `data_dir`, so that every process finds it again.
    """
    path = os.fsencode(wanted / file_name)
    if len(path) <= _LONGEST_SOCKET_PATH and _PLAIN_PATH.fullmatch(path):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        chosen = wanted
    else:
        digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
        chosen = Path(tempfile.gettempdir()) / f"onehop-{digest}-{os.geteuid()}"
    make_private_dir(chosen, user)
    return chosen


def _as_whom(user: ServerUser | None) -> str:
    return "" if user is None else f" as user {user.uid}"
