"""`python -m benchmarks.jobs.effects`: invoices whose workers are killed and frozen while all of it goes out.

An effect outside cannot be in one commit with its job's end, so it may happen again after a kill, and then under the
name it had before: the `Message-ID` of the mail, the `webhook-id` of the message. Nothing may be missing, and no
job may end twice.
"""

import asyncio
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvloop
from aiohttp import web
from aiosmtpd.smtp import SMTP, Envelope, Session

from app.kernel.ids import new_id
from benchmarks.jobs.bench import Bench, run

_INVOICES = 100
_KILLS = 12
_FROZEN_SECONDS = 30
# As quick as it may be set: what is measured is what happens, not after how long.
_SETTINGS = {
    "APP_JOBS_LEASE": "3",
    "APP_JOBS_HEARTBEAT": "0.5",
    "APP_JOBS_WEBHOOK_ALLOW": "127.0.0.1/32",
    "APP_JOBS_WEBHOOK_HTTP": "true",
    # All invoices are of one sender and go to one address.
    "APP_MAIL_RECIPIENT_HOURLY": "1000000",
    "APP_MAIL_SENDER_HOURLY": "1000000",
}
# Long enough for many to be cut off between an effect and its note.
_SLOW_SECONDS = 0.2

_ENDS = """
SELECT count(*) AS jobs, count(*) FILTER (WHERE state = 2) AS succeeded,
       (SELECT count(*) FROM jobs.invoices WHERE status = 'sent') AS sent,
       (SELECT count(*) FROM jobs.artifacts) AS artifacts,
       (SELECT count(*) FROM jobs.webhook_deliveries WHERE state = 'delivered') AS delivered
FROM jobs.jobs
"""
_PROVE = "UPDATE identity.accounts SET email_verified_at = now()"
_EMPTY = """
TRUNCATE jobs.mail_sends, jobs.invoices, jobs.webhook_endpoints, jobs.webhook_messages, jobs.webhook_deliveries CASCADE
"""
_OPEN = "SELECT count(*) FROM jobs.jobs WHERE state < 2"
_ROWS = "SELECT id, state, attempt, version, finished_at FROM jobs.jobs WHERE state >= 2 ORDER BY id"


@dataclass
class Outside:
    """A mail server and a receiver of webhooks that note by which name they were given what."""

    mails: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    smtp_port: int = 0
    url: str = ""

    # The name and arguments are aiosmtpd's.
    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:  # noqa: N802
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        if b"application/pdf" in content:
            (name,) = [line for line in content.splitlines() if line.lower().startswith(b"message-id:")]
            self.mails[name.decode()] += 1
        await asyncio.sleep(_SLOW_SECONDS)
        return "250 OK"

    async def take(self, request: web.Request) -> web.Response:
        self.messages[request.headers["webhook-id"]] += 1
        await asyncio.sleep(_SLOW_SECONDS)
        return web.Response(text="seen")

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Outside"]:
        server = await asyncio.get_running_loop().create_server(lambda: SMTP(self), "127.0.0.1", 0)
        application = web.Application()
        application.router.add_post("/", self.take)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.smtp_port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        try:
            yield self
        finally:
            await runner.cleanup()
            server.close()


async def measure_killed(bench: Bench) -> None:
    """One of three workers is killed again and again while it works, and replaced."""

    async def kill(workers: list[asyncio.subprocess.Process], start: Callable[[], Any]) -> None:
        for _ in range(_KILLS):
            await asyncio.sleep(random.uniform(0.2, 0.8))
            victim = workers.pop(0)
            victim.kill()
            await victim.wait()
            workers.append(await start())

    await _invoices(bench, f"{_INVOICES} invoices, {_KILLS} workers killed", kill)


async def measure_frozen(bench: Bench) -> None:
    """One of two workers freezes amid its work for thirty seconds, and goes on when all has been done by the other."""

    async def freeze(workers: list[asyncio.subprocess.Process], _: Callable[[], Any]) -> None:
        await asyncio.sleep(1)
        zombie = workers[0]
        zombie.send_signal(signal.SIGSTOP)
        await asyncio.sleep(_FROZEN_SECONDS)
        before = await bench.connection.fetch(_ROWS)
        zombie.send_signal(signal.SIGCONT)
        await asyncio.sleep(3)
        ended = {row["id"] for row in before}
        after = [row for row in await bench.connection.fetch(_ROWS) if row["id"] in ended]
        bench.tell(
            "rows that a thawed worker changed",
            f"{sum(a != b for a, b in zip(before, after, strict=True))}",
            ok=before == after,
        )

    await _invoices(bench, f"{_INVOICES} invoices, a worker frozen for {_FROZEN_SECONDS} s", freeze, count=2)


async def _invoices(bench: Bench, name: str, fault: Callable[..., Any], count: int = 3) -> None:
    bench.environment |= _SETTINGS
    await bench.clear()
    await bench.connection.execute(_EMPTY)
    folder = Path(bench.environment["APP_DATA_DIR"]) / "artifacts"
    shutil.rmtree(folder, ignore_errors=True)
    outside = Outside()
    async with outside.open(), bench.api() as base, aiohttp.ClientSession() as session:
        headers = await _caller(session, base, outside.url)
        await bench.connection.execute(_PROVE)
        workers = [await _start(bench, outside) for _ in range(count)]
        try:
            for number in range(_INVOICES):
                async with session.post(f"{base}/v1/invoices", json=_invoice(number), headers=headers) as answer:
                    answer.raise_for_status()
            await fault(workers, lambda: _start(bench, outside))
            async with asyncio.timeout(90):
                while await bench.connection.fetchval(_OPEN):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
        finally:
            for worker in workers:
                worker.kill()
                await worker.wait()
    row = await bench.connection.fetchrow(_ENDS)
    assert row is not None
    files = sum(len(names) for _, _, names in os.walk(folder))
    bench.tell(
        name,
        f"{row['succeeded']} of {row['jobs']} jobs succeeded, {row['sent']} invoices sent, {row['artifacts']} files "
        f"known of {files}; mails {len(outside.mails)}, again {outside.mails.total() - len(outside.mails)}; webhooks "
        f"{len(outside.messages)}, again {outside.messages.total() - len(outside.messages)}",
        ok=row["succeeded"] == row["jobs"]
        and row["sent"]
        == row["artifacts"]
        == row["delivered"]
        == len(outside.mails)
        == len(outside.messages)
        == _INVOICES,
    )


async def _start(bench: Bench, outside: Outside) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "worker"),
        env=bench.environment | {"APP_MAIL_SMTP_URL": f"smtp://127.0.0.1:{outside.smtp_port}"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def _caller(session: aiohttp.ClientSession, base: str, url: str) -> dict[str, str]:
    """A user with an endpoint that subscribes to invoices."""
    body = {"email": f"{new_id().hex}@example.com", "password": "correct horse battery staple"}
    async with session.post(f"{base}/v1/auth/register", json=body) as answer:
        token = orjson.loads(await answer.read())["tokens"]["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    endpoint = {"url": url, "event_types": ["invoice.issued"]}
    async with session.post(f"{base}/v1/webhooks/endpoints", json=endpoint, headers=headers) as answer:
        if not answer.ok:
            raise RuntimeError(await answer.text())
    return headers


def _invoice(number: int) -> dict[str, Any]:
    return {
        "number": f"{number:04}",
        "order_id": f"A-{number}",
        "customer": {"name": "Ada Lovelace", "email": "ada@example.com", "address": "12 St James's Square, London"},
        "currency": "EUR",
        "lines": [{"description": "Analytical engine, one hour", "quantity": 3, "unit_price_minor": 12000}],
        "tax_rate_percent": "19",
    }


MEASURES = (measure_killed, measure_frozen)

if __name__ == "__main__":
    uvloop.run(run(MEASURES))
