"""Who asks, and what there is to ask for."""

import asyncio
from dataclasses import dataclass
from itertools import count
from typing import Any

import asyncpg
import orjson

from benchmarks.client import ask
from benchmarks.load import request

PASSWORD = "a very long horse 42"  # noqa: S105 - of accounts that live as long as a run.

ATTACKER = "192.0.2.66"

UNKNOWN = "0198f000-0000-7000-8000-000000000000"

_MANY_EVENTS = 200_000

_MANY_KINDS = 2_000

_FILES_TRIES = 120

_ADD_EVENTS = """
    INSERT INTO users.events (user_id, id, kind, occurred_at, properties, created_at)
    SELECT $1, gen_random_uuid(), 'kind.' || n % $3, now() - n * interval '13 seconds',
           jsonb_build_object('n', n), now() - n * interval '13 seconds'
    FROM generate_series(1, $2::int) AS n
"""

_lines = [{"description": "é" * 500, "quantity": 1, "unit_price_minor": 1}] * 200

_customer = {"name": "é" * 200, "email": "ada@example.com", "address": "é" * 1000}

_serial = count(1)


@dataclass(frozen=True)
class Account:
    """A logged-in caller."""

    id: str
    email: str
    access: str
    refresh: str


@dataclass(frozen=True)
class Scene:
    """The caller, and what there is to ask for."""

    port: int
    user: Account
    admin: Account
    # Its session ends with the first log-out, and the others' go on.
    leaver: Account
    job: str
    endpoint: str
    invoice: str

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> bytes:
        """A request of the user."""
        return raw(method, path, body, token=self.user.access, **headers)

    def as_admin(self, method: str, path: str, body: Any = None) -> bytes:
        return raw(method, path, body, token=self.admin.access)

    def as_stranger(self, method: str, path: str, body: Any = None) -> bytes:
        """One of a client without a token, by the forwarded address of its network."""
        return raw(method, path, body, x_forwarded_for=ATTACKER)


def raw(method: str, path: str, body: Any, *, token: str | None = None, **headers: str) -> bytes:
    data = None if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
    return request(method, path, token=token, body=data, **headers)


def dearest_invoice() -> dict[str, Any]:
    """The longest that is taken, with another number each time."""
    return {
        "number": f"N-{next(_serial)}",
        "order_id": "A",
        "customer": _customer,
        "currency": "EUR",
        "lines": _lines,
        "notes": "a, b: c" * 285,
    }


async def make_scene(port: int, connection: "asyncpg.Connection[asyncpg.Record]") -> Scene:
    """Accounts by the API, and for the user everything that makes a request dear."""
    user, admin = await _account(port, "greedy@example.com"), await _account(port, "admin@example.com")
    await connection.execute(
        "UPDATE identity.accounts SET role = 'admin', email_verified_at = now() WHERE user_id = $1", admin.id
    )
    await connection.execute("UPDATE identity.accounts SET email_verified_at = now() WHERE user_id = $1", user.id)
    admin = await _log_in(port, admin.email)
    await connection.execute(_ADD_EVENTS, user.id, _MANY_EVENTS, _MANY_KINDS)
    await connection.execute("VACUUM (ANALYZE) users.events")
    await _log_in_often(port, user.email, 40)
    user = await _log_in(port, user.email)
    leaver = await _account(port, "leaver@example.com")
    bare = Scene(port, user, admin, leaver, UNKNOWN, UNKNOWN, UNKNOWN)
    endpoint = await _made(
        port,
        bare.call("POST", "/v1/webhooks/endpoints", {"url": "https://93.184.216.34/x", "event_types": ["job.failed"]}),
    )
    job = await _made(port, bare.call("POST", "/v1/jobs", {"kind": "export.events", "args": {"format": "csv"}}))
    invoice = await _made(port, bare.call("POST", "/v1/invoices", dearest_invoice()))
    return Scene(port, user, admin, leaver, job["id"], endpoint["id"], invoice["invoice"]["id"])


async def finish_jobs(scene: Scene) -> None:
    """Waits until a worker has made the files of the scene."""
    for path in (f"/v1/jobs/{scene.job}/artifacts/events.csv", f"/v1/invoices/{scene.invoice}/pdf"):
        for _ in range(_FILES_TRIES):
            if (await ask(scene.port, scene.call("GET", path, range="bytes=0-0")))[0] == 206:
                break
            await asyncio.sleep(0.5)
        else:
            raise RuntimeError(f"{path} is not made")


async def _log_in_often(port: int, email: str, times: int) -> None:
    for _ in range(times):
        await _log_in(port, email)


async def _account(port: int, email: str) -> Account:
    made = await _made(port, raw("POST", "/v1/auth/register", {"email": email, "password": PASSWORD}))
    return _account_of(made, email)


async def _log_in(port: int, email: str) -> Account:
    status, body = 0, b""
    for _ in range(50):
        status, body = await ask(port, raw("POST", "/v1/auth/login", {"email": email, "password": PASSWORD}))
        if status == 200:
            return _account_of(orjson.loads(body), email)
        await asyncio.sleep(0.2)
    raise RuntimeError(f"log-in failed: {status} {body!r}")


def _account_of(made: Any, email: str) -> Account:
    return Account(made["user"]["id"], email, made["tokens"]["access_token"], made["tokens"]["refresh_token"])


async def _made(port: int, raw: bytes) -> Any:
    status, body = await ask(port, raw)
    if status >= 400:
        raise RuntimeError(f"{raw.splitlines()[0]!r}: {status} {body!r}")
    return orjson.loads(body)
