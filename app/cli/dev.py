"""Everything for development in one terminal: servers, schema, demo data, API and worker."""

import asyncio
import http
import json
import os
import shutil
import sys
import time

from app.cli.probe import get
from app.cli.terminal import say
from app.development import LogIn, base_url, welcome
from app.kernel.embedded import servers
from app.kernel.schema import is_newest
from app.kernel.supervisor import Program, Supervisor
from app.settings import Settings

_READY_SECONDS = 60.0


def run_everything(settings: Settings, *, reload: bool) -> None:
    """Returns when told to stop, after API and worker, then Valkey and PostgreSQL have ended.

    Raises EmbeddedServerError or ProgramFailed, with the same order of ending.
    """
    started = time.monotonic()
    own_database, own_redis = settings.database.url is None, settings.redis.url is None
    with (
        # First, because its signal handlers must be there until the servers have stopped.
        Supervisor(say) as supervisor,
        servers(settings.data_dir, postgres=own_database, valkey=own_redis, progress=say) as addresses,
    ):
        try:
            environment = _environment_of_children(settings, addresses.database_url, addresses.redis_url)
            if not supervisor.is_stopping:
                _run_children(supervisor, settings, environment, started, reload=reload)
        finally:
            supervisor.stop()
    say("Everything is stopped.")


def _run_children(
    supervisor: Supervisor,
    settings: Settings,
    environment: dict[str, str],
    started: float,
    *,
    reload: bool,
) -> None:
    """Prepare the database, start API and worker, tell where they are, and watch them until the stop."""
    python = [sys.executable, "-m", "app"]
    # Of this process alone: another one may be starting on the same data.
    report = settings.data_dir.absolute() / "run" / f"accounts-{os.getpid()}.json"
    report.unlink(missing_ok=True)
    # API and worker need the schema, but not the demo data: mostly only those remain to be looked at.
    dsn = environment["DATABASE_URL"] if settings.database.url is None else settings.database.direct_dsn
    is_ready = asyncio.run(is_newest(dsn))
    preparation = supervisor.begin(Program("Preparing the database", [*python, "prepare", str(report)], environment))
    if not is_ready:
        if not supervisor.finish(preparation):
            return
        say(f"Schema and demo data made ({time.monotonic() - started:.1f} s)")
    # Stopped together, which with the servers after them stays below ten seconds. A worker gives up after five.
    reloads = ["--reload"] if reload else []
    api, worker = [*python, "serve", "--grace", "3", *reloads], [*python, "worker", *reloads]
    supervisor.start(Program("API", api, environment, stop_seconds=4.0))
    supervisor.start(Program("Worker", worker, environment, stop_seconds=6.0))
    if is_ready and not supervisor.finish(preparation):
        return
    log_ins: list[LogIn] = json.loads(report.read_text(encoding="utf-8"))
    report.unlink()
    base = base_url(settings.host, settings.port)
    if supervisor.wait_until(lambda: _is_ready(settings), seconds=_READY_SECONDS):
        say(welcome(base, log_ins, has_mailbox=settings.has_mailbox, seconds=time.monotonic() - started))
        supervisor.watch()


def _environment_of_children(settings: Settings, database_url: str | None, redis_url: str | None) -> dict[str, str]:
    environment = {"PYTHONUNBUFFERED": "1"}
    if "drain_delay" not in settings.connections.model_fields_set:
        # No balancer has to notice, and whoever pressed Ctrl-C waits.
        environment["APP_CONNECTIONS_DRAIN_DELAY"] = "0"
    if database_url is not None:
        environment["DATABASE_URL"] = database_url
    if redis_url is not None:
        environment["REDIS_URL"] = redis_url
    if "public_url" not in settings.model_fields_set:
        environment["APP_PUBLIC_URL"] = base_url(settings.host, settings.port)
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
