"""The layers around the framework: identity, headers and log line of a request, admission, deadline."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.kernel.auth import Public
from app.kernel.fairness.disconnects import extend_deadline
from app.kernel.fairness.time_shares import TimeShares
from app.kernel.http import Router, asked_to_wait, json_response
from app.kernel.ids import UserId
from app.kernel.middleware.admission import Admission
from app.kernel.middleware.request_context import RequestContext
from app.kernel.observability.access_log import AccessLog
from app.kernel.observability.log_writer import Output
from app.kernel.observability.telemetry import trace_parent_var
from app.kernel.request.principal import Principal
from app.kernel.request.state import RequestStateDep
from app.kernel.settings import HttpSettings
from app.main import create_app
from app.settings import Settings, load_settings
from tests.fixtures.answers import problem_of
from tests.fixtures.application import Lifespan
from tests.fixtures.guards import no_blocking_calls
from tests.fixtures.people import register
from tests.fixtures.waiting import in_time
from tests.kernel.conftest import Planted, create_app_with

router = Router(prefix="/test")


@router.get("/trace", dependencies=[Public])
async def trace() -> Response:
    return json_response({"trace_parent": trace_parent_var.get()})


@router.get("/patient/{seconds}", dependencies=[Public])
async def sleep_patiently(state: RequestStateDep, seconds: float) -> Response:
    """Honours `Prefer: wait`."""
    extend_deadline(asked_to_wait(state))
    await asyncio.sleep(seconds)
    return Response()


@router.get("/sleep/{seconds}", dependencies=[Public])
async def sleep(seconds: float) -> Response:
    await asyncio.sleep(seconds)
    return json_response({})


@router.post("/echo", dependencies=[Public])
async def echo(request: Request) -> Response:
    return json_response({"bytes": len(await request.body())})


@router.get("/stream/{seconds}", dependencies=[Public])
async def stream(seconds: float) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        yield b"first "
        await asyncio.sleep(seconds)
        yield b"last"

    return StreamingResponse(parts(), media_type="text/plain")


@router.get("/block", dependencies=[Public])
async def block() -> Response:
    time.sleep(0.01)  # noqa: ASYNC251 - what must not happen
    return json_response({})


@router.get("/broken", dependencies=[Public])
async def broken() -> Response:
    raise ValueError("details that no client may see")


@router.get("/late", dependencies=[Public])
async def late() -> Response:
    async def parts() -> AsyncIterator[bytes]:
        yield b"first "
        raise ValueError("too late to say it")

    return StreamingResponse(parts())


@pytest.fixture
async def planted_client(planted: Planted) -> AsyncIterator[httpx.AsyncClient]:
    async with planted(router) as client:
        yield client


@pytest.mark.parametrize("given", ["a", "A-Z_0.9", "x" * 128])
async def test_request_id_is_taken(client: httpx.AsyncClient, given: str) -> None:
    for path in ("/livez", "/nowhere"):
        assert (await client.get(path, headers={"X-Request-ID": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "ü", "a;b", "<script>", "a\nb"])
async def test_request_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    made = [
        (await client.get("/livez", headers=[(b"x-request-id", given.encode())])).headers["x-request-id"]
        for _ in range(2)
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,128}", value) for value in made)
    assert len({*made, given}) == 3


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", False),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", False),
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),
        ("nonsense", False),
    ],
)
async def test_trace_is_continued(planted_client: httpx.AsyncClient, given: str, is_taken: bool) -> None:
    answer = await planted_client.get("/test/trace", headers={"traceparent": given})
    assert answer.json() == {"trace_parent": given if is_taken else None}


@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/v1/users/me", "/test/broken"])
async def test_security_headers_are_everywhere(planted_client: httpx.AsyncClient, path: str) -> None:
    headers = (await planted_client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "strict-transport-security" not in headers
    assert "server" not in headers


@pytest.mark.settings(APP_HTTP_HSTS="true")
async def test_transport_security_where_it_is_switched_on(client: httpx.AsyncClient) -> None:
    answer = await client.get("/livez")
    assert answer.headers["strict-transport-security"] == "max-age=31536000; includeSubDomains"


ORIGIN = {"Origin": "https://app.example.com"}


@pytest.mark.settings(APP_HTTP_CORS_ORIGINS="https://app.example.com", APP_HTTP_CORS_CREDENTIALS="true")
async def test_cross_origin_requests(planted_client: httpx.AsyncClient) -> None:
    for path, status in (("/livez", 200), ("/v1/users/me", 401), ("/nowhere", 404), ("/test/broken", 500)):
        answer = await planted_client.get(path, headers=ORIGIN)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN["Origin"]
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    foreign = await planted_client.get("/livez", headers={"Origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in foreign.headers


@pytest.mark.settings(APP_HTTP_CORS_ORIGINS="https://app.example.com")
async def test_preflights(client: httpx.AsyncClient) -> None:
    asked = {
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization,if-match,last-event-id,range,traceparent,tracestate,baggage",
    }
    answer = await client.options("/v1/users/me", headers=ORIGIN | asked)
    assert answer.status_code == 200
    assert "PATCH" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-max-age"] == "600"
    refused = await client.options("/v1/users/me", headers={"Origin": "https://evil.example.com"} | asked)
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


async def test_without_origins_nobody_is_allowed(client: httpx.AsyncClient) -> None:
    assert "access-control-allow-origin" not in (await client.get("/livez", headers=ORIGIN)).headers


@pytest.mark.settings(APP_HTTP_REQUEST_TIMEOUT="0.4")
async def test_deadline(planted_client: httpx.AsyncClient) -> None:
    started = time.perf_counter()
    answer = await planted_client.get("/test/sleep/20")
    assert time.perf_counter() - started >= 0.4
    problem_of(answer, 504, "deadline_exceeded")
    assert answer.headers["retry-after"] == "1"
    # It counts until the answer begins, and where a route waits on request, a caller who asked gets that much more.
    assert (await planted_client.get("/test/stream/0.6")).text == "first last"
    wishes = (["respond-async, wait=5"], ["wait=5", "respond-async"], ["Wait = 1000"])
    answers = await asyncio.gather(
        *(planted_client.get("/test/patient/0.6", headers=[("Prefer", wish) for wish in wished]) for wished in wishes)
    )
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    problem_of(await planted_client.get("/test/patient/20", headers={"Prefer": "wait=1"}), 504, "deadline_exceeded")
    # Other routes keep their time, whatever their callers would like.
    problem_of(await planted_client.get("/test/sleep/20", headers={"Prefer": "wait=30"}), 504, "deadline_exceeded")


async def test_a_body_beyond_the_limit_is_refused_by_its_length(planted_client: httpx.AsyncClient) -> None:
    answer = await planted_client.post("/test/echo", content=b"x" * (1024 * 1024 + 1))
    problem_of(answer, 413, "payload_too_large")
    assert (await planted_client.post("/test/echo", content=b"x" * 1024 * 1024)).json() == {"bytes": 1024 * 1024}


async def test_a_body_without_length_is_refused_when_it_grows_too_large(planted_client: httpx.AsyncClient) -> None:
    async def parts(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 65_536

    problem_of(await planted_client.post("/test/echo", content=parts(17)), 413, "payload_too_large")
    assert (await planted_client.post("/test/echo", content=parts(16))).json() == {"bytes": 1024 * 1024}


async def test_a_blocking_call_fails(settings: Settings) -> None:
    """The guard that watches every test of the application sees what a handler does."""
    application = create_app_with(router, settings)
    async with Lifespan(application).running() as running:
        transport = httpx.ASGITransport(running, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/test/block")).status_code == 200
            with no_blocking_calls():
                problem_of(await client.get("/test/block"), 500, "internal_error")


async def send_raw(app: Lifespan, path: str, receive: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-length", b"10"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
        "scheme": "http",
        "server": ("localhost", 80),
    }
    await app(scope, receive, send)
    return sent


async def test_a_client_that_goes_away_while_it_sends(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async with Lifespan(create_app_with(router, settings)).running() as running:
        await send_raw(running, "/test/echo", receive)
        metrics = await get_metrics(running)
    labels = 'http_request_method="POST",http_response_status_code="499",http_route="/test/echo"'
    assert f"onehop_http_server_request_duration_seconds_count{{{labels}}} 1.0" in metrics
    output = capfd.readouterr().out
    assert " 499 " in output
    # It is no fault of ours.
    assert "http.request_failed" not in output


async def get_metrics(running: Lifespan) -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(running), base_url="http://localhost") as client:
        return (await client.get("/metrics")).text


async def test_half_an_answer_breaks_the_connection(settings: Settings) -> None:
    async with Lifespan(create_app_with(router, settings)).running() as running:
        transport = httpx.ASGITransport(running, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            with pytest.raises(ValueError, match="too late to say it"):
                await client.get("/test/late")


@pytest.mark.settings(APP_LOG_FORMAT="json")
async def test_json_log_lines(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    async with Lifespan(create_app_with(router, settings)).running() as running:
        transport = httpx.ASGITransport(running, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            person = await register(client)
            capfd.readouterr()
            await person.get("/v1/users/me/events?kind=in_the_address", headers={"X-Request-ID": "r-1"})
            await client.get("/test/broken", headers={"X-Request-ID": "r-2"})
            await client.post("/v1/auth/login", json={"email": person.email, "password": "my-own-password"})
    output = capfd.readouterr().out
    lines = [json.loads(line) for line in output.splitlines()]
    requests = {line["request_id"]: line for line in lines if line["event"] == "request"}
    line = requests["r-1"]
    assert {key: line[key] for key in ("level", "method", "route", "status", "user_id", "trace")} == {
        "level": "info",
        "method": "GET",
        "route": "/v1/users/me/events",
        "status": 200,
        "user_id": str(person.id),
        "trace": None,
    }
    assert "actor_id" not in line
    assert 0 < line["ms"] < 5_000
    assert line["ts"].endswith("Z") or line["ts"].endswith("+00:00")
    failure = next(line for line in lines if line["event"] == "http.request_failed")
    assert (failure["request_id"], failure["level"], requests["r-2"]["status"]) == ("r-2", "error", 500)
    assert "ValueError" in failure["exception"]
    for secret in ("in_the_address", "my-own-password", person.tokens["access_token"], person.password):
        assert secret not in output


async def test_text_log_lines(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    async with Lifespan(create_app(settings)).running() as running:
        transport = httpx.ASGITransport(running)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.get("/livez", headers={"X-Request-ID": "r-1"})
            await client.head("/nowhere?token=in_the_address", headers={"X-Request-ID": "r-2"})
            await client.get("/docs/assets/swagger-ui.css", headers={"X-Request-ID": "r-3"})
            await client.get("/docs/assets/nothing", headers={"X-Request-ID": "r-4"})
    lines = re.findall(r"^(\w+ +\d+) +\d+\.\d\d ms  (.*)$", capfd.readouterr().out, re.MULTILINE)
    assert lines == [
        ("GET    200", "/livez  r-1"),
        ("HEAD   404", "unmatched /nowhere  r-2"),
        ("GET    200", "/docs/assets/{path}  r-3"),
        ("GET    404", "/docs/assets/{path}  r-4"),
    ]


HOSTILE_PATHS = {
    "a forged line": ("/x%0AGET    200     0.10 ms  /forged  r-9", "/x%0AGET%20%20%20%20200%20%20%20%20%200.10%20ms"),
    "a terminal's escape sequence": ("/%1B[2J%9B", "/%1B%5B2J"),
    "a quote": ("/%22,%22status%22:%22", "/%22%2C%22status%22%3A%22"),
    "too long": ("/" + "a" * 5_000, "/" + "a" * 199 + "..."),
    "a lone surrogate": ("/%ED%A0%80", "/"),
}


@pytest.mark.parametrize(("sent", "logged"), HOSTILE_PATHS.values(), ids=HOSTILE_PATHS)
@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_paths_that_nothing_is_found_for_are_logged_safely(
    environment: dict[str, str],
    frozen_garbage: None,
    capfd: pytest.CaptureFixture[str],
    log_format: str,
    sent: str,
    logged: str,
) -> None:
    settings = load_settings(environment | {"APP_LOG_FORMAT": log_format})
    async with Lifespan(create_app(settings)).running() as running:
        transport = httpx.ASGITransport(running)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.get(f"{sent}?token=in_the_address")
            # A path that is no UTF-8 is not looked for.
            assert answer.status_code == (400 if "%9B" in sent or "%ED" in sent else 404)
    output = capfd.readouterr().out
    (line,) = [line for line in output.splitlines() if "unmatched" in line]
    path = json.loads(line)["path"] if log_format == "json" else line.split("unmatched ")[1].rpartition("  ")[0]
    assert path.startswith(logged)
    assert len(path) < 700
    assert re.fullmatch(r"[!-~]+", path)
    assert "in_the_address" not in output
    assert not any(line.startswith("GET    200     0.10 ms") for line in output.splitlines())


@pytest.mark.settings(APP_LOG_ACCESS="false")
async def test_no_log_lines_where_they_are_switched_off(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    async with Lifespan(create_app(settings)).running() as running:
        transport = httpx.ASGITransport(running)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.get("/livez", headers={"X-Request-ID": "r-1"})
    assert "ms  /livez" not in capfd.readouterr().out


def test_log_drops_lines_rather_than_grow(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr("app.kernel.observability.log_writer._MAX_WAITING_LINES", 2)
    stuck = Output()
    monkeypatch.setattr(stuck, "_start", lambda: None)
    monkeypatch.setattr("app.kernel.observability.access_log.output", stuck)
    log = AccessLog(json_lines=True)
    for _ in range(5):
        log.write("GET", "/x", 200, 0.001, None, request_id="r")
    stuck._write_waiting()
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["request", "request", "log lines dropped"]
    assert lines[2]["lines"] == 3


async def _no_app(*_: Any) -> None:
    """Never called."""


def test_the_line_of_an_administrator_who_acts_for_a_user_names_both(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    output = Output()
    monkeypatch.setattr(output, "_start", lambda: None)
    monkeypatch.setattr("app.kernel.observability.access_log.output", output)
    user, admin = UserId(uuid4()), UserId(uuid4())
    principal = Principal(user, uuid4(), frozenset(), frozenset({"user"}), "t", actor_id=admin)
    context = RequestContext(_no_app, HttpSettings(), AccessLog(json_lines=True), {})
    context.record("GET", "/x", 200, 0.001, principal, request_id="r", trace=None)
    output._write_waiting()
    line = json.loads(capfdbinary.readouterr().out)
    assert (line["user_id"], line["actor_id"]) == (str(user), str(admin))


@pytest.mark.settings(APP_HTTP_CORS_ORIGINS="https://app.example.com")
async def test_a_refused_preflight_is_a_problem_with_a_request_id(client: httpx.AsyncClient) -> None:
    asked = {"Origin": "https://evil.example.com", "Access-Control-Request-Method": "POST"}
    answer = await client.options("/v1/events", headers=asked)
    problem_of(answer, 400, "origin_refused")
    assert answer.headers["x-request-id"]
    assert "access-control-allow-origin" not in answer.headers


async def test_head_of_an_endless_stream_ends_with_its_head() -> None:
    ended = asyncio.Event()

    async def endless(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-stream", b"1")]})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"more", "more_body": True})
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "HEAD", "path": "/", "headers": [], "query_string": b""}
    async with in_time():
        admission = Admission(
            endless,
            HttpSettings(),
            cached_paths=(),
            shares=TimeShares(),
            hashing_routes=(),
            hashing_slots=1,
        )
        await RequestContext(admission, HttpSettings(), None, {})(scope, receive, send)
        await ended.wait()
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert (b"x-stream", b"1") in sent[0]["headers"]
    assert sent[1]["body"] == b""
