"""`python -m benchmarks.bounds [--seconds 600]`: what one caller can make us keep, whatever it varies.

One user sends requests at full quota in which everything varies that may: queries, headers, kinds, keys, ids, tokens,
origins, cursors. Memory of API and worker, Redis, tables and metric series are read before and after each third.
Writes docs/benchmarks/bounds.md; the exit code is 1 if memory, Redis or the number of series is beyond its bound, or a
request was answered with an error of ours.
"""

import argparse
import asyncio
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote
from uuid import UUID, uuid4

import orjson
import redis.asyncio as redis
import uvloop

from benchmarks import machine
from benchmarks.cases import CASES
from benchmarks.cases.scene import Scene, make_scene
from benchmarks.client import ask
from benchmarks.load import request
from benchmarks.machine import Service
from benchmarks.product import Bench

REPORT = machine.ROOT / "docs" / "benchmarks" / "bounds.md"
_UNITS_A_SECOND = 2_000.0
_CONNECTIONS = 48
_TIMEOUT_SECONDS = 15.0
_TABLES = """
    SELECT schemaname || '.' || relname AS name, pg_total_relation_size(relid) AS bytes
    FROM pg_stat_user_tables ORDER BY name
"""
# What it may be after any number of requests, with room for what the allocator keeps.
_MOST: dict[str, float] = {
    "API, resident": 320 * 2**20,
    "worker, resident": 768 * 2**20,
    "Redis": 64 * 2**20,
    "metric series": 20_000,
}
_QUOTA = "the quota: data that the user stores, deleted with the account"
TABLES: dict[str, str] = {
    "identity.accounts": "one row an account; registrations of a network (`APP_IDENTITY_NETWORK_REGISTRATIONS`)",
    "identity.api_keys": "50 living ones (`APP_IDENTITY_MAX_API_KEYS`); 500 made an hour",
    "identity.one_time_tokens": "one a purpose and account, until its time is over",
    "identity.passkeys": "20 an account",
    "identity.recovery_codes": "ten an account",
    "identity.revocations": "one for each session and account, until the tokens it names have expired",
    "identity.security_events": "500 an hour of what a user can repeat; the rest by log-ins; `APP_IDENTITY_AUDIT_DAYS`",
    "identity.service_accounts": "by administrators alone",
    "identity.sessions": "50 living ones (`APP_IDENTITY_MAX_SESSIONS`); ended ones 30 days",
    "identity.signing_keys": "by operators alone",
    "identity.totp_factors": "one an account",
    "jobs.artifacts": "`APP_JOBS_ARTIFACT_DAYS`, with their jobs",
    "jobs.attempts": "`APP_JOBS_RETENTION_DAYS`",
    "jobs.email_suppressions": "`APP_MAIL_SUPPRESSION_DAYS`; one an address whose server knows no such mailbox",
    "jobs.epoch": "one row",
    "jobs.invoices": _QUOTA,
    "jobs.jobs": "`APP_JOBS_BACKLOG_LIMIT` waiting ones; finished ones `APP_JOBS_RETENTION_DAYS`",
    "jobs.lanes": "one a queue",
    "jobs.mail_sends": "an hour's e-mails; `APP_MAIL_SENDER_HOURLY` an account",
    "jobs.positions": "one a job that goes through many rows",
    "jobs.schedules": "by the program alone",
    "jobs.spent_tickets": "a minute's tickets",
    "jobs.suspended_users": "one for each banned or closed account",
    "jobs.webhook_attempts": "with their deliveries",
    "jobs.webhook_deliveries": "with their messages",
    "jobs.webhook_endpoints": "20 an account",
    "jobs.webhook_messages": "`APP_JOBS_RETENTION_DAYS`",
    "jobs.workers": "one a process, for a day after its last sign of life",
    "kernel.idempotency_keys": "100,000 a user and operation (`APP_HTTP_IDEMPOTENCY_KEYS`), 24 hours",
    "kernel.incarnation": "one row",
    "kernel.metric_samples": "a day, in steps of 30 s and 5 min, by the kinds of the program",
    "public.alembic_version": "one row",
    "users.events": _QUOTA,
    "users.preferences": "one row an account, 16 KiB",
    "users.users": "one row an account",
}
_OTHERS: dict[str, str] = {
    "API, resident": "`APP_CACHE_LOCAL_BYTES`, 128 tokens of a user, caches of 4,096 entries",
    "worker, resident": "slots (`APP_JOBS_SLOTS`) and one report or PDF each",
    "Redis": "four queries of each cached address and user, `APP_CACHE_TTL`; counters of attempts, for a day each, of "
    "what the quota of a network lets it try",
    "metric series": "about 20 for each pair of route and status that was answered, and kinds and units of the "
    "program; nothing that a caller names",
}


@dataclass(frozen=True)
class Reading:
    """Everything that may grow: bytes, and the number of metric series."""

    process: dict[str, float]
    tables: dict[str, int]


class Varied(Sequence[bytes]):
    """As many requests as are asked for, no two alike."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._chance = random.Random(14)
        self._fixed = [
            raw
            for name, case in CASES.items()
            # The account has to live on, and its password too.
            if not name.startswith(
                ("DELETE /v1/users/me", "POST /v1/auth/logout", "POST /v1/auth/revoke", "GET /metrics")
            )
            for raw in case.requests(scene)[:3]
        ]
        self._makers: tuple[Callable[[], bytes], ...] = (
            self._read,
            self._event,
            self._write,
            self._nowhere,
            self._stranger,
            self._usual,
        )

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, _: int) -> bytes:  # type: ignore[override]  # no slices
        return self._chance.choice(self._makers)()

    def _word(self) -> str:
        return f"{self._chance.getrandbits(64):x}"

    def _headers(self) -> dict[str, str]:
        word = self._word
        found = {
            "user_agent": word() * self._chance.randint(1, 20),
            "accept": f"application/json;q=0.{self._chance.randint(1, 999)}, text/{word()}",
            "accept_encoding": f"gzip;q=0.{self._chance.randint(1, 999)}, {word()}",
            "accept_language": word(),
            "origin": f"https://{word()}.example",
            "referer": f"https://{word()}.example/{word()}",
            "x_request_id": word(),
            "traceparent": f"00-{uuid4().hex}-{self._chance.getrandbits(63) + 1:016x}-01",
            "if_none_match": f'"{word()}"',
            "idempotency_key": word(),
            "cookie": f"device={word()}.{word()}; {word()}={word()}",
            "prefer": f"wait=0, {word()}={word()}",
            "range": f"bytes={self._chance.randint(0, 99)}-",
            "last_event_id": word(),
            "x_forwarded_for": f"10.{self._chance.randint(0, 255)}.{self._chance.randint(0, 255)}.1",
            f"x_{word()}": word(),
        }
        return dict(self._chance.sample(sorted(found.items()), self._chance.randint(1, len(found))))

    def _mine(self, method: str, path: str, body: object = None) -> bytes:
        data = None if body is None else orjson.dumps(body)
        # The scheme may be written in any case, and spaces may follow.
        scheme = "".join(self._chance.choice((letter.upper(), letter)) for letter in "bearer")
        raw = request(method, path, token=self._scene.user.access, body=data, **self._headers())
        return raw.replace(b"Bearer ", f"{scheme} ".encode(), 1)

    def _read(self) -> bytes:
        path = self._chance.choice(
            (
                "/v1/users/me/events?limit={n}&kind=kind.{n}&since=2026-01-01T00:00:00.{big}Z",
                "/v1/users/me/events/summary?bucket=day&since=2026-06-01T00:00:00.{big}Z",
                "/v1/users/me/events?cursor={word}",
                "/v1/jobs?limit={n}&kind={word}",
                "/v1/jobs?cursor={word}",
                "/v1/overview?{word}={word}",
                "/v1/users/me?{word}",
                "/v1/users/{id}",
                "/v1/jobs/{id}",
                "/v1/invoices/{id}/pdf",
                "/v1/webhooks/deliveries?endpoint_id={id}&limit={n}",
                "/problems/{word}",
            )
        )
        return self._mine("GET", self._filled(path))

    def _filled(self, path: str) -> str:
        for name, value in (
            ("{n}", str(self._chance.randint(1, 100))),
            ("{big}", f"{self._chance.randint(0, 999_999):06}"),
            ("{id}", str(UUID(int=self._chance.getrandbits(128), version=4))),
            ("{word}", self._word()),
        ):
            path = path.replace(name, value)
        return path

    def _event(self) -> bytes:
        return self._mine(
            "POST", "/v1/events", {"kind": f"kind.{self._word()}", "properties": {self._word(): self._word()}}
        )

    def _write(self) -> bytes:
        word = self._word()
        method, path, body = self._chance.choice(
            (
                ("PATCH", "/v1/users/me", {"display_name": word}),
                ("PATCH", "/v1/users/me/preferences", {"extra": {"key": word}}),
                ("POST", "/v1/jobs", {"kind": "export.events", "args": {"format": "csv"}, "unique_key": word}),
                ("POST", "/v1/auth/api-keys", {"name": word, "scopes": ["profile:read"]}),
                ("POST", "/v1/webhooks/endpoints", {"url": f"https://{word}.example/", "event_types": ["*"]}),
                ("DELETE", self._filled("/v1/auth/api-keys/{id}"), None),
                ("DELETE", self._filled("/v1/auth/sessions/{id}"), None),
                ("POST", self._filled("/v1/jobs/{id}/cancel"), None),
                ("POST", "/v1/users/lookup", {"ids": [str(uuid4()) for _ in range(20)]}),
            )
        )
        return self._mine(method, path, body)

    def _nowhere(self) -> bytes:
        method = self._chance.choice(("GET", "POST", "BREW", self._word().upper()))
        return self._mine(method, f"/{quote(self._word())}/{self._word()}")

    def _stranger(self) -> bytes:
        path, body = self._chance.choice(
            (
                ("/v1/auth/login", {"email": f"{self._word()}@example.com", "password": "x"}),
                ("/v1/auth/refresh", {"refresh_token": self._word()}),
                ("/v1/auth/password/forgot", {"email": f"{self._word()}@{self._word()}.example"}),
                ("/v1/auth/email/verify", {"token": self._word()}),
            )
        )
        return request("POST", path, body=orjson.dumps(body), token=self._word(), **self._headers())

    def _usual(self) -> bytes:
        return self._chance.choice(self._fixed)


async def send_for(port: int, requests: Varied, seconds: float) -> Counter[int]:
    """Sends over `_CONNECTIONS` connections, at most as fast as the quota lasts; statuses, 0 where there was none."""
    statuses: Counter[int] = Counter()
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def send() -> None:
        reader = writer = None
        while loop.time() - began < seconds:
            due = began + statuses.total() / _UNITS_A_SECOND
            await asyncio.sleep(max(0.0, due - loop.time()))
            try:
                if writer is None or reader is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(requests[0])
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    status, stays = await _answer(reader)
                statuses[status] += 1
            except (OSError, EOFError, TimeoutError):
                # Odd requests are answered by the end of their connection, and streams do not end.
                statuses[0] += 1
                stays = False
            if not stays and writer is not None:
                writer.close()
                writer = None
        if writer is not None:
            writer.close()

    await asyncio.gather(*(send() for _ in range(_CONNECTIONS)))
    return statuses


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether another request may follow on the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    if length is not None:
        await reader.readexactly(int(length[1]))
    elif status not in (204, 304):
        return status, False
    return status, b"\r\nconnection: close" not in head


async def read(bench: Bench, api: Service, worker: Service, client: "redis.Redis") -> Reading:
    memory = await client.info("memory")
    _, body = await ask(api.port, request("GET", "/metrics"))
    series = sum(1 for line in body.decode().splitlines() if line and not line.startswith("#"))
    rows = await bench.connection.fetch(_TABLES)
    return Reading(
        {
            "API, resident": api.resident_bytes(),
            "worker, resident": worker.resident_bytes(),
            "Redis": memory["used_memory"],
            "metric series": series,
        },
        {row["name"]: row["bytes"] for row in rows},
    )


async def main(seconds: float, folder: Path) -> int:
    answers: Counter[int] = Counter()
    async with Bench(folder) as bench:
        await bench.fill(30, 20)
        client = redis.Redis.from_url(bench.redis_url)
        async with machine.running(bench.serve(settings={"APP_IDENTITY_ACCESS_TOKEN_TTL": "3600"}), "/livez") as api:
            scene = await make_scene(api.port, bench.connection)
            worker = bench.work()
            try:
                requests = Varied(scene)
                # What is bounded is filled first, so that the first reading is not that of an empty process.
                answers += await send_for(api.port, requests, min(20, seconds / 10))
                readings = [await read(bench, api, worker, client)]
                for third in range(3):
                    answers += await send_for(api.port, requests, seconds / 3)
                    readings.append(await read(bench, api, worker, client))
                    print(f"third {third + 1}: {readings[-1].process}", flush=True)
            finally:
                await asyncio.to_thread(worker.stop)
        await client.aclose()
    beyond = [name for name, value in readings[-1].process.items() if value > _MOST[name]]
    _write(readings, answers, seconds)
    for name in beyond:
        print(f"beyond its bound: {name}")
    bad = sum(count for status, count in answers.items() if status >= 500 and status not in (503, 504))
    print(f"{dict(sorted(answers.items()))}")
    return 1 if beyond or bad else 0


def _write(readings: Sequence[Reading], answers: Counter[int], seconds: float) -> None:
    on = machine.describe()
    lines = [
        f"| {name} | {' | '.join(_shown(name, reading.process[name]) for reading in readings)} "
        f"| at most {_shown(name, _MOST[name])}: {bound} |"
        for name, bound in _OTHERS.items()
    ]
    lines += [
        f"| `{name}` | {' | '.join(_shown(name, reading.tables.get(name, 0)) for reading in readings)} | {bound} |"
        for name, bound in TABLES.items()
    ]
    told = ", ".join(f"{count:,} of {status}" for status, count in sorted(answers.items()))
    text = (
        f"Made by `python -m benchmarks.bounds --seconds {seconds:g}`. One user varies everything that may vary "
        "(queries, headers, kinds, user agents, idempotency keys, cookies, ids in paths, origins, cursors, methods, "
        f"spellings of its token) at full quota, over {_CONNECTIONS} connections. Answers: {told}."
    )
    where = (
        f"{datetime.now(UTC):%Y-%m-%d}, {on['cores']} cores ({on['cpu']}), Python {on['python']}, load after "
        f"{on['load before']}. MiB where nothing else is said."
    )
    REPORT.write_text(
        f"""# What one caller can make us keep

{text}

{where}

| what | warm | a third | two thirds | end | bound |
|---|---|---|---|---|---|
"""
        + "\n".join(lines)
        + "\n",
        encoding="utf-8",
    )


def _shown(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "metric series" else f"{value / 2**20:,.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bounds")
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    (machine.ROOT / ".data").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=machine.ROOT / ".data", prefix="bench-") as temporary:
        code = uvloop.run(main(options.seconds, Path(temporary)))
    raise SystemExit(code)
