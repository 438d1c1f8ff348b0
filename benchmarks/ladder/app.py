"""The web programs of stages 0 to 3: `LADDER_STAGE`, and in stage 0 which of the services this process is."""

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request, Response
from starlette.middleware.base import BaseHTTPMiddleware

from benchmarks.ladder.contexts import make_context
from benchmarks.ladder.services import JSON, OPERATIONS, Unauthorised

STAGE = int(os.environ.get("LADDER_STAGE", "1"))
SERVICE = os.environ.get("LADDER_SERVICE", "core-api")
Next = Callable[[Request], Awaitable[Response]]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.context = context = make_context(STAGE)
    await context.open()  # type: ignore[attr-defined]  # Each of them has it; the services need not know.
    yield


app = FastAPI(lifespan=_lifespan)


async def _time(request: Request, call_next: Next) -> Response:
    began = time.perf_counter()
    response = await call_next(request)
    response.headers["x-process-time"] = f"{time.perf_counter() - began:.4f}"
    return response


async def _identify(request: Request, call_next: Next) -> Response:
    response = await call_next(request)
    response.headers["x-request-id"] = request.headers.get("x-request-id", os.urandom(8).hex())
    return response


# Defect: middleware as each team liked it: both in core-api, one in three other services, none in the rest.
if SERVICE == "core-api":
    app.add_middleware(BaseHTTPMiddleware, dispatch=_identify)
if SERVICE in {"core-api", "auth", "events", "invoice"}:
    app.add_middleware(BaseHTTPMiddleware, dispatch=_time)


@app.exception_handler(Unauthorised)
async def _refuse(_: Request, __: Unauthorised) -> Response:
    return Response(status_code=401)


@app.get("/livez")
async def get_livez() -> JSON:
    return {}


@app.get("/bench/calls")
async def get_calls(request: Request) -> int:
    """How many other services this one has asked so far."""
    return int(getattr(request.app.state.context, "calls", 0))


if SERVICE == "core-api":

    @app.get("/v1/overview")
    async def get_overview(request: Request, authorization: Annotated[str, Header()]) -> JSON:
        found: JSON = await OPERATIONS["core-api.overview"](request.app.state.context, token=_bearer(authorization))
        return found

    @app.post("/v1/invoices", status_code=202)
    async def add_invoice(request: Request, document: JSON, authorization: Annotated[str, Header()]) -> JSON:
        found: JSON = await OPERATIONS["core-api.order"](
            request.app.state.context, token=_bearer(authorization), document=document
        )
        return found


@app.post("/{operation}")
async def run(operation: str, arguments: JSON, request: Request) -> Any:
    """The operations of this service, for the others."""
    found = OPERATIONS.get(f"{SERVICE}.{operation}")
    if found is None:
        raise HTTPException(404)
    return await found(request.app.state.context, **arguments)


def _bearer(authorization: str) -> str:
    return authorization.removeprefix("Bearer ")
