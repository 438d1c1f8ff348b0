"""What one caller can make a process or Redis keep is bounded in bytes, whatever the caller varies."""

import asyncio
from typing import Any

import httpx
import pytest
import redis.asyncio
from fastapi import FastAPI
from prometheus_client import REGISTRY

from app.identity.service import authentication
from app.kernel.cache.cached_response import MAX_BYTES, MAX_VARIANT_BYTES, MAX_VARIANTS
from app.kernel.headers import codings
from app.kernel.request import client_address as client_module
from app.kernel.server.connections import ConnectionManager
from app.kernel.settings import ConnectionSettings
from tests.fixtures.people import Person
from tests.fixtures.waiting import eventually

_READS = 5


async def test_queries_of_one_user_share_a_few_entries(app: FastAPI, person: Person, redis_url: str) -> None:
    events = [{"kind": f"kind{number}", "properties": {"text": "x" * 7_000}} for number in range(10)]
    assert (await person.post("/v1/events", json={"events": events})).status_code == 201
    cache = app.state.resources.cache
    for number in range(60):
        query = f"limit={number % 9 + 1}&since=2020-01-01T00:00:{number:02}Z"
        for path in (f"/v1/users/me/events?{query}", "/v1/overview"):
            first = await person.get(path)
            again = await person.get(path)
            assert (first.status_code, first.content) == (200, again.content)
        assert len((await person.get(f"/v1/users/me/events?{query}")).json()["items"]) == number % 9 + 1
    await eventually(lambda: not cache._remote._is_storing)
    async with redis.asyncio.Redis.from_url(redis_url) as server:
        sizes = [await server.strlen(key) async for key in server.scan_iter(f"cache:entry:*{person.id.hex}*")]
    assert 1 < len(sizes) <= _READS * (1 + MAX_VARIANTS)
    assert sum(sizes) <= _READS * (MAX_BYTES + MAX_VARIANTS * MAX_VARIANT_BYTES)
    local = cache._local
    assert 1 < len(local._entries) <= _READS + MAX_VARIANTS
    assert local._bytes == sum(entry.size for entry in local._entries.values())
    assert all(entry.size > len(key) + len(entry.answer.body) for key, entry in local._entries.items())


async def test_entries_that_queries_share_are_told_apart(app: FastAPI, person: Person) -> None:
    """Out of Redis, where they were put by another process."""
    for kind in ("a", "b", "c"):
        assert (await person.post("/v1/events", json={"kind": kind})).status_code == 201
    cache = app.state.resources.cache
    for number in range(30):
        kind = "abc"[number % 3]
        path = f"/v1/users/me/events?kind={kind}&limit={number + 1}"
        for _ in range(2):
            assert [item["kind"] for item in (await person.get(path)).json()["items"]] == [kind]
            await eventually(lambda: not cache._remote._is_storing)
            cache._local.forget_all()


async def test_a_large_answer_is_given_and_not_kept(app: FastAPI, person: Person, redis_url: str) -> None:
    events = [{"kind": "a.b", "properties": {"text": "x" * 8_000}} for _ in range(100)]
    assert (await person.post("/v1/events", json={"events": events})).status_code == 201
    for path in ("/v1/users/me/events?limit=100", "/v1/users/me/events?limit=9"):
        answer = await person.get(path)
        assert len(answer.content) > MAX_VARIANT_BYTES
        assert (await person.get(path, headers={"If-None-Match": answer.headers["etag"]})).status_code == 304
    assert len(app.state.resources.cache._local._entries) == 0
    async with redis.asyncio.Redis.from_url(redis_url) as server:
        assert [key async for key in server.scan_iter("cache:entry:*")] == []


async def test_spellings_of_a_token_are_not_kept(app: FastAPI, client: httpx.AsyncClient, person: Person) -> None:
    authenticator = app.state.identity.authenticator
    token = person.tokens["access_token"]
    for number in range(60):
        spelling = ("bearer", "BEARER", "Bearer")[number % 3] + " " * (number + 1) + token + " " * number
        answer = await client.get("/v1/users/me", headers={"Authorization": spelling})
        assert answer.status_code == 200
        wrong = {"Authorization": f"Bearer {'a' * number * 500}"}
        assert (await client.get("/v1/users/me", headers=wrong)).status_code == 401
    assert list(authenticator._verified) == [f"Bearer {token}".encode()]


async def test_tokens_of_one_user_are_few(app: FastAPI, person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "MAX_REMEMBERED_OF_USER", 3)
    authenticator = app.state.identity.authenticator
    for _ in range(6):
        body = {"email": person.email, "password": person.password}
        tokens = (await person.client.post("/v1/auth/login", json=body)).json()["tokens"]
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        assert (await person.client.get("/v1/users/me", headers=headers)).status_code == 200
        assert (await person.get("/v1/users/me")).status_code == 200
    assert len(authenticator._verified) == 3
    assert [set(of_user) for of_user in authenticator._credentials_of.values()] == [set(authenticator._verified)]


@pytest.mark.settings(APP_HTTP_TRUSTED_PROXIES="127.0.0.1")
async def test_headers_leave_nothing_behind(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[bytes] = []
    walk = client_module._walk

    def note(peer: str, forwarded: bytes, *rest: Any, **options: Any) -> str | None:
        walked.append(forwarded)
        return walk(peer, forwarded, *rest, **options)

    monkeypatch.setattr(client_module, "_walk", note)
    codings._names_gzip.cache_clear()
    series = None
    for number in range(100):
        padding = "x" * 20_000 + str(number)
        fields = {
            "Accept-Encoding": f"gzip, {padding}",
            "X-Forwarded-For": f"{padding}, 198.51.100.7",
            "User-Agent": padding,
            "Prefer": padding,
            "X-Request-ID": padding,
            "Traceparent": padding,
        }
        assert (await person.request("GET", "/v1/overview", headers=fields)).status_code == 200
        await person.client.request(f"METHOD{number}", f"/nowhere/{number}", headers=fields)
        series = series or _series()
    assert codings._names_gzip.cache_info().currsize == 0
    assert len(walked) >= 100
    # What is kept are the arguments.
    assert {len(forwarded) for forwarded in walked} == {512}
    # Of paths and methods there are as many as clients like, of routes and statuses a few.
    assert _series() == series


async def test_hosts_are_remembered_as_long_as_a_name_may_be() -> None:
    manager = ConnectionManager(set(), ConnectionSettings(), asyncio.get_running_loop())
    for number in range(1_200):
        assert manager.knows_host(b"a" * 300 + b"%d" % number)
        assert manager.knows_host(b"host%d" % number)
    assert len(manager._hosts) == 1_000
    assert max(map(len, manager._hosts)) <= 262


def _series() -> int:
    """Label sets of requests."""
    (metric,) = (
        metric for metric in REGISTRY.collect() if metric.name == "onehop_http_server_request_duration_seconds"
    )
    return sum(1 for sample in metric.samples if sample.name.endswith("_count"))
