"""The second factor of an account."""

from fastapi import Response

from app.identity.router.dependencies import DeviceDep, IdentityDep, actor_of
from app.identity.schemas.accounts import CurrentPasswordRequest
from app.identity.schemas.second_factor import (
    EnrolmentResponse,
    RecoveryCodesResponse,
    SecondFactorResponse,
    TotpCodeRequest,
)
from app.identity.service import second_factor
from app.kernel.auth import HashingPrincipal, SessionPrincipal
from app.kernel.http import Router, json_response, problem_responses
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/auth/mfa", tags=["identity"])


@router.get("", response_model=SecondFactorResponse)
async def get_second_factor(principal: SessionPrincipal, resources: ResourcesDep, device: DeviceDep) -> Response:
    """Get the state of your second factor and the number of recovery codes left."""
    status = await second_factor.read_status(resources.db, actor_of(principal, device))
    return json_response({"totp_enabled": status.is_enabled, "recovery_codes_left": status.recovery_codes_left})


@router.post(
    "/totp",
    status_code=201,
    response_model=EnrolmentResponse,
    responses=problem_responses(409),
)
async def enrol_totp(
    principal: SessionPrincipal, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Get a secret for an authenticator app. It takes effect once a code activates it."""
    enrolment = await second_factor.enrol(resources.db, resources.computing, identity, actor_of(principal, device))
    return json_response(
        {"secret": enrolment.secret, "otpauth_uri": enrolment.otpauth_uri, "qr_svg": enrolment.qr_svg}, status=201
    )


@router.post(
    "/totp/activate",
    response_model=RecoveryCodesResponse,
    responses=problem_responses(409),
)
async def activate_totp(
    body: TotpCodeRequest,
    principal: SessionPrincipal,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Activate the second factor with a first code. The recovery codes are shown only in this response."""
    codes = await second_factor.activate(resources.db, identity, actor_of(principal, device), body.code)
    return json_response({"recovery_codes": codes})


@router.delete("/totp", status_code=204, responses=problem_responses(409))
async def disable_totp(
    body: CurrentPasswordRequest,
    principal: HashingPrincipal,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Disable the second factor. Requires the password."""
    await second_factor.disable(resources.db, identity, actor_of(principal, device), body.current_password)
    return Response(status_code=204)


@router.post(
    "/recovery-codes",
    response_model=RecoveryCodesResponse,
    responses=problem_responses(409),
)
async def renew_recovery_codes(
    body: CurrentPasswordRequest,
    principal: HashingPrincipal,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Replace your recovery codes. The old ones stop working."""
    actor = actor_of(principal, device)
    codes = await second_factor.renew_recovery_codes(resources.db, identity, actor, body.current_password)
    return json_response({"recovery_codes": codes})
