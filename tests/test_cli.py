"""The command line, as a person uses it: real processes, real servers in a folder of the test."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import psutil
import pytest

from app.cli.environment import explanation
from app.kernel.database import DatabaseUnavailable
from app.kernel.database.failures import translate
from app.kernel.errors import NotFound
from app.settings import SettingsError, load_settings
from tests.fixtures.application import free_port
from tests.fixtures.embedded import arguments_of, is_alive
from tests.fixtures.servers import AddCluster
from tests.fixtures.waiting import scaled

ROOT = Path(__file__).resolve().parents[1]
READY = re.compile(r"Onehop is ready \(([0-9.]+) s\)")


@pytest.fixture
def environment(server_room: Path) -> dict[str, str]:
    """Nothing set but a data folder and a free port."""
    return os.environ | {"APP_DATA_DIR": str(server_room / "data"), "PORT": str(free_port())}


@pytest.fixture
def cluster(environment: dict[str, str], add_cluster: AddCluster) -> None:
    """The data folder has an empty cluster; that `dev` makes one is tested where it starts everything."""
    add_cluster(Path(environment["APP_DATA_DIR"]))


def _run(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=scaled(100),
    )


def _processes(environment: dict[str, str]) -> list[psutil.Process]:
    """Everything that works on the test's data folder: by its arguments, its environment or its parent."""
    directory = environment["APP_DATA_DIR"]
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            text = " ".join(process.cmdline()) + process.environ().get("APP_DATA_DIR", "")
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if directory in text and process.pid != os.getpid() and is_alive(process):
            found[process.pid] = process
    return list(found.values())


class Running:
    """`dev` in a process of its own; its output is read all the time, or it would stand still."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.base = f"http://127.0.0.1:{environment['PORT']}"
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", "dev"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            self.lines.extend(line.rstrip("\n") for line in output)

    def wait_for(self, pattern: "re.Pattern[str]", seconds: float = scaled(45)) -> "re.Match[str]":
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if found := pattern.search(line):
                    return found
            assert self.process.poll() is None, self.lines
            time.sleep(0.05)
        raise AssertionError(f"{pattern.pattern} was never said: {self.lines}")

    def stop(self, number: signal.Signals) -> None:
        """It must end by itself; what does not is not killed here, and fails the test."""
        self.process.send_signal(number)
        self.process.wait(timeout=scaled(30))
        self._reader.join(timeout=scaled(5))

    def call(self, path: str, body: object = None, token: str = "") -> tuple[int, dict[str, object]]:
        request = urllib.request.Request(  # noqa: S310 - our own address.
            self.base + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=scaled(10)) as answer:  # noqa: S310
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, {}


@pytest.fixture
def dev(environment: dict[str, str]) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(**more: str) -> Running:
        started.append(Running({**environment, **more}))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
    for process in _processes(environment):
        process.kill()


def _log_in(running: Running) -> str:
    found = running.wait_for(re.compile(r"Log in (demo@example\.com) / (\S+)"))
    status, answer = running.call("/v1/auth/login", {"email": found[1], "password": found[2]})
    assert status == 200
    tokens = answer["tokens"]
    assert isinstance(tokens, dict)
    return str(tokens["access_token"])


@pytest.mark.slow
def test_dev_starts_everything_and_ends_in_order(dev: Callable[..., Running], environment: dict[str, str]) -> None:
    running = dev()
    running.wait_for(READY)
    assert f"  Mail   {running.base}/dev/mailbox" in running.lines
    token = _log_in(running)
    status, overview = running.call("/v1/overview", token=token)
    assert status == 200
    assert overview["recent_events"]
    assert f"ok   Port: {environment['PORT']} is in use by a running Onehop\n" in _run(environment, "doctor").stdout
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in _processes(environment)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", int(environment["PORT"]))}

    running.stop(signal.SIGINT)
    assert running.process.returncode == 0
    ends = [line.partition(" (")[0] for line in running.lines if " stopped (" in line or "Everything" in line]
    expected = ["API stopped", "Worker stopped", "Valkey stopped", "PostgreSQL stopped", "Everything is stopped."]
    assert ends == expected, running.lines
    assert _processes(environment) == []

    again = dev()
    again.wait_for(READY)
    _log_in(again)
    again.stop(signal.SIGTERM)
    assert again.process.returncode == 0
    assert _processes(environment) == []


@pytest.mark.slow
def test_ctrl_c_stops_a_start_at_any_moment_and_the_next_start_goes_on(
    dev: Callable[..., Running], environment: dict[str, str]
) -> None:
    """While the cluster, the schema and the demo data are made; one folder goes through all of them."""
    for moment in ("PostgreSQL: creating a new database cluster", "PostgreSQL started", "Schema is at"):
        running = dev()
        running.wait_for(re.compile(moment))
        running.stop(signal.SIGINT)
        assert running.process.returncode == 0, running.lines
        assert running.lines[-1] == "Everything is stopped."
        assert not any("Traceback" in line for line in running.lines), running.lines
        assert _processes(environment) == []

    whole = dev()
    whole.wait_for(READY)
    # The account is not there without its events.
    since = f"{datetime.now(UTC) - timedelta(days=61):%Y-%m-%dT%H:%M:%SZ}"
    status, summary = whole.call(f"/v1/users/me/events/summary?bucket=day&since={since}", token=_log_in(whole))
    assert status == 200
    items = summary["items"]
    assert isinstance(items, list)
    assert sum(item["count"] for item in items) == 10_000
    assert list((Path(environment["APP_DATA_DIR"]) / "run").glob("accounts-*")) == []
    whole.stop(signal.SIGINT)

    # A fault that no other start mends has its own exit code, also where files are watched.
    refused = _run({**environment, "APP_SECRET_KEY": "p2Wn8sKd4LqYv7TzR3hXc9MbG6fJa5Ue"}, "dev", "--reload")
    assert refused.returncode == 78
    assert "were sealed with another secret" in refused.stdout + refused.stderr
    assert _processes(environment) == []


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_kill_of_dev_leaves_nothing_running_and_data_intact(
    dev: Callable[..., Running], environment: dict[str, str]
) -> None:
    running = dev()
    running.wait_for(READY)
    token = _log_in(running)
    assert running.call("/v1/events", {"kind": "kept.event"}, token)[0] == 201
    running.process.kill()
    running.process.wait()
    deadline = time.monotonic() + scaled(20)
    while _processes(environment):
        assert time.monotonic() < deadline, [arguments_of(process) for process in _processes(environment)]
        time.sleep(0.1)

    again = dev()
    again.wait_for(READY)
    _, events = again.call("/v1/users/me/events?kind=kept.event", token=_log_in(again))
    items = events["items"]
    assert isinstance(items, list)
    assert len(items) == 1
    again.stop(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_dev_with_several_processes(dev: Callable[..., Running], environment: dict[str, str]) -> None:
    running = dev(APP_WORKERS="2", APP_LOG_ACCESS="false")
    running.wait_for(READY)
    token = _log_in(running)
    for _ in range(20):
        assert running.call("/v1/overview", token=token)[0] == 200
    assert list((Path(environment["APP_DATA_DIR"]) / "run" / "metrics").iterdir())
    with urllib.request.urlopen(running.base + "/metrics", timeout=scaled(10)) as answer:  # noqa: S310 - our own address.
        assert b"http_server_request_duration_seconds_count" in answer.read()
    # A process that dies is replaced, by uvicorn, without an end of the others.
    api = next(process for process in _processes(environment) if " serve" in arguments_of(process))
    victim = next(child for child in api.children() if "spawn_main" in arguments_of(child))
    victim.kill()
    deadline = time.monotonic() + scaled(20)
    while len([child for child in api.children() if "spawn_main" in arguments_of(child)]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert running.call("/v1/overview", token=token)[0] == 200
    running.stop(signal.SIGINT)
    assert running.process.returncode == 0
    assert _processes(environment) == []


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_dev_starts_a_killed_api_again(dev: Callable[..., Running], environment: dict[str, str]) -> None:
    running = dev()
    running.wait_for(READY)
    next(process for process in _processes(environment) if " serve" in arguments_of(process)).kill()
    running.wait_for(re.compile("API ended unexpectedly"))
    deadline = time.monotonic() + scaled(20)
    while True:
        try:
            if running.call("/readyz")[0] == 200:
                break
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)
    running.stop(signal.SIGINT)


def test_a_taken_port_is_told_before_anything_starts(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(environment["PORT"]))):
        for command in ("dev", "serve"):
            done = _run(environment, command)
            assert done.returncode == 1
            told = f"Port {environment['PORT']} on 127.0.0.1 cannot be used: Address already in use"
            assert done.stderr.startswith(told)
    assert not (Path(environment["APP_DATA_DIR"]) / "postgres").exists()


def test_a_database_that_does_not_answer_is_told(environment: dict[str, str]) -> None:
    done = _run({**environment, "DATABASE_URL": "postgresql://x:y@127.0.0.1:1/z"}, "dev")
    assert done.returncode == 1
    assert "PostgreSQL cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert _processes(environment) == []


def test_what_is_wrong_is_told_in_a_line(environment: dict[str, str]) -> None:
    done = _run({**environment, "DATABASE_URL": "postgresql://x:y@127.0.0.1:1/z"}, "migrate", "status")
    assert done.returncode == 1
    assert done.stderr.startswith("PostgreSQL cannot be reached: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            asyncpg.UndefinedTableError("x"),
            "PostgreSQL refuses: x. The schema is not the newest: python -m app migrate up",
        ),
        (
            asyncpg.InvalidPasswordError("not you"),
            "PostgreSQL refuses: not you. Check the user and the password in DATABASE_URL, and pg_hba.conf.",
        ),
        (
            asyncpg.InsufficientPrivilegeError("not allowed"),
            (
                "PostgreSQL refuses: not allowed. "
                "The role in DATABASE_URL lacks a privilege: grant it, or make the role the owner of the tables."
            ),
        ),
        (asyncpg.LockNotAvailableError("held"), "PostgreSQL was too busy, run it again: held"),
        (NotFound("There is no such job"), "There is no such job"),
        (asyncpg.PostgresSyntaxError("ours"), None),
        (KeyError("ours"), None),
    ],
)
def test_errors_of_the_program_alone_keep_their_traceback(error: Exception, told: str | None) -> None:
    assert explanation(error) == told


def test_a_full_disk_is_named_wherever_it_is_met() -> None:
    """By our own files, and by PostgreSQL's, whose error comes as one of ours."""
    told = explanation(OSError(errno.ENOSPC, "No space left on device", "/data/run"))
    assert told is not None
    assert told.startswith("/data/run cannot be written (No space left on device); make room on the disk")
    with pytest.raises(DatabaseUnavailable) as raised:
        try:
            raise asyncpg.DiskFullError("could not extend file")
        except asyncpg.PostgresError as error:
            raise translate(error) from error
    assert explanation(raised.value) == (
        "PostgreSQL refuses: could not extend file. The disk of PostgreSQL is full: make room."
    )


def test_a_full_disk_is_no_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(SettingsError) as raised:
        load_settings({"APP_DATA_DIR": str(tmp_path / "data")})
    (problem,) = raised.value.problems
    assert problem.endswith(
        "(No space left on device); make room on the disk, or name a folder on another one by APP_DATA_DIR"
    )


def test_a_host_that_is_not_ours(environment: dict[str, str]) -> None:
    done = _run({**environment, "HOST": "203.0.113.1"}, "dev")
    assert done.returncode == 1
    assert "cannot be used" in done.stderr


def test_wrong_settings_are_named_all_at_once(environment: dict[str, str]) -> None:
    done = _run({**environment, "PORT": "no", "APP_WORKERS": "-1", "APP_NO_SUCH": "1"}, "dev")
    assert done.returncode == 78
    for name in ("PORT", "APP_WORKERS", "APP_NO_SUCH"):
        assert name in done.stderr
    # By the name that was given.
    assert "APP_PORT" not in done.stderr
    assert "Traceback" not in done.stderr


def test_dev_and_demo_data_are_not_for_production(environment: dict[str, str]) -> None:
    production = {
        **environment,
        "APP_ENV": "production",
        "APP_SECRET_KEY": "v7Qk2mZ9xT4bN8rW1yL6cJ3hD5fG0sPa-uE",
        "APP_PUBLIC_URL": "https://onehop.example",
        "DATABASE_URL": "postgresql://onehop:eGf7WmQ2kz@127.0.0.1:1/onehop",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "APP_HTTP_TRUSTED_PROXIES": "none",
    }
    for command in ("dev", "seed"):
        done = _run(production, command)
        assert done.returncode == 78, done.stderr
        assert "production" in done.stderr


def test_settings_are_shown_without_secrets(environment: dict[str, str]) -> None:
    secret = "b3f1c9d2e4a5968778695a4b3c2d1e0f"
    database = "postgresql://app:hidden-word@db.example/onehop"
    done = _run({**environment, "APP_SECRET_KEY": secret, "DATABASE_URL": database}, "config", "--changed")
    assert done.returncode == 0
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert [line for line in lines if line.startswith("APP_")] == [
        "APP_SECRET_KEY=********",
        f"APP_PORT={environment['PORT']}",
        f"APP_DATA_DIR={environment['APP_DATA_DIR']}",
        "APP_DATABASE_URL=postgresql://********@db.example/onehop",
    ]
    assert "Default: 8000. From: PORT in the environment." in lines
    assert secret not in done.stdout
    assert "hidden-word" not in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_doctor_says_what_is_wrong(environment: dict[str, str]) -> None:
    sick = _run(environment, "doctor")
    assert sick.returncode == 1
    assert "FAIL Schema: empty" in sick.stdout
    assert "ok   PostgreSQL: 18." in sick.stdout
    assert "ok   Redis: valkey 9." in sick.stdout
    assert f"ok   psql: psql -h {environment['APP_DATA_DIR']}/run/postgres -U postgres onehop" in sick.stdout
    assert _run(environment, "migrate", "up").returncode == 0
    well = _run(environment, "doctor")
    assert well.returncode == 0
    assert {line[:4] for line in well.stdout.splitlines()} == {"ok  "}
    assert f"ok   Port: {environment['PORT']} is free\n" in well.stdout
    assert "ok   Files: can be written and deleted\n" in well.stdout
    assert re.search("ok   Fonts: for [0-9]+ scripts, none for Gujarati, ", well.stdout)
    assert _run(environment, "seed").returncode == 0


@pytest.mark.slow
def test_doctor_finds_servers_that_are_down(environment: dict[str, str]) -> None:
    away = {"DATABASE_URL": "postgresql://x:y@127.0.0.1:1/z", "REDIS_URL": "redis://127.0.0.1:1/0"}
    done = _run({**environment, **away}, "doctor")
    assert done.returncode == 1
    assert "FAIL PostgreSQL: not reachable" in done.stdout
    assert "warn Redis: not reachable" in done.stdout
    assert "Traceback" not in done.stderr


def test_doctor_finds_a_port_that_something_else_has(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(environment["PORT"]))):
        done = _run(environment, "doctor")
    assert done.returncode == 1
    assert f"FAIL Port: Port {environment['PORT']} on 127.0.0.1 cannot be used: Address already in use" in done.stdout
    foreign = _run({**environment, "HOST": "203.0.113.1"}, "doctor")
    assert foreign.returncode == 1
    assert "FAIL Port: Port" in foreign.stdout


def test_doctor_finds_a_folder_that_it_cannot_write_to(environment: dict[str, str], tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    done = _run({**environment, "APP_DATA_DIR": str(in_the_way), "APP_SECRET_KEY": "x" * 40}, "doctor")
    assert done.returncode == 1
    assert f"FAIL Data folder: {in_the_way} is not a writable folder" in done.stdout


@pytest.mark.slow
def test_doctor_finds_wrong_settings(environment: dict[str, str]) -> None:
    done = _run({**environment, "APP_WORKERS": "-1"}, "doctor")
    assert done.returncode == 1
    assert "FAIL Settings: APP_WORKERS" in done.stdout


def test_openapi_is_printed(environment: dict[str, str]) -> None:
    done = _run(environment, "openapi")
    assert done.returncode == 0, done.stderr
    assert "/v1/overview" in json.loads(done.stdout)["paths"]


def test_help_is_there_at_once(environment: dict[str, str]) -> None:
    program = (
        "import sys, app.cli; print(*sorted({'fastapi', 'sqlalchemy', 'asyncpg', 'uvicorn'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"
    text = _run(environment, "--help").stdout
    for command in ("dev", "serve", "worker", "migrate", "seed", "doctor", "openapi", "config"):
        assert re.search(rf"\b{command}\b", text)
