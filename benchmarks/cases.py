"""For every route the dearest request that one caller can make of it. A route without a case fails a test.

A caller is a user with everything that makes a request dear: many events of many kinds, wide preferences, many sessions
and webhook endpoints. Routes for administrators are asked by one, public ones by a stranger, whose network pays.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import asyncpg
import orjson
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from benchmarks.client import ask
from benchmarks.load import request

PASSWORD = "a very long horse 42"  # noqa: S105 - of accounts that live as long as a run.
ATTACKER = "192.0.2.66"
UNKNOWN = "0198f000-0000-7000-8000-000000000000"
_VARIANTS = 200
_HASH = 10.0
_EVENT = 0.05
_BATCH = 500
_MANY_EVENTS = 200_000
_MANY_KINDS = 2_000
_FILES_TRIES = 120
_ADD_EVENTS = """
    INSERT INTO users.events (user_id, id, kind, occurred_at, properties, created_at)
    SELECT $1, gen_random_uuid(), 'kind.' || n % $3, now() - n * interval '13 seconds',
           jsonb_build_object('n', n), now() - n * interval '13 seconds'
    FROM generate_series(1, $2::int) AS n
"""


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
        return _raw(method, path, body, token=self.user.access, **headers)

    def as_admin(self, method: str, path: str, body: Any = None) -> bytes:
        return _raw(method, path, body, token=self.admin.access)

    def as_stranger(self, method: str, path: str, body: Any = None) -> bytes:
        """One of a client without a token, by the forwarded address of its network."""
        return _raw(method, path, body, x_forwarded_for=ATTACKER)


def _raw(method: str, path: str, body: Any, *, token: str | None = None, **headers: str) -> bytes:
    data = None if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
    return request(method, path, token=token, body=data, **headers)


Make = Callable[[Scene], Sequence[bytes]]


@dataclass(frozen=True)
class Case:
    """Requests of one route in turns, each of so many units."""

    requests: Make
    units: float = 1.0


def _one(method: str, path: str, body: Any = None, units: float = 1.0) -> Case:
    return Case(lambda s: [s.call(method, path.format_map(_ids(s)), body)], units)


def _many(path: str, units: float = 1.0) -> Case:
    """A read with another query each time, so that no cache answers it."""
    return Case(lambda s: [s.call("GET", path.format_map(_ids(s) | {"n": str(n)})) for n in range(_VARIANTS)], units)


def _admin(method: str, path: str, body: Any = None) -> Case:
    return Case(lambda s: [s.as_admin(method, path.format_map(_ids(s)), body)])


def _stranger(method: str, path: str, body: Any = None, units: float = 1.0) -> Case:
    """Each time another body where it has `{n}` in a text."""

    def requests(scene: Scene) -> list[bytes]:
        if body is None or isinstance(body, bytes):
            return [scene.as_stranger(method, path, body)]
        text = orjson.dumps(body).decode()
        return [scene.as_stranger(method, path, text.replace("{n}", str(n)).encode()) for n in range(_VARIANTS)]

    return Case(requests, units)


def _form(path: str, text: str, units: float = 1.0) -> Case:
    def requests(_: Scene) -> list[bytes]:
        bodies = [text.replace("{n}", str(n)).encode() for n in range(_VARIANTS)]
        return [
            request(
                "POST",
                path,
                body=body,
                x_forwarded_for=ATTACKER,
            ).replace(b"application/json", b"application/x-www-form-urlencoded")
            for body in bodies
        ]

    return Case(requests, units)


def _ids(scene: Scene) -> dict[str, str]:
    return {
        "job": scene.job,
        "endpoint": scene.endpoint,
        "invoice": scene.invoice,
        "user": scene.user.id,
        "unknown": UNKNOWN,
        "n": "0",
        # The events begin a month ago.
        "day": f"{datetime.now(UTC) - timedelta(days=40):%Y-%m-%d}",
    }


def _numbered(method: str, path: str, body: Callable[[int], Any], units: float = 1.0) -> Case:
    def requests(scene: Scene) -> list[bytes]:
        return [scene.call(method, path.format_map(_ids(scene)), body(n)) for n in range(_VARIANTS)]

    return Case(requests, units)


_properties = {f"name{number}": number for number in range(40)}
_batch = {"events": [{"kind": f"kind.{number}", "properties": _properties} for number in range(_BATCH)]}
_extra = {f"k{number}": number for number in range(1_200)}
_lines = [{"description": "é" * 500, "quantity": 1, "unit_price_minor": 1}] * 200
_customer = {"name": "é" * 200, "email": "ada@example.com", "address": "é" * 1000}
_serial = count(1)
_secret = {"current_password": "not the right password"}
_text = "a" * 400
_credential = {
    "id": "a" * 43,
    "rawId": "a" * 43,
    "type": "public-key",
    "response": {"clientDataJSON": _text, "attestationObject": _text},
}
_assertion = {
    "id": "a" * 43,
    "rawId": "a" * 43,
    "type": "public-key",
    "response": {"clientDataJSON": _text, "authenticatorData": _text, "signature": _text},
}

CASES: dict[str, Case] = {
    "GET /v1/overview": _one("GET", "/v1/overview", units=0.05),
    "GET /livez": _stranger("GET", "/livez"),
    "GET /readyz": _stranger("GET", "/readyz"),
    "GET /metrics": _stranger("GET", "/metrics"),
    "GET /": _stranger("GET", "/"),
    "GET /problems": _stranger("GET", "/problems"),
    "GET /problems/{code}": _stranger("GET", "/problems/not_found"),
    "GET /v1/users/me": _one("GET", "/v1/users/me", units=0.05),
    "DELETE /v1/users/me": _one("DELETE", "/v1/users/me", _secret, _HASH),
    "PATCH /v1/users/me": _numbered("PATCH", "/v1/users/me", lambda n: {"bio": "é" * 400 + str(n)}),
    "GET /v1/users/me/preferences": _one("GET", "/v1/users/me/preferences", units=0.05),
    "PUT /v1/users/me/preferences": _numbered(
        "PUT", "/v1/users/me/preferences", lambda n: {"extra": _extra | {"n": n}}
    ),
    "PATCH /v1/users/me/preferences": _numbered(
        "PATCH", "/v1/users/me/preferences", lambda n: {"extra": _extra | {"n": n}}
    ),
    "GET /v1/users/me/events": _many("/v1/users/me/events?limit=100&kind=kind.{n}"),
    "GET /v1/users/me/events/summary": _many("/v1/users/me/events/summary?bucket=day&since={day}T00:00:00.{n}Z"),
    "POST /v1/users/lookup": _one("POST", "/v1/users/lookup", {"ids": [UNKNOWN] * 100}, 1 + 100 * _EVENT),
    "GET /v1/users/{user_id}": _one("GET", "/v1/users/{user}"),
    "POST /v1/events": _one("POST", "/v1/events", _batch, 1 + (_BATCH - 1) * _EVENT),
    "POST /v1/auth/login": _stranger(
        "POST", "/v1/auth/login", {"email": "unknown{n}@example.com", "password": "x" * 100}, _HASH
    ),
    "POST /v1/auth/mfa/verify": _stranger("POST", "/v1/auth/mfa/verify", {"mfa_token": "a" * 400, "code": "123456"}),
    "POST /v1/auth/refresh": _stranger("POST", "/v1/auth/refresh", {"refresh_token": "rt_{n}" + "a" * 40}),
    "POST /v1/auth/logout": Case(
        lambda s: [_raw("POST", "/v1/auth/logout", {"refresh_token": "rt_" + "a" * 40}, token=s.leaver.access)]
    ),
    "POST /v1/auth/logout-all": _one("POST", "/v1/auth/logout-all", {"keep_current": True}),
    "GET /v1/auth/sessions": _many("/v1/auth/sessions?limit=100"),
    "DELETE /v1/auth/sessions/{session_id}": _one("DELETE", "/v1/auth/sessions/{unknown}"),
    "GET /v1/auth/security-events": _many("/v1/auth/security-events?limit=100"),
    "POST /v1/auth/token": _form(
        "/v1/auth/token", "grant_type=password&username=unknown{n}@example.com&password=x", _HASH
    ),
    "POST /v1/auth/introspect": Case(
        lambda s: [
            request("POST", "/v1/auth/introspect", token=s.user.access, body=f"token={s.user.access}".encode()).replace(
                b"application/json", b"application/x-www-form-urlencoded"
            )
        ]
    ),
    "POST /v1/auth/revoke": _form("/v1/auth/revoke", "token=rt_{n}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    "GET /.well-known/jwks.json": _stranger("GET", "/.well-known/jwks.json"),
    "GET /.well-known/oauth-authorization-server": _stranger("GET", "/.well-known/oauth-authorization-server"),
    "POST /v1/auth/register": _stranger(
        "POST", "/v1/auth/register", {"email": "new{n}@example.com", "password": PASSWORD}, _HASH
    ),
    "POST /v1/auth/email/verify": _stranger("POST", "/v1/auth/email/verify", {"token": "{n}" + "a" * 40}),
    "POST /v1/auth/email/resend": _stranger("POST", "/v1/auth/email/resend", {"email": "unknown{n}@example.com"}),
    "POST /v1/auth/email/change": _one(
        "POST", "/v1/auth/email/change", _secret | {"new_email": "b@example.com"}, _HASH
    ),
    "POST /v1/auth/email/confirm": _stranger("POST", "/v1/auth/email/confirm", {"token": "{n}" + "a" * 40}),
    "POST /v1/auth/password/forgot": _stranger("POST", "/v1/auth/password/forgot", {"email": "unknown{n}@example.com"}),
    "POST /v1/auth/password/reset": _stranger(
        "POST", "/v1/auth/password/reset", {"token": "{n}" + "a" * 40, "new_password": PASSWORD}, _HASH
    ),
    "POST /v1/auth/password/change": _one(
        "POST", "/v1/auth/password/change", _secret | {"new_password": PASSWORD}, _HASH
    ),
    "POST /v1/auth/api-keys": _one("POST", "/v1/auth/api-keys", {"name": "k", "scopes": ["profile:read"]}),
    "GET /v1/auth/api-keys": _many("/v1/auth/api-keys?limit=100"),
    "DELETE /v1/auth/api-keys/{key_id}": _one("DELETE", "/v1/auth/api-keys/{unknown}"),
    "GET /v1/auth/mfa": _one("GET", "/v1/auth/mfa"),
    "POST /v1/auth/mfa/totp": _one("POST", "/v1/auth/mfa/totp"),
    "DELETE /v1/auth/mfa/totp": _one("DELETE", "/v1/auth/mfa/totp", _secret, _HASH),
    "POST /v1/auth/mfa/totp/activate": _one("POST", "/v1/auth/mfa/totp/activate", {"code": "123456"}),
    "POST /v1/auth/mfa/recovery-codes": _one("POST", "/v1/auth/mfa/recovery-codes", _secret, _HASH),
    "GET /v1/admin/users": _admin("GET", "/v1/admin/users?limit=100&q=example"),
    "GET /v1/admin/users/{user_id}": _admin("GET", "/v1/admin/users/{user}"),
    "PATCH /v1/admin/users/{user_id}": _admin("PATCH", "/v1/admin/users/{unknown}", {"role": "user"}),
    "POST /v1/admin/users/{user_id}/ban": _admin("POST", "/v1/admin/users/{unknown}/ban", {"reason": "x"}),
    "POST /v1/admin/users/{user_id}/unban": _admin("POST", "/v1/admin/users/{unknown}/unban"),
    "GET /v1/admin/users/{user_id}/sessions": _admin("GET", "/v1/admin/users/{user}/sessions?limit=100"),
    "DELETE /v1/admin/users/{user_id}/sessions": _admin("DELETE", "/v1/admin/users/{unknown}/sessions"),
    "GET /v1/admin/users/{user_id}/security-events": _admin("GET", "/v1/admin/users/{user}/security-events?limit=100"),
    "POST /v1/jobs": _one("POST", "/v1/jobs", {"kind": "export.events", "args": {"format": "csv"}}, 5),
    "GET /v1/jobs": _many("/v1/jobs?limit=100"),
    "GET /v1/jobs/{job_id}": _one("GET", "/v1/jobs/{job}"),
    "GET /v1/jobs/{job_id}/events": _one("GET", "/v1/jobs/{unknown}/events"),
    "POST /v1/jobs/{job_id}/cancel": _one("POST", "/v1/jobs/{job}/cancel"),
    "POST /v1/jobs/{job_id}/retry": _one("POST", "/v1/jobs/{job}/retry", units=5),
    "GET /v1/jobs/{job_id}/artifacts/{name}": _one("GET", "/v1/jobs/{job}/artifacts/events.csv", units=2),
    "POST /v1/invoices": _numbered(
        "POST",
        "/v1/invoices",
        lambda _: {
            "number": f"N-{next(_serial)}",
            "order_id": "A",
            "customer": _customer,
            "currency": "EUR",
            "lines": _lines,
            "notes": "a, b: c" * 285,
        },
        5,
    ),
    "GET /v1/invoices": _many("/v1/invoices?limit=100"),
    "GET /v1/invoices/{invoice_id}": _one("GET", "/v1/invoices/{invoice}"),
    "GET /v1/invoices/{invoice_id}/pdf": _one("GET", "/v1/invoices/{invoice}/pdf", units=2),
    "POST /v1/invoices/{invoice_id}/email": _one("POST", "/v1/invoices/{invoice}/email", units=5),
    "GET /v1/webhooks/event-types": _one("GET", "/v1/webhooks/event-types?limit=100"),
    "POST /v1/webhooks/endpoints": _one(
        "POST", "/v1/webhooks/endpoints", {"url": "https://93.184.216.34/x", "event_types": ["*"]}
    ),
    "GET /v1/webhooks/endpoints": _many("/v1/webhooks/endpoints?limit=100"),
    "GET /v1/webhooks/endpoints/{endpoint_id}": _one("GET", "/v1/webhooks/endpoints/{endpoint}"),
    "PATCH /v1/webhooks/endpoints/{endpoint_id}": _numbered(
        "PATCH", "/v1/webhooks/endpoints/{endpoint}", lambda n: {"description": str(n)}
    ),
    "DELETE /v1/webhooks/endpoints/{endpoint_id}": _one("DELETE", "/v1/webhooks/endpoints/{unknown}"),
    "POST /v1/webhooks/endpoints/{endpoint_id}/rotate-secret": _one(
        "POST", "/v1/webhooks/endpoints/{endpoint}/rotate-secret"
    ),
    "POST /v1/webhooks/endpoints/{endpoint_id}/test": _one("POST", "/v1/webhooks/endpoints/{endpoint}/test", units=5),
    "POST /v1/webhooks/endpoints/{endpoint_id}/enable": _one("POST", "/v1/webhooks/endpoints/{endpoint}/enable"),
    "GET /v1/webhooks/deliveries": _many("/v1/webhooks/deliveries?limit=100"),
    "POST /v1/webhooks/deliveries/{delivery_id}/redeliver": _one(
        "POST", "/v1/webhooks/deliveries/{unknown}/redeliver", units=5
    ),
    "GET /v1/admin/queues": _admin("GET", "/v1/admin/queues?limit=100"),
    "POST /v1/admin/queues/{queue}/pause": _admin("POST", "/v1/admin/queues/bulk/pause"),
    "POST /v1/admin/queues/{queue}/resume": _admin("POST", "/v1/admin/queues/bulk/resume"),
    "GET /v1/admin/jobs": _admin("GET", "/v1/admin/jobs?limit=100"),
    "POST /v1/admin/jobs/{job_id}/retry": _admin("POST", "/v1/admin/jobs/{unknown}/retry"),
    "POST /v1/admin/mail/suppressions/lift": _admin(
        "POST", "/v1/admin/mail/suppressions/lift", {"email": "unknown@example.com"}
    ),
    "GET /v1/auth/session": _one("GET", "/v1/auth/session"),
    "POST /v1/auth/code": _stranger("POST", "/v1/auth/code", {"email": "unknown{n}@example.com"}),
    "POST /v1/auth/code/login": _stranger(
        "POST", "/v1/auth/code/login", {"email": "unknown{n}@example.com", "code": "123456"}
    ),
    "GET /v1/auth/passkeys": _one("GET", "/v1/auth/passkeys"),
    "POST /v1/auth/passkeys": _one("POST", "/v1/auth/passkeys", {"credential": _credential}),
    "POST /v1/auth/passkeys/options": _one("POST", "/v1/auth/passkeys/options"),
    "PATCH /v1/auth/passkeys/{passkey_id}": _one("PATCH", "/v1/auth/passkeys/{unknown}", {"name": "k"}),
    "DELETE /v1/auth/passkeys/{passkey_id}": _one("DELETE", "/v1/auth/passkeys/{unknown}"),
    "POST /v1/auth/passkeys/login/options": _stranger(
        "POST", "/v1/auth/passkeys/login/options", {"email": "unknown{n}@example.com"}
    ),
    "POST /v1/auth/passkeys/login": _stranger(
        "POST", "/v1/auth/passkeys/login", {"credential": _assertion, "challenge": "{n}" + "a" * 40}
    ),
    # Streams end by themselves when they are refused; what one costs that goes on is in tests/attacks.
    "GET /v1/users/me/events/stream": Case(
        lambda s: [s.call("GET", "/v1/users/me/events/stream", last_event_id="not an id")]
    ),
    "GET /v1/jobs/{job_id}/events/stream": _stranger("GET", f"/v1/jobs/{UNKNOWN}/events/stream?ticket={'a' * 200}"),
    "POST /v1/jobs/{job_id}/events/ticket": _one("POST", "/v1/jobs/{job}/events/ticket"),
    "GET /v1/webhooks/deliveries/{delivery_id}": _one("GET", "/v1/webhooks/deliveries/{unknown}"),
    "POST /v1/webhooks/endpoints/{endpoint_id}/replay": _one(
        "POST", "/v1/webhooks/endpoints/{endpoint}/replay", {"since": "2026-01-01T00:00:00Z"}, 5
    ),
    "GET /v1/admin/jobs/{job_id}": _admin("GET", "/v1/admin/jobs/{job}"),
    "POST /v1/admin/jobs/{job_id}/cancel": _admin("POST", "/v1/admin/jobs/{unknown}/cancel"),
    "POST /v1/admin/jobs/bulk": _admin(
        "POST", "/v1/admin/jobs/bulk", {"action": "delete", "filter": {"error": "x"}, "dry_run": True}
    ),
    "GET /v1/admin/schedules": _admin("GET", "/v1/admin/schedules"),
    "POST /v1/admin/schedules/{name}/pause": _admin("POST", "/v1/admin/schedules/unknown/pause"),
    "POST /v1/admin/schedules/{name}/resume": _admin("POST", "/v1/admin/schedules/unknown/resume"),
    "POST /v1/admin/schedules/{name}/run": _admin("POST", "/v1/admin/schedules/unknown/run"),
    "GET /v1/admin/workers": _admin("GET", "/v1/admin/workers"),
    "GET /v1/admin/stats": _admin("GET", "/v1/admin/stats?window=24h"),
    "GET /v1/admin/security-events": _admin("GET", "/v1/admin/security-events?limit=100"),
    "GET /v1/admin/webhooks/deliveries": _admin("GET", "/v1/admin/webhooks/deliveries?limit=100"),
    "POST /v1/admin/webhooks/deliveries/{delivery_id}/redeliver": _admin(
        "POST", "/v1/admin/webhooks/deliveries/{unknown}/redeliver"
    ),
    "GET /v1/admin/service-accounts": _admin("GET", "/v1/admin/service-accounts?limit=100"),
    "POST /v1/admin/service-accounts": _admin("POST", "/v1/admin/service-accounts", {"name": "", "scopes": []}),
    "DELETE /v1/admin/service-accounts/{service_account_id}": _admin("DELETE", "/v1/admin/service-accounts/{unknown}"),
    "POST /v1/admin/service-accounts/{service_account_id}/rotate-secret": _admin(
        "POST", "/v1/admin/service-accounts/{unknown}/rotate-secret"
    ),
    "POST /v1/admin/users/{user_id}/impersonate": _admin(
        "POST", "/v1/admin/users/{unknown}/impersonate", {"reason": "x"}
    ),
    "GET /console": _one("GET", "/console", units=2),
    "GET /console/login": _stranger("GET", "/console/login"),
    "GET /console/activity": _one("GET", "/console/activity", units=2_000),
    "GET /console/jobs": _one("GET", "/console/jobs", units=2),
    "GET /console/jobs/{job_id}": _one("GET", "/console/jobs/{job}", units=2),
    "GET /console/invoices": _one("GET", "/console/invoices", units=2),
    "GET /console/webhooks": _one("GET", "/console/webhooks", units=3),
    "GET /console/profile": _one("GET", "/console/profile", units=3),
    "GET /console/security": _one("GET", "/console/security", units=5),
    "GET /console/api-keys": _one("GET", "/console/api-keys", units=2),
    "GET /console/admin": _admin("GET", "/console/admin?window=24h"),
    "GET /console/admin/queues": _admin("GET", "/console/admin/queues"),
    "GET /console/admin/jobs": _admin("GET", "/console/admin/jobs"),
    "GET /console/admin/jobs/{job_id}": _admin("GET", "/console/admin/jobs/{job}"),
    "GET /console/admin/people": _admin("GET", "/console/admin/people"),
    "GET /console/admin/people/{user_id}": _admin("GET", "/console/admin/people/{user}"),
    "GET /console/admin/deliveries": _admin("GET", "/console/admin/deliveries"),
    "GET /console/admin/security-events": _admin("GET", "/console/admin/security-events"),
    "GET /verify-email": _stranger("GET", "/verify-email?token=x"),
    "GET /change-email": _stranger("GET", "/change-email?token=x"),
    "GET /reset-password": _stranger("GET", "/reset-password?token=x"),
    "GET /forgot-password": _stranger("GET", "/forgot-password"),
    "GET /unsubscribe": _stranger("GET", f"/unsubscribe?token={'a' * 100}"),
    "POST /unsubscribe": _form(f"/unsubscribe?token={'a' * 100}", "List-Unsubscribe=One-Click&n={n}"),
}

# What these are answered, where that is not 200. A brake that answers most of the requests is part of the route.
_ANSWERS: dict[str, set[int]] = {
    "DELETE /v1/users/me": {403, 429},
    "POST /v1/events": {201},
    "POST /v1/auth/login": {401},
    "POST /v1/auth/mfa/verify": {401},
    "POST /v1/auth/refresh": {401},
    "POST /v1/auth/logout": {204},
    "DELETE /v1/auth/sessions/{session_id}": {404},
    "POST /v1/auth/token": {400},
    "POST /v1/auth/register": {201, 409},
    "POST /v1/auth/email/verify": {400},
    "POST /v1/auth/email/resend": {202, 429},
    "POST /v1/auth/email/change": {403, 429},
    "POST /v1/auth/email/confirm": {400},
    "POST /v1/auth/password/forgot": {202, 429},
    "POST /v1/auth/password/reset": {400},
    "POST /v1/auth/password/change": {403, 429},
    "POST /v1/auth/api-keys": {201, 409},
    "DELETE /v1/auth/api-keys/{key_id}": {404},
    "POST /v1/auth/mfa/totp": {201},
    "DELETE /v1/auth/mfa/totp": {403, 409, 429},
    "POST /v1/auth/mfa/totp/activate": {401, 409, 429},
    "POST /v1/auth/mfa/recovery-codes": {403, 409, 429},
    "PATCH /v1/admin/users/{user_id}": {404},
    "POST /v1/admin/users/{user_id}/ban": {404},
    "POST /v1/admin/users/{user_id}/unban": {404},
    "DELETE /v1/admin/users/{user_id}/sessions": {404},
    "POST /v1/jobs": {202},
    "GET /v1/jobs/{job_id}/events": {404},
    "POST /v1/jobs/{job_id}/cancel": {200, 409},
    "POST /v1/jobs/{job_id}/retry": {202, 409},
    "POST /v1/invoices": {202, 409},
    "POST /v1/invoices/{invoice_id}/email": {202, 409, 429},
    "POST /v1/webhooks/endpoints": {201, 409},
    "DELETE /v1/webhooks/endpoints/{endpoint_id}": {404},
    "POST /v1/webhooks/endpoints/{endpoint_id}/rotate-secret": {200, 429},
    "POST /v1/webhooks/endpoints/{endpoint_id}/test": {202},
    "POST /v1/webhooks/deliveries/{delivery_id}/redeliver": {404},
    "POST /v1/admin/queues/{queue}/pause": {204},
    "POST /v1/admin/queues/{queue}/resume": {204},
    "POST /v1/admin/jobs/{job_id}/retry": {404},
    "POST /unsubscribe": {400},
    "POST /v1/auth/code": {202, 429},
    "POST /v1/auth/code/login": {401, 429},
    "POST /v1/auth/passkeys": {400},
    # The session is not fresh any more when a run is long.
    "POST /v1/auth/passkeys/options": {200, 403},
    "PATCH /v1/auth/passkeys/{passkey_id}": {404},
    "DELETE /v1/auth/passkeys/{passkey_id}": {403, 404},
    "POST /v1/auth/passkeys/login": {401},
    "GET /v1/users/me/events/stream": {422},
    "GET /v1/jobs/{job_id}/events/stream": {401},
    "GET /v1/webhooks/deliveries/{delivery_id}": {404},
    "POST /v1/webhooks/endpoints/{endpoint_id}/replay": {202, 409},
    "POST /v1/admin/jobs/{job_id}/cancel": {404},
    "POST /v1/admin/schedules/{name}/pause": {404},
    "POST /v1/admin/schedules/{name}/resume": {404},
    "POST /v1/admin/schedules/{name}/run": {404},
    "POST /v1/admin/webhooks/deliveries/{delivery_id}/redeliver": {404},
    "POST /v1/admin/service-accounts": {422},
    "DELETE /v1/admin/service-accounts/{service_account_id}": {404},
    "POST /v1/admin/service-accounts/{service_account_id}/rotate-secret": {404},
    "POST /v1/admin/users/{user_id}/impersonate": {404},
}
# The quota, the backlog, and the caller's share of the process.
REFUSALS = frozenset({429, 503})


def are_valid(route: str, statuses: Collection[int]) -> bool:
    """Whether the requests of a route were worked on: all are answered as they should be, or refused for their number,
    and not all of them are refused.
    """
    expected = _ANSWERS.get(route, {200})
    return bool(expected & set(statuses)) and set(statuses) <= expected | REFUSALS


def routes_of(app: FastAPI) -> set[str]:
    """Method and path of every route but the documentation and the mailbox of development."""
    return {
        f"{method} {context.path_format}"
        for context in iter_route_contexts(app.routes)
        if isinstance(context.original_route, APIRoute)
        and not str(context.path_format).startswith(("/docs", "/dev/", "/openapi", "/redoc"))
        for method in (context.methods or set()) - {"HEAD"}
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
    invoice = await _made(port, CASES["POST /v1/invoices"].requests(bare)[0])
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
    made = await _made(port, _raw("POST", "/v1/auth/register", {"email": email, "password": PASSWORD}))
    return _account_of(made, email)


async def _log_in(port: int, email: str) -> Account:
    status, body = 0, b""
    for _ in range(50):
        status, body = await ask(port, _raw("POST", "/v1/auth/login", {"email": email, "password": PASSWORD}))
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
