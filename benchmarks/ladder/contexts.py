"""How each of the stages 0 to 3 reaches services, database, mail server and receiver."""

import asyncio
import json
import os
import smtplib
from collections.abc import Awaitable
from email.message import EmailMessage
from typing import Any

import aiohttp
import aiosmtplib
import asyncpg
import psycopg2.extras
import psycopg2.pool
import requests
import typst

from benchmarks.ladder.services import JSON, OPERATIONS, Context, Unauthorised

_SECONDS = 30
_POOL_SIZE = 5
_ONE_PROCESS_POOL_SIZE = 10
_MAILS_AT_ONCE = 20


class Blocking:
    """Stages 0 and 1: `async def` around calls that block the event loop."""

    is_order_in_background = False

    def __init__(self, pool_size: int) -> None:
        # Defect: in stage 0 every service has a pool of its own, fourteen for one database.
        self._pool = psycopg2.pool.ThreadedConnectionPool(1, pool_size, os.environ["DATABASE_URL"])

    async def open(self) -> None:
        psycopg2.extras.register_default_jsonb(globally=True)

    async def rows(self, sql: str, *arguments: Any) -> list[JSON]:
        # Defect: a driver that blocks inside `async def`; no other request is served meanwhile.
        connection = self._pool.getconn()
        try:
            connection.autocommit = True
            with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                values = [psycopg2.extras.Json(item) if isinstance(item, dict) else item for item in arguments]
                cursor.execute(_with_percent(sql, len(values)), values)
                return [dict(row) for row in cursor.fetchall()]
        finally:
            self._pool.putconn(connection)

    async def call(self, operation: str, **arguments: Any) -> Any:
        return await OPERATIONS[operation](self, **arguments)

    async def send_mail(self, to: str, subject: str, pdf: bytes) -> None:
        host, port = _smtp_address()
        with smtplib.SMTP(host, port, timeout=_SECONDS) as client:
            client.send_message(_message(to, subject, pdf))

    async def post(self, document: JSON) -> None:
        requests.post(os.environ["LADDER_WEBHOOK"], json=document, timeout=_SECONDS).raise_for_status()  # noqa: ASYNC210

    async def render(self, source: bytes) -> bytes:
        # Defect: work for the processor on the event loop.
        return typst.compile(source, ignore_system_fonts=True)

    def later(self, work: Awaitable[None]) -> None:
        raise NotImplementedError


class Networked(Blocking):
    """Stage 0: every service a process, asked by HTTP."""

    def __init__(self, pool_size: int) -> None:
        super().__init__(pool_size)
        self.calls = 0
        self._addresses: dict[str, str] = json.loads(os.environ["LADDER_SERVICES"])

    async def call(self, operation: str, **arguments: Any) -> Any:
        self.calls += 1
        service, _, name = operation.partition(".")
        # Defect: `requests` inside `async def`, a new connection each time.
        answer = requests.post(f"{self._addresses[service]}/{name}", json=arguments, timeout=_SECONDS)  # noqa: ASYNC210
        if answer.status_code == requests.codes.unauthorized:
            raise Unauthorised
        answer.raise_for_status()
        return answer.json()


class Async:
    """Stage 2: nothing blocks."""

    is_order_in_background = False

    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(
            os.environ["DATABASE_URL"], max_size=_ONE_PROCESS_POOL_SIZE, init=_prepare_connection
        )
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_SECONDS))

    async def rows(self, sql: str, *arguments: Any) -> list[JSON]:
        return [dict(row) for row in await self._pool.fetch(sql, *arguments)]

    async def call(self, operation: str, **arguments: Any) -> Any:
        return await OPERATIONS[operation](self, **arguments)

    async def send_mail(self, to: str, subject: str, pdf: bytes) -> None:
        host, port = _smtp_address()
        await aiosmtplib.send(_message(to, subject, pdf), hostname=host, port=port, timeout=_SECONDS)

    async def post(self, document: JSON) -> None:
        async with self._http.post(os.environ["LADDER_WEBHOOK"], json=document) as answer:
            answer.raise_for_status()

    async def render(self, source: bytes) -> bytes:
        return await asyncio.to_thread(typst.compile, source, ignore_system_fonts=True)

    def later(self, work: Awaitable[None]) -> None:
        raise NotImplementedError


class Background(Async):
    """Stage 3: the answer does not wait for the heavy work."""

    is_order_in_background = True

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(_MAILS_AT_ONCE)

    def later(self, work: Awaitable[None]) -> None:
        task = asyncio.create_task(self._in_turn(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_turn(self, work: Awaitable[None]) -> None:
        async with self._places:
            await work


def make_context(stage: int) -> Context:
    if stage == 0:
        return Networked(_POOL_SIZE)
    if stage == 1:
        return Blocking(_ONE_PROCESS_POOL_SIZE)
    return Async() if stage == 2 else Background()


async def _prepare_connection(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


def _with_percent(sql: str, count: int) -> str:
    for number in range(1, count + 1):
        sql = sql.replace(f"${number}", "%s")
    return sql


def _smtp_address() -> tuple[str, int]:
    host, _, port = os.environ["LADDER_SMTP"].partition(":")
    return host, int(port)


def _message(to: str, subject: str, pdf: bytes) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "shop@example.com", to, subject
    message.set_content("Your invoice is attached.")
    message.add_attachment(pdf, maintype="application", subtype="pdf", filename="invoice.pdf")
    return message
