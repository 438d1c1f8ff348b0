"""A field sent twice has one meaning for all layers and routes, or the request is refused."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.kernel.headers.request_headers import SINGLETONS
from app.kernel.request.state import state_of
from tests.attacks.conftest import RawClient
from tests.fixtures.application import Budget
from tests.fixtures.people import MakePerson, Person

_VALUES = {
    "authorization": "Bearer x",
    "content-type": "application/json",
    "host": "localhost",
    "idempotency-key": "k",
    "last-event-id": "1",
    "origin": "http://localhost",
    "range": "bytes=0-1",
    "x-request-id": "mine",
}


_ROUTES = [
    ("GET", "/v1/users/me"),
    ("POST", "/v1/events"),
    ("GET", "/nowhere"),
    ("GET", "/livez"),
    ("GET", "/docs/assets/x"),
]
# Refused by the parsers below the application, or told apart by them.
_FRAMING = {b"content-length"}


async def test_two_values_of_a_single_valued_field_are_refused(client: httpx.AsyncClient, person: Person) -> None:
    for name in sorted(SINGLETONS - _FRAMING):
        for method, path in _ROUTES:
            await _is_refused(client, person, name.decode(), method, path)


async def _is_refused(client: httpx.AsyncClient, person: Person, name: str, method: str, path: str) -> None:
    value = _VALUES.get(name, "x")
    fields = [("Authorization", person.headers["Authorization"])] if name != "authorization" else []
    answer = await client.request(method, path, headers=[*fields, (name, value), (name.upper(), value)])
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (400, "repeated_header")
    assert [error["pointer"].lower() for error in problem["errors"]] == [f"header:{name}"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert problem["request_id"] == answer.headers["x-request-id"]


async def test_both_servers_refuse_them_and_nothing_is_written(
    raw: RawClient, person: Person, make_person: Any
) -> None:
    other = await make_person()
    mine, foreign = person.headers["Authorization"], other.headers["Authorization"]
    body = b'{"kind": "a.b"}'
    json = ("Content-Type", "application/json")
    for first, second in ((mine, foreign), (foreign, mine), (mine, mine), (mine, ""), ("", mine)):
        fields = [("Authorization", first), ("Authorization", second), json]
        answer = await raw.request("POST", "/v1/events", fields, body)
        assert (answer.status, b"repeated_header" in answer.body) == (400, True)
    for length in (str(len(body)), str(len(body) + 1)):
        fields = [("Authorization", mine), json, ("Content-Length", length)]
        assert (await raw.request("POST", "/v1/events", fields, body)).status == 400
    assert (await raw.request("POST", "/v1/events", [("Authorization", mine), json, json], body)).status == 400
    assert (await raw.request("GET", "/v1/users/me", [("Host", "localhost"), ("Authorization", mine)])).status == 400
    for user in (person, other):
        assert (await user.get("/v1/users/me/events")).json()["items"] == []


async def test_an_answer_from_memory_is_none_for_two_tokens(
    raw: RawClient, person: Person, make_person: MakePerson, budget: Budget
) -> None:
    other = await make_person()
    token = ("Authorization", person.headers["Authorization"])
    for _ in range(2):
        assert (await raw.request("GET", "/v1/overview", [token])).status == 200
    with budget(0):
        for extra in (token, ("Authorization", other.headers["Authorization"]), ("Authorization", "Basic eDp5")):
            assert (await raw.request("GET", "/v1/overview", [token, extra])).status == 400
            assert (await raw.request("GET", "/v1/overview", [extra, token])).status == 400
        ids = [("X-Request-ID", "a"), ("X-Request-ID", "b")]
        assert (await raw.request("GET", "/v1/overview", [token, *ids])).status == 400


async def test_a_stream_is_not_begun_with_two_tokens(raw: RawClient, person: Person, make_person: MakePerson) -> None:
    other = await make_person()
    job = (await person.post("/v1/jobs", json={"kind": "export.account", "args": {}})).json()
    fields = [("Authorization", other.headers["Authorization"]), ("Authorization", person.headers["Authorization"])]
    for path in (f"/v1/jobs/{job['id']}/events", f"/v1/jobs/{job['id']}"):
        for order in (fields, fields[::-1]):
            assert (await raw.request("GET", path, [*order, ("Prefer", "wait=1")])).status == 400


async def test_entity_tags_on_two_lines_are_one_list(raw: RawClient, person: Person) -> None:
    token = ("Authorization", person.headers["Authorization"])
    for path in ("/v1/users/me", "/v1/overview", "/v1/overview", "/v1/users/me/events", "/v1/jobs"):
        tag = (await raw.request("GET", path, [token])).headers["etag"]
        for first, second in ((tag, '"zz"'), ('"zz"', tag)):
            fields = [token, ("If-None-Match", first), ("If-None-Match", second)]
            assert (await raw.request("GET", path, fields)).status == 304
        fields = [token, ("If-None-Match", '"yy"'), ("If-None-Match", '"zz"')]
        assert (await raw.request("GET", path, fields)).status == 200


async def test_preconditions_of_a_write_on_two_lines_are_one_list(raw: RawClient, person: Person) -> None:
    token, json = ("Authorization", person.headers["Authorization"]), ("Content-Type", "application/json")
    for path in ("/v1/users/me", "/v1/users/me/preferences"):
        body = b"{}"
        tag = (await raw.request("GET", path, [token])).headers["etag"]
        for first, second, status in ((tag, '"zz"', 200), ('"zz"', tag, 200), ('"yy"', '"zz"', 412)):
            fields = [token, json, ("If-Match", first), ("If-Match", second)]
            assert (await raw.request("PATCH", path, fields, body)).status == status


async def test_codings_on_two_lines_are_one_list(raw: RawClient, person: Person) -> None:
    await person.patch("/v1/users/me", json={"bio": "a" * 2000})
    token = ("Authorization", person.headers["Authorization"])
    for first, second in (("gzip", "br"), ("br", "gzip")):
        fields = [token, ("Accept-Encoding", first), ("Accept-Encoding", second)]
        for path in ("/v1/users/me", "/v1/overview"):
            answer = await raw.request("GET", path, fields)
            assert (answer.status, answer.headers["content-encoding"]) == (200, "gzip")


async def test_two_traces_begin_a_new_one(raw: RawClient) -> None:
    trace = f"00-{'1' * 32}-{'2' * 16}-01"
    assert (await raw.request("GET", "/livez", [("traceparent", trace), ("traceparent", trace)])).status == 200


@pytest.mark.settings(APP_HTTP_CORS_ORIGINS="https://front.example")
async def test_two_origins_are_refused_and_none_is_allowed(raw: RawClient) -> None:
    good, bad = ("Origin", "https://front.example"), ("Origin", "https://evil.example")
    preflight = ("Access-Control-Request-Method", "GET")
    for method in ("GET", "OPTIONS"):
        for fields in ([good, bad], [bad, good], [good, good]):
            answer = await raw.request(method, "/livez", [*fields, preflight])
            assert answer.status == 400
            assert "access-control-allow-origin" not in answer.headers
    assert (await raw.request("OPTIONS", "/livez", [good, preflight, preflight])).status == 400
    allowed = await raw.request("OPTIONS", "/livez", [good, preflight])
    assert allowed.headers["access-control-allow-origin"] == "https://front.example"


def test_the_framework_sees_what_the_layers_see() -> None:
    fields = [(b"cookie", b"a=1"), (b"accept", b"a/b"), (b"cookie", b"b=2"), (b"accept", b"c/d"), (b"x-one", b"1")]
    scope: dict[str, Any] = {"headers": fields}
    state = state_of(scope)
    assert state.headers == {b"cookie": b"a=1; b=2", b"accept": b"a/b, c/d", b"x-one": b"1"}
    assert dict(scope["headers"]) == state.headers
    assert len(scope["headers"]) == 3
    assert state_of(scope) is state


async def test_no_route_reads_a_field_with_a_parser_of_its_own(app: FastAPI) -> None:
    """What a route declares as a header parameter holds one value, so that it is read alike everywhere."""
    declared = {
        str(field.alias).replace("_", "-").encode()
        for route in app.routes
        if hasattr(route, "dependant")
        for dependant in (route.dependant, *route.dependant.dependencies)
        for field in dependant.header_params
    }
    assert declared
    assert declared <= SINGLETONS
