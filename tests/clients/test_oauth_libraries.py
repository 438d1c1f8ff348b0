"""The token endpoint and our tokens as the usual libraries see them: authlib, oauthlib with requests, PyJWT."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import requests
from authlib.integrations.base_client import OAuthError as AuthlibError
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata, get_well_known_url
from oauthlib.oauth2 import LegacyApplicationClient, OAuth2Error
from requests.adapters import BaseAdapter
from requests_oauthlib import OAuth2Session

from tests.fixtures.people import PASSWORD, Person
from tests.fixtures.servers import Connection

BASE = "https://api.example.com"
TOKEN_URL = f"{BASE}/v1/auth/token"
pytestmark = pytest.mark.settings(APP_PUBLIC_URL=BASE)


class _ToApplication(BaseAdapter):
    """Carries what `requests` sends from another thread to the application in the loop of the test."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        super().__init__()
        self._client = client
        self._loop = asyncio.get_running_loop()

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        headers = {name: str(value) for name, value in request.headers.items()}
        body: Any = request.body
        path = urlsplit(request.url or "").path
        asked = self._client.request(request.method or "GET", path, headers=headers, content=body)
        found = asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        answer = requests.Response()
        answer.status_code, answer.url, answer.request = found.status_code, request.url or "", request
        answer.headers.update(dict(found.headers))
        answer._content = found.content
        return answer

    def close(self) -> None:
        """Nothing is open."""


async def get_json(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    answer = await client.get(urlsplit(url).path)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_the_metadata_is_what_rfc_8414_asks_for(client: httpx.AsyncClient) -> None:
    found = await get_json(client, get_well_known_url(BASE, external=True))
    AuthorizationServerMetadata(found).validate()
    assert found["token_endpoint"] == TOKEN_URL


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_authlib_as_a_program(
    client: httpx.AsyncClient, person: Person, connection: Connection, method: str
) -> None:
    await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id = $1", person.id)
    login = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    admin = replace(person, tokens=login.json()["tokens"])
    program = {"name": "billing", "scopes": ["introspect", "events:write"]}
    made = (await admin.post("/v1/admin/service-accounts", json=program)).json()
    adapter = _ToApplication(client)

    def use() -> tuple[dict[str, Any], str]:
        session = AuthlibSession(
            made["client_id"], made["client_secret"], token_endpoint_auth_method=method, scope="introspect"
        )
        session.mount("https://", adapter)
        token = session.fetch_token(TOKEN_URL, grant_type="client_credentials")
        wrong = AuthlibSession(made["client_id"], "cs_wrong", token_endpoint_auth_method=method)
        wrong.mount("https://", adapter)
        with pytest.raises(AuthlibError) as caught:
            wrong.fetch_token(TOKEN_URL, grant_type="client_credentials")
        return token, caught.value.error

    token, error = await asyncio.to_thread(use)
    assert (token["token_type"], token["scope"], error) == ("Bearer", "introspect", "invalid_client")
    assert "refresh_token" not in token


async def test_authlib(client: httpx.AsyncClient, person: Person) -> None:
    adapter = _ToApplication(client)
    saved: list[dict[str, Any]] = []

    def save(token: dict[str, Any], **_: Any) -> None:
        saved.append(token)

    def use() -> None:
        session = AuthlibSession(
            "any-client",
            token_endpoint=TOKEN_URL,
            token_endpoint_auth_method="none",
            update_token=save,
            scope="profile:read jobs:read",
        )
        session.mount("https://", adapter)
        ask = {"username": person.email, "password": PASSWORD}
        token = session.fetch_token(TOKEN_URL, grant_type="password", **ask)
        assert token["scope"] == "jobs:read profile:read"
        assert session.get(f"{BASE}/v1/users/me").json()["email"] == person.email
        # Refreshed by itself once it is over.
        session.token = token | {"expires_at": 1}
        assert session.get(f"{BASE}/v1/jobs").status_code == 200
        assert saved[0]["refresh_token"] != token["refresh_token"]
        assert saved[0]["scope"] == token["scope"]
        wrong = [
            (ask | {"password": "x"}, "invalid_grant"),
            ({"username": "a\0b", "password": "x"}, "invalid_request"),
            ({"username": "x" * 5_000, "password": "x"}, "invalid_request"),
            ({"username": "x" * 50_000, "password": "x"}, "invalid_request"),
            (ask | {"scope": "nonsense"}, "invalid_scope"),
        ]
        for fields, error in wrong:
            with pytest.raises(AuthlibError) as caught:
                session.fetch_token(TOKEN_URL, grant_type="password", **fields)
            assert caught.value.error == error
        assert session.revoke_token(f"{BASE}/v1/auth/revoke", token=saved[0]["refresh_token"]).status_code == 200
        session.token = saved[0]
        assert session.get(f"{BASE}/v1/users/me").status_code == 401

    await asyncio.to_thread(use)


async def test_oauthlib(client: httpx.AsyncClient, person: Person) -> None:
    """With its check that nothing else was granted than what was asked for, which is an exception by default."""
    adapter = _ToApplication(client)

    def opened(**options: Any) -> OAuth2Session:
        session = OAuth2Session(**options)
        session.mount("https://", adapter)
        return session

    def use() -> None:
        legacy = LegacyApplicationClient("any-client", scope=["profile:read"])
        with opened(client=legacy) as session:
            token = session.fetch_token(TOKEN_URL, username=person.email, password=PASSWORD, include_client_id=True)
            assert session.get(f"{BASE}/v1/users/me").json()["email"] == person.email
            with pytest.raises(OAuth2Error, match="invalid_grant"):
                session.fetch_token(TOKEN_URL, username=person.email, password="x")
            with pytest.raises(OAuth2Error, match="invalid_request"):
                session.fetch_token(TOKEN_URL, username="a\0b", password="x")
        saved: list[dict[str, Any]] = []
        save: Callable[[dict[str, Any]], None] = saved.append
        expired = {**token, "expires_at": 1, "expires_in": -1}
        known = {"client_id": "any-client", "token": expired, "scope": ["profile:read"]}
        with opened(**known, auto_refresh_url=TOKEN_URL, token_updater=save) as session:
            assert session.get(f"{BASE}/v1/users/me").status_code == 200
            assert session.get(f"{BASE}/v1/jobs").status_code == 403
        assert saved[0]["refresh_token"] != token["refresh_token"]

    await asyncio.to_thread(use)
