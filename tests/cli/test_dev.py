"""`dev`, as a person uses it: real processes, real servers in a folder of the test."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import psutil
import pytest

from tests.cli.programs import ROOT, processes, run
from tests.fixtures.embedded import arguments_of
from tests.fixtures.waiting import scaled

READY = re.compile(r"Onehop is ready \(([0-9.]+) s\)")


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
    for process in processes(environment):
        process.kill()


def _log_in(running: Running) -> str:
    found = running.wait_for(re.compile(r"Log in (demo@example\.com) / (\S+)"))
    status, answer = running.call("/v1/auth/login", {"email": found[1], "password": found[2]})
    assert status == 200
    tokens = answer["tokens"]
    assert isinstance(tokens, dict)
    return str(tokens["access_token"])


def _is_ready(running: Running) -> bool:
    try:
        return running.call("/readyz")[0] == 200
    except OSError:
        return False


@pytest.mark.slow
def test_dev_starts_everything_and_ends_in_order(dev: Callable[..., Running], environment: dict[str, str]) -> None:
    running = dev()
    running.wait_for(READY)
    assert f"  Pages  {running.base}/console" in running.lines
    assert f"  Mail   {running.base}/dev/mailbox" in running.lines
    # The printed link opens the console once: its code is what the page sends.
    (link,) = [line.split()[0] for line in running.lines if "/console/login#" in line]
    given = dict(parse_qsl(urlsplit(link).fragment))
    assert given["email"] == "admin@example.com"
    assert [running.call("/v1/auth/code/login", given)[0] for _ in range(2)] == [200, 401]
    token = _log_in(running)
    status, overview = running.call("/v1/overview", token=token)
    assert status == 200
    assert overview["recent_events"]
    assert f"ok   Port: {environment['PORT']} is in use by a running Onehop\n" in run(environment, "doctor").stdout
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in processes(environment)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", int(environment["PORT"]))}

    # An API that dies is started again; the servers and the worker stay.
    next(process for process in processes(environment) if " serve" in arguments_of(process)).kill()
    running.wait_for(re.compile("API ended unexpectedly"))
    deadline = time.monotonic() + scaled(20)
    while not _is_ready(running):
        assert time.monotonic() < deadline
        time.sleep(0.1)

    running.stop(signal.SIGINT)
    assert running.process.returncode == 0
    ends = [line.partition(" (")[0] for line in running.lines if " stopped (" in line or "Everything" in line]
    expected = ["API stopped", "Worker stopped", "Valkey stopped", "PostgreSQL stopped", "Everything is stopped."]
    assert ends == expected, running.lines
    assert processes(environment) == []


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
        assert processes(environment) == []

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
    refused = run({**environment, "APP_SECRET_KEY": "p2Wn8sKd4LqYv7TzR3hXc9MbG6fJa5Ue"}, "dev", "--reload")
    assert refused.returncode == 78
    assert "were sealed with another secret" in refused.stdout + refused.stderr
    assert processes(environment) == []


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
    while processes(environment):
        assert time.monotonic() < deadline, [arguments_of(process) for process in processes(environment)]
        time.sleep(0.1)

    again = dev()
    again.wait_for(READY)
    _, events = again.call("/v1/users/me/events?kind=kept.event", token=_log_in(again))
    items = events["items"]
    assert isinstance(items, list)
    assert len(items) == 1
    again.stop(signal.SIGTERM)
    assert again.process.returncode == 0
    assert processes(environment) == []


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
        assert b"onehop_http_server_request_duration_seconds_count" in answer.read()
    # A process that dies is replaced, by uvicorn, without an end of the others.
    api = next(process for process in processes(environment) if " serve" in arguments_of(process))
    victim = next(child for child in api.children() if "spawn_main" in arguments_of(child))
    victim.kill()
    deadline = time.monotonic() + scaled(20)
    while len([child for child in api.children() if "spawn_main" in arguments_of(child)]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert running.call("/v1/overview", token=token)[0] == 200
    running.stop(signal.SIGINT)
    assert running.process.returncode == 0
    assert processes(environment) == []
