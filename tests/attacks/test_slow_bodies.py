"""Clients that send their bodies slowly, or do not read their answers, keep nothing that others need."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI

from app.kernel.fairness.limiter import FixedLimit, Limiter, RequestClass
from app.kernel.fairness.ticket import AdmissionStage, AdmissionTicket, Overloaded
from app.kernel.middleware.admission import Admission
from tests.attacks.conftest import RawClient
from tests.fixtures.application import Lifespan
from tests.fixtures.people import Person
from tests.fixtures.waiting import eventually, scaled

BODY = b'{"email": "ada@example.com", "password": "wrong password"}'
SLOTS = 4
FEW_SLOTS = pytest.mark.settings(
    APP_HTTP_MAX_IN_FLIGHT=str(SLOTS),
    APP_IDENTITY_HASH_THREADS="1",
    APP_IDENTITY_HASH_QUEUE=str(SLOTS - 1),
    APP_HTTP_MAX_WAIT="0",
)


def admission_of(app: FastAPI) -> Admission:
    admission: Any = app
    admission = admission.entry._admission
    assert isinstance(admission, Admission)
    return admission


@asynccontextmanager
async def slow_body(port: int, path: str, *, begin: bytes) -> AsyncIterator[tuple[Any, Any]]:
    """A connection whose client has sent the head of a request, and `begin` of its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + begin)
    try:
        yield reader, writer
    finally:
        writer.close()


@FEW_SLOTS
@pytest.mark.parametrize("begin", [b"", BODY[:20]])
async def test_bodies_that_do_not_come_hold_no_slots(raw: RawClient, app: FastAPI, begin: bytes) -> None:
    admission = admission_of(app)
    limiters = admission._reads.limiter, admission._hashing.limiter
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(slow_body(raw.port, f"/v1/auth/{call}", begin=begin))
            for call in ("login", "password/forgot")
            for _ in range(SLOTS)
        ]
        await eventually(lambda: [len(limiter.uploads) for limiter in limiters] == [SLOTS, SLOTS])
        assert [limiter.used for limiter in limiters] == [0, 0]
        assert [limiter.held for limiter in limiters] == [{}, {}]
        json = [("Content-Type", "application/json")]
        assert (await raw.request("POST", "/v1/auth/login", json, BODY)).status == 401
        assert (await raw.request("POST", "/v1/auth/password/forgot", json, b'{"email": "a@b.de"}')).status == 202
        # And each that has come after all is answered as ever.
        statuses = []
        for reader, writer in clients:
            writer.write(BODY[len(begin) :])
            answer = await asyncio.wait_for(reader.read(), scaled(20))
            statuses.append(int(answer.split()[1]))
        assert statuses == [401] * SLOTS + [422] * SLOTS
    await eventually(lambda: [len(limiter.uploads) for limiter in limiters] == [0, 0])
    assert [limiter.used for limiter in limiters] == [0, 0]


@FEW_SLOTS
async def test_a_client_that_leaves_before_its_body_has_come_leaves_nothing(raw: RawClient, app: FastAPI) -> None:
    limiter = admission_of(app)._hashing.limiter
    async with slow_body(raw.port, "/v1/auth/login", begin=b"{"):
        await eventually(lambda: len(limiter.uploads) == 1)
    await eventually(lambda: len(limiter.uploads) == 0)
    assert (limiter.used, limiter.held) == (0, {})


async def test_one_caller_has_a_part_of_the_uploads() -> None:
    limiter = Limiter("test", FixedLimit(600), queue_size=0, max_wait=0)
    request_class = RequestClass("test", limiter)

    async def upload(caller: str) -> AdmissionTicket:
        ticket = AdmissionTicket(request_class)
        await ticket.acquire(caller)
        return ticket

    for _ in range(102):
        assert (await upload("greedy")).pause() == (limiter.uploads, "greedy")
    refused = await upload("greedy")
    with pytest.raises(Overloaded):
        refused.pause()
    # It keeps its slot, which the end of the request gives back.
    assert refused.stage is AdmissionStage.ADMITTED
    assert (await upload("other")).pause() == (limiter.uploads, "other")
    assert (limiter.used, limiter.held) == (1, {"greedy": 1})


async def test_an_answer_that_is_not_read_holds_no_slot(running_app: Lifespan, app: FastAPI, person: Person) -> None:
    """Not even one that the response cache has made, whose layer is in front of that of the deadline."""
    admission = admission_of(app)
    read = asyncio.Event()
    is_answered = False

    async def receive() -> dict[str, Any]:
        await read.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        nonlocal is_answered
        is_answered = True
        await read.wait()

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/users/me",
        "raw_path": b"/v1/users/me",
        "query_string": b"",
        "headers": [(b"authorization", person.headers["Authorization"].encode())],
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
        "scheme": "http",
        "server": ("localhost", 80),
    }
    request = asyncio.create_task(running_app(scope, receive, send))
    await eventually(lambda: is_answered)
    assert admission._reads.used == 0
    read.set()
    await request
