"""The HTTP edge: strict JSON, problems, entity tags."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import httpx
import orjson
import pytest
from asyncpg.pgproto import pgproto
from fastapi import Form, HTTPException, Query, Response

from app.kernel.auth import Public
from app.kernel.errors import (
    Conflict,
    FieldError,
    TooManyRequests,
    escape_pointer,
)
from app.kernel.http import (
    Id,
    PageQuery,
    Router,
    Schema,
    Timestamp,
    body_etag,
    dump_json,
    json_fragment,
    json_response,
)
from tests.fixtures.answers import problem_of
from tests.kernel.conftest import Planted

router = Router(prefix="/v1/test", dependencies=[])


class Thing(Schema):
    name: str
    size: int = 0
    at: Timestamp | None = None
    id: Id | None = None
    anything: Any = None


@router.post("/things", dependencies=[Public])
async def make_thing(body: Thing) -> Response:
    return json_response({"got": body.model_dump(mode="json")}, status=201)


@router.post("/maybe", dependencies=[Public])
async def make_maybe(body: Thing | None = None) -> Response:
    return json_response({"got": body})


@router.put("/things/{name}", dependencies=[Public])
async def put_thing(name: str, body: Thing) -> Response:
    return json_response({"name": name})


class Filter(PageQuery):
    kind: str | None = None


@router.get("/things", dependencies=[Public])
async def list_things(query: Annotated[Filter, Query()]) -> Response:
    return json_response({"limit": query.limit, "kind": query.kind})


@router.get("/things/{name}", dependencies=[Public])
async def get_thing(name: str) -> Response:
    return json_response({"name": name}, etag='"own-tag"' if name == "tagged" else None)


@router.delete("/things/{name}", dependencies=[Public])
async def delete_thing(name: str) -> Response:
    return Response(status_code=204)


@router.post("/form", dependencies=[Public])
async def send_form(grant: Annotated[str, Form()]) -> Response:
    return json_response({"grant": grant})


@router.get("/fail/{what}", dependencies=[Public])
async def fail(what: str) -> Response:
    match what:
        case "conflict":
            raise Conflict("It is taken.", errors=[FieldError("#/a~1b", "Taken.", "ambiguous")])
        case "quota":
            raise TooManyRequests(retry_after=7)
        case "framework":
            raise HTTPException(403, "the framework's words")
        case "teapot":
            raise HTTPException(418)
        case _:
            raise ValueError("SELECT secret FROM somewhere")


@pytest.fixture
async def planted_client(planted: Planted) -> AsyncIterator[httpx.AsyncClient]:
    async with planted(router) as client:
        yield client


async def post(client: httpx.AsyncClient, body: bytes, content_type: str | None = "application/json") -> httpx.Response:
    headers = {} if content_type is None else {"Content-Type": content_type}
    return await client.post("/v1/test/things", content=body, headers=headers)


@pytest.mark.parametrize(("depth", "status"), [(63, 201), (64, 400), (300, 400), (600, 400), (900, 400), (990, 400)])
async def test_sixty_four_levels_and_no_more(planted_client: httpx.AsyncClient, depth: int, status: int) -> None:
    """What comes after the parser could not bear as much as the parser itself."""
    for opening, closing in ((b"[", b"]"), (b'{"\\u0041":', b"}")):
        nested = opening * depth + b'"\\u0041"' + closing * depth
        answer = await post(planted_client, b'{"name": "n", "anything": ' + nested + b"}")
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 201),
        ("application/json; charset=utf-8", 201),
        ("Application/JSON;charset=UTF-8", 201),
        ("application/merge-patch+json", 415),
        ("application/json; charset=us-ascii", 201),
        ("application/json; charset=utf8", 201),
        ('application/json; charset="UTF8"', 201),
        ("application/json; charset=utf-16", 415),
        ("application/json; charset=latin-1", 415),
        ("text/json", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/jsonx", 415),
        ("", 415),
        (None, 415),
    ],
)
async def test_media_types(planted_client: httpx.AsyncClient, content_type: str | None, status: int) -> None:
    answer = await post(planted_client, b'{"name": "x"}', content_type)
    assert answer.status_code == status, answer.text
    if status == 415:
        problem_of(answer, 415, "unsupported_media_type")
        assert answer.headers["accept-post"] == "application/json"


async def test_bodies_with_a_content_coding(planted_client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    for coding in ("identity", "Identity", ""):
        coded = headers | {"Content-Encoding": coding}
        assert (await planted_client.post("/v1/test/things", json={"name": "x"}, headers=coded)).status_code == 201
    for coding in ("gzip", "GZIP", "identity, gzip"):
        coded = headers | {"Content-Encoding": coding}
        answer = await planted_client.post("/v1/test/things", json={"name": "x"}, headers=coded)
        problem_of(answer, 415, "unsupported_media_type")
        assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/json"])
@pytest.mark.parametrize("coding", ["gzip", "identity"])
async def test_where_nothing_comes_there_is_no_form_to_refuse(
    planted_client: httpx.AsyncClient, content_type: str, coding: str
) -> None:
    """Clients such as axios send a `Content-Type` with an empty body, of whatever length they announce."""

    async def empty() -> AsyncIterator[bytes]:
        yield b""

    headers = {"Content-Type": content_type, "Content-Encoding": coding}
    for content in (b"", empty()):
        answer = await planted_client.post("/v1/test/maybe", content=content, headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"got": None})
        answer = await planted_client.post("/v1/test/things", content=content, headers=headers)
        assert problem_of(answer, 422, "validation_failed") == {"#": "missing"}
        answer = await planted_client.post("/v1/test/form", content=content, headers=headers)
        assert problem_of(answer, 422, "validation_failed") == {"#/grant": "missing"}


async def test_a_body_without_a_length_is_looked_at_once_it_is_there(planted_client: httpx.AsyncClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b'{"name"'
        yield b': "x"}'

    for path in ("/v1/test/things", "/v1/test/form"):
        answer = await planted_client.post(path, content=parts(), headers={"Content-Type": "text/plain"})
        problem_of(answer, 415, "unsupported_media_type")
    answer = await planted_client.post("/v1/test/things", content=parts(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 201


async def test_forms(planted_client: httpx.AsyncClient) -> None:
    assert (await planted_client.post("/v1/test/form", data={"grant": "ü"})).json() == {"grant": "ü"}
    problem_of(await planted_client.post("/v1/test/form", json={"grant": "x"}), 415, "unsupported_media_type")
    answer = await planted_client.post("/v1/test/form", data={"other": "x"})
    assert problem_of(answer, 422, "validation_failed") == {"#/grant": "missing"}


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({}, {"#/name": "missing"}),
        ({"name": 5}, {"#/name": "wrong_type"}),
        ({"name": "x", "size": "5"}, {"#/size": "wrong_type"}),
        ({"name": "x", "size": 5.0}, {"#/size": "wrong_type"}),
        ({"name": "x", "size": True}, {"#/size": "wrong_type"}),
        ({"name": "x", "more": 1}, {"#/more": "unknown_field"}),
        ({"name": "x", "a/b~c": 1}, {"#/a~1b~0c": "unknown_field"}),
        ({"name": "x", "id": "nonsense"}, {"#/id": "invalid_uuid"}),
        ({"name": "x", "id": 7}, {"#/id": "wrong_type"}),
        ({"name": "x", "at": "2026-01-01T00:00:00"}, {"#/at": "invalid_datetime"}),
        ({"name": "x", "at": 1_700_000_000}, {"#/at": "invalid_datetime"}),
        ({"name": "x", "at": "1700000000"}, {"#/at": "invalid_datetime"}),
        ({"name": "x", "at": "9999-12-31T23:00:00-05:00"}, {"#/at": "invalid_datetime"}),
        ({"name": "x", "at": "9999-12-31T23:59:59.999999Z"}, {"#/at": "invalid_datetime"}),
        ({"name": "x", "at": "0001-01-01T00:00:00Z"}, {"#/at": "invalid_datetime"}),
        ([], {"#": "wrong_type"}),
        (None, {"#": "missing"}),
    ],
)
async def test_schemas_are_strict(planted_client: httpx.AsyncClient, body: object, refused: dict[str, str]) -> None:
    answer = await planted_client.post("/v1/test/things", json=body)
    assert problem_of(answer, 422, "validation_failed") == refused


async def test_times_come_in_any_offset_and_go_out_in_utc(planted_client: httpx.AsyncClient) -> None:
    answer = await planted_client.post("/v1/test/things", json={"name": "x", "at": "2026-01-01T01:30:00+01:30"})
    assert answer.json()["got"]["at"] == "2026-01-01T00:00:00Z"


async def test_at_most_twenty_errors_are_told(planted_client: httpx.AsyncClient) -> None:
    answer = await planted_client.post("/v1/test/things", json={"name": "x"} | {f"f{n}": n for n in range(50)})
    assert len(answer.json()["errors"]) == 20


@pytest.mark.parametrize(
    ("query", "refused"),
    [
        ("limit=0", {"query:limit": "too_small"}),
        ("limit=101", {"query:limit": "too_large"}),
        ("limit=x", {"query:limit": "invalid_number"}),
        ("cursor=", {"query:cursor": "too_short"}),
        ("colour=red", {"query:colour": "unknown_parameter"}),
        ("colour=red&colour=blue&size=1", {"query:colour": "unknown_parameter", "query:size": "unknown_parameter"}),
        ("a%2Fb%20%C3%A9=1", {"query:a/b é": "unknown_parameter"}),
        (f"{'x' * 5000}=1", {f"query:{'x' * 64}": "unknown_parameter"}),
        ("limit=1&limit=2", {"query:limit": "repeated_parameter"}),
        ("kind=%00", {"query": "invalid_text"}),
    ],
)
async def test_queries_are_strict(planted_client: httpx.AsyncClient, query: str, refused: dict[str, str]) -> None:
    assert problem_of(await planted_client.get(f"/v1/test/things?{query}"), 422, "validation_failed") == refused


@pytest.mark.parametrize("text", ["%", "%G1", "%ff", "%ed%a0%80", "%c0%80"])
async def test_addresses_that_cannot_be_read(planted_client: httpx.AsyncClient, text: str) -> None:
    url = httpx.URL("http://localhost/v1/test/things", query=f"kind={text}".encode())
    problem_of(await planted_client.get(url), 400, "invalid_encoding")
    url = httpx.URL("http://localhost").copy_with(raw_path=f"/v1/test/things/{text}".encode())
    problem_of(await planted_client.get(url), 400, "invalid_encoding")


async def test_every_kind_of_error_is_a_problem(planted_client: httpx.AsyncClient) -> None:
    answer = await planted_client.get("/v1/test/fail/conflict", headers={"X-Request-ID": "abc"})
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {
        "type": "/problems/conflict",
        "title": "Conflict with the current state",
        "status": 409,
        "detail": "It is taken.",
        "instance": "urn:onehop:request:abc",
        "code": "conflict",
        "request_id": "abc",
        "errors": [{"pointer": "#/a~1b", "detail": "Taken.", "code": "ambiguous"}],
    }
    quota = await planted_client.get("/v1/test/fail/quota")
    problem_of(quota, 429, "too_many_requests")
    assert quota.headers["retry-after"] == "7"
    framework = await planted_client.get("/v1/test/fail/framework")
    problem_of(framework, 403, "forbidden")
    assert "words" not in framework.text
    problem_of(await planted_client.get("/nowhere"), 404, "not_found")


async def test_an_unforeseen_failure_tells_nothing(planted_client: httpx.AsyncClient) -> None:
    answer = await planted_client.get("/v1/test/fail/unforeseen")
    problem_of(answer, 500, "internal_error")
    assert answer.json()["detail"] == "Internal server error"
    assert "SELECT" not in answer.text


async def test_a_status_we_have_no_error_for(planted_client: httpx.AsyncClient) -> None:
    answer = await planted_client.get("/v1/test/fail/teapot")
    assert answer.status_code == answer.json()["status"]
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_method_that_is_not_there(planted_client: httpx.AsyncClient) -> None:
    answer = await planted_client.patch("/v1/test/things/x")
    problem_of(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PUT"


async def test_options_tell_the_methods(planted_client: httpx.AsyncClient) -> None:
    answer = await planted_client.request("OPTIONS", "/v1/test/things")
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    problem_of(await planted_client.request("OPTIONS", "/nowhere"), 404, "not_found")


async def test_no_redirect_for_a_slash(planted_client: httpx.AsyncClient) -> None:
    problem_of(await planted_client.get("/v1/test/things/"), 404, "not_found")
    problem_of(await planted_client.get("/v1/overview/"), 404, "not_found")


async def test_reads_have_entity_tags(planted_client: httpx.AsyncClient) -> None:
    answer = await planted_client.get("/v1/test/things/x")
    tag = answer.headers["etag"]
    assert answer.headers["cache-control"] == "private, no-cache"
    assert tag == body_etag(answer.content).decode()
    for sent in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await planted_client.get("/v1/test/things/x", headers={"If-None-Match": sent})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["cache-control"] == "private, no-cache"
    assert (await planted_client.get("/v1/test/things/x", headers={"If-None-Match": '"other"'})).status_code == 200
    assert (await planted_client.get("/v1/test/things/tagged")).headers["etag"] == '"own-tag"'


async def test_head_is_get_without_its_body(planted_client: httpx.AsyncClient) -> None:
    read, head = [await planted_client.request(method, "/v1/test/things/x") for method in ("GET", "HEAD")]
    assert head.content == b""
    kept = ["content-type", "content-length", "etag", "cache-control"]
    assert [head.headers[name] for name in kept] == [read.headers[name] for name in kept]
    missing = await planted_client.head("/nowhere")
    assert (missing.status_code, missing.content) == (404, b"")


async def test_other_answers_are_not_stored(planted_client: httpx.AsyncClient) -> None:
    for answer in (
        await planted_client.post("/v1/test/things", json={"name": "x"}),
        await planted_client.delete("/v1/test/things/x"),
        await planted_client.get("/nowhere"),
        await planted_client.get("/v1/auth/sessions"),
    ):
        assert answer.headers["cache-control"] == "no-store"
        assert "etag" not in answer.headers


@dataclass
class Record:
    id: UUID
    at: datetime
    text: orjson.Fragment


def test_json_out() -> None:
    identifier = UUID(int=5)
    record = Record(identifier, datetime(2026, 1, 1, tzinfo=UTC), json_fragment('{"a":1}'))
    assert dump_json(record) == b'{"id":"%s","at":"2026-01-01T00:00:00Z","text":{"a":1}}' % str(identifier).encode()
    content = [
        pgproto.UUID(str(identifier)),
        Decimal("1.20"),
        frozenset({"b", "a"}),
        (2, 1),
        datetime(2026, 1, 1, tzinfo=UTC),
    ]
    assert orjson.loads(dump_json(content)) == [str(identifier), "1.20", ["a", "b"], [2, 1], "2026-01-01T00:00:00Z"]
    with pytest.raises(TypeError):
        dump_json(object())


async def test_preconditions_of_a_read(planted_client: httpx.AsyncClient) -> None:
    """In the order of RFC 9110, section 13.2.2: `If-Match` first, whatever else is asked."""
    tag = (await planted_client.get("/v1/test/things/x")).headers["etag"]
    for headers in ({"If-Match": tag}, {"If-Match": "*"}, {"If-Match": f'"other", {tag}'}):
        assert (await planted_client.get("/v1/test/things/x", headers=headers)).status_code == 200
        unchanged = await planted_client.get("/v1/test/things/x", headers=headers | {"If-None-Match": tag})
        assert unchanged.status_code == 304
    for named in ('"other"', f"W/{tag}", ""):
        answer = await planted_client.get("/v1/test/things/x", headers={"If-Match": named, "If-None-Match": tag})
        problem_of(answer, 412, "precondition_failed")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        head = await planted_client.head("/v1/test/things/x", headers={"If-Match": named})
        assert (head.status_code, head.content) == (412, b"")


async def test_a_guard_that_cannot_be_honoured_is_not_dropped(planted_client: httpx.AsyncClient) -> None:
    for method, path in (("DELETE", "/v1/test/things/x"), ("PUT", "/v1/test/things/x"), ("POST", "/v1/test/things")):
        ask = partial(planted_client.request, method, path, json={"name": "x"})
        problem_of(await ask(headers={"If-Match": '"a"'}), 412, "precondition_failed")
        for headers in ({"If-Match": "*"}, {"If-None-Match": '"a"'}, {"If-Unmodified-Since": "now"}):
            assert (await ask(headers=headers)).is_success


async def test_what_is_not_the_api_takes_any_query(client: httpx.AsyncClient) -> None:
    """Links come with `utm_source`, and probes with what other servers know."""
    paths = ["/", "/problems", "/problems/not_found", "/openapi.json", "/livez", "/readyz", "/metrics", "/docs"]
    paths += ["/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/forgot-password"]
    for query in ("verbose", "utm_source=mail", "a=1&a=2", "q=50%", "q=%ff", "q=%00", "&".join(["a=1"] * 200)):
        for path in paths:
            url = httpx.URL(f"http://localhost{path}").copy_with(raw_path=f"{path}?{query}".encode())
            assert (await client.get(url)).status_code == 200, f"{path}?{query}"


def test_escaped_pointers() -> None:
    assert escape_pointer("a/b~c") == "a~1b~0c"
