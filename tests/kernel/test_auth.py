"""Who may call what; a route that says nothing of it keeps the application from starting."""

from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Response

from app.kernel.auth import SCOPES, SCOPES_OF_ROLE, CurrentPrincipal, Public, Require, RequireRole
from app.kernel.http import Router, json_response
from app.kernel.request.principal import Principal
from app.main import create_app
from app.settings import Settings
from tests.fixtures.answers import problem_of
from tests.fixtures.people import register
from tests.kernel.conftest import Planted, client_of

reached: list[str] = []


async def open_to_all() -> Response:
    return json_response({})


def router_with(**options: object) -> Router:
    router = Router()
    router.add_api_route("/test/planted", open_to_all, methods=["POST"], **options)  # type: ignore[arg-type]
    return router


def test_route_without_permission_does_not_start(settings: Settings) -> None:
    with pytest.raises(RuntimeError, match=r"\['POST'\] /test/planted does not declare who may call it"):
        create_app(settings).include_router(router_with())
    create_app(settings).include_router(router_with(dependencies=[Public]))


def test_route_with_two_permissions_does_not_start(settings: Settings) -> None:
    with pytest.raises(RuntimeError, match="declares 2 permissions"):
        router_with(dependencies=[Public, Require("events:read")])


async def test_route_of_another_router_does_not_start(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = APIRouter()
    foreign.add_api_route("/test/planted", open_to_all, dependencies=[Public])
    monkeypatch.setattr("app.main.ROUTERS", (foreign,))
    with pytest.raises(RuntimeError, match=r"/test/planted does not come from app\.kernel\.http\.Router"):
        create_app(settings)


def test_scopes_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="unknown scopes"):
        Require("events:destroy")


def test_scopes_of_roles() -> None:
    assert SCOPES_OF_ROLE["user"] == frozenset(SCOPES) - {"admin"}
    assert SCOPES_OF_ROLE["admin"] == frozenset(SCOPES)


router = Router()


@router.post("/test/signed-in")
async def signed_in(principal: CurrentPrincipal) -> Response:
    return json_response({"id": principal.user_id, "kind": principal.kind})


@router.post("/test/writer")
async def writer(principal: Annotated[Principal, Require("events:write", "jobs:write")]) -> Response:
    return json_response({"id": principal.user_id})


@router.post("/test/admin")
async def admin(_: Annotated[Principal, RequireRole("admin")]) -> Response:
    reached.append("admin")
    return json_response({})


async def test_callers(planted: Planted) -> None:
    async with planted(router) as client:
        answer = await client.post("/test/signed-in")
        problem_of(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
        person = await register(client)
        assert (await person.post("/test/signed-in")).json() == {"id": str(person.id), "kind": "user"}
        assert (await person.post("/test/writer")).json() == {"id": str(person.id)}
        answer = await person.post("/test/admin")
        problem_of(answer, 403, "insufficient_scope")
        assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="admin"'
        assert reached == []


@pytest.mark.parametrize(
    "header", ["Basic YTpi", "Bearer", "Bearer ", "Bearer x", "bearer a.b.c", "Token x", "", "Bearer \x7f", "Bearer é"]
)
async def test_credentials_that_are_none(client: httpx.AsyncClient, header: str) -> None:
    answer = await client.get("/v1/users/me", headers=[(b"authorization", header.encode("latin-1"))])
    if header.lower().startswith("bearer "):
        problem_of(answer, 401, "invalid_token")
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    else:
        # Without a token of ours there is none to be wrong (RFC 6750, section 3.1).
        problem_of(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
    # What is public does not mind.
    assert (await client.get("/livez", headers=[(b"authorization", header.encode("latin-1"))])).status_code == 200


async def test_permission_is_checked_before_the_body(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/events", content=b"{", headers={"Content-Type": "text/plain"})
    problem_of(answer, 401, "unauthenticated")


async def test_a_changed_token_is_refused(settings: Settings) -> None:
    async with client_of(create_app(settings)) as client:
        person = await register(client)
        head, payload, signature = person.tokens["access_token"].split(".")
        flipped = ("A" if signature[0] != "A" else "B") + signature[1:]
        for token in (f"{head}.{payload}.{flipped}", f"{head}.{payload}.", f"{head}.{payload}", f" {head}"):
            answer = await client.get("/v1/users/me", headers={"Authorization": f"Bearer {token}"})
            problem_of(answer, 401, "invalid_token")
