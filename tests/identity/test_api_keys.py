"""API keys: what they may do, and that they end at once."""

from dataclasses import replace
from datetime import timedelta

import httpx
import pytest
from fastapi import FastAPI

from app.identity.schemas.api_keys import ApiKeyCreated, ApiKeyList
from app.identity.service.tokens import decode_api_key
from app.kernel.resources import Resources
from tests.fixtures.answers import body_of, problem_of
from tests.fixtures.application import Budget, stored
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, Person
from tests.fixtures.servers import Connection
from tests.identity.conftest import LogIn


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def make_key(person: Person, *scopes: str, **fields: object) -> str:
    body = {"name": "k", "scopes": scopes or ["events:write"]} | fields
    answer = await person.post("/v1/auth/api-keys", json=body)
    return str(body_of(answer, ApiKeyCreated, 201)["key"])


async def test_a_key_is_shown_once_and_does_what_its_scopes_say(client: httpx.AsyncClient, person: Person) -> None:
    key = await make_key(person, "events:write", "events:read", "events:write")
    assert key.startswith("ak_")
    listed = await person.get("/v1/auth/api-keys")
    assert key not in listed.text
    forged = replace(decode_api_key(key), secret=bytes(32)).encode()
    problem_of(await client.post("/v1/events", json={"kind": "a"}, headers=bearer(forged)), 401, "invalid_token")
    (item,) = body_of(await person.get("/v1/auth/api-keys"), ApiKeyList)["items"]
    assert (item["name"], item["scopes"], item["last_used_at"]) == ("k", ["events:read", "events:write"], None)
    assert (await client.post("/v1/events", json={"kind": "a"}, headers=bearer(key))).status_code == 201
    answer = await client.get("/v1/users/me", headers=bearer(key))
    problem_of(answer, 403, "insufficient_scope")
    assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="profile:read"'
    (item,) = (await person.get("/v1/auth/api-keys")).json()["items"]
    assert item["last_used_at"] is not None


async def test_keys_are_made_once_an_idempotency_key_and_listed_by_pages(person: Person) -> None:
    body = {"name": "k", "scopes": ["events:write"]}
    first, second, other = [
        await person.post("/v1/auth/api-keys", json=body, headers={"Idempotency-Key": key}) for key in "aab"
    ]
    assert second.headers["idempotent-replayed"] == "true"
    assert first.json() == second.json() != other.json()
    page = (await person.get("/v1/auth/api-keys?limit=1")).json()
    rest = (await person.get("/v1/auth/api-keys", params={"cursor": page["next_cursor"]})).json()
    assert [item["id"] for item in page["items"] + rest["items"]] == [other.json()["id"], first.json()["id"]]
    assert rest["next_cursor"] is None


async def test_a_key_in_use_costs_nothing(
    client: httpx.AsyncClient, person: Person, budget: Budget, app: FastAPI, resources: Resources
) -> None:
    key = await make_key(person, "profile:read")
    await client.get("/v1/users/me", headers=bearer(key))
    await stored(app)
    calls = resources.redis.calls
    with budget(0):
        for _ in range(20):
            assert (await client.get("/v1/users/me", headers=bearer(key))).status_code == 200
    assert resources.redis.calls == calls


async def test_a_key_cannot_change_who_acts_for_the_account(client: httpx.AsyncClient, person: Person) -> None:
    key = await make_key(person, "profile:read", "profile:write")
    for method, path, body in (
        ("POST", "/v1/auth/api-keys", {"name": "k", "scopes": ["events:write"]}),
        ("POST", "/v1/auth/password/change", {"current_password": PASSWORD, "new_password": "a new horse 2026"}),
        ("POST", "/v1/auth/email/change", {"current_password": PASSWORD, "new_email": "x@example.com"}),
        ("DELETE", "/v1/users/me", {"current_password": PASSWORD}),
        ("POST", "/v1/auth/logout-all", {}),
        ("POST", "/v1/auth/mfa/totp", None),
    ):
        answer = await client.request(method, path, json=body, headers=bearer(key))
        problem_of(answer, 403, "session_required")
    assert (await person.get("/v1/users/me")).status_code == 200


async def test_nobody_gives_away_what_they_have_not(person: Person, admin: Person, client: httpx.AsyncClient) -> None:
    answer = await person.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["profile:read", "admin"]})
    problem_of(answer, 403, "insufficient_scope")
    wrongs: list[dict[str, object]] = [
        {"scopes": ["root"]},
        {"scopes": []},
        {"name": " "},
        {"name": ""},
        {"expires_at": "2020-01-01T00:00:00Z"},
    ]
    for wrong in wrongs:
        answer = await person.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["profile:read"], **wrong})
        assert answer.status_code == 422
    assert (await person.get("/v1/auth/api-keys")).json()["items"] == []


async def test_a_key_follows_its_owner_s_role_without_a_refusal_in_between(
    client: httpx.AsyncClient, person: Person, admin: Person, log_in: LogIn
) -> None:
    url = f"/v1/admin/users/{person.id}"
    assert (await admin.patch(url, json={"role": "admin"})).status_code == 200
    key = await make_key(await log_in(person), "admin", "profile:read")
    assert (await client.get("/v1/admin/users", headers=bearer(key))).status_code == 200
    assert (await admin.patch(url, json={"role": "user"})).status_code == 200
    assert (await client.get("/v1/users/me", headers=bearer(key))).status_code == 200
    problem_of(await client.get("/v1/admin/users", headers=bearer(key)), 403, "insufficient_scope")


async def test_a_key_rests_while_its_owner_is_banned(client: httpx.AsyncClient, person: Person, admin: Person) -> None:
    key = await make_key(person, "profile:read")
    statuses = []
    for action in ("ban", "unban"):
        statuses.append((await client.get("/v1/users/me", headers=bearer(key))).status_code)
        assert (await admin.post(f"/v1/admin/users/{person.id}/{action}")).status_code == 204
        statuses.append((await client.get("/v1/users/me", headers=bearer(key))).status_code)
    assert statuses == [200, 401, 401, 200]


async def test_a_key_ends_by_its_time(clock: ManualClock, client: httpx.AsyncClient, person: Person) -> None:
    key = await make_key(person, "profile:read", expires_at=(clock.now() + timedelta(seconds=90)).isoformat())
    assert (await client.get("/v1/users/me", headers=bearer(key))).status_code == 200
    clock.advance(90)
    for _ in range(2):
        problem_of(await client.get("/v1/users/me", headers=bearer(key)), 401, "invalid_token")


async def test_a_revoked_key_is_dead_at_once(client: httpx.AsyncClient, person: Person) -> None:
    key, other = await make_key(person, "profile:read"), await make_key(person, "profile:read")
    assert (await client.get("/v1/users/me", headers=bearer(key))).status_code == 200
    ids = [item["id"] for item in (await person.get("/v1/auth/api-keys")).json()["items"]]
    assert (await person.delete(f"/v1/auth/api-keys/{ids[1]}")).status_code == 204
    problem_of(await person.delete(f"/v1/auth/api-keys/{ids[1]}"), 404, "api_key_not_found")
    problem_of(await client.get("/v1/users/me", headers=bearer(key)), 401, "invalid_token")
    assert (await client.get("/v1/users/me", headers=bearer(other))).status_code == 200


@pytest.mark.settings(APP_IDENTITY_MAX_API_KEYS="3")
async def test_there_are_so_many_keys_and_no_more(person: Person, connection: Connection) -> None:
    body = {"name": "k", "scopes": ["events:write"]}
    answers = [await person.post("/v1/auth/api-keys", json=body) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [201] * 3 + [409]
    problem_of(answers[-1], 409, "too_many_api_keys")
    noted = "SELECT count(*) FROM identity.security_events WHERE action = 'api_key_created'"
    assert await connection.fetchval(noted) == 3
