"""Headers and forms that are made to break something: what is reflected, what is parsed, what is counted."""

import re

import httpx

from tests.fixtures.answers import problem_of
from tests.fixtures.people import Person

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def test_only_a_plain_request_id_is_given_back(client: httpx.AsyncClient) -> None:
    for sent in (b"\xff\xfe", b"a\r\nSet-Cookie: x=1", b"a b", b"x" * 129, b"", "ü".encode()):
        answer = await client.get("/livez", headers=[(b"X-Request-ID", sent)])
        assert answer.status_code == 200
        assert answer.headers["x-request-id"].encode() != sent
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", answer.headers["x-request-id"])
        assert "set-cookie" not in answer.headers


async def test_headers_that_are_no_plain_text(person: Person, client: httpx.AsyncClient) -> None:
    for sent in (b"\xff\xfe", "ü".encode(), b"\x00", b"a\r\nb: c"):
        await try_headers(person, client, sent)
    assert (await person.get("/v1/users/me")).json()["bio"] is None
    assert (await person.get("/v1/users/me/events")).json()["items"] == []


async def try_headers(person: Person, client: httpx.AsyncClient, sent: bytes) -> None:
    token = person.headers["Authorization"].encode()

    async def ask(method: str, path: str, name: bytes, body: object = None) -> httpx.Response:
        return await client.request(method, path, headers=[(b"Authorization", token), (name, sent)], json=body)

    event = {"kind": "a"}
    problem_of(await ask("POST", "/v1/events", b"Idempotency-Key", event), 400, "invalid_idempotency_key")
    problem_of(await ask("PATCH", "/v1/users/me", b"If-Match", {"bio": "x"}), 412, "precondition_failed")
    for name in (b"If-None-Match", b"Prefer", b"Accept", b"Accept-Language", b"User-Agent", b"traceparent", b"Cookie"):
        assert (await ask("GET", "/v1/users/me", name)).status_code == 200, name
    answer = await client.get("/v1/users/me", headers=[(b"Authorization", b"Bearer " + sent)])
    problem_of(answer, 401, "invalid_token")


async def test_form_bombs(client: httpx.AsyncClient) -> None:
    for body in (
        b"&".join(b"f%d=1" % number for number in range(3_000)),
        b"&" * 100_000,
        b"token=" + b"x" * 500_000,
        b"=" * 100_000,
        b"token=" + b"%41" * 100_000,
    ):
        answer = await client.post("/v1/auth/revoke", content=body, headers=FORM)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    small = b"&".join(b"f%d=1" % number for number in range(2_000))
    assert (await client.post("/v1/auth/revoke", content=small, headers=FORM)).status_code == 400
    boundary = b"b" * 10_000
    part = b'--%b\r\nContent-Disposition: form-data; name="token"\r\n\r\nx\r\n' % boundary
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
    answer = await client.post("/v1/auth/revoke", content=part * 20, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert answer.headers["accept-post"] == "application/x-www-form-urlencoded"
