"""Programs with accounts of their own: their secrets, their tokens, and what ends with them."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from app.identity.api import IdentityServices
from tests.fixtures.answers import problem_of
from tests.fixtures.application import Budget, Recorder
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, Person
from tests.fixtures.servers import Connection
from tests.identity.test_tokens import decode

SCOPES = ["events:read", "events:write", "introspect", "webhooks:manage"]
PATH = "/v1/admin/service-accounts"


async def make(admin: Person, **fields: Any) -> dict[str, Any]:
    answer = await admin.post(PATH, json={"name": "billing", "scopes": SCOPES} | fields)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


Ask = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
def ask(client: httpx.AsyncClient) -> Ask:
    """Asks for a token by the form, as the account that is given; other fields are added to the form."""

    async def ask(account: dict[str, Any], **fields: str) -> httpx.Response:
        form = {"grant_type": "client_credentials"} | {name: account[name] for name in ("client_id", "client_secret")}
        return await client.post("/v1/auth/token", data=form | fields)

    return ask


def basic(client_id: str, secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{quote(client_id)}:{quote(secret)}".encode()).decode()}


def bearer(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


async def test_a_secret_gets_a_token_for_the_account_itself(
    client: httpx.AsyncClient, admin: Person, ask: Ask, connection: Connection, budget: Budget
) -> None:
    account = await make(admin)
    assert account == {
        "id": account["client_id"],
        "client_id": account["id"],
        "client_secret": account["client_secret"],
        "name": "billing",
        "scopes": SCOPES,
        "old_secret_expires_at": None,
        "created_at": account["created_at"],
    }
    with budget(1):
        answer = await ask(account)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {
        "access_token": answer.json()["access_token"],
        "token_type": "Bearer",
        "expires_in": 600,
        "scope": " ".join(SCOPES),
    }
    claims = decode(answer.json()["access_token"].split(".")[1])
    assert (claims["sub"], claims["client_id"], claims["roles"]) == (account["id"], account["id"], [])
    assert "sid" not in claims
    headers = bearer(answer)
    recorded = await client.post("/v1/events", json={"kind": "invoice.paid"}, headers=headers)
    assert recorded.status_code == 201
    with budget(1):
        listed = await client.get("/v1/users/me/events", headers=headers)
    assert [event["kind"] for event in listed.json()["items"]] == ["invoice.paid"]
    hook = {"url": "https://93.184.216.34/hook", "event_types": ["*"]}
    assert (await client.post("/v1/webhooks/endpoints", json=hook, headers=headers)).status_code == 201
    assert (await client.get("/v1/auth/session", headers=headers)).json()["session_id"] is None
    problem_of(await client.get("/v1/users/me", headers=headers), 403, "insufficient_scope")
    problem_of(await client.get("/v1/auth/sessions", headers=headers), 403, "session_required")
    row = await connection.fetchrow("SELECT secret_hash FROM identity.service_accounts")
    assert row is not None
    assert account["client_secret"].encode() not in row["secret_hash"]


async def test_both_ways_to_authenticate(client: httpx.AsyncClient, admin: Person, ask: Ask) -> None:
    account = await make(admin)
    form = {"grant_type": "client_credentials", "scope": "events:read"}
    headers = basic(account["client_id"], account["client_secret"])
    answer = await client.post("/v1/auth/token", data=form, headers=headers)
    assert answer.json()["scope"] == "events:read"
    assert (await ask(account, scope="events:read")).json()["scope"] == "events:read"
    both = form | {"client_id": account["client_id"], "client_secret": account["client_secret"]}
    twice = await client.post("/v1/auth/token", data=both, headers=headers)
    assert (twice.status_code, twice.json()["error"]) == (400, "invalid_request")


async def test_a_scope_narrows_and_never_widens(client: httpx.AsyncClient, admin: Person, ask: Ask) -> None:
    account = await make(admin)
    narrow = bearer(await ask(account, scope="events:read"))
    assert (await client.get("/v1/users/me/events", headers=narrow)).status_code == 200
    problem_of(await client.post("/v1/events", json={"kind": "a"}, headers=narrow), 403, "insufficient_scope")
    for scope in ("profile:read", "admin", "events:read profile:read", "nonsense"):
        answer = await ask(account, scope=scope)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope")
    for scopes in (["admin"], ["nonsense"], []):
        assert (await admin.post(PATH, json={"name": "x", "scopes": scopes})).status_code == 422


async def test_a_wrong_client_is_told_nothing(
    client: httpx.AsyncClient, admin: Person, ask: Ask, statements: Recorder
) -> None:
    account = await make(admin)
    answers = []
    wrong = [
        {"client_secret": "cs_wrong"},
        {"client_id": str(admin.id)},
        {"client_id": "0198f000-0000-7000-8000-000000000000"},
        {"client_id": "x"},
    ]
    for fields in wrong:
        with statements() as seen:
            answers.append(await ask(account, **fields))
        assert [statement.label for statement in seen] == ["identity.client"]
    malformed = base64.b64encode(b"x").decode()
    headers = [
        basic(account["client_id"], "cs_wrong"),
        {"Authorization": "Basic !"},
        {"Authorization": f"Basic {malformed}"},
        {},
    ]
    form = {"grant_type": "client_credentials"}
    answers += [await client.post("/v1/auth/token", data=form, headers=each) for each in headers]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
        assert answer.headers["www-authenticate"] == 'Basic realm="onehop"'
    assert len({answer.text for answer in answers[: len(wrong)]}) == 1


async def test_two_secrets_during_a_rotation(
    clock: ManualClock, client: httpx.AsyncClient, admin: Person, ask: Ask
) -> None:
    first = await make(admin)
    second = (await admin.post(f"{PATH}/{first['id']}/rotate-secret")).json()
    assert second["old_secret_expires_at"] is not None
    for account in (first, second):
        assert (await ask(account)).status_code == 200
    third = (await admin.post(f"{PATH}/{first['id']}/rotate-secret", json={})).json()
    assert [(await ask(account)).status_code for account in (first, second, third)] == [401, 200, 200]
    clock.advance(86_400)
    assert [(await ask(account)).status_code for account in (second, third)] == [401, 200]
    token = bearer(await ask(third))
    assert (await client.get("/v1/users/me/events", headers=token)).status_code == 200
    clock.advance(-86_400)
    body = {"expire_old_now": True}
    fourth = (await admin.post(f"{PATH}/{first['id']}/rotate-secret", json=body)).json()
    assert [(await ask(account)).status_code for account in (third, fourth)] == [401, 200]
    problem_of(await client.get("/v1/users/me/events", headers=token), 401, "token_revoked")


async def test_the_end_of_the_account_ends_its_tokens_and_its_work(
    client: httpx.AsyncClient, admin: Person, ask: Ask, connection: Connection
) -> None:
    account, other = await make(admin), await make(admin, name="other")
    token, others = bearer(await ask(account)), bearer(await ask(other))
    assert (await client.post("/v1/events", json={"kind": "a"}, headers=token)).status_code == 201
    assert [item["id"] for item in (await admin.get(PATH)).json()["items"]] == [other["id"], account["id"]]
    assert "client_secret" not in (await admin.get(PATH)).json()["items"][0]
    assert (await admin.delete(f"{PATH}/{account['id']}")).status_code == 204
    problem_of(await client.post("/v1/events", json={"kind": "a"}, headers=token), 401, "token_revoked")
    assert (await client.post("/v1/events", json={"kind": "a"}, headers=others)).status_code == 201
    assert (await ask(account)).status_code == 401
    for method, path in (("DELETE", ""), ("POST", "/rotate-secret")):
        for missing in (account["id"], str(admin.id)):
            answer = await admin.request(method, f"{PATH}/{missing}{path}")
            problem_of(answer, 404, "service_account_not_found")
    assert [item["id"] for item in (await admin.get(PATH)).json()["items"]] == [other["id"]]
    purges = "SELECT count(*) FROM jobs.jobs WHERE kind = 'users.purge' AND args ->> 'user_id' = $1"
    assert await connection.fetchval(purges, account["id"]) == 1


async def test_a_ban_ends_a_program_too(client: httpx.AsyncClient, admin: Person, ask: Ask) -> None:
    account = await make(admin)
    token = bearer(await ask(account))
    assert (await admin.post(f"/v1/admin/users/{account['id']}/ban")).status_code == 204
    problem_of(await client.post("/v1/events", json={"kind": "a"}, headers=token), 401, "token_revoked")
    assert (await ask(account)).status_code == 401
    hook = {"url": "https://93.184.216.34/hook", "event_types": ["*"]}
    problem_of(await client.post("/v1/webhooks/endpoints", json=hook, headers=token), 401, "token_revoked")


async def test_only_the_scope_introspects_the_tokens_of_others(
    client: httpx.AsyncClient, admin: Person, person: Person, ask: Ask
) -> None:
    account = await make(admin)
    form = {"token": person.tokens["access_token"]}
    token = bearer(await ask(account))
    told = (await client.post("/v1/auth/introspect", data=form, headers=token)).json()
    assert (told["active"], told["sub"]) == (True, str(person.id))
    narrow = bearer(await ask(account, scope="events:read"))
    assert (await client.post("/v1/auth/introspect", data=form, headers=narrow)).json() == {"active": False}
    own = {"token": narrow["Authorization"].removeprefix("Bearer ")}
    told = (await client.post("/v1/auth/introspect", data=own, headers=token)).json()
    assert (told["client_id"], told["scope"]) == (account["client_id"], "events:read")
    await person.post("/v1/auth/logout")
    assert (await client.post("/v1/auth/introspect", data=form, headers=token)).json() == {"active": False}


async def test_nobody_logs_in_as_a_program(
    client: httpx.AsyncClient, admin: Person, identity: IdentityServices, ask: Ask
) -> None:
    account = await make(admin)
    email = f"{account['id']}@service.invalid"
    for password in ("", "x", account["client_secret"]):
        answer = await client.post("/v1/auth/login", json={"email": email, "password": password or " "})
        problem_of(answer, 401, "invalid_credentials")
    assert (await client.post("/v1/auth/password/forgot", json={"email": email})).status_code == 422
    # Its token is no session's, so it ends nothing, and a client that revokes it is not told that it has ended.
    token = bearer(await ask(account))
    assert (await client.post("/v1/auth/logout", headers=token)).status_code == 204
    revoked = await client.post("/v1/auth/revoke", data={"token": token["Authorization"][7:]})
    assert (revoked.status_code, revoked.json()["error"]) == (400, "unsupported_token_type")
    assert (await client.get("/v1/users/me/events", headers=token)).status_code == 200


async def test_only_a_whole_session_makes_or_ends_the_secrets_of_programs(
    client: httpx.AsyncClient, admin: Person, ask: Ask
) -> None:
    account = await make(admin)
    key = (await admin.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["admin"]})).json()["key"]
    form = {"grant_type": "password", "username": admin.email, "password": PASSWORD, "scope": "admin"}
    narrowed = bearer(await client.post("/v1/auth/token", data=form))
    for headers in ({"Authorization": f"Bearer {key}"}, narrowed):
        for method, path, body in (
            ("POST", PATH, {"name": "other", "scopes": SCOPES}),
            ("POST", f"{PATH}/{account['id']}/rotate-secret", {"expire_old_now": True}),
            ("DELETE", f"{PATH}/{account['id']}", None),
        ):
            problem_of(await client.request(method, path, json=body, headers=headers), 403, "session_required")
        listed = (await client.get(PATH, headers=headers)).json()["items"]
        assert [item["id"] for item in listed] == [account["id"]]
    assert (await ask(account)).status_code == 200
