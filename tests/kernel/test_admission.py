"""Which requests are let in when there are too many, and how the others are refused."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import Response
from fastapi.responses import StreamingResponse

from app.kernel.auth import Public
from app.kernel.http import Router, json_response
from app.kernel.server.refusal_queue import RefusalQueue
from tests.fixtures.answers import problem_of
from tests.fixtures.application import Lifespan, LiveServer
from tests.fixtures.http import http_client
from tests.fixtures.people import Person, register
from tests.fixtures.waiting import eventually, scaled
from tests.kernel.conftest import Planted


class Held:
    """Requests that stay inside until they are let go."""

    def __init__(self) -> None:
        self.inside = 0
        self.go = asyncio.Event()

    async def stay(self) -> None:
        self.inside += 1
        try:
            await self.go.wait()
        finally:
            self.inside -= 1


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
async def client(planted: Planted, held: Held) -> AsyncIterator[httpx.AsyncClient]:
    router = Router(prefix="/test")

    @router.get("/hold", dependencies=[Public])
    async def hold() -> Response:
        await held.stay()
        return json_response({})

    @router.post("/hold", dependencies=[Public])
    async def hold_write() -> Response:
        await held.stay()
        return json_response({})

    @router.get("/sleep/{seconds}", dependencies=[Public])
    async def sleep(seconds: float) -> Response:
        await asyncio.sleep(seconds)
        return json_response({})

    @router.get("/stream", dependencies=[Public])
    async def stream() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first "
            await held.stay()
            yield b"last"

        return StreamingResponse(parts(), media_type="text/plain")

    @router.get("/broken", dependencies=[Public])
    async def broken() -> Response:
        raise ValueError

    async with planted(router) as client:
        yield client
        held.go.set()


Answering = asyncio.Task[httpx.Response]


async def fill(client: httpx.AsyncClient, held: Held, count: int, method: str = "GET") -> list[Answering]:
    tasks = [asyncio.create_task(client.request(method, "/test/hold")) for _ in range(count)]
    before = held.inside
    await eventually(lambda: held.inside == before + count)
    return tasks


async def rejections(client: httpx.AsyncClient) -> Counter[str]:
    """How many reads were refused so far, by reason."""
    metrics = (await client.get("/metrics")).text
    found = re.findall(r'^onehop_admission_rejected_total{class="read",reason="(\w+)"} (.+)$', metrics, re.MULTILINE)
    return Counter({reason: int(float(count)) for reason, count in found})


@pytest.mark.settings(APP_HTTP_MAX_IN_FLIGHT="2", APP_HTTP_MAX_WAITING="1", APP_HTTP_MAX_WAIT="2")
async def test_admission(client: httpx.AsyncClient, held: Held) -> None:
    inside = await fill(client, held, 2)
    before = await rejections(client)
    started = time.perf_counter()
    for answer in await asyncio.gather(*(client.get("/test/hold") for _ in range(2))):
        problem_of(answer, 503, "overloaded")
        assert answer.headers["retry-after"] in {"1", "2", "3"}
    assert time.perf_counter() - started >= 2
    # One of them waited in vain, and the other one was not even let wait.
    assert await rejections(client) - before == Counter(queue_full=1, waited_too_long=1)
    # Probes are always let in.
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200
    metrics = (await client.get("/metrics")).text
    assert 'onehop_admission_limit{pool="work"}' in metrics
    # A request that waits shortly enough gets the slot, once the last refusal is some time ago.
    await asyncio.sleep(0.3)
    third = asyncio.create_task(client.get("/test/sleep/0"))
    await asyncio.sleep(0.05)
    held.go.set()
    assert [answer.status_code for answer in await asyncio.gather(*inside, third)] == [200, 200, 200]


@pytest.mark.settings(APP_HTTP_MAX_IN_FLIGHT="2", APP_HTTP_MAX_WAITING="3")
async def test_places_come_back_whatever_happens(client: httpx.AsyncClient) -> None:
    for _ in range(10):
        tasks = [asyncio.create_task(client.get("/test/sleep/0.05")) for _ in range(5)]
        await asyncio.sleep(0.01)
        for task in tasks[1::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.get("/test/broken")
    answers = await asyncio.gather(*(client.get("/test/sleep/0.01") for _ in range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5


@pytest.mark.settings(APP_HTTP_MAX_IN_FLIGHT="1", APP_HTTP_MAX_WAITING="0")
async def test_a_refusal_looks_the_same_however_early_it_comes(client: httpx.AsyncClient, held: Held) -> None:
    await fill(client, held, 1)
    late = await client.get("/test/hold", headers={"X-Request-ID": "mine-1"})
    early = await client.get("/test/hold", headers={"X-Request-ID": "mine-2"})
    problem_of(late, 503, "overloaded")
    problem_of(early, 503, "overloaded")
    assert late.text.replace("mine-1", "mine-2") == early.text
    assert early.headers["x-request-id"] == "mine-2"
    assert set(late.headers) == set(early.headers)
    for name in set(early.headers) - {"x-request-id", "retry-after"}:
        assert early.headers[name] == late.headers[name], name
    made = await client.get("/test/hold", headers={"X-Request-ID": "not one"})
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", made.headers["x-request-id"])
    problem_of(made, 503, "overloaded")
    assert (await client.head("/test/hold")).status_code == 503
    await eventually(lambda: refused(client, "read", "queue_full", 4))


async def refused(client: httpx.AsyncClient, name: str, reason: str, least: float) -> bool:
    metrics = (await client.get("/metrics")).text
    found = re.search(rf'onehop_admission_rejected_total{{class="{name}",reason="{reason}"}} ([\d.]+)', metrics)
    return found is not None and float(found[1]) >= least


@pytest.mark.settings(APP_HTTP_MAX_IN_FLIGHT="1", APP_HTTP_MAX_WAITING="0")
async def test_what_is_in_memory_needs_no_place(client: httpx.AsyncClient, held: Held) -> None:
    person = await register(client)
    for path in ("/v1/users/me", "/v1/overview"):
        assert (await person.get(path)).status_code == 200
    (inside,) = await fill(client, held, 1)
    for _ in range(2):
        assert (await person.get("/v1/users/me")).status_code == 200
        assert (await person.get("/v1/overview")).status_code == 200
        # Not in memory, of a path that might be; and a token that is new to the process.
        problem_of(await person.get("/v1/users/me/preferences"), 503, "overloaded")
        stranger = Person(client, person.id, "", "", {"access_token": "unknown"})
        problem_of(await stranger.get("/v1/users/me"), 503, "overloaded")
        problem_of(await client.get("/v1/users/me"), 503, "overloaded")
    held.go.set()
    assert (await inside).status_code == 200
    assert (await person.get("/v1/users/me/preferences")).status_code == 200


@pytest.mark.settings(APP_HTTP_MAX_IN_FLIGHT="1", APP_HTTP_MAX_WAITING="0")
async def test_what_might_be_in_memory_and_is_not_is_refused_as_early(client: httpx.AsyncClient, held: Held) -> None:
    person = await register(client)
    page, other = "/v1/users/me/events?limit=20", "/v1/users/me/events?limit=10"
    assert (await person.get(page)).status_code == 200
    (inside,) = await fill(client, held, 1)
    # The first one is found out late at most, in its layer, and measured as any answer.
    problem_of(await person.get(other), 503, "overloaded")
    before = await measured(client)
    for path in (other, "/v1/users/me", "/v1/overview"):
        problem_of(await person.get(path), 503, "overloaded")
    assert await measured(client) == before
    assert (await person.get(page)).status_code == 200
    assert (await person.request("HEAD", page)).status_code == 200
    held.go.set()
    assert (await inside).status_code == 200
    assert (await person.get(other)).status_code == 200


async def measured(client: httpx.AsyncClient) -> float:
    """How many refusals went through the layers."""
    metrics = (await client.get("/metrics")).text
    pattern = r'onehop_http_server_request_duration_seconds_count\{.*http_response_status_code="503".*\} ([\d.]+)'
    return sum(float(count) for count in re.findall(pattern, metrics))


@pytest.mark.settings(APP_HTTP_MAX_IN_FLIGHT="5", APP_HTTP_MAX_WAITING="0")
async def test_reads_leave_places_for_writes(client: httpx.AsyncClient, held: Held) -> None:
    await fill(client, held, 5)
    problem_of(await client.get("/test/sleep/0"), 503, "overloaded")
    await fill(client, held, 2, method="POST")
    problem_of(await client.post("/test/hold"), 503, "overloaded")


@pytest.mark.settings(
    APP_HTTP_MAX_IN_FLIGHT="1",
    APP_HTTP_MAX_WAITING="0",
    APP_IDENTITY_HASH_THREADS="1",
    APP_IDENTITY_HASH_QUEUE="0",
    APP_IDENTITY_HASH_MEMORY_KIB="19456",
    APP_IDENTITY_HASH_ITERATIONS="6",
)
async def test_log_ins_have_places_of_their_own(client: httpx.AsyncClient, held: Held) -> None:
    person = await register(client)
    await fill(client, held, 1, method="POST")
    body = {"email": person.email, "password": person.password}
    answers = await asyncio.gather(*(client.post("/v1/auth/login", json=body) for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [200, 503, 503]
    for answer in answers:
        if answer.status_code == 503:
            problem_of(answer, 503, "overloaded")
    assert (await client.post("/v1/auth/login", json=body)).status_code == 200
    # So have those who prove their password once more.
    proof = {"current_password": person.password}
    proofs = await asyncio.gather(*(person.post("/v1/auth/mfa/recovery-codes", json=proof) for _ in range(3)))
    assert Counter(answer.json()["code"] for answer in proofs) == {"second_factor_missing": 1, "overloaded": 2}


@pytest.mark.settings(APP_HTTP_MAX_IN_FLIGHT="1", APP_HTTP_MAX_WAITING="0")
async def test_who_only_waits_or_downloads_needs_no_place(client: httpx.AsyncClient, held: Held) -> None:
    transport = client._transport
    assert isinstance(transport, httpx.ASGITransport)
    assert isinstance(transport.app, Lifespan)
    jobs = transport.app._application.state.jobs
    person = await register(client)
    job = await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})
    path = job.headers["location"]
    poll = asyncio.create_task(person.get(path, headers={"Prefer": "wait=30"}))
    await eventually(lambda: jobs.watch._waiting.total() == 1)
    stream = asyncio.create_task(person.get("/test/stream"))
    await eventually(lambda: held.inside == 1)

    async def finds_a_place() -> bool:
        # On a busy machine the person's share of the time is used up for a moment, because a stranger has registered.
        return (await person.get("/test/sleep/0")).status_code == 200

    await eventually(finds_a_place, within=5)
    assert jobs.watch._waiting.total() == 1
    held.go.set()
    assert (await stream).status_code == 200
    poll.cancel()
    await asyncio.gather(poll, return_exceptions=True)


@pytest.mark.settings(
    APP_IDENTITY_HASH_THREADS="1",
    APP_IDENTITY_HASH_QUEUE="0",
    APP_IDENTITY_HASH_MEMORY_KIB="65536",
    APP_IDENTITY_HASH_ITERATIONS="20",
)
async def test_a_server_refuses_before_it_makes_a_task(live_server: LiveServer) -> None:
    """What goes over the wire is whole, and the connection goes on behind it."""
    body = {"email": "unknown@example.com", "password": "takes a while"}
    async with http_client(await live_server(), timeout=scaled(20)) as client:
        inside = asyncio.create_task(client.post("/v1/auth/login", json=body))
        refusals: list[httpx.Response] = []
        for number in range(4):
            await asyncio.sleep(0.02)
            answer = await client.post("/v1/auth/login", json=body, headers={"X-Request-ID": f"mine-{number}"})
            if answer.status_code == 503:
                refusals.append(answer)
        closing = await client.post("/v1/auth/login", json=body, headers={"Connection": "close"})
        assert (await client.get("/livez")).status_code == 200
        problem_of(await inside, 401, "invalid_credentials")
        assert len(refusals) >= 3
        for answer in (*refusals, closing):
            problem_of(answer, 503, "overloaded")
        first = refusals[0]
        for answer in refusals[1:]:
            assert set(answer.headers) | {"date"} == set(first.headers) | {"date"}
            assert len(answer.content) == len(first.content) == int(answer.headers["content-length"])
        assert closing.headers["connection"] == "close"
        problem_of(await client.post("/v1/auth/login", json=body), 401, "invalid_credentials")


class Answered:
    """Counts what an refusal_queue sends, and takes its time for it."""

    sent = 0

    def take(self, _: bytes) -> None:
        Answered.sent += 1
        until = time.thread_time() + 0.0005
        while time.thread_time() < until:
            pass


async def test_refusals_do_not_displace_other_work() -> None:
    Answered.sent = 0
    refusal_queue = RefusalQueue(asyncio.get_running_loop())
    for _ in range(120):
        refusal_queue.put(Answered(), b"", "client")
    turns = 0
    while Answered.sent < 60:
        until = time.thread_time() + 0.002
        while time.thread_time() < until:
            pass
        turns += 1
        await asyncio.sleep(0)
    # A twentieth of what the turn took, and at least one.
    assert turns > 30
    await eventually(lambda: Answered.sent == 120)


async def test_refusals_stay_few_though_a_busy_loop_pauses_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = worked = 0.0

    class Quick:
        sent = 0

        def take(self, _: bytes) -> None:
            nonlocal now, worked
            Quick.sent += 1
            now, worked = now + 0.00001, worked + 0.00001

    monkeypatch.setattr("app.kernel.server.refusal_queue.monotonic", lambda: now)
    monkeypatch.setattr("app.kernel.server.refusal_queue.thread_time", lambda: worked)
    refusal_queue = RefusalQueue(asyncio.get_running_loop())
    for _ in range(200):
        now += 0.0003
        for _ in range(10):
            now, worked = now + 0.00007, worked + 0.00007
            refusal_queue.put(Quick(), b"", "client")
    # What was saved before, a millisecond; since then a hundredth of the time would be as much again and a half.
    assert 100 <= Quick.sent < 300
