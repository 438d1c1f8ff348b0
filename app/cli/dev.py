"""Everything for development in one terminal: servers, schema, demo data, API and worker."""

import http
import json
import os
import shutil
import sys
import time
from pathlib import Path

from app.cli.probe import get
from app.cli.terminal import say
from app.dev.embedded import Servers, servers
from app.dev.supervisor import Program, Supervisor
from app.dev.welcome import LogIn, welcome
from app.kernel.listening import base_url
from app.settings import Settings

# From the start of the servers; schema, demo data and the bytecode of all packages are made meanwhile.
_READY_SECONDS = 180.0


def run_everything(settings: Settings, *, reload: bool) -> None:
    """Returns when told to stop, after API and worker, then Valkey and PostgreSQL have ended.

    Raises EmbeddedServerError or ProgramFailed, with the same order of ending.
    """
    started = time.monotonic()
    own_database = settings.database.url is None
    environment = _environment_of_children(settings)
    reloads = ["--reload"] if reload else []
    # Of this process alone: another one may be starting on the same data.
    report = settings.data_dir.absolute() / "run" / f"accounts-{os.getpid()}.json"
    seconds = f"{_READY_SECONDS:.0f}"

    def load_programs(found: Servers) -> None:
        """Loading them takes longer than the servers take to start, so it begins sooner, and they wait then."""
        environment.update(_addresses(found))
        serve = _command("serve", "--grace", "3", "--wait", seconds, *reloads)
        prepare = _command("prepare", str(report), *(["--wait", seconds] if own_database else []))
        supervisor.start(Program("API", serve, environment, stop_seconds=4.0))
        supervisor.begin(Program("Preparing the database", prepare, environment))

    with (
        # First, because its signal handlers must be there until the servers have stopped.
        Supervisor(say) as supervisor,
        servers(
            settings.data_dir,
            postgres=own_database,
            valkey=settings.redis.url is None,
            progress=say,
            announce=load_programs,
        ),
    ):
        try:
            if supervisor.wait_until(lambda: _is_ready(settings), seconds=_READY_SECONDS):
                # Not sooner: on a machine with two cores API and preparation would wait for it. A worker gives up after
                # five seconds; stopped together, and with the servers after them, all end within ten.
                supervisor.start(Program("Worker", _command("worker", *reloads), environment, stop_seconds=6.0))
                if supervisor.finish():
                    say(_welcome(settings, report, seconds=time.monotonic() - started))
                    supervisor.watch()
        finally:
            supervisor.stop()
            report.unlink(missing_ok=True)
    say("Everything is stopped.")


def _welcome(settings: Settings, report: Path, *, seconds: float) -> str:
    log_ins = [LogIn(*fields) for fields in json.loads(report.read_text(encoding="utf-8"))]
    report.unlink()
    base = base_url(settings.host, settings.port)
    return welcome(settings.name, base, log_ins, has_mailbox=settings.has_mailbox, seconds=seconds)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "app", *arguments]


def _addresses(found: Servers) -> dict[str, str]:
    given = {"DATABASE_URL": found.database_url, "REDIS_URL": found.redis_url}
    return {name: url for name, url in given.items() if url is not None}


def _environment_of_children(settings: Settings) -> dict[str, str]:
    environment = {"PYTHONUNBUFFERED": "1"}
    if "drain_delay" not in settings.connections.model_fields_set:
        # No balancer has to notice, and the person who pressed Ctrl-C waits.
        environment["APP_CONNECTIONS_DRAIN_DELAY"] = "0"
    if settings.workers > 1:
        # Fresh, because files of processes that are gone would be added to the figures for ever.
        directory = settings.data_dir.absolute() / "run" / "metrics"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    return environment


def _is_ready(settings: Settings) -> bool:
    answer = get(settings.host, settings.port, "/readyz")
    return answer is not None and answer[0] == http.HTTPStatus.OK
