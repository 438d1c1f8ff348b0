"""An administrator who acts for a user: what that gives, what it never gives, and what ends it."""

from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest

from app.identity.records import Device
from app.identity.router import dependencies as identity_router
from app.identity.service.audit_log import record_security_event
from app.jobs.router import access as jobs_router
from tests.fixtures.answers import problem_of
from tests.fixtures.application import Budget, stored
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.identity.conftest import LogIn
from tests.identity.test_tokens import decode


async def act_for(admin: Person, user: Person) -> dict[str, str]:
    """The headers of a request by `admin` for `user`."""
    answer = await admin.post(f"/v1/admin/users/{user.id}/impersonate", json={"reason": "Ticket 4711"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert set(answer.json()) == {"access_token", "token_type", "expires_in", "scope"}
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


async def test_the_administrator_sees_what_the_user_sees(
    app: Any, client: httpx.AsyncClient, admin: Person, person: Person, connection: Connection, budget: Budget
) -> None:
    headers = await act_for(admin, person)
    claims = decode(headers["Authorization"].split(".")[1])
    own = decode(str(admin.tokens["access_token"]).split(".")[1])
    assert claims["act"] == {"sub": str(admin.id), "sid": own["sid"], "ver": own["ver"]}
    assert (claims["sub"], claims["roles"], claims["exp"] - claims["iat"]) == (str(person.id), ["user"], 1800)
    assert claims["scope"].split() == sorted(set(str(person.tokens["scope"]).split()) - {"webhooks:manage"})
    assert (await client.get("/v1/users/me", headers=headers)).json()["email"] == person.email
    await stored(app)
    with budget(0):
        assert (await client.get("/v1/users/me", headers=headers)).status_code == 200
    session = (await client.get("/v1/auth/session", headers=headers)).json()
    assert (session["session_id"], session["methods"]) == (claims["sid"], ["impersonation"])
    rows = await connection.fetch(
        "SELECT user_id, actor_id, data FROM identity.security_events WHERE action = 'impersonated'"
    )
    assert {(row["user_id"], row["actor_id"]) for row in rows} == {(admin.id, admin.id), (person.id, admin.id)}
    for row in rows:
        assert orjson.loads(row["data"]) == {
            "reason": "Ticket 4711",
            "user_id": str(person.id),
            "session_id": claims["sid"],
        }
    told = await admin.post("/v1/auth/introspect", data={"token": headers["Authorization"][7:]})
    assert told.json()["act"] == {"sub": str(admin.id)}
    assert await connection.fetchval("SELECT last_login_at FROM identity.accounts WHERE user_id = $1", person.id)


async def test_nothing_about_credentials(client: httpx.AsyncClient, admin: Person, person: Person) -> None:
    headers = await act_for(admin, person)
    password = {"current_password": PASSWORD}
    calls: list[tuple[str, str, Any]] = [
        ("GET", "/v1/auth/sessions", None),
        ("GET", "/v1/auth/security-events", None),
        ("POST", "/v1/auth/logout-all", None),
        ("POST", "/v1/auth/password/change", password | {"new_password": "a new horse 2026"}),
        ("POST", "/v1/auth/email/change", password | {"new_email": "new@example.com"}),
        ("POST", "/v1/auth/api-keys", {"name": "k", "scopes": ["profile:read"]}),
        ("GET", "/v1/auth/api-keys", None),
        ("GET", "/v1/auth/mfa", None),
        ("POST", "/v1/auth/mfa/totp", None),
        ("DELETE", "/v1/users/me", password),
    ]
    for method, path, body in calls:
        answer = await client.request(method, path, json=body, headers=headers)
        problem_of(answer, 403, "session_required")
    export = {"kind": "export.account", "args": {}}
    hook = {"url": "https://93.184.216.34/hook", "event_types": ["*"]}
    for path, body in (
        ("/v1/jobs", export),
        ("/v1/webhooks/endpoints", hook),
        (f"/v1/admin/users/{person.id}/impersonate", {"reason": "x"}),
    ):
        problem_of(await client.post(path, json=body, headers=headers), 403, "insufficient_scope")
    # It is no refresh token, and no cookie comes of it.
    token = {"refresh_token": headers["Authorization"][7:], "transport": "cookie"}
    problem_of(await client.post("/v1/auth/refresh", json=token), 401, "invalid_refresh_token")


async def test_who_cannot_be_impersonated(
    client: httpx.AsyncClient, admin: Person, make_person: MakePerson, connection: Connection
) -> None:
    other, banned = await make_person(), await make_person()
    await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id = $1", other.id)
    assert (await admin.post(f"/v1/admin/users/{banned.id}/ban")).status_code == 204
    program = (await admin.post("/v1/admin/service-accounts", json={"name": "p", "scopes": ["introspect"]})).json()
    body = {"reason": "x"}
    for user_id, status, code in (
        (other.id, 403, "impersonation_refused"),
        (admin.id, 403, "impersonation_refused"),
        (program["id"], 403, "impersonation_refused"),
        (banned.id, 403, "account_banned"),
        (uuid4(), 404, "account_not_found"),
    ):
        problem_of(await admin.post(f"/v1/admin/users/{user_id}/impersonate", json=body), status, code)
    key = (await admin.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["admin"]})).json()["key"]
    answer = await client.post(
        f"/v1/admin/users/{banned.id}/impersonate", json=body, headers={"Authorization": f"Bearer {key}"}
    )
    problem_of(answer, 403, "session_required")
    for reason in ("", " ", None):
        answer = await admin.post(f"/v1/admin/users/{banned.id}/impersonate", json={"reason": reason})
        assert answer.status_code == 422
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions WHERE methods = '{impersonation}'") == 0


async def _log_out(admin: Person, person: Person, boss: Person) -> httpx.Response:
    return await admin.post("/v1/auth/logout")


async def _demote(admin: Person, person: Person, boss: Person) -> httpx.Response:
    return await boss.patch(f"/v1/admin/users/{admin.id}", json={"role": "user"})


async def _ban(admin: Person, person: Person, boss: Person) -> httpx.Response:
    return await boss.post(f"/v1/admin/users/{admin.id}/ban")


async def _promote(admin: Person, person: Person, boss: Person) -> httpx.Response:
    return await boss.patch(f"/v1/admin/users/{person.id}", json={"role": "admin"})


async def _end(admin: Person, person: Person, boss: Person) -> httpx.Response:
    sessions = (await person.get("/v1/auth/sessions")).json()["items"]
    (foreign,) = [session for session in sessions if session["device_name"] == "impersonation"]
    return await person.delete(f"/v1/auth/sessions/{foreign['id']}")


@pytest.mark.parametrize("end", [_log_out, _demote, _ban, _promote, _end])
async def test_it_ends_at_once_with_either_side(
    client: httpx.AsyncClient,
    admin: Person,
    person: Person,
    make_person: MakePerson,
    log_in: LogIn,
    connection: Connection,
    end: Any,
) -> None:
    boss = await make_person()
    await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id = $1", boss.id)
    boss = await log_in(boss)
    headers = await act_for(admin, person)
    assert (await client.get("/v1/users/me", headers=headers)).status_code == 200
    assert (await end(admin, person, boss)).is_success
    problem_of(await client.get("/v1/users/me", headers=headers), 401, "token_revoked")


@pytest.mark.settings(APP_IDENTITY_MAX_SESSIONS="2")
async def test_it_costs_the_user_no_session(
    client: httpx.AsyncClient, admin: Person, person: Person, log_in: LogIn, connection: Connection
) -> None:
    headers = await act_for(admin, person)
    second = await log_in(person)
    for caller in (person, second):
        assert (await caller.get("/v1/users/me")).status_code == 200
    # A log-in too many ends one of the user's own, and the administrator's work goes on.
    third = await log_in(person)
    assert (await third.get("/v1/users/me")).status_code == 200
    alive = "SELECT count(*) FROM identity.sessions WHERE user_id = $1 AND revoked_at IS NULL"
    assert await connection.fetchval(alive, person.id) == 3
    assert (await client.get("/v1/users/me", headers=headers)).status_code == 200


async def test_it_ends_after_half_an_hour(
    clock: ManualClock, client: httpx.AsyncClient, admin: Person, person: Person, log_in: LogIn
) -> None:
    headers = await act_for(admin, person)
    clock.advance(1798)
    assert (await client.get("/v1/users/me", headers=headers)).status_code == 200
    clock.advance(3)
    problem_of(await client.get("/v1/users/me", headers=headers), 401, "token_expired")


@pytest.mark.parametrize("action", ["logged_out", "token_revoked"])
async def test_the_end_of_a_session_is_the_administrator_s_act(
    client: httpx.AsyncClient, admin: Person, person: Person, connection: Connection, action: str
) -> None:
    headers = await act_for(admin, person)
    if action == "logged_out":
        assert (await client.post("/v1/auth/logout", headers=headers)).status_code == 204
    else:
        assert (await client.post("/v1/auth/revoke", data={"token": headers["Authorization"][7:]})).status_code == 200
    row = await connection.fetchrow("SELECT * FROM identity.security_events WHERE action = $1", action)
    assert row is not None
    sid = decode(headers["Authorization"].split(".")[1])["sid"]
    assert (row["user_id"], row["actor_id"], row["session_id"]) == (person.id, admin.id, UUID(sid))
    assert (await person.get("/v1/users/me")).status_code == 200


@pytest.mark.parametrize("actor_of", [identity_router.actor_of, jobs_router.actor_of])
async def test_the_trail_of_the_user_names_the_administrator(
    client: httpx.AsyncClient, app: Any, admin: Person, person: Person, connection: Connection, actor_of: Any
) -> None:
    headers = await act_for(admin, person)
    principal = await app.state.authenticator.authenticate(headers["Authorization"].encode())
    actor = actor_of(principal, Device("192.0.2.1", "browser"))
    async with app.state.resources.db.transaction("tests.act") as tx:
        await record_security_event(tx, app.state.resources.clock, actor, "account_export_requested")
    row = await connection.fetchrow("SELECT * FROM identity.security_events WHERE action = 'account_export_requested'")
    assert row is not None
    assert (row["user_id"], row["actor_id"], row["session_id"]) == (person.id, admin.id, principal.session_id)
    own = await app.state.authenticator.authenticate(f"Bearer {person.tokens['access_token']}".encode())
    assert actor_of(own, actor.device).acting_id == person.id
