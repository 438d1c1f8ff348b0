"""Registration, addresses, passwords, and the end of an account."""

from fastapi import Request, Response

from app.identity.router.dependencies import (
    DeviceDep,
    IdentityDep,
    actor_of,
    check_transport,
    forget_session_cookie,
    set_device_cookie,
    signed_in_response,
    tokens_response,
)
from app.identity.schemas.accounts import (
    AcceptedResponse,
    ChangedResponse,
    ChangeEmailRequest,
    ChangePasswordRequest,
    CurrentPasswordRequest,
    EmailAddressRequest,
    OneTimeTokenRequest,
    PurgeResponse,
    RegisterRequest,
    ResetPasswordRequest,
    VerifiedResponse,
)
from app.identity.schemas.sessions import CookieResponse, SignedInResponse, TokensResponse
from app.identity.service import account_status, addresses, passwords, registration
from app.identity.service.devices import COOKIE_NAME
from app.kernel.auth import HashingPrincipal, HashingPublic, Public
from app.kernel.http import Preconditions, Router, json_response, problem_responses, reads_headers
from app.kernel.request.state import RequestStateDep, state_of
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/auth", tags=["identity"])
own_account = Router(prefix="/v1/users", tags=["identity"])

_ACCEPTED = {"status": "accepted"}


@router.post(
    "/register",
    status_code=201,
    response_model=SignedInResponse,
    dependencies=[HashingPublic],
    responses=problem_responses(403, 409)
    | {202: {"model": AcceptedResponse, "description": "An e-mail says how to go on; the same for every address"}},
)
async def register(
    body: RegisterRequest, request: Request, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Create an account. If addresses need no verification first, its first session is opened too."""
    check_transport(request, identity, body.transport)
    wanted = registration.Registration(body.email, body.password, body.display_name, body.locale, body.timezone)
    signed_in = await registration.register(resources.db, identity, wanted, device)
    if signed_in is None:
        return json_response(_ACCEPTED, status=202)
    return signed_in_response(identity, signed_in, body.transport, status=201)


@router.post(
    "/email/verify",
    response_model=VerifiedResponse,
    dependencies=[Public],
)
async def verify_email(
    body: OneTimeTokenRequest, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Verify an address with the token sent to it. The first one ends earlier sessions, API keys and factors."""
    await addresses.verify(resources.db, identity, body.token, device)
    return json_response({"status": "verified"})


@router.post(
    "/email/resend",
    status_code=202,
    response_model=AcceptedResponse,
    dependencies=[Public],
)
async def resend_verification(
    body: EmailAddressRequest, request: Request, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Send the verification e-mail again. The response is the same for every address."""
    cookie = request.cookies.get(COOKIE_NAME)
    await addresses.resend(resources.db, identity, body.email, device, cookie)
    return json_response(_ACCEPTED, status=202)


@router.post(
    "/email/change",
    status_code=202,
    response_model=AcceptedResponse,
)
async def change_email(
    body: ChangeEmailRequest,
    principal: HashingPrincipal,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Send a confirmation to a new address. The old address stays until the new one is confirmed."""
    actor = actor_of(principal, device)
    await addresses.request_change(resources.db, identity, actor, body.new_email, body.current_password)
    return json_response(_ACCEPTED, status=202)


@router.post(
    "/email/confirm",
    response_model=ChangedResponse,
    dependencies=[Public],
    responses=problem_responses(409),
)
async def confirm_email(
    body: OneTimeTokenRequest, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Confirm a new address with the token sent to it."""
    await addresses.confirm_change(resources.db, identity, body.token, device)
    return json_response({"status": "changed"})


@router.post(
    "/password/forgot",
    status_code=202,
    response_model=AcceptedResponse,
    dependencies=[Public],
)
async def forgot_password(
    body: EmailAddressRequest, request: Request, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Send a password reset link. The response is the same for every address."""
    cookie = request.cookies.get(COOKIE_NAME)
    await passwords.forget(resources.db, identity, body.email, device, cookie)
    return json_response(_ACCEPTED, status=202)


@router.post(
    "/password/reset",
    status_code=204,
    dependencies=[HashingPublic],
)
async def reset_password(
    body: ResetPasswordRequest, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Set a new password with the token sent by e-mail. Sessions, API keys, the second factor and other links end."""
    cookie = await passwords.reset(resources.db, identity, body.token, body.new_password, device)
    response = Response(status_code=204)
    set_device_cookie(response, cookie, identity)
    return response


@router.post(
    "/password/change",
    response_model=TokensResponse | CookieResponse,
)
async def change_password(
    body: ChangePasswordRequest,
    request: Request,
    principal: HashingPrincipal,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Change your password. All sessions end; the response opens a new one."""
    check_transport(request, identity, body.transport)
    actor = actor_of(principal, device)
    tokens = await passwords.change(resources.db, identity, actor, body.current_password, body.new_password)
    response = tokens_response(identity, tokens, body.transport)
    if body.transport == "bearer":
        forget_session_cookie(state_of(request.scope), identity, response)
    return response


@own_account.delete(
    "/me",
    status_code=202,
    response_model=PurgeResponse,
    responses=problem_responses(409, 412),
    openapi_extra=reads_headers("IfMatch"),
)
async def delete_me(
    state: RequestStateDep,
    body: CurrentPasswordRequest,
    principal: HashingPrincipal,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Close your account. Sessions and API keys end at once; the data are deleted at `purge_at`."""
    actor = actor_of(principal, device)
    versions = Preconditions.of(state).versions(principal.user_id.hex, resources.incarnation.mark)
    purge_at = await account_status.delete_own(resources.db, identity, actor, body.current_password, versions)
    response = json_response({"purge_at": purge_at}, status=202)
    forget_session_cookie(state, identity, response)
    return response
