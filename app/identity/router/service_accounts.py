"""Accounts of programs, which administrators manage."""

from fastapi import Request, Response

from app.identity.router.dependencies import Admin, AdminSession, DeviceDep, IdentityDep, actor_of
from app.identity.schemas.service_accounts import (
    RotateClientSecretRequest,
    ServiceAccountCreated,
    ServiceAccountPage,
    ServiceAccountRequest,
)
from app.identity.service import service_accounts
from app.identity.service.audit_log import record_admin_read
from app.kernel.database import Tx
from app.kernel.http import Id, PageQueryDep, Router, json_response, reads_headers
from app.kernel.http.idempotency import idempotent
from app.kernel.ids import UserId
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/admin/service-accounts", tags=["admin"])


@router.post("", status_code=201, response_model=ServiceAccountCreated, openapi_extra=reads_headers("IdempotencyKey"))
async def create_service_account(
    request: Request,
    body: ServiceAccountRequest,
    principal: AdminSession,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Create an account for a program. The secret is shown only in this response."""

    async def create(tx: Tx) -> Response:
        account, secret = await service_accounts.create_service_account(
            tx, identity, actor_of(principal, device), name=body.name, scopes=body.scopes
        )
        return json_response({**account.view(), "client_secret": secret}, status=201)

    return await idempotent(
        request, resources, principal.user_id, operation="identity.create_service_account", effect=create
    )


@router.get("", response_model=ServiceAccountPage)
async def list_service_accounts(
    principal: Admin, resources: ResourcesDep, device: DeviceDep, page: PageQueryDep
) -> Response:
    """List service accounts, newest first."""
    found = await service_accounts.list_service_accounts(
        resources.db, resources.cursors, limit=page.limit, cursor=page.cursor
    )
    await record_admin_read(resources.db, resources.clock, actor_of(principal, device), "service_accounts")
    return json_response({"items": [item.view() for item in found.items], "next_cursor": found.next_cursor})


@router.delete("/{service_account_id}", status_code=204)
async def delete_service_account(
    service_account_id: Id,
    principal: AdminSession,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Delete a service account. Its tokens stop working at once."""
    await service_accounts.delete_service_account(
        resources.db, identity, actor_of(principal, device), UserId(service_account_id)
    )
    return Response(status_code=204)


@router.post("/{service_account_id}/rotate-secret", response_model=ServiceAccountCreated)
async def rotate_client_secret(
    service_account_id: Id,
    principal: AdminSession,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
    body: RotateClientSecretRequest | None = None,
) -> Response:
    """Rotate the secret of a service account. The old one is good for a day more, unless it is to end now."""
    account, secret = await service_accounts.rotate_client_secret(
        resources.db,
        identity,
        actor_of(principal, device),
        UserId(service_account_id),
        expire_old_now=body.expire_old_now if body else False,
    )
    return json_response({**account.view(), "client_secret": secret})
