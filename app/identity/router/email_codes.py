"""Log-in with a code that is sent by e-mail."""

from dataclasses import replace

from fastapi import Request, Response

from app.identity.router.dependencies import DeviceDep, IdentityDep, check_transport, login_response
from app.identity.schemas.accounts import AcceptedResponse, EmailAddressRequest
from app.identity.schemas.email_codes import CodeLoginRequest
from app.identity.schemas.sessions import SecondFactorNeededResponse, SignedInResponse
from app.identity.service.devices import COOKIE_NAME
from app.identity.service.email_codes import CodeCredentials, log_in_by_code, request_code
from app.kernel.auth import Public
from app.kernel.http import Router, json_response, problem_responses
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/auth/code", tags=["identity"])


@router.post("", status_code=202, response_model=AcceptedResponse, dependencies=[Public])
async def request_login_code(
    body: EmailAddressRequest, request: Request, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Send a code to log in with, good for ten minutes. The response is the same for every address."""
    cookie = request.cookies.get(COOKIE_NAME)
    await request_code(resources.db, identity, body.email, device, cookie)
    return json_response({"status": "accepted"}, status=202)


@router.post(
    "/login",
    response_model=SignedInResponse | SecondFactorNeededResponse,
    dependencies=[Public],
    responses=problem_responses(401),
)
async def log_in_with_code(
    body: CodeLoginRequest, request: Request, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Open a session with the newest code sent to an address, or get the token for the second factor.

    The code proves the address: the first proof ends earlier sessions, API keys and factors.
    """
    check_transport(request, identity, body.transport)
    credentials = CodeCredentials(
        body.email, body.code, replace(device, name=body.device_name), request.cookies.get(COOKIE_NAME)
    )
    outcome = await log_in_by_code(resources.db, identity, credentials)
    return login_response(identity, outcome, body.transport)
