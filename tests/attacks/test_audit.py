"""Every route that changes rights or credentials, or shows an administrator data of others, leaves an audit entry.

A route that writes, or that only administrators may call, needs a decision here: the entry that it leaves, or why none.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyotp
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from app.kernel.auth import declared_permission
from tests.fixtures.answers import problem_of
from tests.fixtures.authenticator import Authenticator
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.identity.conftest import LogIn, Mailbox
from tests.identity.test_passkeys import add as add_passkey
from tests.identity.test_passkeys import log_in_by as log_in_by_passkey
from tests.jobs.receiver import LOCAL

NEW = "a new horse 2026"
PROGRAM = {"name": "billing", "scopes": ["introspect"]}
ENTRIES: dict[str, str] = {
    "POST /v1/auth/register": "registered",
    "POST /v1/auth/login": "logged_in",
    "POST /v1/auth/mfa/verify": "logged_in",
    "POST /v1/auth/code/login": "logged_in",
    "POST /v1/auth/passkeys/login": "logged_in",
    "POST /v1/auth/passkeys": "passkey_added",
    "PATCH /v1/auth/passkeys/{passkey_id}": "passkey_renamed",
    "DELETE /v1/auth/passkeys/{passkey_id}": "passkey_removed",
    "POST /v1/auth/token": "logged_in",
    "POST /v1/auth/logout": "logged_out",
    "POST /v1/auth/revoke": "token_revoked",
    "POST /v1/auth/logout-all": "logged_out_all",
    "DELETE /v1/auth/sessions/{session_id}": "session_ended",
    "POST /v1/auth/email/verify": "email_verified",
    "POST /v1/auth/email/change": "email_change_requested",
    "POST /v1/auth/email/confirm": "email_changed",
    "POST /v1/auth/password/reset": "password_reset",
    "POST /v1/auth/password/change": "password_changed",
    "POST /v1/auth/api-keys": "api_key_created",
    "DELETE /v1/auth/api-keys/{key_id}": "api_key_revoked",
    "POST /v1/auth/mfa/totp": "totp_enrolled",
    "POST /v1/auth/mfa/totp/activate": "totp_enabled",
    "DELETE /v1/auth/mfa/totp": "totp_disabled",
    "POST /v1/auth/mfa/recovery-codes": "recovery_codes_renewed",
    "DELETE /v1/users/me": "account_deleted",
    "POST /v1/jobs": "account_export_requested",
    "POST /v1/webhooks/endpoints": "webhook_endpoint_created",
    "PATCH /v1/webhooks/endpoints/{endpoint_id}": "webhook_endpoint_changed",
    "DELETE /v1/webhooks/endpoints/{endpoint_id}": "webhook_endpoint_deleted",
    "POST /v1/webhooks/endpoints/{endpoint_id}/rotate-secret": "webhook_secret_rotated",
    "POST /v1/webhooks/endpoints/{endpoint_id}/enable": "webhook_endpoint_enabled",
    "GET /v1/admin/users": "admin_read",
    "GET /v1/admin/users/{user_id}": "admin_read",
    "PATCH /v1/admin/users/{user_id}": "role_changed",
    "POST /v1/admin/users/{user_id}/ban": "banned",
    "POST /v1/admin/users/{user_id}/unban": "unbanned",
    "POST /v1/admin/users/{user_id}/impersonate": "impersonated",
    "GET /v1/admin/users/{user_id}/sessions": "admin_read",
    "DELETE /v1/admin/users/{user_id}/sessions": "revoked_by_admin",
    "GET /v1/admin/users/{user_id}/security-events": "admin_read",
    "POST /v1/admin/service-accounts": "service_account_created",
    "GET /v1/admin/service-accounts": "admin_read",
    "DELETE /v1/admin/service-accounts/{service_account_id}": "service_account_deleted",
    "POST /v1/admin/service-accounts/{service_account_id}/rotate-secret": "client_secret_rotated",
    "POST /v1/admin/queues/{queue}/pause": "queue_paused",
    "POST /v1/admin/queues/{queue}/resume": "queue_resumed",
    "GET /v1/admin/security-events": "admin_read",
    "GET /v1/admin/webhooks/deliveries": "admin_read",
    "POST /v1/admin/webhooks/deliveries/{delivery_id}/redeliver": "webhook_redelivered_by_admin",
    "POST /v1/admin/schedules/{name}/pause": "schedule_paused",
    "POST /v1/admin/schedules/{name}/resume": "schedule_resumed",
    "POST /v1/admin/schedules/{name}/run": "schedule_run",
    "GET /v1/admin/jobs": "admin_read",
    "GET /v1/admin/jobs/{job_id}": "admin_read",
    "POST /v1/admin/jobs/{job_id}/cancel": "job_cancelled_by_admin",
    "POST /v1/admin/jobs/bulk": "jobs_changed_in_bulk",
    "POST /v1/admin/jobs/{job_id}/retry": "job_retried_by_admin",
    "POST /v1/admin/mail/suppressions/lift": "mail_suppression_lifted",
}
# Of these the trail of the administrator tells, and of the others that of the user.
OF_THE_ADMIN = {
    *("admin_read", "queue_paused", "queue_resumed", "mail_suppression_lifted", "jobs_changed_in_bulk"),
    *("service_account_created", "service_account_deleted", "client_secret_rotated"),
    *("schedule_paused", "schedule_resumed", "schedule_run"),
}
WITHOUT: dict[str, str] = {
    "POST /unsubscribe": "has one, if it turns something off; tests/jobs/test_weekly_report.py looks at it",
    "POST /v1/auth/refresh": "goes on with a session; its row says when and from where",
    "POST /v1/auth/introspect": "reads",
    "POST /v1/auth/email/resend": "is answered alike for every address; the proof is the entry",
    "POST /v1/auth/passkeys/options": "asks for nothing yet",
    "POST /v1/auth/passkeys/login/options": "asks for nothing yet",
    "POST /v1/auth/code": "is answered alike for every address; the log-in is the entry",
    "POST /v1/auth/password/forgot": "is answered alike for every address; the reset is the entry",
    "PATCH /v1/users/me": "a profile is no right",
    "PUT /v1/users/me/preferences": "preferences are no right",
    "PATCH /v1/users/me/preferences": "preferences are no right",
    "POST /v1/users/lookup": "reads",
    "POST /v1/events": "events are data",
    "POST /v1/jobs/{job_id}/events/ticket": "reads, with the caller's own credential",
    "POST /v1/jobs/{job_id}/cancel": "the own job says so itself",
    "POST /v1/jobs/{job_id}/retry": "has one, if the job copies the account; test_job_scopes.py looks at it",
    "POST /v1/invoices": "invoices are data",
    "POST /v1/invoices/{invoice_id}/email": "the job is on file",
    "POST /v1/webhooks/endpoints/{endpoint_id}/test": "the delivery is on file",
    "POST /v1/webhooks/deliveries/{delivery_id}/redeliver": "the delivery is on file",
    "POST /v1/webhooks/endpoints/{endpoint_id}/replay": "the job is on file",
    "GET /v1/admin/queues": "numbers without persons",
    "GET /v1/admin/stats": "numbers without persons",
    "GET /v1/admin/schedules": "of the program alone",
    "GET /v1/admin/workers": "of the program alone",
}


def test_every_route_that_matters_has_a_decision(app: FastAPI) -> None:
    routes = set()
    for context in iter_route_contexts(app.routes):
        if not isinstance(context.original_route, APIRoute):
            continue
        permission = declared_permission(context.original_route.dependant)
        for method in (context.methods or set()) - {"HEAD"}:
            if method != "GET" or (permission is not None and permission.role == "admin"):
                routes.add(f"{method} {context.path_format}")
    assert routes == ENTRIES.keys() | WITHOUT.keys()


@dataclass(frozen=True)
class Scene:
    """What the calls of the test work with."""

    client: httpx.AsyncClient
    connection: Connection
    mailbox: Mailbox
    make_person: MakePerson
    log_in: LogIn
    admin: Person

    async def token(self, email: str, subject: str, *, number: int = 1) -> str:
        return (await self.mailbox.letter(email, subject, number=number)).token


Call = Callable[[Scene, Person], Awaitable[httpx.Response]]


async def _made(person: Person, path: str, body: dict[str, Any]) -> Any:
    answer = await person.post(path, json=body)
    assert answer.is_success, answer.text
    return answer.json()


async def _with_factor(person: Person) -> tuple[pyotp.TOTP, list[str]]:
    totp = pyotp.TOTP((await _made(person, "/v1/auth/mfa/totp", {}))["secret"])
    return totp, (await _made(person, "/v1/auth/mfa/totp/activate", {"code": totp.now()}))["recovery_codes"]


async def _key(person: Person) -> Any:
    return await _made(person, "/v1/auth/api-keys", {"name": "k", "scopes": ["profile:read"]})


async def _endpoint(person: Person) -> str:
    body = {"url": "http://127.0.0.1:9/", "event_types": ["invoice.issued"]}
    return str((await _made(person, "/v1/webhooks/endpoints", body))["id"])


async def _mfa_verify(scene: Scene, person: Person) -> httpx.Response:
    _, codes = await _with_factor(person)
    login = await scene.client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    body = {"mfa_token": login.json()["mfa_token"], "code": codes[0]}
    return await scene.client.post("/v1/auth/mfa/verify", json=body)


async def _code_login(scene: Scene, person: Person) -> httpx.Response:
    await scene.client.post("/v1/auth/code", json={"email": person.email})
    letter = await scene.mailbox.letter(person.email, "Your code to log in")
    return await scene.client.post("/v1/auth/code/login", json={"email": person.email, "code": letter.code})


async def _passkey_login(scene: Scene, person: Person) -> httpx.Response:
    authenticator = Authenticator()
    assert (await add_passkey(person, authenticator)).status_code == 201
    return await log_in_by_passkey(scene.client, authenticator)


async def _on_passkey(person: Person, method: str, **options: Any) -> httpx.Response:
    made = (await add_passkey(person, Authenticator())).json()
    return await person.request(method, f"/v1/auth/passkeys/{made['id']}", **options)


async def _email_change(scene: Scene, person: Person) -> httpx.Response:
    body = {"new_email": f"new-{person.email}", "current_password": PASSWORD}
    return await person.post("/v1/auth/email/change", json=body)


async def _email_confirm(scene: Scene, person: Person) -> httpx.Response:
    await _email_change(scene, person)
    token = await scene.token(f"new-{person.email}", "Confirm your new e-mail address")
    return await scene.client.post("/v1/auth/email/confirm", json={"token": token})


async def _email_verify(scene: Scene, person: Person) -> httpx.Response:
    token = await scene.token(person.email, "Verify your e-mail address")
    return await scene.client.post("/v1/auth/email/verify", json={"token": token})


async def _reset(scene: Scene, person: Person) -> httpx.Response:
    await scene.client.post("/v1/auth/password/forgot", json={"email": person.email})
    body = {"token": await scene.token(person.email, "Set a new password"), "new_password": NEW}
    return await scene.client.post("/v1/auth/password/reset", json=body)


async def _session(scene: Scene, person: Person) -> httpx.Response:
    await scene.log_in(person)
    sessions = (await person.get("/v1/auth/sessions")).json()["items"]
    other = next(session["id"] for session in sessions if not session["current"])
    return await person.delete(f"/v1/auth/sessions/{other}")


async def _activate(scene: Scene, person: Person) -> httpx.Response:
    totp = pyotp.TOTP((await _made(person, "/v1/auth/mfa/totp", {}))["secret"])
    return await person.post("/v1/auth/mfa/totp/activate", json={"code": totp.now()})


async def _after_factor(person: Person, method: str, path: str) -> httpx.Response:
    await _with_factor(person)
    return await person.request(method, path, json={"current_password": PASSWORD})


async def _on_endpoint(person: Person, method: str, path: str = "", **options: Any) -> httpx.Response:
    return await person.request(method, f"/v1/webhooks/endpoints/{await _endpoint(person)}{path}", **options)


async def _enable(scene: Scene, person: Person) -> httpx.Response:
    endpoint = await _endpoint(person)
    await scene.connection.execute("UPDATE jobs.webhook_endpoints SET disabled_at = now()")
    return await person.post(f"/v1/webhooks/endpoints/{endpoint}/enable")


async def _job(person: Person) -> str:
    """A job that waits until tomorrow."""
    run_at = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    body = {"kind": "export.events", "args": {"format": "csv"}, "run_at": run_at}
    return str((await _made(person, "/v1/jobs", body))["id"])


async def _get_job(scene: Scene, person: Person) -> httpx.Response:
    return await scene.admin.get(f"/v1/admin/jobs/{await _job(person)}")


async def _cancel(scene: Scene, person: Person) -> httpx.Response:
    return await scene.admin.post(f"/v1/admin/jobs/{await _job(person)}/cancel")


async def _retry(scene: Scene, person: Person) -> httpx.Response:
    job = await _job(person)
    assert (await person.post(f"/v1/jobs/{job}/cancel")).is_success
    return await scene.admin.post(f"/v1/admin/jobs/{job}/retry")


async def _redeliver(scene: Scene, person: Person) -> httpx.Response:
    assert (await _on_endpoint(person, "POST", "/test")).status_code == 202
    (delivery,) = (await person.get("/v1/webhooks/deliveries")).json()["items"]
    return await scene.admin.post(f"/v1/admin/webhooks/deliveries/{delivery['id']}/redeliver")


async def _register(scene: Scene, person: Person) -> httpx.Response:
    body = {"email": f"another-{person.email}", "password": PASSWORD}
    return await scene.client.post("/v1/auth/register", json=body)


def _as_admin(method: str, path: str = "", **options: Any) -> Call:
    async def call(scene: Scene, person: Person) -> httpx.Response:
        return await scene.admin.request(method, f"/v1/admin/users/{person.id}{path}", **options)

    return call


CALLS: dict[str, Call] = {
    "POST /v1/auth/register": _register,
    "POST /v1/auth/login": lambda s, p: s.client.post("/v1/auth/login", json={"email": p.email, "password": PASSWORD}),
    "POST /v1/auth/mfa/verify": _mfa_verify,
    "POST /v1/auth/code/login": _code_login,
    "POST /v1/auth/passkeys/login": _passkey_login,
    "POST /v1/auth/passkeys": lambda _, p: add_passkey(p, Authenticator()),
    "PATCH /v1/auth/passkeys/{passkey_id}": lambda _, p: _on_passkey(p, "PATCH", json={"name": "x"}),
    "DELETE /v1/auth/passkeys/{passkey_id}": lambda _, p: _on_passkey(p, "DELETE"),
    "POST /v1/auth/token": lambda s, p: s.client.post(
        "/v1/auth/token", data={"grant_type": "password", "username": p.email, "password": PASSWORD}
    ),
    "POST /v1/auth/logout": lambda _, p: p.post("/v1/auth/logout"),
    "POST /v1/auth/revoke": lambda s, p: s.client.post("/v1/auth/revoke", data={"token": p.tokens["refresh_token"]}),
    "POST /v1/auth/logout-all": lambda _, p: p.post("/v1/auth/logout-all"),
    "DELETE /v1/auth/sessions/{session_id}": _session,
    "POST /v1/auth/email/verify": _email_verify,
    "POST /v1/auth/email/change": _email_change,
    "POST /v1/auth/email/confirm": _email_confirm,
    "POST /v1/auth/password/reset": _reset,
    "POST /v1/auth/password/change": lambda _, p: p.post(
        "/v1/auth/password/change", json={"current_password": PASSWORD, "new_password": NEW}
    ),
    "POST /v1/auth/api-keys": lambda _, p: p.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["profile:read"]}),
    "DELETE /v1/auth/api-keys/{key_id}": lambda _, p: _delete_key(p),
    "POST /v1/auth/mfa/totp": lambda _, p: p.post("/v1/auth/mfa/totp"),
    "POST /v1/auth/mfa/totp/activate": _activate,
    "DELETE /v1/auth/mfa/totp": lambda _, p: _after_factor(p, "DELETE", "/v1/auth/mfa/totp"),
    "POST /v1/auth/mfa/recovery-codes": lambda _, p: _after_factor(p, "POST", "/v1/auth/mfa/recovery-codes"),
    "DELETE /v1/users/me": lambda _, p: p.delete("/v1/users/me", json={"current_password": PASSWORD}),
    "POST /v1/jobs": lambda _, p: p.post("/v1/jobs", json={"kind": "export.account", "args": {}}),
    "POST /v1/webhooks/endpoints": lambda _, p: p.post(
        "/v1/webhooks/endpoints", json={"url": "http://127.0.0.1:9/", "event_types": ["invoice.issued"]}
    ),
    "PATCH /v1/webhooks/endpoints/{endpoint_id}": lambda _, p: _on_endpoint(p, "PATCH", json={"description": "x"}),
    "DELETE /v1/webhooks/endpoints/{endpoint_id}": lambda _, p: _on_endpoint(p, "DELETE"),
    "POST /v1/webhooks/endpoints/{endpoint_id}/rotate-secret": lambda _, p: _on_endpoint(p, "POST", "/rotate-secret"),
    "POST /v1/webhooks/endpoints/{endpoint_id}/enable": _enable,
    "GET /v1/admin/users": lambda s, _: s.admin.get("/v1/admin/users"),
    "GET /v1/admin/users/{user_id}": _as_admin("GET"),
    "PATCH /v1/admin/users/{user_id}": _as_admin("PATCH", json={"role": "admin"}),
    "POST /v1/admin/users/{user_id}/ban": _as_admin("POST", "/ban"),
    "POST /v1/admin/users/{user_id}/unban": _as_admin("POST", "/unban"),
    "POST /v1/admin/users/{user_id}/impersonate": _as_admin("POST", "/impersonate", json={"reason": "x"}),
    "GET /v1/admin/users/{user_id}/sessions": _as_admin("GET", "/sessions"),
    "DELETE /v1/admin/users/{user_id}/sessions": _as_admin("DELETE", "/sessions"),
    "GET /v1/admin/users/{user_id}/security-events": _as_admin("GET", "/security-events"),
    "POST /v1/admin/service-accounts": lambda s, _: s.admin.post("/v1/admin/service-accounts", json=PROGRAM),
    "GET /v1/admin/service-accounts": lambda s, _: s.admin.get("/v1/admin/service-accounts"),
    "DELETE /v1/admin/service-accounts/{service_account_id}": lambda s, _: _on_program(s, "DELETE", ""),
    "POST /v1/admin/service-accounts/{service_account_id}/rotate-secret": lambda s, _: _on_program(
        s, "POST", "/rotate-secret"
    ),
    "POST /v1/admin/queues/{queue}/pause": lambda s, _: s.admin.post("/v1/admin/queues/bulk/pause"),
    "POST /v1/admin/queues/{queue}/resume": lambda s, _: s.admin.post("/v1/admin/queues/bulk/resume"),
    "GET /v1/admin/security-events": lambda s, _: s.admin.get("/v1/admin/security-events"),
    "GET /v1/admin/webhooks/deliveries": lambda s, _: s.admin.get("/v1/admin/webhooks/deliveries"),
    "POST /v1/admin/webhooks/deliveries/{delivery_id}/redeliver": _redeliver,
    "POST /v1/admin/schedules/{name}/pause": lambda s, _: s.admin.post("/v1/admin/schedules/jobs.clean/pause"),
    "POST /v1/admin/schedules/{name}/resume": lambda s, _: s.admin.post("/v1/admin/schedules/jobs.clean/resume"),
    "POST /v1/admin/schedules/{name}/run": lambda s, _: s.admin.post("/v1/admin/schedules/jobs.clean/run"),
    "GET /v1/admin/jobs": lambda s, _: s.admin.get("/v1/admin/jobs"),
    "GET /v1/admin/jobs/{job_id}": _get_job,
    "POST /v1/admin/jobs/{job_id}/cancel": _cancel,
    "POST /v1/admin/jobs/bulk": lambda s, _: s.admin.post(
        "/v1/admin/jobs/bulk", json={"action": "cancel", "filter": {"kind": "test.none"}}
    ),
    "POST /v1/admin/jobs/{job_id}/retry": _retry,
    "POST /v1/admin/mail/suppressions/lift": lambda s, p: s.admin.post(
        "/v1/admin/mail/suppressions/lift", json={"email": p.email}
    ),
}


async def _on_program(scene: Scene, method: str, path: str) -> httpx.Response:
    made = await _made(scene.admin, "/v1/admin/service-accounts", PROGRAM)
    return await scene.admin.request(method, f"/v1/admin/service-accounts/{made['id']}{path}")


async def _delete_key(person: Person) -> httpx.Response:
    return await person.delete(f"/v1/auth/api-keys/{(await _key(person))['id']}")


@pytest.mark.slow
@LOCAL
@pytest.mark.timeout(300)
async def test_every_such_call_leaves_its_entry(
    client: httpx.AsyncClient,
    connection: Connection,
    mailbox: Mailbox,
    make_person: MakePerson,
    log_in: LogIn,
    admin: Person,
) -> None:
    assert CALLS.keys() == ENTRIES.keys()
    scene = Scene(client, connection, mailbox, make_person, log_in, admin)
    missing = {}
    for route, action in ENTRIES.items():
        client.cookies.clear()
        person = await make_person()
        newest = await connection.fetchval("SELECT max(id::text) FROM identity.security_events")
        answer = await CALLS[route](scene, person)
        assert answer.is_success, (route, answer.text)
        rows = await connection.fetch(
            "SELECT action, user_id, actor_id, ip FROM identity.security_events WHERE id::text > $1", newest
        )
        found = [row for row in rows if row["action"] == action and row["actor_id"] and row["ip"] == "127.0.0.1"]
        whose = {row["user_id"] for row in found}
        is_admins = action in OF_THE_ADMIN
        expected = admin.id if is_admins else person.id
        if (route != "POST /v1/auth/register" and expected not in whose) or not found:
            missing[route] = [row["action"] for row in rows]
    assert missing == {}


async def test_what_failed_leaves_an_entry_too(client: httpx.AsyncClient, person: Person) -> None:
    _, codes = await _with_factor(person)
    wrong = {"current_password": "not it at all"}
    problem_of(await person.delete("/v1/auth/mfa/totp", json=wrong), 403, "invalid_current_password")
    await client.post("/v1/auth/login", json={"email": person.email, "password": "not it at all"})
    login = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    for code, status in (("not-a-recovery-code", 401), (codes[0], 200)):
        body = {"mfa_token": login.json()["mfa_token"], "code": code}
        assert (await client.post("/v1/auth/mfa/verify", json=body)).status_code == status
    events = (await person.get("/v1/auth/security-events")).json()["items"]
    assert [(event["action"], event["data"]) for event in events[:4]] == [
        ("logged_in", {"methods": ["pwd", "recovery"]}),
        ("second_factor_failed", {}),
        ("login_failed", {}),
        ("reauthentication_failed", {}),
    ]


async def test_an_administrator_who_reads_again_and_again_is_one_entry(
    admin: Person, person: Person, connection: Connection
) -> None:
    await asyncio.gather(*(admin.get(f"/v1/admin/users/{person.id}") for _ in range(3)))
    for _ in range(3):
        await admin.get(f"/v1/admin/users/{person.id}")
    await admin.get("/v1/admin/jobs")
    rows = await connection.fetch(
        "SELECT data ->> 'what' AS what FROM identity.security_events WHERE action = 'admin_read'"
    )
    # Those at the same moment do not see each other.
    assert 2 <= len(rows) <= 4
    assert {row["what"] for row in rows} == {"account", "jobs"}


async def test_new_rights_and_keys_are_told_by_mail(admin: Person, make_person: MakePerson, mailbox: Mailbox) -> None:
    person = await make_person()
    await _key(person)
    await mailbox.letter(person.email, "An API key was created")
    _, _ = await _with_factor(person)
    assert (await person.post("/v1/auth/mfa/recovery-codes", json={"current_password": PASSWORD})).status_code == 200
    await mailbox.letter(person.email, "Your recovery codes were renewed")
    assert (await admin.patch(f"/v1/admin/users/{person.id}", json={"role": "admin"})).status_code == 200
    await mailbox.letter(person.email, "Your role was changed")
