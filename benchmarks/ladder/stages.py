"""Starts each stage; all of them on the same cores, with the same servers and the same outside world."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path

import psutil

from benchmarks import data, machine
from benchmarks.client import ask
from benchmarks.ladder.services import NAMES
from benchmarks.load import request
from benchmarks.machine import Service
from benchmarks.product import Bench

_SQL = Path(__file__).with_name("tables.sql")
# What uvicorn is without its optional parts.
_PLAIN = ("--loop", "asyncio", "--http", "h11", "--no-access-log", "--log-level", "error", "--host", "127.0.0.1")
_PLAIN_PRODUCT = ("-m", "uvicorn", "app.main:app", "--port", "{port}", "--ws", "none", *_PLAIN)


@dataclass(frozen=True, slots=True)
class Stage:
    """`fix` is what distinguishes it from the one before."""

    number: int
    fix: str
    services: int
    is_product: bool


STAGES = (
    Stage(0, "before: fourteen services", 14, is_product=False),
    Stage(1, "one process", 1, is_product=False),
    Stage(2, "truly async", 1, is_product=False),
    Stage(3, "heavy work in the background", 1, is_product=False),
    Stage(4, "queries, index, columns", 2, is_product=True),
    Stage(5, "cache", 2, is_product=True),
    Stage(6, "runtime: uvloop, httptools, workers", 2, is_product=True),
)


@dataclass(frozen=True, slots=True)
class Outside:
    """Mail server and receiver of webhooks."""

    smtp_port: int
    http_port: int

    async def arrived(self) -> dict[str, int]:
        """How many `mails` and `webhooks`."""
        found: dict[str, int] = json.loads((await ask(self.http_port, request("GET", "/")))[1])
        return found

    @property
    def webhook_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/hook"


class Group(Service):
    """Several services measured as one; requests go to the first."""

    def __init__(self, members: list[Service]) -> None:
        self.members = members
        self.name = members[0].name
        self.port = members[0].port

    @property
    def processes(self) -> list[psutil.Process]:
        return [process for member in self.members for process in member.processes]


@asynccontextmanager
async def outside(bench: Bench) -> AsyncIterator[Outside]:
    found = Outside(machine.free_port(), machine.free_port())
    service = machine.launch(
        "outside",
        [sys.executable, "-m", "benchmarks.ladder.outside", str(found.smtp_port), str(found.http_port)],
        bench.directory,
        environment={},
        port=found.http_port,
        cores=machine.OTHER_CORES,
    )
    async with machine.running(service):
        yield found


async def make_tables(bench: Bench, tokens: dict[int, str]) -> None:
    """The tables of stages 0 to 3; the people of `tokens` (by number) can log in with them there too."""
    await bench.connection.execute(await asyncio.to_thread(_SQL.read_text, encoding="utf-8"))
    await bench.connection.executemany(
        "UPDATE ladder.tokens SET hash = $1 WHERE session_id = $2",
        [
            (md5(token.encode(), usedforsecurity=False).hexdigest(), str(data.user_id(number)))
            for number, token in tokens.items()
        ],
    )
    for table in ("users", "profiles", "preferences", "events", "jobs", "sessions", "tokens"):
        await bench.connection.execute(f"VACUUM FULL ANALYZE ladder.{table}")


@asynccontextmanager
async def started(stage: Stage, bench: Bench, world: Outside) -> AsyncIterator[Group]:
    """The stage's processes when they answer."""
    services = _product(stage, bench, world) if stage.is_product else _reconstruction(stage, bench, world)
    async with AsyncExitStack() as stack:
        for service in services:
            stack.push_async_callback(asyncio.to_thread, service.stop)
        for service in services:
            if service.port:
                await service.until_ready("/livez")
        yield Group(services)


def _reconstruction(stage: Stage, bench: Bench, world: Outside) -> list[Service]:
    names = NAMES if stage.number == 0 else NAMES[:1]
    ports = {name: machine.free_port() for name in names}
    environment = {
        **bench.environment,
        "LADDER_STAGE": str(stage.number),
        "LADDER_SERVICES": json.dumps({name: f"http://127.0.0.1:{port}" for name, port in ports.items()}),
        "LADDER_SMTP": f"127.0.0.1:{world.smtp_port}",
        "LADDER_WEBHOOK": world.webhook_url,
    }
    return [
        machine.launch(
            f"stage{stage.number}-{name}",
            [sys.executable, "-m", "uvicorn", "benchmarks.ladder.app:app", "--port", str(port), *_PLAIN],
            bench.directory,
            environment={**environment, "LADDER_SERVICE": name},
            port=port,
        )
        for name, port in ports.items()
    ]


def _product(stage: Stage, bench: Bench, world: Outside) -> list[Service]:
    """API and worker, both on the measured core."""
    settings = {
        "APP_MAIL_SMTP_URL": f"smtp://127.0.0.1:{world.smtp_port}",
        "APP_CACHE_ENABLED": str(stage.number > 4).lower(),
        "APP_JOBS_BACKLOG_LIMIT": "100000000",
        "APP_JOBS_BACKLOG_AGE": "100000000",
        # The receiver is on this machine, where webhooks otherwise never go.
        "APP_JOBS_WEBHOOK_ALLOW": "127.0.0.1/32",
        "APP_JOBS_WEBHOOK_HTTP": "true",
        # Many orders of a few people go to one address.
        "APP_MAIL_RECIPIENT_HOURLY": "1000000",
        "APP_MAIL_SENDER_HOURLY": "1000000",
        "APP_WORKERS": str(len(machine.SERVER_CORES)),
    }
    name = f"stage{stage.number}"
    if stage.number < 6:
        api = bench.serve(name, command=_PLAIN_PRODUCT, settings=settings)
    else:
        api = bench.serve(name, settings=settings)
    return [api, bench.work(f"{name}-worker", cores=machine.SERVER_CORES, settings=settings)]
