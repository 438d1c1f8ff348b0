"""Log-in, refresh, log-out, and the list of sessions."""

from dataclasses import replace
from typing import Annotated

from fastapi import Header, Request, Response

from app.identity.records.sessions import Session
from app.identity.router.dependencies import (
    DeviceDep,
    IdentityDep,
    actor_of,
    check_transport,
    cookie_response,
    forget_session_cookie,
    login_response,
    tokens_response,
)
from app.identity.schemas.sessions import (
    CallerResponse,
    CookieResponse,
    LoginRequest,
    LogoutAllRequest,
    LogoutRequest,
    RefreshTokensRequest,
    RevokedResponse,
    SecondFactorNeededResponse,
    SecurityEventPage,
    SessionList,
    SignedInResponse,
    TokensResponse,
    VerifySecondFactorRequest,
)
from app.identity.service import audit_log, login, passkey_login, sessions, token_refresh
from app.identity.service.devices import COOKIE_NAME
from app.kernel.auth import CurrentPrincipal, HashingPublic, Public, SessionPrincipal, bearer_token
from app.kernel.errors import FieldError, Unprocessable
from app.kernel.headers.session_cookie import value_in
from app.kernel.http import Id, PageQueryDep, Router, json_response, problem_responses, reads_headers, takes_token
from app.kernel.request.state import RequestStateDep, state_of
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/auth", tags=["identity"])


@router.post(
    "/login",
    response_model=SignedInResponse | SecondFactorNeededResponse,
    dependencies=[HashingPublic],
    responses=problem_responses(401, 403),
)
async def log_in(
    body: LoginRequest, request: Request, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Open a session with an e-mail address and a password, or get the token for the second factor."""
    check_transport(request, identity, body.transport)
    outcome = await login.log_in(
        resources.db,
        identity,
        login.Credentials(
            body.email, body.password, replace(device, name=body.device_name), request.cookies.get(COOKIE_NAME)
        ),
    )
    return login_response(identity, outcome, body.transport)


@router.post(
    "/mfa/verify",
    response_model=SignedInResponse,
    dependencies=[Public],
    responses=problem_responses(401, 403),
)
async def verify_second_factor(
    body: VerifySecondFactorRequest,
    request: Request,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Finish a log-in with a code of the authenticator app, a recovery code or a passkey."""
    check_transport(request, identity, body.transport)
    if body.code is not None:
        outcome = await login.verify_second_factor(
            resources.db,
            identity,
            mfa_token=body.mfa_token,
            code=body.code,
            device=device,
            device_cookie=request.cookies.get(COOKIE_NAME),
        )
    elif body.credential is not None and body.challenge is not None:
        outcome = await passkey_login.verify_passkey_as_second_factor(
            resources.db,
            identity,
            mfa_token=body.mfa_token,
            credential=body.credential,
            challenge=body.challenge,
            device=device,
        )
    else:
        raise Unprocessable(errors=[FieldError("#/code", "Send a code, or a credential and its challenge.", "missing")])
    return login_response(identity, outcome, body.transport)


@router.post(
    "/refresh",
    response_model=TokensResponse | CookieResponse,
    dependencies=[Public],
    responses=problem_responses(401, 403),
    openapi_extra=reads_headers("IdempotencyKey"),
)
async def refresh(
    body: RefreshTokensRequest,
    request: Request,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255, include_in_schema=False)] = None,
) -> Response:
    """Exchange a refresh token for a new pair of tokens, or for a session cookie. A refresh token works once.

    A cookie needs no refresh: its session goes on while it is used. Without a refresh token the cookie is set anew.
    """
    check_transport(request, identity, body.transport)
    if body.refresh_token is None:
        session = await sessions.extend_cookie_session(identity, state_of(request.scope).credential or b"")
        return cookie_response(identity, session.token, session.scope, seconds=session.seconds)
    wanted = token_refresh.RefreshRequest(body.refresh_token, idempotency_key, device)
    tokens = await token_refresh.refresh(resources.db, resources.redis, identity, wanted)
    return tokens_response(identity, tokens, body.transport)


@router.post("/logout", status_code=204, dependencies=[Public], openapi_extra=takes_token())
async def log_out(
    request: Request,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
    body: LogoutRequest | None = None,
) -> Response:
    """End the session of the access token or cookie, of the refresh token, or both. The call is idempotent."""
    state = state_of(request.scope)
    credential = state.credential or b""
    await sessions.log_out(
        resources.db,
        identity,
        device,
        access_token=bearer_token(credential),
        cookie=value_in(credential),
        refresh_token=body.refresh_token if body else None,
    )
    response = Response(status_code=204)
    forget_session_cookie(state, identity, response)
    return response


@router.post("/logout-all", response_model=RevokedResponse)
async def log_out_all(
    state: RequestStateDep,
    principal: SessionPrincipal,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
    body: LogoutAllRequest | None = None,
) -> Response:
    """End all of your sessions."""
    keep_current = body.keep_current if body else False
    revoked = await sessions.end_other_sessions(
        resources.db, identity, actor_of(principal, device), keep_current=keep_current
    )
    response = json_response({"revoked": revoked})
    if not keep_current:
        forget_session_cookie(state, identity, response)
    return response


@router.get("/session", response_model=CallerResponse)
async def get_session(principal: CurrentPrincipal, resources: ResourcesDep) -> Response:
    """Get what your credential says of you, and when and how you logged in."""
    status = None
    if principal.session_id is not None:
        status = await sessions.read_session_status(resources.db, principal.user_id, principal.session_id)
    return json_response(
        {
            "user_id": principal.user_id,
            "session_id": principal.session_id,
            "roles": sorted(principal.roles),
            "scopes": sorted(principal.scopes),
            "expires_at": status.expires_at if status else None,
            "authenticated_at": status.authenticated_at if status else None,
            "methods": status.methods if status else [],
        }
    )


@router.get("/sessions", response_model=SessionList)
async def list_sessions(
    principal: SessionPrincipal, resources: ResourcesDep, identity: IdentityDep, page: PageQueryDep
) -> Response:
    """List your active sessions, last used first."""
    found = await sessions.list_own_sessions(
        resources.db, resources.cursors, identity, principal.user_id, limit=page.limit, cursor=page.cursor
    )
    items = [session_view(session, is_current=session.id == principal.session_id) for session in found.items]
    return json_response({"items": items, "next_cursor": found.next_cursor})


@router.delete("/sessions/{session_id}", status_code=204)
async def delete_session(
    state: RequestStateDep,
    session_id: Id,
    principal: SessionPrincipal,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """End one of your sessions."""
    await sessions.end_own_session(resources.db, identity, actor_of(principal, device), session_id)
    response = Response(status_code=204)
    if session_id == principal.session_id:
        forget_session_cookie(state, identity, response)
    return response


@router.get("/security-events", response_model=SecurityEventPage)
async def list_security_events(principal: SessionPrincipal, resources: ResourcesDep, page: PageQueryDep) -> Response:
    """List the security events of your account, newest first."""
    found = await audit_log.read_security_events(
        resources.db, resources.cursors, principal.user_id, limit=page.limit, cursor=page.cursor
    )
    return json_response({"items": [event.view() for event in found.items], "next_cursor": found.next_cursor})


def session_view(session: Session, *, is_current: bool) -> dict[str, object]:
    """A session in the shape of the API."""
    return {
        "id": session.id,
        "current": is_current,
        "created_at": session.created_at,
        "last_used_at": session.last_used_at,
        "ip": session.ip,
        "user_agent": session.user_agent,
        "device_name": session.device_name,
        "expires_at": session.expires_at,
    }
