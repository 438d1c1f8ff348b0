"""What becomes of a request whose client has gone, and what any request leaves behind."""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import FastAPI, Response
from prometheus_client import REGISTRY

from app.dev.embedded import EmbeddedValkey
from app.kernel.auth import Public
from app.kernel.batching.coalescing import Coalescer
from app.kernel.batching.group_commit import GroupCommit
from app.kernel.database import Database
from app.kernel.errors import Unavailable
from app.kernel.fairness.pacing import Paced
from app.kernel.http import Router, json_response
from app.kernel.ids import new_id
from app.kernel.redis.gateway import RedisUnavailable, Script
from app.kernel.resources import ResourcesDep
from app.settings import Settings
from tests.faults.signals import frozen
from tests.fixtures.application import Lifespan
from tests.fixtures.people import PASSWORD, Person, register
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually, in_time
from tests.kernel.conftest import OpenRedis, create_app_with


async def metrics_of(running: Lifespan) -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(running), base_url="http://localhost") as client:
        return (await client.get("/metrics")).text


async def call_until_gone(
    running: Lifespan, method: str, path: str, gone: asyncio.Event, *, body: bytes = b"", token: str | None = None
) -> int | None:
    """Sends a request, and closes the connection when `gone` is set. Answers the status, if there was an answer."""
    is_sent = False
    status: int | None = None

    async def receive() -> dict[str, Any]:
        nonlocal is_sent
        if is_sent:
            await gone.wait()
            return {"type": "http.disconnect"}
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))] if body else []
    if token is not None:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
        "scheme": "http",
        "server": ("localhost", 80),
    }
    await running(scope, receive, send)
    return status


async def test_a_body_that_never_ends_is_not_kept_for_a_read(settings: Settings) -> None:
    """A watched client may send without end, and faster than anything else gets a turn of the loop."""
    slow = Router(prefix="/slow")

    @slow.get("/sleep", dependencies=[Public])
    async def read() -> Response:
        await asyncio.sleep(0.2)
        return json_response({})

    received = 0
    statuses: list[int | None] = []

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        assert received < 1_000
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    async with Lifespan(create_app_with(slow, settings)).running() as running:
        scope = {"type": "http", "method": "GET", "path": "/slow/sleep", "raw_path": b"/slow/sleep"}
        await running({**scope, "query_string": b"", "headers": [], "client": ("127.0.0.1", 1)}, receive, send)
    assert statuses[0] == 200
    assert 0 < received < 100


async def test_a_read_ends_with_its_client_and_a_write_goes_on(settings: Settings) -> None:
    done: list[str] = []
    entered = asyncio.Event()
    slow = Router(prefix="/slow")

    @slow.get("/sleep", dependencies=[Public])
    async def read(resources: ResourcesDep) -> Response:
        entered.set()
        async with resources.db.read("test.sleep") as conn:
            await conn.fetchval("SELECT 1 FROM pg_sleep(30) -- by a test")
        done.append("read")
        return json_response({})

    @slow.post("/sleep", dependencies=[Public])
    async def write() -> Response:
        entered.set()
        await asyncio.sleep(0.3)
        done.append("write")
        return json_response({})

    application = create_app_with(slow, settings)
    async with Lifespan(application).running() as running:
        database = application.state.resources.db
        for method in ("GET", "POST"):
            gone = asyncio.Event()
            entered.clear()
            call = asyncio.create_task(call_until_gone(running, method, "/slow/sleep", gone))
            await entered.wait()
            # Watched from then on, and the statement is under way.
            await asyncio.sleep(0.1)
            gone.set()
            async with in_time():
                await call
        assert done == ["write"]

        async def nothing_is_left() -> bool:
            async with database.read("test.look") as conn:
                running_still = await conn.fetchval(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE state = 'active' AND query LIKE '%by a test%' AND pid <> pg_backend_pid()"
                )
            return bool(running_still == 0 and len(set(database._pool.connections)) == 1)

        await eventually(nothing_is_left)
        metrics = await metrics_of(running)
    labels = 'http_request_method="GET",http_response_status_code="499",http_route="/slow/sleep"'
    assert f"onehop_http_server_request_duration_seconds_count{{{labels}}} 1.0" in metrics


@pytest.mark.settings(APP_DATABASE_LOCK_TIMEOUT="20")
async def test_a_composed_read_ends_with_its_client_unless_others_wait_for_it(
    running_app: Lifespan, person: Person, db: Database, database_url: str
) -> None:
    calls: list[asyncio.Task[int | None]] = []
    leave: list[asyncio.Event] = []

    async def is_waiting() -> bool:
        async with db.read("test.look") as conn:
            return bool(await conn.fetchval("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"))

    async def ask(count: int) -> None:
        """Leaves nothing in memory before."""
        await person.post("/v1/events", json={"kind": "something.new"})
        await locker.execute("BEGIN")
        await locker.execute("LOCK TABLE users.users IN ACCESS EXCLUSIVE MODE")
        calls.clear()
        leave.clear()
        for _ in range(count):
            leave.append(asyncio.Event())
            token = person.tokens["access_token"]
            calls.append(
                asyncio.create_task(call_until_gone(running_app, "GET", "/v1/overview", leave[-1], token=token))
            )
        await eventually(is_waiting)

    async def outcomes() -> list[int | None]:
        await locker.execute("ROLLBACK")
        async with in_time():
            return await asyncio.gather(*calls)

    locker = await asyncpg.connect(database_url)
    try:
        await ask(1)
        leave[0].set()
        async with in_time():
            assert await calls[0] is None
        assert await outcomes() == [None]
        # The second one waits for the answer of the first.
        await ask(2)
        leave[1].set()
        async with in_time():
            assert await calls[1] is None
        assert await outcomes() == [200, None]
        await ask(2)
        leave[0].set()
        await asyncio.sleep(0.2)
        assert not any(call.done() for call in calls)
        assert await outcomes() == [200, 200]
    finally:
        await locker.close()
    labels = 'http_request_method="GET",http_response_status_code="499",http_route="/v1/overview"'
    assert f"onehop_http_server_request_duration_seconds_count{{{labels}}} 2.0" in await metrics_of(running_app)


def _gone_log_ins() -> float:
    """Of all tests of this process."""
    labels = {"http_request_method": "POST", "http_response_status_code": "499", "http_route": "/v1/auth/login"}
    return REGISTRY.get_sample_value("onehop_http_server_request_duration_seconds_count", labels) or 0.0


async def test_a_log_in_whose_client_has_gone_is_not_hashed(
    running_app: Lifespan, app: FastAPI, client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    hashing = app.state.identity.hashing._threads
    threads = hashing._first.pool._max_workers
    assert all(hashing._first.turns.try_acquire(None) for _ in range(threads))
    hashed, gone_before = REGISTRY.get_sample_value("onehop_identity_password_hash_seconds_count"), _gone_log_ins()
    credentials = {"email": person.email, "password": PASSWORD}
    gone = asyncio.Event()
    body = json.dumps(credentials | {"password": "not it at all"}).encode()
    try:
        call = asyncio.create_task(call_until_gone(running_app, "POST", "/v1/auth/login", gone, body=body))
        await eventually(lambda: hashing._used == 1)
        gone.set()
        async with in_time():
            assert await call is None
        await eventually(lambda: hashing._used == 0)
    finally:
        for _ in range(threads):
            hashing._first.turns.release(None)
    assert REGISTRY.get_sample_value("onehop_identity_password_hash_seconds_count") == hashed
    assert await connection.fetchval("SELECT count(*) FROM identity.security_events WHERE action = 'login_failed'") == 0
    await eventually(lambda: _gone_log_ins() == gone_before + 1)
    # A client that stays is served as ever.
    assert (await client.post("/v1/auth/login", json=credentials)).status_code == 200


async def cycles_of(work: Awaitable[Any]) -> tuple[Any, list[Any]]:
    """What `work` returns, and which of our objects and exceptions it leaves to the garbage collector.

    Only what it makes counts, so this needs `frozen_garbage`.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        answer = await asyncio.ensure_future(work)
        # What it has cancelled ends in the next turns of the loop.
        await asyncio.sleep(0.05)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return answer, [
            repr(item)
            for item in gc.garbage
            if isinstance(item, BaseException) or type(item).__module__.startswith("app.")
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.slow
async def test_requests_leave_no_cycles(settings: Settings, frozen_garbage: None) -> None:
    """What refers to itself is freed by the garbage collector only, whose runs slow down every request."""
    async with Lifespan(create_app_with(Router(), settings)).running() as running:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(running), base_url="http://localhost") as client:
            person = await register(client)
        token = person.headers["Authorization"].removeprefix("Bearer ")
        forged = token[:-8] + "AAAAAAAA"
        login = json.dumps({"email": person.email, "password": PASSWORD}).encode()
        wrong = json.dumps({"email": person.email, "password": "not it at all"}).encode()
        found = []
        for method, path, body, bearer, status in (
            ("POST", "/v1/events", b'{"kind": "page.viewed"}', token, 201),
            ("POST", "/v1/events", b'{"kind": 7}', token, 422),
            ("POST", "/v1/events", b'{"kind"', token, 400),
            ("POST", "/v1/events", b'{"kind": "page.viewed"}', forged, 401),
            ("GET", "/v1/users/me/events", b"", token, 200),
            ("GET", "/v1/users/me", b"", token, 200),
            ("GET", "/v1/users/me", b"", forged, 401),
            ("GET", "/v1/users/me", b"", None, 401),
            ("GET", "/v1/overview", b"", token, 200),
            ("GET", "/v1/overview", b"", forged, 401),
            ("GET", "/v1/admin/users", b"", token, 403),
            ("GET", f"/v1/jobs/{new_id()}", b"", token, 404),
            ("GET", "/nowhere", b"", None, 404),
            ("DELETE", "/v1/overview", b"", token, 405),
            ("POST", "/v1/auth/login", login, None, 200),
            ("POST", "/v1/auth/login", wrong, None, 401),
            ("POST", "/v1/auth/register", login, None, 409),
            ("POST", "/v1/auth/logout", b"", token, 204),
            ("GET", "/v1/users/me", b"", token, 401),
        ):
            never = asyncio.Event()
            call = call_until_gone(running, method, path, never, body=body, token=bearer)
            answered, cycles = await cycles_of(call)
            found.append((method, path, answered, cycles))
            assert answered == status, (method, path)
        assert [entry for entry in found if entry[-1]] == []


async def test_redis_errors_leave_no_cycles(
    open_redis: OpenRedis, valkey: EmbeddedValkey, frozen_garbage: None
) -> None:
    """redis-py keeps each error that it raises in a variable of the function that raises it."""
    gateway = await open_redis(breaker_threshold=100, pool_size=1)
    script = Script("return ARGV[1]")

    async def is_refused(timeout: float | None = None) -> bool:
        try:
            await gateway.call(lambda client: client.incr("text"), timeout=timeout)
        except RedisUnavailable:
            return True
        return False

    await gateway.call(lambda client: client.set("text", "no number"))
    assert await cycles_of(gateway.call(lambda client: script(client, [], ["new to it"]))) == (b"new to it", [])
    assert await cycles_of(is_refused()) == (True, [])
    pid = valkey.pid()
    assert pid is not None
    with frozen(pid):
        assert await cycles_of(is_refused(timeout=0.02)) == (True, [])
    valkey.stop()
    try:
        assert await cycles_of(is_refused()) == (True, [])
    finally:
        valkey.start()


async def test_failures_that_many_share_leave_no_cycles(frozen_garbage: None) -> None:
    async def look_up(keys: Sequence[str]) -> dict[str, str]:
        if "away" in keys:
            raise Unavailable("away")
        if "bad" in keys:
            raise ValueError(keys)
        return dict.fromkeys(keys, "found")

    async def write(items: Sequence[str]) -> list[str]:
        return [*(await look_up(items)).values()]

    async def fail() -> None:
        raise Unavailable("away")

    async def ask(get: Callable[[str], Awaitable[Any]], names: str) -> list[Any]:
        outcomes = await asyncio.gather(*map(get, names.split()), return_exceptions=True)
        return [type(outcome) if isinstance(outcome, Exception) else outcome for outcome in outcomes]

    coalescer = Coalescer(look_up)
    group = GroupCommit(write, weight=lambda _: 1)
    for get in (coalescer.get, group.submit):
        assert await cycles_of(ask(get, "away a")) == ([Unavailable] * 2, [])
        assert await cycles_of(ask(get, "a bad b")) == (["found", ValueError, "found"], [])
    paced = Paced(fail, rest=0.0)
    assert await cycles_of(ask(lambda _: paced.get(), "a b")) == ([Unavailable] * 2, [])
