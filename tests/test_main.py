"""The wiring of the application."""

import asyncio
import gc

import httpx
import jwt
import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from app import main
from app.kernel.auth import declared_permission
from app.kernel.http import StrictRoute
from app.settings import Settings
from tests.fixtures.answers import problem_of
from tests.fixtures.application import Lifespan, Processes, free_port
from tests.fixtures.http import http_client
from tests.fixtures.waiting import eventually


def test_every_route_declares_who_may_call_it(settings: Settings) -> None:
    app = main.create_app(settings)
    routes = [context.original_route for context in iter_route_contexts(app.routes)]
    ours = [route for route in routes if isinstance(route, APIRoute)]
    assert len(ours) > 50
    for route in ours:
        assert isinstance(route, StrictRoute)
        assert declared_permission(route.dependant) is not None, route.path


def test_cached_reads_are_routes_with_the_same_scopes(settings: Settings) -> None:
    """A hit skips the route, so what the route demands has to stand in the declaration."""
    app = main.create_app(settings)
    routes = {
        context.path_format: context.original_route
        for context in iter_route_contexts(app.routes)
        if isinstance(context.original_route, APIRoute) and "GET" in (context.methods or ())
    }
    for read in main.CACHED_READS:
        route = routes[read.path]
        assert isinstance(route, APIRoute)
        permission = declared_permission(route.dependant)
        assert permission is not None
        assert (permission.scopes, permission.role, permission.is_public) == (read.scopes, None, False), read.path


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError):
        main.nothing_of_this_name  # noqa: B018


@pytest.mark.settings(APP_CACHE_ENABLED="false")
async def test_without_the_cache_everything_is_read(settings: Settings, frozen_garbage: None) -> None:
    app = main.create_app(settings)
    async with Lifespan(app).running() as running:
        transport = httpx.ASGITransport(running)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            problem_of(await client.get("/v1/overview"), 401, "unauthenticated")
            assert (await client.get("/livez")).status_code == 200


async def test_starting_and_stopping_leaves_nothing_behind(settings: Settings, frozen_garbage: None) -> None:
    before = asyncio.all_tasks()
    app = main.create_app(settings)
    for _ in range(2):
        async with Lifespan(app).running():
            assert app.state.resources.bus.is_connected
        await eventually(lambda: asyncio.all_tasks() <= before)
    gc.collect()


async def test_gauges_follow_though_one_of_them_fails(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: list[float] = []

    def fail() -> None:
        raise ValueError

    monkeypatch.setattr(main, "_SAMPLE_SECONDS", 0.01)
    app = main.create_app(settings)
    async with Lifespan(app).running() as running:
        app.state.samplers = (fail, lambda: sampled.append(1.0))
        await eventually(lambda: len(sampled) > 1)
        transport = httpx.ASGITransport(running)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert "\nonehop_build_info{" in answer.text


@pytest.mark.settings(APP_PUBLIC_URL="")
@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["alone", "workers"])
async def test_addresses_follow_the_port_of_a_bare_uvicorn(processes: Processes, options: tuple[str, ...]) -> None:
    """No variable names it: uvicorn binds its socket before or after the application starts, and tells it nothing."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = await processes.start("app.main:app", "--port", str(port), *options, module="uvicorn")
    await processes.until_ready(server, url)
    async with http_client(url) as client:
        metadata = (await client.get("/.well-known/oauth-authorization-server")).json()
        assert (metadata["issuer"], metadata["token_endpoint"]) == (url, f"{url}/v1/auth/token")
        person = {"email": "ada@example.com", "password": "a very long horse 42"}
        registered = await client.post("/v1/auth/register", json=person)
        token = registered.json()["tokens"]["access_token"]
        assert jwt.decode(token, options={"verify_signature": False})["iss"] == url
        # On connections of their own, for each process to take the tokens of the others.
        headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
        for _ in range(4):
            assert (await client.get("/v1/users/me", headers=headers)).status_code == 200


@pytest.mark.settings(APP_PORT="x")
@pytest.mark.parametrize(("options", "code"), [((), 78), (("--workers", "2"), 0)], ids=["alone", "workers"])
async def test_a_bare_uvicorn_says_what_is_wrong_with_the_settings_and_ends(
    processes: Processes, options: tuple[str, ...], code: int
) -> None:
    """Uvicorn's own supervisor ends with 0 whatever happened, but it starts nothing anew."""
    server = await processes.start("app.main:app", "--port", str(free_port()), *options, module="uvicorn")
    assert await asyncio.wait_for(server.wait(), 300) == code
    logged = processes.logged()
    assert "APP_PORT: Input should be a valid integer" in logged
    assert "Traceback" not in logged
