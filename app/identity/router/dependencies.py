"""What the routes of this module share."""

from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Request, Response

from app.identity.records import Actor, Device
from app.identity.records.tokens import SignedIn, Tokens
from app.identity.schemas.fields import Transport
from app.identity.service.container import IdentityServices
from app.identity.service.devices import COOKIE_NAME, COOKIE_SECONDS
from app.identity.service.login import LoggedIn, SecondFactorNeeded
from app.identity.service.tokens import RefreshToken
from app.kernel.auth import RequireRole
from app.kernel.headers.session_cookie import value_in
from app.kernel.http import json_response
from app.kernel.request.client_address import client_address, user_agent
from app.kernel.request.principal import Principal
from app.kernel.request.state import RequestState, RequestStateDep, state_of
from app.kernel.resources import ResourcesDep


async def _identity(request: Request) -> IdentityServices:
    identity: IdentityServices = request.app.state.identity
    return identity


async def _device(state: RequestStateDep, resources: ResourcesDep) -> Device:
    return Device(client_address(state, resources.http), user_agent(state))


IdentityDep = Annotated[IdentityServices, Depends(_identity)]
DeviceDep = Annotated[Device, Depends(_device)]
Admin = Annotated[Principal, RequireRole("admin")]
# For what would outlive an API key or a narrowed token: the credentials of a program, and acting for a user.
AdminSession = Annotated[Principal, RequireRole("admin", needs_session=True)]


def actor_of(principal: Principal, device: Device) -> Actor:
    """The caller as the actor of what the request does."""
    return Actor(
        principal.user_id,
        principal.session_id,
        device,
        principal.api_key_id,
        impersonator_id=principal.actor_id,
    )


def check_transport(request: Request, identity: IdentityServices, transport: Transport) -> None:
    """To be called before a session is opened or changed whose credential travels by `transport`.

    Raises:
        CsrfRejected: another site would have the browser take a session cookie.
    """
    if transport == "cookie":
        identity.session_cookie.check_opening(state_of(request.scope).headers)


def forget_session_cookie(state: RequestState, identity: IdentityServices, response: Response) -> None:
    """To be called where the caller's session has ended: a browser need not go on sending its cookie."""
    if value_in(state.credential or b"") is not None:
        identity.session_cookie.clear(response)


def signed_in_response(
    identity: IdentityServices, signed_in: SignedIn, transport: Transport, *, status: int = 200
) -> Response:
    """The user, with the tokens in the body or the session in the cookie."""
    if transport == "bearer":
        return json_response(signed_in.view(), status=status)
    response = json_response({"user": signed_in.user.view()}, status=status)
    _set_session_cookie(response, identity, _session_of(identity, signed_in.tokens))
    return response


def login_response(
    identity: IdentityServices, outcome: LoggedIn | SecondFactorNeeded, transport: Transport
) -> Response:
    """The session and the device's cookie, or what the second factor needs."""
    if isinstance(outcome, SecondFactorNeeded):
        return json_response({"mfa_required": True, "mfa_token": outcome.mfa_token, "methods": list(outcome.methods)})
    response = signed_in_response(identity, outcome.signed_in, transport)
    set_device_cookie(response, outcome.device_cookie, identity)
    return response


def tokens_response(identity: IdentityServices, tokens: Tokens, transport: Transport) -> Response:
    """The tokens, in the body or as the session cookie."""
    if transport == "bearer":
        return json_response(tokens.view())
    return cookie_response(identity, _session_of(identity, tokens), tokens.scope, seconds=tokens.session_seconds)


def cookie_response(identity: IdentityServices, session: RefreshToken, scope: str, *, seconds: int) -> Response:
    """Sets the cookie of a session that is good for `scope`, and ends after `seconds` unless it is used."""
    response = json_response({"expires_in": seconds, "scope": scope})
    _set_session_cookie(response, identity, session)
    return response


def _session_of(identity: IdentityServices, tokens: Tokens) -> RefreshToken:
    return replace(identity.refresh_tokens.decode(tokens.refresh_token), generation=0)


def _set_session_cookie(response: Response, identity: IdentityServices, session: RefreshToken) -> None:
    identity.session_cookie.set(
        response, identity.cookies.encode(session), seconds=identity.settings.refresh_absolute_ttl
    )


def set_device_cookie(response: Response, cookie: str, identity: IdentityServices) -> None:
    """Makes the client's device a known one."""
    response.set_cookie(
        COOKIE_NAME,
        cookie,
        max_age=COOKIE_SECONDS,
        path="/v1/auth",
        secure=identity.session_cookie.is_secure,
        httponly=True,
        samesite="lax",
    )
