"""What administrators do with accounts."""

from typing import Annotated
from uuid import UUID

from fastapi import Query, Response

from app.identity.records import Actor, AdminAccount
from app.identity.router.dependencies import Admin, AdminSession, DeviceDep, IdentityDep, actor_of
from app.identity.router.sessions import session_view
from app.identity.schemas.admin import (
    AdminAccountPage,
    AdminAccountQuery,
    AdminAccountResponse,
    BanRequest,
    ImpersonateRequest,
    ImpersonationResponse,
    PatchAccountRequest,
    TrailPage,
    TrailQuery,
)
from app.identity.schemas.sessions import RevokedResponse, SecurityEventPage, SessionList
from app.identity.service import account_status, administration, audit_log
from app.identity.service.audit_log import record_admin_read
from app.identity.service.impersonation import impersonate
from app.kernel.http import (
    Id,
    PageQueryDep,
    Preconditions,
    Router,
    body_etag,
    dump_json,
    json_response,
    problem_responses,
    reads_headers,
)
from app.kernel.ids import UserId
from app.kernel.request.principal import Principal
from app.kernel.request.state import RequestStateDep
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/admin/users", tags=["admin"])
all_trails = Router(prefix="/v1/admin", tags=["admin"])


@router.get("", response_model=AdminAccountPage)
async def list_accounts(
    principal: Admin, resources: ResourcesDep, device: DeviceDep, query: Annotated[AdminAccountQuery, Query()]
) -> Response:
    """List accounts, newest first. `q` matches part of the e-mail address."""
    wanted = administration.AccountFilter(query.q, query.status, query.role)
    found = await administration.find_accounts(
        resources.db, resources.cursors, wanted, limit=query.limit, cursor=query.cursor
    )
    await _note_read(resources, principal, device, "accounts")
    return json_response({"items": [item.view() for item in found.items], "next_cursor": found.next_cursor})


@router.get("/{user_id}", response_model=AdminAccountResponse)
async def get_account(user_id: Id, principal: Admin, resources: ResourcesDep, device: DeviceDep) -> Response:
    """Get an account."""
    account = await administration.read_account(resources.db, user_id)
    await _note_read(resources, principal, device, "account", user_id)
    return json_response(account.view())


@router.patch(
    "/{user_id}",
    response_model=AdminAccountResponse,
    responses=problem_responses(409, 412),
    openapi_extra=reads_headers("IfMatch"),
)
async def update_account(
    *,
    state: RequestStateDep,
    user_id: Id,
    body: PatchAccountRequest,
    principal: Admin,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Change the role of an account. Its older access tokens stop working at once."""
    admin = actor_of(principal, device)
    conditions = Preconditions.of(state)

    def check(account: AdminAccount) -> None:
        conditions.check(_account_etag(account))

    await account_status.change_role(
        resources.db, identity, admin, UserId(user_id), body.role, check=check if conditions else None
    )
    account = await administration.read_account(resources.db, user_id)
    return json_response(account.view(), etag=_account_etag(account).decode())


@router.post("/{user_id}/ban", status_code=204, responses=problem_responses(409))
async def ban_account(
    user_id: Id,
    principal: Admin,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
    body: BanRequest | None = None,
) -> Response:
    """Ban an account: end all of its sessions and refuse log-ins."""
    reason = body.reason if body else None
    await account_status.ban(resources.db, identity, actor_of(principal, device), UserId(user_id), reason)
    return Response(status_code=204)


@router.post("/{user_id}/unban", status_code=204)
async def unban_account(
    user_id: Id, principal: Admin, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Lift the ban of an account."""
    await account_status.unban(resources.db, identity, actor_of(principal, device), UserId(user_id))
    return Response(status_code=204)


@router.post("/{user_id}/impersonate", response_model=ImpersonationResponse)
async def impersonate_user(
    user_id: Id,
    body: ImpersonateRequest,
    principal: AdminSession,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Get an access token to act for a user for 30 minutes, who is not an administrator. Both trails tell of it.

    It manages no credentials and no webhook endpoints, and ends with your own session.
    """
    token = await impersonate(resources.db, identity, actor_of(principal, device), UserId(user_id), body.reason)
    return json_response(token.view(), headers={"Cache-Control": "no-store"})


@router.get("/{user_id}/sessions", response_model=SessionList)
async def list_account_sessions(
    user_id: Id,
    principal: Admin,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
    page: PageQueryDep,
) -> Response:
    """List the active sessions of an account."""
    found = await administration.read_sessions(
        resources.db, resources.cursors, identity, UserId(user_id), limit=page.limit, cursor=page.cursor
    )
    await _note_read(resources, principal, device, "sessions", user_id)
    items = [session_view(session, is_current=session.id == principal.session_id) for session in found.items]
    return json_response({"items": items, "next_cursor": found.next_cursor})


@router.delete("/{user_id}/sessions", response_model=RevokedResponse)
async def revoke_account_sessions(
    user_id: Id, principal: Admin, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """End all sessions of an account."""
    admin: Actor = actor_of(principal, device)
    revoked = await administration.revoke_sessions(resources.db, identity, admin, UserId(user_id))
    return json_response({"revoked": revoked})


@router.get(
    "/{user_id}/security-events",
    response_model=SecurityEventPage,
)
async def list_account_security_events(
    user_id: Id, principal: Admin, resources: ResourcesDep, device: DeviceDep, page: PageQueryDep
) -> Response:
    """List the security events of an account, newest first."""
    found = await administration.read_security_events(
        resources.db, resources.cursors, UserId(user_id), limit=page.limit, cursor=page.cursor
    )
    await _note_read(resources, principal, device, "security_events", user_id)
    return json_response({"items": [event.view() for event in found.items], "next_cursor": found.next_cursor})


@all_trails.get("/security-events", response_model=TrailPage)
async def search_security_events(
    principal: Admin, resources: ResourcesDep, device: DeviceDep, query: Annotated[TrailQuery, Query()]
) -> Response:
    """List the security events of all accounts, newest first."""
    user_id = UserId(query.user_id) if query.user_id else None
    found = await audit_log.search_security_events(
        resources.db,
        resources.cursors,
        user_id=user_id,
        action=query.type,
        since=query.since,
        limit=query.limit,
        cursor=query.cursor,
    )
    await _note_read(resources, principal, device, "security_events", user_id)
    return json_response({"items": [entry.view() for entry in found.items], "next_cursor": found.next_cursor})


def _account_etag(account: AdminAccount) -> bytes:
    """As that of the answer which shows the account."""
    return body_etag(dump_json(account.view()))


async def _note_read(
    resources: ResourcesDep, principal: Principal, device: DeviceDep, what: str, user_id: UUID | None = None
) -> None:
    await record_admin_read(resources.db, resources.clock, actor_of(principal, device), what, user_id)
