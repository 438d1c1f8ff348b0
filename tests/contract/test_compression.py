"""Answers to reads go out as gzip where that is taken and worth it, each form with a strong tag of its own."""

import asyncio
import gzip
import threading
import zlib

import httpx
import pytest
from fastapi import FastAPI

from app.kernel.headers import codings
from app.kernel.headers.codings import accepts_gzip, compress_stream
from tests.fixtures.application import Lifespan
from tests.fixtures.people import PASSWORD, Person
from tests.fixtures.times import in_days

GZIP = {"Accept-Encoding": "gzip"}
PLAIN = {"Accept-Encoding": "identity"}


@pytest.mark.parametrize(
    ("accept_encoding", "is_accepted"),
    [
        (b"gzip", True),
        (b"GZip", True),
        (b"x-gzip", True),
        (b"br, gzip;q=0.1", True),
        (b"deflate, *", True),
        (b"*;q=0", False),
        (b"gzip;q=0", False),
        (b"gzip; q = 0.000", False),
        (b"identity", False),
        (b"", False),
        (None, False),
    ],
)
def test_who_takes_gzip(accept_encoding: bytes | None, is_accepted: bool) -> None:
    assert accepts_gzip(accept_encoding) is is_accepted


async def forms_of(client: httpx.AsyncClient, url: str, headers: dict[str, str]) -> tuple[httpx.Response, bytes]:
    """The plain answer and the compressed bytes, after looking at all that must be alike in both forms."""
    plain = await client.get(url, headers=headers | PLAIN)
    assert (plain.status_code, plain.headers.get("content-encoding")) == (200, None), url
    async with client.stream("GET", url, headers=headers | GZIP) as packed:
        raw = b"".join([part async for part in packed.aiter_raw()])
    assert (packed.status_code, packed.headers["content-encoding"]) == (200, "gzip"), url
    assert len(raw) <= len(plain.content) * 3 // 4
    for answer in (plain, packed):
        assert "accept-encoding" in answer.headers["vary"].lower(), url
        assert answer.headers["content-type"] == plain.headers["content-type"]
    if "etag" in plain.headers:
        assert gzip.decompress(raw) == plain.content, url
        assert packed.headers["etag"] == plain.headers["etag"][:-1] + '-gzip"'
        for answer, coding in ((plain, PLAIN), (packed, GZIP)):
            known = {"If-None-Match": answer.headers["etag"]}
            again = await client.get(url, headers=headers | coding | known)
            assert (again.status_code, again.content) == (304, b""), url
            assert again.headers["etag"] == answer.headers["etag"]
            assert "accept-encoding" in again.headers["vary"].lower()
        head = await client.head(url, headers=headers | GZIP)
        assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", packed.headers["etag"])
    return plain, raw


async def test_answers_of_every_size_are_compressed(
    client: httpx.AsyncClient, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached or not, whole in memory or not; long ones never on the event loop."""
    loop_thread = threading.get_ident()
    sizes: list[int] = []

    def compress(body: bytes) -> bytes | None:
        if threading.get_ident() != loop_thread:
            sizes.append(len(body))
        else:
            assert len(body) <= codings.LARGEST_AT_ONCE
        return original(body)

    original = codings.compress
    monkeypatch.setattr(codings, "compress", compress)
    monkeypatch.setattr("app.kernel.cache.cached_response.compress", compress)
    for _ in range(9):
        await person.post("/v1/jobs", json={"kind": "export.account", "args": {}, "run_at": in_days(30)})
    await forms_of(client, "/v1/jobs", person.headers)
    assert sizes == []
    events = [{"kind": "page.viewed", "properties": {"text": "x" * 7_000, "n": n}} for n in range(100)]
    for start in (0, 50):
        answer = await person.post("/v1/events", json={"events": events[start : start + 50]})
        assert answer.status_code == 201
    # Of 70, 140 and 700 KiB: kept without a query, above the bound of one with a query, and of all.
    for limit in (10, 20, 100):
        url = f"/v1/users/me/events?limit={limit}"
        plain, _ = await forms_of(client, url, person.headers)
        assert len(plain.content) > 7_000 * limit
    assert len(sizes) >= 3
    assert min(sizes) > codings.LARGEST_AT_ONCE
    # Of an answer that is kept the compressed form is kept too.
    await forms_of(client, "/v1/users/me/events", person.headers)
    before = len(sizes)
    await forms_of(client, "/v1/users/me/events", person.headers)
    assert len(sizes) == before


async def test_the_document_the_metrics_and_the_pages_are_compressed(client: httpx.AsyncClient) -> None:
    for url in ("/openapi.json", "/metrics", "/", "/reset-password?token=x", "/problems/not_found"):
        answer = await client.get(url, headers=PLAIN)
        if len(answer.content) < codings.SMALLEST:
            assert "vary" not in answer.headers
        else:
            await forms_of(client, url, {})
    document, _ = await forms_of(client, "/openapi.json", {})
    assert document.headers["cache-control"] == "no-cache"
    for url in ("/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/docs"):
        answer = await client.get(url)
        again = await client.get(url, headers={"If-None-Match": answer.headers["etag"]})
        assert (answer.status_code, again.status_code) == (200, 304)


async def test_the_forms_of_what_is_for_everybody_are_kept(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def compress(body: bytes) -> bytes | None:
        made.append(len(body))
        return zlib.compress(body, 1, wbits=31)

    monkeypatch.setattr(codings, "compress", compress)
    for _ in range(3):
        assert (await client.get("/openapi.json", headers=GZIP)).headers["content-encoding"] == "gzip"
    assert len(made) == 1


async def test_no_credential_and_no_problem_is_compressed(client: httpx.AsyncClient, person: Person) -> None:
    """Beside something that a stranger chooses, the length of a compressed secret tells it (BREACH)."""
    for _ in range(8):
        await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    login = {"email": person.email, "password": PASSWORD, "device_name": "x"}
    answers = [
        await client.post("/v1/auth/login", json=login, headers=GZIP),
        await person.get("/v1/auth/sessions", headers=GZIP),
        await person.get("/v1/auth/security-events", headers=GZIP),
        await person.get("/v1/jobs?" + "&".join(f"{'a' * 60}{n}=1" for n in range(19)), headers=GZIP),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 422]
    assert [len(answer.content) > 1024 for answer in answers] == [True] * 4
    assert [answer.headers.get("content-encoding") for answer in answers] == [None] * 4


async def test_what_is_under_way_is_bounded(
    running_app: Lifespan, app: FastAPI, client: httpx.AsyncClient, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [{"kind": "page.viewed", "properties": {"text": "x" * 7_000}} for _ in range(20)]
    await person.post("/v1/events", json={"events": events})
    monkeypatch.setattr(codings, "_MOST_UNDER_WAY", 1)
    url = "/v1/users/me/events?limit=20"
    answer = await person.get(url, headers=GZIP)
    assert (answer.status_code, answer.headers.get("content-encoding"), answer.headers["vary"]) == (
        200,
        None,
        "accept-encoding",
    )
    again = await person.get(url, headers=GZIP | {"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    monkeypatch.undo()
    assert (await person.get(url, headers=GZIP)).headers["content-encoding"] == "gzip"


async def test_a_stream_is_compressed_as_it_comes() -> None:
    async def lines() -> object:
        for number in range(2_000):
            yield b"%d,page.viewed\n" % number
            await asyncio.sleep(0)

    packed = b"".join([part async for part in compress_stream(lines())])  # type: ignore[arg-type]
    assert gzip.decompress(packed) == b"".join(b"%d,page.viewed\n" % number for number in range(2_000))
