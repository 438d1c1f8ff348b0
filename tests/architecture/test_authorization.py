"""Who may call what: every route of the application, called without a token, without the scope, by another user, by the
right caller and by an administrator.

A route without a row fails, and so does a row without a route. A call that is denied leaves every table as it was.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from app.kernel.auth import SCOPES, SCOPES_OF_ROLE
from tests.fixtures import people
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.jobs.test_invoices import INVOICE

Json: TypeAlias = dict[str, Any]
PUBLIC, SIGNED_IN, SESSION, ADMIN = "public", "signed_in", "session", "admin"
PASSWORD_BODY = {"current_password": PASSWORD}


@dataclass(frozen=True)
class Row:
    """`who`: one of the words above, or the scopes that are needed. `answer`: what the right caller gets for `body`."""

    who: str
    answer: int = 200
    body: Json | None = None
    form: Json | None = None
    # What keeps a stream without an end from beginning.
    query: str = ""


READ, EVENTS, JOBS, START, HOOKS = "profile:read", "events:read", "jobs:read", "jobs:write", "webhooks:manage"
NO_SUCH_JOB = str(uuid4())
ROWS: dict[str, Row] = {
    "GET /": Row(PUBLIC),
    "GET /livez": Row(PUBLIC),
    "GET /readyz": Row(PUBLIC),
    "GET /metrics": Row(PUBLIC),
    "GET /problems": Row(PUBLIC, 200),
    "GET /problems/{code}": Row(PUBLIC, 404),
    "GET /verify-email": Row(PUBLIC),
    "GET /change-email": Row(PUBLIC),
    "GET /reset-password": Row(PUBLIC),
    "GET /forgot-password": Row(PUBLIC),
    "GET /unsubscribe": Row(PUBLIC),
    "POST /unsubscribe": Row(PUBLIC),
    # They lead a stranger to the log-in; who sees what is in tests/console.
    "GET /console/login": Row(PUBLIC),
    "GET /console": Row(PUBLIC, 303),
    "GET /console/activity": Row(PUBLIC, 303),
    "GET /console/jobs": Row(PUBLIC, 303),
    "GET /console/jobs/{job_id}": Row(PUBLIC, 303),
    "GET /console/invoices": Row(PUBLIC, 303),
    "GET /console/webhooks": Row(PUBLIC, 303),
    "GET /console/profile": Row(PUBLIC, 303),
    "GET /console/security": Row(PUBLIC, 303),
    "GET /console/api-keys": Row(PUBLIC, 303),
    "GET /console/admin": Row(PUBLIC, 303),
    "GET /console/admin/queues": Row(PUBLIC, 303),
    "GET /console/admin/deliveries": Row(PUBLIC, 303),
    "GET /console/admin/security-events": Row(PUBLIC, 303),
    "GET /console/admin/jobs": Row(PUBLIC, 303),
    "GET /console/admin/jobs/{job_id}": Row(PUBLIC, 303),
    "GET /console/admin/people": Row(PUBLIC, 303),
    "GET /console/admin/people/{user_id}": Row(PUBLIC, 303),
    "GET /docs": Row(PUBLIC),
    "GET /docs/oauth2-redirect": Row(PUBLIC),
    "GET /redoc": Row(PUBLIC),
    "GET /openapi.json": Row(PUBLIC),
    "GET /dev/mailbox": Row(PUBLIC),
    "GET /dev/mailbox/{name}": Row(PUBLIC, 404),
    "GET /dev/mailbox/{name}/raw": Row(PUBLIC, 404),
    "GET /.well-known/jwks.json": Row(PUBLIC),
    "GET /.well-known/oauth-authorization-server": Row(PUBLIC),
    "POST /v1/auth/register": Row(PUBLIC),
    "POST /v1/auth/login": Row(PUBLIC),
    "POST /v1/auth/mfa/verify": Row(PUBLIC),
    "POST /v1/auth/passkeys/login/options": Row(PUBLIC),
    "POST /v1/auth/passkeys/login": Row(PUBLIC),
    "POST /v1/auth/passkeys/options": Row(SESSION),
    "POST /v1/auth/passkeys": Row(SESSION, 400, {"credential": {}}),
    "GET /v1/auth/passkeys": Row(SESSION),
    "PATCH /v1/auth/passkeys/{passkey_id}": Row(SESSION, 404, {"name": "x"}),
    "DELETE /v1/auth/passkeys/{passkey_id}": Row(SESSION, 404),
    "POST /v1/auth/code": Row(PUBLIC),
    "POST /v1/auth/code/login": Row(PUBLIC),
    "POST /v1/auth/refresh": Row(PUBLIC),
    "POST /v1/auth/logout": Row(PUBLIC),
    "POST /v1/auth/token": Row(PUBLIC),
    "POST /v1/auth/revoke": Row(PUBLIC),
    "POST /v1/auth/email/verify": Row(PUBLIC),
    "POST /v1/auth/email/resend": Row(PUBLIC),
    "POST /v1/auth/email/confirm": Row(PUBLIC),
    "POST /v1/auth/password/forgot": Row(PUBLIC),
    "POST /v1/auth/password/reset": Row(PUBLIC),
    "POST /v1/auth/introspect": Row(SIGNED_IN, form={"token": "x"}),
    "POST /v1/auth/logout-all": Row(SESSION),
    "GET /v1/auth/session": Row(SIGNED_IN),
    "GET /v1/auth/sessions": Row(SESSION),
    "DELETE /v1/auth/sessions/{session_id}": Row(SESSION, 204),
    "GET /v1/auth/security-events": Row(SESSION),
    "POST /v1/auth/email/change": Row(SESSION, 202, PASSWORD_BODY | {"new_email": "new@example.com"}),
    "POST /v1/auth/password/change": Row(SESSION, 200, PASSWORD_BODY | {"new_password": "a new horse 2026"}),
    "POST /v1/auth/api-keys": Row(SESSION, 201, {"name": "k", "scopes": ["profile:read"]}),
    "GET /v1/auth/api-keys": Row(SESSION),
    "DELETE /v1/auth/api-keys/{key_id}": Row(SESSION, 204),
    "GET /v1/auth/mfa": Row(SESSION),
    "POST /v1/auth/mfa/totp": Row(SESSION, 201),
    "POST /v1/auth/mfa/totp/activate": Row(SESSION, 409, {"code": "123456"}),
    "DELETE /v1/auth/mfa/totp": Row(SESSION, 409, PASSWORD_BODY),
    "POST /v1/auth/mfa/recovery-codes": Row(SESSION, 409, PASSWORD_BODY),
    "DELETE /v1/users/me": Row(SESSION, 202, PASSWORD_BODY),
    "GET /v1/overview": Row(f"{READ} {EVENTS} {JOBS}"),
    "GET /v1/users/me": Row(READ),
    "PATCH /v1/users/me": Row("profile:write", 200, {"bio": "x"}),
    "GET /v1/users/me/preferences": Row(READ),
    "PUT /v1/users/me/preferences": Row("profile:write", 200, {"theme": "dark"}),
    "PATCH /v1/users/me/preferences": Row("profile:write", 200, {"theme": "dark"}),
    "GET /v1/users/me/events": Row(EVENTS),
    "GET /v1/users/me/events/summary": Row(EVENTS),
    "GET /v1/users/me/events/stream": Row(EVENTS, 422, query="?kind=X"),
    "POST /v1/users/lookup": Row(READ, 200, {"ids": [str(uuid4())]}),
    "GET /v1/users/{user_id}": Row(READ),
    "POST /v1/events": Row("events:write", 201, {"kind": "a"}),
    "POST /v1/jobs": Row(START, 202, {"kind": "export.account", "args": {}}),
    "GET /v1/jobs": Row(JOBS),
    "GET /v1/jobs/{job_id}": Row(JOBS),
    "GET /v1/jobs/{job_id}/events": Row(JOBS),
    "POST /v1/jobs/{job_id}/events/ticket": Row(JOBS),
    "GET /v1/jobs/{job_id}/events/stream": Row(PUBLIC, 401, query="?ticket=x"),
    "POST /v1/jobs/{job_id}/cancel": Row(START, 409),
    "POST /v1/jobs/{job_id}/retry": Row(START, 202),
    "GET /v1/jobs/{job_id}/artifacts/{name}": Row(JOBS, 404),
    "POST /v1/invoices": Row(START, 202, INVOICE | {"number": "another"}),
    "GET /v1/invoices": Row(JOBS),
    "GET /v1/invoices/{invoice_id}": Row(JOBS),
    "GET /v1/invoices/{invoice_id}/pdf": Row(JOBS, 409),
    "POST /v1/invoices/{invoice_id}/email": Row(START, 409),
    "GET /v1/webhooks/event-types": Row(HOOKS),
    "POST /v1/webhooks/endpoints": Row(HOOKS, 201, {"url": "https://93.184.216.34/hook", "event_types": ["*"]}),
    "GET /v1/webhooks/endpoints": Row(HOOKS),
    "GET /v1/webhooks/endpoints/{endpoint_id}": Row(HOOKS),
    "PATCH /v1/webhooks/endpoints/{endpoint_id}": Row(HOOKS, 200, {"description": "x"}),
    "DELETE /v1/webhooks/endpoints/{endpoint_id}": Row(HOOKS, 204),
    "POST /v1/webhooks/endpoints/{endpoint_id}/rotate-secret": Row(HOOKS),
    "POST /v1/webhooks/endpoints/{endpoint_id}/test": Row(HOOKS, 202),
    "POST /v1/webhooks/endpoints/{endpoint_id}/replay": Row(HOOKS, 202, {"since": "2026-01-01T00:00:00Z"}),
    "POST /v1/webhooks/endpoints/{endpoint_id}/enable": Row(HOOKS),
    "GET /v1/webhooks/deliveries": Row(HOOKS),
    "GET /v1/webhooks/deliveries/{delivery_id}": Row(HOOKS),
    "POST /v1/webhooks/deliveries/{delivery_id}/redeliver": Row(HOOKS, 202),
    "GET /v1/admin/users": Row(ADMIN),
    "GET /v1/admin/users/{user_id}": Row(ADMIN),
    "PATCH /v1/admin/users/{user_id}": Row(ADMIN, 200, {"role": "admin"}),
    "POST /v1/admin/users/{user_id}/ban": Row(ADMIN, 204),
    "POST /v1/admin/users/{user_id}/unban": Row(ADMIN, 204),
    "POST /v1/admin/users/{user_id}/impersonate": Row(ADMIN, 200, {"reason": "x"}),
    "GET /v1/admin/users/{user_id}/sessions": Row(ADMIN),
    "DELETE /v1/admin/users/{user_id}/sessions": Row(ADMIN),
    "GET /v1/admin/users/{user_id}/security-events": Row(ADMIN),
    "POST /v1/admin/service-accounts": Row(ADMIN, 201, {"name": "billing", "scopes": ["introspect"]}),
    "GET /v1/admin/service-accounts": Row(ADMIN),
    "DELETE /v1/admin/service-accounts/{service_account_id}": Row(ADMIN, 404),
    "POST /v1/admin/service-accounts/{service_account_id}/rotate-secret": Row(ADMIN, 404),
    "GET /v1/admin/queues": Row(ADMIN),
    "POST /v1/admin/queues/{queue}/pause": Row(ADMIN, 204),
    "POST /v1/admin/queues/{queue}/resume": Row(ADMIN, 204),
    "GET /v1/admin/stats": Row(ADMIN),
    "GET /v1/admin/security-events": Row(ADMIN),
    "GET /v1/admin/webhooks/deliveries": Row(ADMIN),
    "POST /v1/admin/webhooks/deliveries/{delivery_id}/redeliver": Row(ADMIN, 202),
    "GET /v1/admin/schedules": Row(ADMIN),
    "POST /v1/admin/schedules/{name}/pause": Row(ADMIN, 404),
    "POST /v1/admin/schedules/{name}/resume": Row(ADMIN, 404),
    "POST /v1/admin/schedules/{name}/run": Row(ADMIN, 404),
    "GET /v1/admin/workers": Row(ADMIN),
    "GET /v1/admin/jobs": Row(ADMIN),
    "GET /v1/admin/jobs/{job_id}": Row(ADMIN),
    "POST /v1/admin/jobs/{job_id}/cancel": Row(ADMIN, 409),
    "POST /v1/admin/jobs/bulk": Row(ADMIN, 202, {"action": "retry", "filter": {"state": "failed"}}),
    "POST /v1/admin/jobs/{job_id}/retry": Row(ADMIN, 202),
    "POST /v1/admin/mail/suppressions/lift": Row(ADMIN, 200, {"email": "gone@example.com"}),
}
# They need no body, and do nothing but answer.
ASKING = {"POST /v1/auth/passkeys/login/options"}
PROTECTED = {route: row for route, row in ROWS.items() if row.who != PUBLIC}
NAMED_BY_NOTHING = {"{queue}": "bulk", "{name}": "x", "{service_account_id}": NO_SUCH_JOB, "{passkey_id}": NO_SUCH_JOB}
OWNED = ("{session_id}", "{key_id}", "{job_id}", "{invoice_id}", "{endpoint_id}", "{delivery_id}")


def test_every_route_has_a_row(app: FastAPI) -> None:
    routes = {
        f"{method} {context.path_format}"
        for context in iter_route_contexts(app.routes)
        if isinstance(context.original_route, APIRoute)
        for method in context.original_route.methods or ()
    }
    assert routes == set(ROWS)


async def belongings(owner: Person) -> dict[str, str]:
    """One of everything that an address can name, and the address parts that name it."""

    async def made(path: str, body: Json) -> str:
        answer = await owner.post(path, json=body)
        assert answer.status_code in (201, 202), answer.text
        return str(answer.json().get("id") or answer.json()["invoice"]["id"])

    login = {"email": owner.email, "password": PASSWORD}
    assert (await owner.client.post("/v1/auth/login", json=login)).status_code == 200
    owner.client.cookies.clear()
    sessions = (await owner.get("/v1/auth/sessions")).json()["items"]
    job = await made("/v1/jobs", {"kind": "export.account", "args": {}})
    assert (await owner.post(f"/v1/jobs/{job}/cancel")).is_success
    endpoint = await made("/v1/webhooks/endpoints", {"url": "https://93.184.216.34/", "event_types": ["*"]})
    assert (await owner.post(f"/v1/webhooks/endpoints/{endpoint}/test")).status_code == 202
    return {
        "{session_id}": next(item["id"] for item in sessions if not item["current"]),
        "{key_id}": await made("/v1/auth/api-keys", {"name": "k", "scopes": ["profile:read"]}),
        "{job_id}": job,
        "{invoice_id}": await made("/v1/invoices", INVOICE),
        "{endpoint_id}": endpoint,
        "{delivery_id}": (await owner.get("/v1/webhooks/deliveries")).json()["items"][0]["id"],
        "{user_id}": str(owner.id),
        "{name}": "x",
        "{code}": "x",
        **NAMED_BY_NOTHING,
    }


def filled(path: str, parts: dict[str, str]) -> str:
    for name, value in parts.items():
        path = path.replace(name, value)
    assert "{" not in path
    return path


async def call(client: httpx.AsyncClient, route: str, parts: dict[str, str], token: str | None) -> httpx.Response:
    method, _, path = route.partition(" ")
    row = ROWS[route]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return await client.request(method, filled(path, parts) + row.query, json=row.body, data=row.form, headers=headers)


async def state(connection: Connection) -> dict[str, str]:
    """A fingerprint of each table."""
    tables = await connection.fetch("""
        SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables
         WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
    """)
    return {
        table["name"]: await connection.fetchval(
            f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM {table['name']} AS t"  # noqa: S608
        )
        for table in tables
    }


async def key_with(owner: Person, scopes: set[str]) -> str:
    """An API key that has been used, so that using it changes nothing any more."""
    answer = await owner.post("/v1/auth/api-keys", json={"name": "k", "scopes": sorted(scopes)})
    key = str(answer.json()["key"])
    await owner.client.get("/v1/users/me", headers={"Authorization": f"Bearer {key}"})
    return key


@pytest.fixture
async def owner(make_person: MakePerson) -> Person:
    return await make_person()


@pytest.fixture
async def make_admin(make_person: MakePerson, connection: Connection) -> MakePerson:
    async def make() -> Person:
        return await people.make_admin(await make_person(), connection)

    return make


def needed(row: Row) -> set[str]:
    return {"admin"} if row.who == ADMIN else set(row.who.split()) if ":" in row.who else set()


async def test_denied_calls_change_nothing(
    client: httpx.AsyncClient, owner: Person, make_person: MakePerson, make_admin: MakePerson, connection: Connection
) -> None:
    parts = await belongings(owner)
    stranger, admin = await make_person(), await make_admin()
    stranger_token = str(stranger.tokens["access_token"])
    user_scopes = set(SCOPES_OF_ROLE["user"])
    keys = {scope: await key_with(admin, set(SCOPES) - {scope}) for scope in SCOPES}
    full_key = await key_with(owner, user_scopes)
    admin_full_key = await key_with(admin, set(SCOPES))
    before = await state(connection)
    wrong: dict[tuple[str, str], object] = {}

    async def refused(who: str, route: str, token: str | None, status: int, code: str | None = None) -> None:
        answer = await call(client, route, parts, token)
        body = answer.json()
        # OAuth has a word of its own for the first.
        said = body.get("code") or {"invalid_client": "unauthenticated"}.get(body["error"], body["error"])
        found = (answer.status_code, said if code else None)
        is_right = found == (status, code) and ("www-authenticate" in answer.headers or status != 401)
        if not is_right:
            wrong[who, route] = found

    for route, row in PROTECTED.items():
        await refused("anonymous", route, None, 401, "unauthenticated")
        await refused("a user with a spoilt token", route, stranger_token[:-1], 401, "invalid_token")
        for scope in needed(row):
            await refused(f"an API key without {scope}", route, keys[scope], 403, "insufficient_scope")
        if row.who == SESSION:
            await refused("an API key of the owner", route, full_key, 403, "session_required")
            await refused("an API key of an administrator", route, admin_full_key, 403, "session_required")
        if row.who == ADMIN:
            await refused("a user", route, stranger_token, 403, "insufficient_scope")
            await refused("an API key of a user", route, full_key, 403, "insufficient_scope")
        elif any(name in route for name in OWNED):
            # What belongs to another user is answered as what is not there, even to administrators.
            await refused("another user", route, stranger_token, 404)
            await refused("an administrator", route, str(admin.tokens["access_token"]), 404)
    assert wrong == {}
    assert await state(connection) == before


@pytest.mark.parametrize("who", ["user", "admin"])
async def test_the_right_caller_gets_through(
    client: httpx.AsyncClient, make_person: MakePerson, make_admin: MakePerson, who: str
) -> None:
    """Each call with belongings of its own, because some of them end what they are made with."""
    wrong: dict[str, object] = {}
    await make_admin()
    for route, row in PROTECTED.items():
        if row.who == ADMIN and who == "user":
            continue
        caller = await (make_admin if who == "admin" else make_person)()
        owner = await make_person() if row.who == ADMIN else caller
        names_something = any(name in route for name in OWNED)
        parts = await belongings(owner) if names_something else NAMED_BY_NOTHING | {"{user_id}": str(owner.id)}
        answer = await call(client, route, parts, str(caller.tokens["access_token"]))
        if answer.status_code != row.answer:
            wrong[route] = (answer.status_code, answer.text)
    assert wrong == {}


async def test_public_routes_ask_for_nobody(client: httpx.AsyncClient) -> None:
    """Without a body most of them have something to say, but never that the caller should log in."""
    for route, row in ROWS.items():
        if row.who == PUBLIC and route != "GET /openapi.json":
            parts = {"{name}": "x", "{code}": "x", "{job_id}": NO_SUCH_JOB, "{user_id}": NO_SUCH_JOB}
            answer = await call(client, route, parts, None)
            expected = {row.answer} if route in ASKING or route.startswith("GET ") else {204, 400, 415, 422}
            assert answer.status_code in expected, (route, answer.text)
