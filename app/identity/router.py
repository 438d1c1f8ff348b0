"""The identity routes."""

from typing import Annotated

from fastapi import Depends, Header, Request, Response

from app.identity.records import Device
from app.identity.schemas import (
    JwksView,
    LoginBody,
    LogoutAllBody,
    LogoutBody,
    RefreshBody,
    RegisterBody,
    RevokedView,
    SessionList,
    SignedInView,
    TokensView,
)
from app.identity.service import login, refreshing, registration, sessions
from app.identity.service.runtime import Identity
from app.kernel.auth import CurrentPrincipal, Public
from app.kernel.client import client_address, user_agent
from app.kernel.http import Id, Router, json_response, problem_responses
from app.kernel.resources import Resources, ResourcesDep

router = Router(prefix="/v1/auth", tags=["identity"])
well_known = Router(prefix="/.well-known", tags=["identity"])


async def _identity(request: Request) -> Identity:
    identity: Identity = request.app.state.identity
    return identity


IdentityDep = Annotated[Identity, Depends(_identity)]


def _device(request: Request, resources: Resources, name: str | None = None) -> Device:
    return Device(client_address(request, resources.http.trusted_proxies), user_agent(request), name)


@router.post(
    "/register",
    status_code=201,
    response_model=SignedInView,
    dependencies=[Public],
    responses=problem_responses(400, 403, 409, 413, 415, 422, 429, 503),
)
async def register(body: RegisterBody, request: Request, resources: ResourcesDep, identity: IdentityDep) -> Response:
    """Make an account and open its first session."""
    wanted = registration.Registration(body.email, body.password, body.display_name, body.locale, body.timezone)
    signed_in = await registration.register(
        resources.db, identity, resources.clock, wanted, _device(request, resources)
    )
    return json_response(signed_in.view(), status=201)


@router.post(
    "/login",
    response_model=SignedInView,
    dependencies=[Public],
    responses=problem_responses(400, 401, 403, 413, 415, 422, 429, 503),
)
async def log_in(body: LoginBody, request: Request, resources: ResourcesDep, identity: IdentityDep) -> Response:
    """Open a session with e-mail address and password."""
    signed_in = await login.log_in(
        resources.db,
        identity,
        resources.clock,
        email=body.email,
        password=body.password,
        device=_device(request, resources, body.device_name),
    )
    return json_response(signed_in.view())


@router.post(
    "/refresh",
    response_model=TokensView,
    dependencies=[Public],
    responses=problem_responses(400, 401, 413, 415, 422, 503),
)
async def refresh(
    body: RefreshBody,
    request: Request,
    resources: ResourcesDep,
    identity: IdentityDep,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Response:
    """Exchange a refresh token for its successor and a new access token. It works once."""
    tokens = await refreshing.refresh(
        resources.db,
        resources.redis,
        identity,
        resources.clock,
        refreshing.RefreshRequest(body.refresh_token, idempotency_key, _device(request, resources)),
    )
    return json_response(tokens.view())


@router.post("/logout", status_code=204, dependencies=[Public], responses=problem_responses(400, 413, 415, 422, 503))
async def log_out(
    request: Request, resources: ResourcesDep, identity: IdentityDep, body: LogoutBody | None = None
) -> Response:
    """End the session of the access token, of the refresh token, or of both. Calling it again does no harm."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    await sessions.log_out(
        resources.db,
        identity,
        resources.clock,
        _device(request, resources),
        access_token=token.strip() if scheme.lower() == "bearer" else None,
        refresh_token=body.refresh_token if body else None,
    )
    return Response(status_code=204)


@router.post("/logout-all", response_model=RevokedView, responses=problem_responses(400, 401, 413, 415, 422, 503))
async def log_out_all(
    principal: CurrentPrincipal,
    request: Request,
    resources: ResourcesDep,
    identity: IdentityDep,
    body: LogoutAllBody | None = None,
) -> Response:
    """End all sessions of the caller."""
    revoked = await sessions.end_other_sessions(
        resources.db,
        identity,
        resources.clock,
        principal,
        _device(request, resources),
        keep_current=body.keep_current if body else False,
    )
    return json_response({"revoked": revoked})


@router.get("/sessions", response_model=SessionList, responses=problem_responses(401, 422, 503))
async def list_sessions(principal: CurrentPrincipal, resources: ResourcesDep) -> Response:
    """The caller's living sessions, the last used one first."""
    found = await sessions.list_own_sessions(resources.db, resources.clock, principal)
    items = [
        {
            "id": session.id,
            "current": session.id == principal.session_id,
            "created_at": session.created_at,
            "last_used_at": session.last_used_at,
            "ip": session.ip,
            "user_agent": session.user_agent,
            "device_name": session.device_name,
            "expires_at": session.expires_at,
        }
        for session in found
    ]
    return json_response({"items": items, "next_cursor": None})


@router.delete("/sessions/{session_id}", status_code=204, responses=problem_responses(401, 404, 422, 503))
async def delete_session(
    session_id: Id, principal: CurrentPrincipal, request: Request, resources: ResourcesDep, identity: IdentityDep
) -> Response:
    """End one of the caller's sessions."""
    await sessions.end_own_session(
        resources.db, identity, resources.clock, principal, session_id, _device(request, resources)
    )
    return Response(status_code=204)


@well_known.get("/jwks.json", response_model=JwksView, dependencies=[Public])
async def get_jwks(identity: IdentityDep) -> Response:
    """The public keys of access tokens (RFC 7517)."""
    return json_response(identity.key_ring.public_jwks(), headers={"Cache-Control": "public, max-age=300"})
