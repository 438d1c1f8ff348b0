"""Passkeys."""

from dataclasses import replace

from fastapi import Request, Response

from app.identity.router.dependencies import DeviceDep, IdentityDep, actor_of, check_transport, login_response
from app.identity.schemas.passkeys import (
    CreationOptionsResponse,
    LoginOptionsRequest,
    LoginOptionsResponse,
    PasskeyLoginRequest,
    PasskeyPage,
    PasskeyRenameRequest,
    PasskeyRequest,
    PasskeyResponse,
)
from app.identity.schemas.sessions import SignedInResponse
from app.identity.service import passkey_login, passkeys
from app.kernel.auth import Public, SessionPrincipal
from app.kernel.database import Tx
from app.kernel.http import Id, PageQueryDep, Router, json_response, problem_responses, reads_headers
from app.kernel.http.idempotency import idempotent
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/auth/passkeys", tags=["identity"])


@router.post("/options", response_model=CreationOptionsResponse)
async def get_passkey_options(
    principal: SessionPrincipal, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Get what a browser needs to make a passkey. Requires a log-in within the last 15 minutes."""
    options = await passkeys.begin_registration(resources.db, identity, actor_of(principal, device))
    return json_response({"public_key": options})


@router.post(
    "",
    status_code=201,
    response_model=PasskeyResponse,
    responses=problem_responses(409),
    openapi_extra=reads_headers("IdempotencyKey"),
)
async def add_passkey(
    request: Request,
    body: PasskeyRequest,
    principal: SessionPrincipal,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Add a passkey that the browser has made; an account has at most 20. Requires a log-in within 15 minutes."""
    actor = actor_of(principal, device)

    async def add(tx: Tx) -> Response:
        # In here, because the answer to a key that is known needs no options that are still good.
        verified = await passkeys.verify_new(resources.computing, identity, actor, body.credential)
        passkey = await passkeys.add_passkey(tx, identity, actor, verified, body.name)
        return json_response(passkey.view(), status=201)

    return await idempotent(request, resources, principal.user_id, operation="identity.add_passkey", effect=add)


@router.get("", response_model=PasskeyPage)
async def list_passkeys(principal: SessionPrincipal, resources: ResourcesDep, page: PageQueryDep) -> Response:
    """List your passkeys, newest first."""
    found = await passkeys.list_own_passkeys(
        resources.db, resources.cursors, principal.user_id, limit=page.limit, cursor=page.cursor
    )
    return json_response({"items": [item.view() for item in found.items], "next_cursor": found.next_cursor})


@router.patch("/{passkey_id}", response_model=PasskeyResponse)
async def rename_passkey(
    passkey_id: Id,
    body: PasskeyRenameRequest,
    principal: SessionPrincipal,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Rename a passkey."""
    actor = actor_of(principal, device)
    passkey = await passkeys.rename_passkey(resources.db, identity, actor, passkey_id, body.name)
    return json_response(passkey.view())


@router.delete("/{passkey_id}", status_code=204)
async def remove_passkey(
    passkey_id: Id, principal: SessionPrincipal, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Remove a passkey. Requires a log-in within the last 15 minutes."""
    await passkeys.remove_passkey(resources.db, identity, actor_of(principal, device), passkey_id)
    return Response(status_code=204)


@router.post("/login/options", response_model=LoginOptionsResponse, dependencies=[Public])
async def get_passkey_login_options(
    identity: IdentityDep,
    body: LoginOptionsRequest | None = None,  # noqa: ARG001 - an address changes nothing
) -> Response:
    """Get what a browser needs to log in with a passkey. The response is the same for every address."""
    options = await passkey_login.begin_login(identity)
    return json_response({"public_key": options.public_key, "challenge": options.challenge})


@router.post("/login", response_model=SignedInResponse, dependencies=[Public], responses=problem_responses(401))
async def log_in_with_passkey(
    body: PasskeyLoginRequest, request: Request, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Open a session with a passkey, which counts as two factors."""
    check_transport(request, identity, body.transport)
    outcome = await passkey_login.log_in_by_passkey(
        resources.db, identity, body.credential, body.challenge, replace(device, name=body.device_name)
    )
    return login_response(identity, outcome, body.transport)
