"""What OAuth clients and Swagger UI rely on: token, introspection, revocation, keys and discovery."""

import asyncio
import base64
import json
import re
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi import FastAPI

from app.identity.api import IdentityServices, operator, rotate_signing_keys
from app.identity.router import OAUTH_PATHS
from app.identity.schemas.oauth import DiscoveryResponse, IntrospectionResponse, JwksResponse
from app.identity.schemas.sessions import TokensResponse
from app.identity.service.container import load_signing_keys
from app.identity.service.tokens import Claims
from app.kernel.resources import Resources
from tests.attacks.test_slow_bodies import admission_of
from tests.fixtures.answers import body_of, problem_of
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.identity.conftest import LogIn
from tests.identity.test_api_keys import bearer, make_key


def oauth_error(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]) == (status, code), answer.text
    assert set(answer.json()) == {"error", "error_description"}
    assert answer.headers["cache-control"] == "no-store"


async def test_authorize_of_the_documentation_works(app: FastAPI, client: httpx.AsyncClient, person: Person) -> None:
    """The request is the one that Swagger UI sends, its empty fields and Basic header included."""
    (schema,) = (await asyncio.to_thread(app.openapi))["components"]["securitySchemes"].values()
    form = {"grant_type": "password", "username": person.email, "password": PASSWORD, "scope": "profile:read"}
    answer = await client.post(
        urlsplit(schema["flows"]["password"]["tokenUrl"]).path,
        data=form,
        headers={"Authorization": "Basic " + base64.b64encode(b":").decode(), "X-Requested-With": "XMLHttpRequest"},
    )
    body = body_of(answer, TokensResponse)
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    assert (await client.get("/v1/users/me", headers=bearer(body["access_token"]))).status_code == 200
    refresh = {"grant_type": "refresh_token", "refresh_token": body["refresh_token"]}
    successor = body_of(await client.post("/v1/auth/token", data=refresh), TokensResponse)
    assert successor["refresh_token"] != body["refresh_token"]
    oauth_error(await client.post("/v1/auth/token", data=refresh), 400, "invalid_grant")


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({}, "invalid_request"),
        ({"grant_type": "password", "username": "x"}, "invalid_request"),
        ({"grant_type": "refresh_token"}, "invalid_request"),
        ({"grant_type": "authorization_code"}, "unsupported_grant_type"),
        ({"grant_type": "password", "username": "unknown@example.com", "password": "x"}, "invalid_grant"),
        (
            {"grant_type": "password", "username": "\ud800".encode("utf-8", "surrogatepass"), "password": "x"},
            "invalid_grant",
        ),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, "invalid_grant"),
    ],
)
async def test_token_errors(client: httpx.AsyncClient, form: dict[str, str], error: str) -> None:
    oauth_error(await client.post("/v1/auth/token", data=form), 400, error)


@pytest.mark.parametrize("path", sorted(OAUTH_PATHS))
async def test_whatever_is_wrong_with_a_request_is_told_in_one_form(
    client: httpx.AsyncClient, person: Person, path: str
) -> None:
    """A library that finds no `error` takes what it gets for a token."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    token = [("Authorization", person.headers["Authorization"])]
    good = b"grant_type=password&username=a&password=b&token=t"
    requests: list[tuple[str, bytes, dict[str, str]]] = [
        ("", b"token=" + b"x" * 20_000, form),
        ("", b"token=" + b"x" * 2_000_000, form),
        ("", b'{"grant_type": "password", "token": "t"}', {"Content-Type": "application/json"}),
        ("", good, {"Content-Type": "multipart/form-data; boundary=x"}),
        ("", good, {}),
        ("", good, form | {"Content-Encoding": "gzip"}),
        ("", good + b"&grant_type=password&token=t", form),
        ("", good + b"&%67rant_type=&%74oken=", form),
        ("?x=1", good, form),
        ("?token=t", good, form),
        ("?x=%ff", good, form),
        ("", good, form | {"If-Match": '"a"'}),
    ]
    if path == "/v1/auth/token":
        # Of a token there is none that is merely wrong: whatever is not known is not active, and revoked already.
        requests.append(("", b"grant_type=password&username=a%00b&password=%00", form))
        requests.append(("", b"grant_type=password&password=x&username=" + b"x" * 5_000, form))
    for query, content, headers in requests:
        answer = await client.post(path + query, content=content, headers=[*token, *headers.items()])
        oauth_error(answer, 400, "invalid_request")
        assert re.fullmatch(r"[\x20-\x21\x23-\x5b\x5d-\x7e]+", answer.json()["error_description"])
        assert len(answer.content) == int(answer.headers["content-length"])
    twice = await client.post(path, content=good, headers=[*token, *token, *form.items()])
    oauth_error(twice, 400, "invalid_request")
    wrong_method = await client.get(path)
    oauth_error(wrong_method, 405, "invalid_request")
    assert wrong_method.headers["allow"] == "OPTIONS, POST"
    head = await client.head(path)
    assert (head.status_code, head.content) == (405, b"")


@pytest.mark.settings(APP_LIMITS_NETWORK="1")
async def test_a_used_up_quota_is_told_in_the_form_of_oauth(client: httpx.AsyncClient) -> None:
    form = {"grant_type": "refresh_token", "refresh_token": "x"}
    answers = [await client.post("/v1/auth/token", data=form) for _ in range(40)]
    assert answers[-1].status_code == 429
    oauth_error(answers[-1], 429, answers[-1].json()["error"])
    assert int(answers[-1].headers["retry-after"]) >= 1


async def test_a_scope_narrows(client: httpx.AsyncClient, person: Person, connection: Connection) -> None:
    async def ask(**fields: str) -> httpx.Response:
        return await client.post("/v1/auth/token", data=fields)

    password = {"grant_type": "password", "username": person.email, "password": PASSWORD}
    sessions = await connection.fetchval("SELECT count(*) FROM identity.sessions")
    for scope in ("nonsense", "profile:read x", "admin", "profile:read admin"):
        oauth_error(await ask(**password, scope=scope), 400, "invalid_scope")
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions") == sessions
    for whole in ("", "   "):
        assert body_of(await ask(**password, scope=whole), TokensResponse)["scope"] == person.tokens["scope"]
    tokens = body_of(await ask(**password, scope="jobs:read  profile:read jobs:read"), TokensResponse)
    refresh = {"grant_type": "refresh_token"}
    # It stays with the session over both ways to refresh, and an access token may be good for less still.
    for _ in range(2):
        assert tokens["scope"] == claims_of(tokens["access_token"])["scope"] == "jobs:read profile:read"
        assert (await client.get("/v1/users/me", headers=bearer(tokens["access_token"]))).status_code == 200
        denied = await client.post("/v1/events", json={"kind": "a.b"}, headers=bearer(tokens["access_token"]))
        problem_of(denied, 403, "insufficient_scope")
        less = body_of(
            await ask(**refresh, refresh_token=tokens["refresh_token"], scope="profile:read"), TokensResponse
        )
        assert less["scope"] == claims_of(less["access_token"])["scope"] == "profile:read"
        assert (await client.get("/v1/jobs", headers=bearer(less["access_token"]))).status_code == 403
        more = await ask(**refresh, refresh_token=less["refresh_token"], scope="profile:read events:read")
        oauth_error(more, 400, "invalid_scope")
        # That has not used the refresh token up.
        again = await client.post("/v1/auth/refresh", json={"refresh_token": less["refresh_token"]})
        tokens = body_of(again, TokensResponse)
    whole = person.tokens["refresh_token"]
    oauth_error(await ask(**refresh, refresh_token=whole, scope="admin"), 400, "invalid_scope")
    less = body_of(await ask(**refresh, refresh_token=whole, scope="events:read"), TokensResponse)
    assert less["scope"] == "events:read"
    full = body_of(await ask(**refresh, refresh_token=less["refresh_token"]), TokensResponse)
    assert full["scope"] == person.tokens["scope"]


async def test_a_narrowed_token_manages_no_credentials(client: httpx.AsyncClient, person: Person) -> None:
    """What it may not do it could otherwise get by an API key, another password, or a factor of its own."""
    form = {"grant_type": "password", "username": person.email, "password": PASSWORD, "scope": "profile:read"}
    tokens = (await client.post("/v1/auth/token", data=form)).json()
    narrowed = bearer(tokens["access_token"])
    change = {"current_password": PASSWORD, "new_password": "another staple entirely"}
    for method, path, body in [
        ("POST", "/v1/auth/api-keys", {"name": "x", "scopes": ["profile:read"]}),
        ("POST", "/v1/auth/password/change", change),
        ("POST", "/v1/auth/mfa/totp", None),
        ("GET", "/v1/auth/sessions", None),
    ]:
        problem_of(await client.request(method, path, json=body, headers=narrowed), 403, "session_required")
    assert (await person.get("/v1/auth/api-keys")).json()["items"] == []
    assert (await client.post("/v1/auth/logout", headers=narrowed)).status_code == 204
    problem_of(await client.get("/v1/users/me", headers=narrowed), 401, "token_revoked")


async def test_the_token_endpoint_is_braked_like_log_in(client: httpx.AsyncClient, person: Person) -> None:
    form = {"grant_type": "password", "username": person.email, "password": "not it at all"}
    answers = [await client.post("/v1/auth/token", data=form) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [400] * 5 + [429]
    login = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    problem_of(login, 429, "too_many_attempts")


async def test_introspection_tells_the_owner(client: httpx.AsyncClient, person: Person) -> None:
    async def ask(token: object) -> dict[str, object]:
        answer = await person.post("/v1/auth/introspect", data={"token": token})
        IntrospectionResponse.model_validate_json(answer.content)
        found: dict[str, object] = answer.json()
        return found

    token = str(person.tokens["access_token"])
    claims = claims_of(token)
    assert (claims["client_id"], "narrowed" in claims) == ("first-party", False)
    told = await ask(token)
    assert told == {"active": True, "token_type": "Bearer"} | {
        name: claims[name] for name in ("sub", "scope", "jti", "iss", "aud", "iat", "exp", "client_id")
    }
    refresh_token = person.tokens["refresh_token"]
    assert await ask(refresh_token) == {"active": True, "sub": str(person.id), "token_type": "refresh_token"}
    key = await make_key(person, "events:write")
    assert (await ask(key))["scope"] == "events:write"
    await client.post("/v1/auth/refresh", json={"refresh_token": refresh_token})
    for dead in (refresh_token, "x", "rt_x", "ak_x", token[:-4]):
        assert await ask(dead) == {"active": False}


async def test_introspection_checks_the_signature_once(
    person: Person, identity: IdentityServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = str(person.tokens["access_token"])
    assert (await person.get("/v1/users/me")).status_code == 200
    verified: list[str] = []
    verify = identity.key_ring.verify

    def counted(text: str) -> Claims:
        verified.append(text)
        return verify(text)

    monkeypatch.setattr(identity.key_ring, "verify", counted)
    assert (await person.post("/v1/auth/introspect", data={"token": token})).json()["active"] is True
    assert verified == [token]


async def test_introspection_tells_others_nothing(
    client: httpx.AsyncClient, person: Person, make_person: MakePerson, admin: Person
) -> None:
    token = {"token": person.tokens["access_token"]}
    other = await make_person()
    assert (await other.post("/v1/auth/introspect", data=token)).json() == {"active": False}
    assert (await admin.post("/v1/auth/introspect", data=token)).json()["sub"] == str(person.id)
    for headers, error, challenge in (
        ({}, "invalid_client", "Bearer"),
        ({"Authorization": "Basic eDp5"}, "invalid_client", "Bearer"),
        (bearer("x"), "invalid_token", 'Bearer error="invalid_token"'),
    ):
        answer = await client.post("/v1/auth/introspect", data=token, headers=headers)
        oauth_error(answer, 401, error)
        assert answer.headers["www-authenticate"] == challenge
    oauth_error(await person.post("/v1/auth/introspect", data={}), 400, "invalid_request")


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
async def test_revoking_a_token_ends_its_session(
    client: httpx.AsyncClient, person: Person, log_in: LogIn, kind: str
) -> None:
    other = await log_in(person)
    form = {"token": person.tokens[kind], "token_type_hint": "nonsense"}
    for _ in range(2):
        answer = await client.post("/v1/auth/revoke", data=form)
        assert (answer.status_code, answer.json()) == (200, {})
    problem_of(await person.get("/v1/users/me"), 401, "token_revoked")
    answer = await client.post("/v1/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]})
    problem_of(answer, 401, "invalid_refresh_token")
    assert (await other.get("/v1/users/me")).status_code == 200


async def test_revoking_what_is_not_known_is_answered_alike(client: httpx.AsyncClient, person: Person) -> None:
    for unknown in ("x", "rt_x", "ak_x", str(person.tokens["access_token"])[:-2]):
        answer = await client.post("/v1/auth/revoke", data={"token": unknown})
        assert (answer.status_code, answer.json()) == (200, {})
    oauth_error(await client.post("/v1/auth/revoke", data={}), 400, "invalid_request")
    key = await make_key(person, "profile:read")
    assert (await client.post("/v1/auth/revoke", data={"token": key})).status_code == 200
    problem_of(await client.get("/v1/users/me", headers=bearer(key)), 401, "invalid_token")


async def test_discovery_leads_to_what_is_there(client: httpx.AsyncClient, person: Person) -> None:
    answer = await client.get("/.well-known/oauth-authorization-server")
    found = body_of(answer, DiscoveryResponse)
    assert answer.headers["cache-control"] == "public, max-age=300"
    # Members without elements are left out (RFC 8414, section 3.2).
    assert all(found.values())
    for name, url in found.items():
        if name.endswith(("_endpoint", "_uri")):
            assert url.startswith(found["issuer"] + "/")
            method = "GET" if name == "jwks_uri" else "POST"
            assert (await client.request(method, urlsplit(url).path)).status_code not in (404, 405)
    # There is no authorization endpoint and no ID token, so this is no provider of OpenID Connect.
    problem_of(await client.get("/.well-known/openid-configuration"), 404, "not_found")


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return claims


def key_of(token: str) -> str:
    return str(json.loads(base64.urlsafe_b64decode(token.split(".", maxsplit=1)[0] + "=="))["kid"])


def verifies(jwks: httpx.Response, token: str) -> bool:
    """As another service does it that has nothing but the published keys."""
    keys = {key["kid"]: key for key in body_of(jwks, JwksResponse)["keys"]}
    raw = base64.urlsafe_b64decode(keys[key_of(token)]["x"] + "=")
    signed, _, signature = token.rpartition(".")
    Ed25519PublicKey.from_public_bytes(raw).verify(base64.urlsafe_b64decode(signature + "=="), signed.encode())
    return True


async def test_key_rotation(
    client: httpx.AsyncClient,
    person: Person,
    log_in: LogIn,
    identity: IdentityServices,
    resources: Resources,
    connection: Connection,
) -> None:
    jwks = await client.get("/.well-known/jwks.json")
    first = str(person.tokens["access_token"])
    published = {key["kid"] for key in jwks.json()["keys"]}
    assert len(published) == 2
    assert verifies(jwks, first)
    assert "d" not in jwks.json()["keys"][0]

    active = await rotate_signing_keys(resources.db, resources.keys, resources.clock, operator("test"))
    assert active in published - {key_of(first)}
    # A process that has not looked yet goes on with the old key, and everybody accepts it.
    old = await log_in(person)
    assert key_of(str(old.tokens["access_token"])) == key_of(first)
    await load_signing_keys(identity.key_ring, resources.db, resources.keys)
    new = await log_in(person)
    assert key_of(str(new.tokens["access_token"])) == active
    jwks = await client.get("/.well-known/jwks.json")
    for each in (person, old, new):
        assert verifies(jwks, str(each.tokens["access_token"]))
        assert (await each.get("/v1/users/me")).status_code == 200
    rows = await connection.fetch("SELECT state FROM identity.signing_keys ORDER BY state")
    assert [row["state"] for row in rows] == ["active", "next", "retired"]

    await connection.execute(
        "UPDATE identity.signing_keys SET retired_at = now() - interval '25 hours' WHERE state = 'retired'"
    )
    await load_signing_keys(identity.key_ring, resources.db, resources.keys)
    identity.authenticator._verified.clear()
    problem_of(await person.get("/v1/users/me"), 401, "invalid_token")
    assert (await new.get("/v1/users/me")).status_code == 200
    assert key_of(first) not in {key["kid"] for key in (await client.get("/.well-known/jwks.json")).json()["keys"]}


async def test_only_the_password_grant_is_charged_and_queued_as_a_hash(
    client: httpx.AsyncClient, app: FastAPI, person: Person
) -> None:
    admission = admission_of(app)
    hashing = admission._hashing
    password = {"grant_type": "password", "username": person.email, "password": PASSWORD}
    program = {"grant_type": "client_credentials", "client_id": str(person.id), "client_secret": "cs_x"}
    refresh = {"grant_type": "refresh_token", "refresh_token": "rt_x"}

    async def ask(form: dict[str, str]) -> tuple[int, float]:
        """The status, and what was left of the quota of the network."""
        answer = await client.post("/v1/auth/token", data=form)
        return answer.status_code, float(answer.headers["ratelimit"].partition("r=")[2].partition(";")[0])

    left = [await ask(program), await ask(program), await ask(refresh), await ask(password)]
    assert [status for status, _ in left] == [401, 401, 400, 200]
    assert [before - after for (_, before), (_, after) in pairwise(left)] == [1, 1, 10]
    taken = 0
    while hashing.limiter.try_acquire(hashing):
        taken += 1
    assert taken >= 1
    assert [(await ask(form))[0] for form in (program, refresh, password)] == [401, 400, 503]
    for _ in range(taken):
        hashing.limiter.release(hashing)
    assert (await ask(password))[0] == 200
    assert [(limiter.used, limiter.held) for limiter in admission._limiters] == [(0, {}), (0, {})]
