"""What OAuth 2 clients expect: token, introspection, revocation, keys and discovery."""

from base64 import b64decode
from typing import Annotated, Any
from urllib.parse import unquote_plus

from fastapi import Form, Request, Response

from app.identity.errors import (
    AccountBanned,
    EmailNotVerified,
    InvalidClient,
    InvalidCredentials,
    InvalidRefreshToken,
    ScopeExceeded,
)
from app.identity.records.tokens import AccessToken, Tokens
from app.identity.router.dependencies import DeviceDep, IdentityDep
from app.identity.schemas.oauth import (
    DiscoveryResponse,
    IntrospectionResponse,
    IssuedTokensResponse,
    JwksResponse,
    OAuthErrorResponse,
    TokenForm,
    TokenOnlyForm,
)
from app.identity.service import introspection, login, service_accounts, token_refresh
from app.identity.service.devices import COOKIE_NAME
from app.kernel.auth import SCOPES, SERVICE_SCOPES, CurrentPrincipal, Public, begin_hashing
from app.kernel.errors import OAuthClientRefused, OAuthError
from app.kernel.http import Router, StrictRoute, json_response
from app.kernel.request.state import state_of
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/auth", tags=["identity"])
well_known = Router(prefix="/.well-known", tags=["identity"])

_OAUTH_ERROR: dict[int | str, dict[str, Any]] = {
    status: {"model": OAuthErrorResponse, "description": description}
    for status, description in (
        (400, "An error of RFC 6749, section 5.2"),
        (403, "A session cookie came from a foreign page"),
        (408, "The request did not come in time"),
        (429, "The quota is used up; `Retry-After` says for how long"),
        (503, "Service unavailable"),
        (504, "Request deadline exceeded"),
    )
}
_BEARER_ERROR: dict[int | str, dict[str, Any]] = {
    401: {"model": OAuthErrorResponse, "description": "The caller's own access token is missing or not valid"}
}
_CLIENT_ERROR: dict[int | str, dict[str, Any]] = {
    401: {"model": OAuthErrorResponse, "description": "`invalid_client`: no service account has this id and secret"}
}
_ALL_SCOPES = sorted(SCOPES.keys() | SERVICE_SCOPES.keys())


@router.post(
    "/token",
    response_model=IssuedTokensResponse,
    dependencies=[Public],
    responses=_OAUTH_ERROR | _CLIENT_ERROR,
)
async def issue_token(
    form: Annotated[TokenForm, Form()],
    request: Request,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Issue tokens (RFC 6749), for first-party clients, service accounts, and the Authorize button of this
    documentation. `scope` narrows what the tokens are good for.
    """
    scopes = _scopes(form.scope)
    tokens: Tokens | AccessToken
    try:
        if form.grant_type == "client_credentials":
            tokens = await _by_client(resources, identity, request, form, scopes)
        elif form.grant_type == "refresh_token" and form.refresh_token:
            key = request.headers.get("idempotency-key")
            asked = token_refresh.RefreshRequest(form.refresh_token, key, device, scopes)
            tokens = await _by_refresh_token(resources, identity, asked)
        elif form.grant_type == "password" and form.username and form.password:
            await begin_hashing(state_of(request.scope))
            cookie = request.cookies.get(COOKIE_NAME)
            credentials = login.Credentials(form.username, form.password, device, cookie, scopes)
            tokens = await _by_password(resources, identity, credentials)
        elif form.grant_type in ("password", "refresh_token", ""):
            raise OAuthError("invalid_request", "A parameter of this grant is missing.")
        else:
            raise OAuthError("unsupported_grant_type", "Use password, refresh_token or client_credentials.")
    except ScopeExceeded as error:
        raise OAuthError("invalid_scope", error.title) from error
    return json_response(tokens.view(), headers={"Pragma": "no-cache"})


def _scopes(text: str) -> frozenset[str] | None:
    """None: nothing was asked for. Raises OAuthError."""
    scopes = frozenset(text.split())
    if not scopes <= SCOPES.keys() | SERVICE_SCOPES.keys():
        raise OAuthError("invalid_scope", f"The scopes are: {' '.join(_ALL_SCOPES)}.")
    return scopes or None


async def _by_client(
    resources: ResourcesDep, identity: IdentityDep, request: Request, form: TokenForm, scopes: frozenset[str] | None
) -> AccessToken:
    """By HTTP Basic or by the form (RFC 6749, section 2.3.1)."""
    basic = _basic_credentials(state_of(request.scope).headers.get(b"authorization"))
    if basic is not None and form.client_secret:
        raise OAuthError("invalid_request", "Authenticate in one way, not in two.")
    client_id, secret = basic or (form.client_id, form.client_secret)
    if not (client_id and secret):
        raise OAuthClientRefused("The client has to authenticate.")
    try:
        credentials = service_accounts.ClientCredentials(client_id, secret, scopes)
        return await service_accounts.issue_to_client(resources.db, identity, credentials)
    except InvalidClient as error:
        raise OAuthClientRefused(error.title) from error


def _basic_credentials(header: bytes | None) -> tuple[str, str] | None:
    """Id and secret, each form-encoded before they were joined; None: another scheme, or none.

    Raises:
        OAuthClientRefused: the header is not well-formed.
    """
    if header is None or header[:6].lower() != b"basic ":
        return None
    try:
        text = b64decode(header[6:].strip(), validate=True).decode("ascii")
    except ValueError as error:
        raise OAuthClientRefused("The Authorization header is not well-formed.") from error
    client_id, _, secret = text.partition(":")
    return unquote_plus(client_id), unquote_plus(secret)


async def _by_refresh_token(
    resources: ResourcesDep, identity: IdentityDep, request: token_refresh.RefreshRequest
) -> Tokens:
    try:
        return await token_refresh.refresh(resources.db, resources.redis, identity, request)
    except InvalidRefreshToken as error:
        raise OAuthError("invalid_grant", error.title) from error


async def _by_password(resources: ResourcesDep, identity: IdentityDep, credentials: login.Credentials) -> Tokens:
    try:
        outcome = await login.log_in(resources.db, identity, credentials)
    except (InvalidCredentials, AccountBanned, EmailNotVerified) as error:
        raise OAuthError("invalid_grant", error.title) from error
    if isinstance(outcome, login.SecondFactorNeeded):
        raise OAuthError("mfa_required", "The account has a second factor; log in at /v1/auth/login.")
    return outcome.signed_in.tokens


@router.post(
    "/introspect",
    response_model=IntrospectionResponse,
    responses=_OAUTH_ERROR | _BEARER_ERROR,
)
async def introspect(
    form: Annotated[TokenOnlyForm, Form()],
    principal: CurrentPrincipal,
    resources: ResourcesDep,
    identity: IdentityDep,
) -> Response:
    """Introspect one of your tokens (RFC 7662). Administrators and the scope `introspect` can introspect any token."""
    if not form.token:
        raise OAuthError("invalid_request", "The token is missing.")
    return json_response(await introspection.introspect(resources.db, identity, principal, form.token))


@router.post("/revoke", dependencies=[Public], responses=_OAUTH_ERROR)
async def revoke(
    form: Annotated[TokenOnlyForm, Form()],
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Revoke a token (RFC 7009). Unknown tokens get the same response. The token of a service account cannot be revoked
    alone (400 `unsupported_token_type`).
    """
    if not form.token:
        raise OAuthError("invalid_request", "The token is missing.")
    try:
        await introspection.revoke(resources.db, identity, form.token, device)
    except introspection.NotRevocable as error:
        raise OAuthError(
            "unsupported_token_type", "A token of client_credentials ends by itself; rotate the secret to end it now."
        ) from error
    return json_response({})


# Of the routes above.
PATHS = tuple(route.path for route in router.routes if isinstance(route, StrictRoute))


@well_known.get("/jwks.json", response_model=JwksResponse, dependencies=[Public])
async def get_jwks(identity: IdentityDep) -> Response:
    """Get the public keys that verify access tokens (RFC 7517)."""
    return json_response(identity.key_ring.public_jwks(), headers=_PUBLIC)


@well_known.get("/oauth-authorization-server", response_model=DiscoveryResponse, dependencies=[Public])
async def get_authorization_server(identity: IdentityDep) -> Response:
    """Get the metadata of the authorization server (RFC 8414)."""
    return json_response(_discovery(identity), headers=_PUBLIC)


_PUBLIC = {"Cache-Control": "public, max-age=300"}


def _discovery(identity: IdentityDep) -> dict[str, object]:
    issuer = identity.issuer.issuer
    return {
        "issuer": issuer,
        "jwks_uri": f"{issuer}/.well-known/jwks.json",
        "token_endpoint": f"{issuer}/v1/auth/token",
        "introspection_endpoint": f"{issuer}/v1/auth/introspect",
        "revocation_endpoint": f"{issuer}/v1/auth/revoke",
        "grant_types_supported": ["password", "refresh_token", "client_credentials"],
        # Required, though there is no authorization endpoint: the registered value for an answer without tokens.
        "response_types_supported": ["none"],
        "token_endpoint_auth_methods_supported": ["none", "client_secret_basic", "client_secret_post"],
        "revocation_endpoint_auth_methods_supported": ["none"],
        # The caller's own access token, as section 2 allows beside the ways of clients.
        "introspection_endpoint_auth_methods_supported": ["Bearer"],
        "scopes_supported": _ALL_SCOPES,
    }
