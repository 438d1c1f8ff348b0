"""Routes that are called without the framework answer as the framework would, byte by byte."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import MagicMock
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.staticfiles import StaticFiles
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send

from app.kernel.auth import Public, Require, RequireRole
from app.kernel.errors import Conflict, FieldError, OAuthError, TooManyRequests, Unavailable, Unprocessable
from app.kernel.fairness.threads import FairThreads
from app.kernel.http import (
    DirectRoutes,
    Id,
    PageQuery,
    Router,
    Schema,
    StrictRoute,
    Timestamp,
    install_error_handlers,
    json_response,
)
from app.kernel.ids import UserId
from app.kernel.request.principal import Principal
from app.kernel.request.state import state_of
from app.main import Onehop, create_app
from app.settings import Settings, load_settings
from tests.kernel.conftest import client_of as application_client

MAX_BODY_BYTES = 1_000
THREADS = FairThreads("test", 1, queue=1, overloaded=Unavailable)
SEEN = {200, 201, 204, 400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 500}
FRAMEWORK_ONLY = {
    ("POST", "/v1/auth/token"),
    ("POST", "/v1/auth/introspect"),
    ("POST", "/v1/auth/revoke"),
    ("GET", "/v1/jobs/{job_id}/events"),
    ("GET", "/v1/jobs/{job_id}/events/stream"),
    ("GET", "/v1/users/me/events/stream"),
}

router = Router(prefix="/t")
calls: list[str] = []


class Item(Schema):
    name: str
    size: int = Field(0, le=1_000)
    at: Timestamp | None = None
    tags: list[Id] = Field(default_factory=list)


class Filter(PageQuery):
    kind: str | None = None


async def _shared(request: Request) -> str:
    calls.append("shared")
    return request.headers.get("x-shared", "none")


SharedDep = Annotated[str, Depends(_shared)]


async def _outer(shared: SharedDep, item_id: Id) -> str:
    calls.append("outer")
    if shared == "refuse":
        raise Conflict("refused by a dependency")
    return f"{shared}:{item_id}"


@router.post("/items", status_code=201)
async def make_item(
    principal: Annotated[Principal, Require("events:write")], shared: SharedDep, item: Item
) -> Response:
    view = item.model_dump(mode="json")
    return json_response({"user": principal.user_id, "shared": shared, "item": view}, status=201, etag='"e"')


@router.post("/maybe", dependencies=[Public])
async def maybe(request: Request, item: Item | None = None) -> Response:
    return json_response({"item": None if item is None else item.name, "again": len(await request.body())})


@router.post("/any", dependencies=[Public])
async def any_body(value: dict[str, Any]) -> Response:
    return json_response(value)


@router.post("/raw", dependencies=[Public])
async def raw(request: Request) -> Response:
    return json_response({"bytes": len(await request.body())})


@router.get("/items", dependencies=[Public])
async def list_items(query: Annotated[Filter, Query()]) -> Response:
    return json_response({"limit": query.limit, "kind": query.kind, "cursor": query.cursor})


@router.get("/needed", dependencies=[Public])
async def needed(word: str, number: int = 3) -> Response:
    return json_response({"word": word, "number": number})


@router.get("/items/first", dependencies=[Public])
async def first_item() -> Response:
    return json_response("first")


@router.get("/items/{item_id}", dependencies=[Public])
async def get_item(
    item_id: Id, outer: Annotated[str, Depends(_outer)], prefer: Annotated[str | None, Header(max_length=9)] = None
) -> Response:
    return json_response({"id": item_id, "outer": outer, "prefer": prefer})


@router.delete("/items/{item_id}", status_code=204)
async def delete_item(item_id: Id, _: Annotated[Principal, RequireRole("admin")]) -> Response:
    return Response(status_code=204, headers={"X-Deleted": str(item_id)})


@router.get("/items/{item_id}/parts/{name}", dependencies=[Public])
async def get_part(item_id: str, name: str) -> Response:
    return json_response([item_id, name])


@router.get("/items/last", dependencies=[Public])
async def hidden() -> Response:
    """Never called: the route with a parameter stands before it."""
    return json_response("last")


@router.get("/stream", dependencies=[Public])
async def stream() -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for part in (b"one ", b"two ", b"three"):
            yield part

    return StreamingResponse(parts(), media_type="text/plain")


ERRORS: dict[str, Exception] = {
    "conflict": Conflict("so it is", headers={"X-Why": "test"}),
    "quota": TooManyRequests(retry_after=7),
    "fields": Unprocessable(errors=[FieldError("#/a", "wrong", "invalid_value")]),
    "oauth": OAuthError("invalid_grant", "no"),
    "http": HTTPException(409, "detail", {"X-Http": "yes"}),
    "unknown": HTTPException(418),
}


@router.get("/errors/{name}", dependencies=[Public])
async def fail(name: str) -> Response:
    raise ERRORS[name]


@router.get("/model", dependencies=[Public])
async def model() -> dict[str, str]:
    """Only the framework can turn it into an answer."""
    return {"by": "framework"}


PERSON = Principal(UserId(UUID(int=1)), None, frozenset({"events:write"}), frozenset(), "token")
READER = Principal(UserId(UUID(int=2)), None, frozenset({"events:read"}), frozenset(), "token")


class Callers:
    """Stands for the layers around: names the caller, and what they found."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = state_of(scope)
        caller = state.headers.get(b"x-caller")
        if caller is not None:
            state.principal = PERSON if caller == b"person" else READER
        await self._app(scope, receive, send)


@asynccontextmanager
async def client_of(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Callers(app)), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def framework(tmp_path: Path) -> FastAPI:
    (tmp_path / "direct.txt").write_text("a file")
    app = FastAPI(redirect_slashes=False, max_body_size=MAX_BODY_BYTES, openapi_url=None)
    app.router.routes.extend(router.routes)
    app.mount("/files", StaticFiles(directory=tmp_path))
    install_error_handlers(app)
    return app


@pytest.fixture
async def both(framework: FastAPI) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    direct = DirectRoutes(framework, framework, MAX_BODY_BYTES, THREADS)
    async with client_of(direct) as left, client_of(framework) as right:
        yield left, right


JSON = {"content-type": "application/json"}
AS_PERSON = JSON | {"x-caller": "person"}
ITEM = "/t/items/0190f5e4-0000-7000-8000-000000000001"


def _chunks(*parts: bytes) -> Any:
    async def send() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return send


def _cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    yield from (("POST", "/t/items", {"headers": AS_PERSON, "content": content}) for content in BODIES)
    yield "POST", "/t/items", {"headers": JSON, "content": b'{"name":"a"}'}
    yield "POST", "/t/items", {"headers": JSON | {"x-caller": "reader"}, "content": b'{"name":"a"}'}
    yield "POST", "/t/items", {"headers": AS_PERSON | {"x-shared": "given"}, "content": b'{"name":"a","size":4}'}
    yield "POST", "/t/items?surprise=1", {"headers": AS_PERSON, "content": b'{"name":"a"}'}
    yield "POST", "/t/items", {"headers": AS_PERSON, "content": _chunks(b'{"name"', b':"a"}')}
    yield "POST", "/t/items", {"headers": AS_PERSON, "content": _chunks(b'{"name":"', b"a" * 2_000, b'"}')}
    yield "POST", "/t/items", {"headers": AS_PERSON, "content": _chunks(b'{"name"', b":1}")}
    for media_type in ("text/plain", "application/merge-patch+json", "application/json; charset=latin-1", "", "json"):
        yield "POST", "/t/items", {"headers": AS_PERSON | {"content-type": media_type}, "content": b'{"name":"a"}'}
    yield "POST", "/t/maybe", {}
    yield "POST", "/t/maybe", {"headers": JSON, "content": b"null"}
    yield "POST", "/t/maybe", {"headers": JSON, "content": b'{"name":"b"}'}
    yield "POST", "/t/any", {"headers": JSON, "content": b"[]"}
    yield "POST", "/t/any", {"headers": JSON, "content": b'{"a":[1.5,true,null,"\xc3\xa9"]}'}
    yield "POST", "/t/raw", {"content": _chunks(b"a" * 600, b"b" * 600)}
    yield "POST", "/t/raw", {"content": b"a" * 600}
    for query in (
        "",
        "?limit=7&kind=a",
        "?limit=0",
        "?limit=x",
        "?limit=1&limit=2",
        "?other=1",
        "?kind=%ff",
        "?kind=%",
    ):
        yield "GET", f"/t/items{query}", {}
    for query in ("", "?word=a", "?word=a&number=4", "?number=4", "?word=a&number=b", "?word="):
        yield "GET", f"/t/needed{query}", {}
    yield from (
        ("GET", f"/t/{path}", {}) for path in ("stream", "model", "items/first", "items/last", "items/x/", "nope")
    )
    yield from ((method, "/t/no-such-thing/at/all", {}) for method in ("GET", "POST", "OPTIONS", "BREW"))
    yield "GET", "/files/direct.txt", {}
    yield "GET", "/files/nothing", {}
    yield "POST", "/files/direct.txt", {}
    yield "GET", ITEM, {"headers": {"x-shared": "a", "prefer": "wait=3"}}
    yield "GET", ITEM, {"headers": {"prefer": "more than nine"}}
    yield "GET", ITEM, {"headers": {"x-shared": "refuse"}}
    yield "GET", "/t/items/%6Eot-an-id", {"headers": {"x-shared": "refuse"}}
    yield "GET", "/t/items/a%2Fb/parts/c", {}
    yield "GET", "/t/items/a/parts/c%20d", {}
    yield "GET", "/t/items/a/parts/%00", {}
    for method in ("DELETE", "PUT", "POST", "OPTIONS", "BREW"):
        yield method, ITEM, {"headers": {"x-caller": "person"}}
    yield from (("GET", f"/t/errors/{name}", {}) for name in ERRORS)


BODIES = (
    b'{"name":"a"}',
    b'{"name":"a","size":"5"}',
    b'{"name":"a","size":5,"at":"2026-01-02T03:04:05+01:00","tags":["0190f5e4-0000-7000-8000-000000000001"]}',
    b'{"name":"a","at":"yesterday","tags":["x",1],"more":{}}',
    b'{"name":"a","name":"b"}',
    b'{"name":"\\u0000"}',
    b'{"name":"\\ud800"}',
    b'{"name":"\xff"}',
    b'\xef\xbb\xbf{"name":"a"}',
    b'{"name":"a","size":NaN}',
    b'{"name":"a","size":1e999}',
    b'{"name":"a","size":123456789012345678901234567890}',
    b'{"name"',
    b"[" * 400,
    b"[]",
    b"null",
    b"",
    b" ",
)


async def test_every_request_gets_the_same_answer(both: tuple[httpx.AsyncClient, httpx.AsyncClient]) -> None:
    left, right = both
    seen = set()
    for method, path, options in _cases():
        answers = []
        for client in (left, right):
            calls.clear()
            again = {name: value() if callable(value) else value for name, value in options.items()}
            answer = await client.request(method, path, **again)
            answers.append((answer.status_code, sorted(answer.headers.items()), answer.content, tuple(calls)))
        assert answers[0] == answers[1], (method, path, options)
        seen.add(answers[0][0])
    assert seen == SEEN


async def test_a_dependency_is_called_once(both: tuple[httpx.AsyncClient, httpx.AsyncClient]) -> None:
    calls.clear()
    await both[0].get(ITEM)
    assert calls == ["shared", "outer"]


async def test_a_failure_of_ours_goes_on_to_the_layers_around(framework: FastAPI) -> None:
    direct = DirectRoutes(framework, framework, MAX_BODY_BYTES, THREADS)
    with pytest.raises(KeyError):
        async with client_of(direct) as client:
            await client.get("/t/errors/unheard-of")


@pytest.fixture
def product() -> Onehop:
    """The program, not started."""
    variables = {"DATABASE_URL": "postgresql:///none", "REDIS_URL": "redis://none", "APP_SECRET_KEY": "k" * 32}
    return create_app(load_settings(variables))


def test_all_routes_but_these_are_direct(product: Onehop) -> None:
    assert DirectRoutes(product, product, MAX_BODY_BYTES, THREADS).fallback_routes == FRAMEWORK_ONLY


def test_the_same_route_is_found(product: Onehop) -> None:
    direct = DirectRoutes(product, product, MAX_BODY_BYTES, THREADS)
    strict = [route for route in product.routes if isinstance(route, StrictRoute)]
    parts = sorted({part for route in strict for part in route.path.split("/")} | {str(uuid4()), "", "x\n", "a.b"})

    @given(
        st.lists(st.sampled_from(parts), min_size=1, max_size=6), st.sampled_from(["GET", "POST", "PATCH", "DELETE"])
    )
    def check(path: list[str], method: str) -> None:
        address = "/" + "/".join(path)
        matches = (
            (route.path, match.groupdict())
            for route in strict
            if method in (route.methods or ()) and (match := route.path_regex.match(address))
        )
        expected: tuple[str | None, dict[str, str]] = next(matches, (None, {}))
        found, parameters = direct.find(method, address)
        if found is not None:
            assert (found.template, parameters) == expected
        else:
            # Where nothing was found the framework is asked: there the end of a line counts as the end of an address.
            assert expected[0] is None or (method, expected[0]) in FRAMEWORK_ONLY or address.endswith("\n")

    check()


async def test_with_opentelemetry_everything_passes_the_framework(settings: Settings, frozen_garbage: None) -> None:
    app = create_app(settings)
    was_observed = app.is_observed
    app._telemetry["tracer_provider"] = provider = MagicMock()
    assert (was_observed, app.is_observed) == (False, True)
    async with application_client(app) as client:
        assert (await client.get("/livez")).status_code == 200
    assert "GET" in [call.args[0] for call in provider.get_tracer.return_value.start_span.call_args_list]
