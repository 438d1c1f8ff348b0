"""What the machine can do: the small programs that run beside each measure.

`BENCH_BODY` is the size of their answers in bytes, the same as of what they are compared with.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import redis.asyncio as redis
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import Response as StarletteResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

SIZE = int(os.environ.get("BENCH_BODY", "1024"))
BODY = b'{"text":"' + b"x" * (SIZE - 11) + b'"}'
POOL_SIZE = 10
_TOKENS = {f"Bearer token-{number}".encode(): number for number in range(100)}
_HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(BODY)).encode()),
    (b"etag", b'"0123456789abcdef"'),
    (b"cache-control", b"private, no-cache"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-request-id", b"0123456789abcdef"),
]


async def bare(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    """The least that an ASGI application can do."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS[:2]})
    await send({"type": "http.response.body", "body": BODY})


async def cached(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    """A cached answer without any framework: find the token, find the answer, six headers."""
    if scope["type"] != "http":
        return
    token = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    answer = _ANSWERS.get((_TOKENS.get(token, -1), scope["path"]))
    await send({"type": "http.response.start", "status": 200 if answer else 401, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": answer or BODY})


_ANSWERS = {(number, "/cached"): BODY for number in _TOKENS.values()}


async def _starlette(_: Any) -> StarletteResponse:
    return StarletteResponse(BODY, media_type="application/json")


starlette = Starlette(routes=[Route("/starlette", _starlette)])


class Text(BaseModel):
    text: str


class Person(BaseModel):
    id: UUID
    email: str
    text: str


class NewEvent(BaseModel):
    kind: str
    properties: dict[str, Any] = {}


@asynccontextmanager
async def _connections(app: FastAPI) -> AsyncIterator[None]:
    if "DATABASE_URL" not in os.environ:
        yield
        return
    app.state.redis = redis.Redis.from_url(os.environ["REDIS_URL"])
    await app.state.redis.set("bench:body", BODY)
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=POOL_SIZE, max_size=POOL_SIZE) as pool:
        app.state.pool = pool
        yield
    await app.state.redis.aclose()


fastapi = FastAPI(lifespan=_connections)


@fastapi.get("/bytes")
async def get_bytes() -> Response:
    return Response(BODY, media_type="application/json")


@fastapi.get("/model")
async def get_model() -> Text:
    return Text(text=BODY[9:-2].decode())


@fastapi.get("/redis")
async def get_from_redis(request: Request) -> Response:
    return Response(await request.app.state.redis.get("bench:body"), media_type="application/json")


@fastapi.get("/fetch/{user_id}")
async def fetch(user_id: UUID, request: Request) -> Response:
    """One fetch, and its text as it is."""
    row = await request.app.state.pool.fetchrow("SELECT text FROM bench.people WHERE id = $1", user_id)
    return Response(row["text"], media_type="application/json")


@fastapi.get("/fetch-model/{user_id}")
async def fetch_model(user_id: UUID, request: Request) -> Person:
    """One fetch, answered as most FastAPI programs do: by a model."""
    row = await request.app.state.pool.fetchrow("SELECT id, email, text FROM bench.people WHERE id = $1", user_id)
    return Person(**row)


@fastapi.post("/insert", status_code=201)
async def insert(event: NewEvent, request: Request) -> dict[str, Any]:
    """One row, durable when the answer goes out."""
    event_id = uuid4()
    await request.app.state.pool.execute(
        "INSERT INTO bench.events (id, kind, text) VALUES ($1, $2, $3)", event_id, event.kind, str(event.properties)
    )
    return {"accepted": 1, "ids": [event_id]}
