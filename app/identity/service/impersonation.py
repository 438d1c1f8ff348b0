"""Acting for a user, as an administrator: to see what the user sees, for half an hour and on the record.

The access token names the administrator (`act`, RFC 8693, section 4.1). It is refused once the session of either has
ended or either account has changed. There is no refresh token, nothing of it manages credentials, and webhook
endpoints, which would outlive it, are beyond its scopes.
"""

from datetime import timedelta

import orjson

from app.identity.errors import AccountBanned, AccountNotFound, ImpersonationRefused
from app.identity.queries.accounts import get_account, lock_admin_account, lock_admins
from app.identity.queries.service_accounts import get_service_account
from app.identity.queries.sessions import insert_impersonation
from app.identity.records import Actor, Device
from app.identity.records.sessions import NewSession
from app.identity.records.tokens import AccessToken
from app.identity.service.audit_log import record_security_event
from app.identity.service.authentication import TokenRevoked
from app.identity.service.callers import lock_admin
from app.identity.service.container import LONGEST_TOKEN_SECONDS, IdentityServices
from app.identity.service.tokens import ActingParty
from app.kernel.auth import SCOPES_OF_ROLE
from app.kernel.database import Database, retries_conflicts
from app.kernel.ids import UserId, new_id

IMPERSONATION_LIFETIME = timedelta(seconds=LONGEST_TOKEN_SECONDS)
_SCOPES = SCOPES_OF_ROLE["user"] - {"webhooks:manage"}


@retries_conflicts
async def impersonate(
    db: Database, identity: IdentityServices, admin: Actor, user_id: UserId, reason: str
) -> AccessToken:
    """An access token for a session of the user's, which the user can see and end.

    Raises:
        TokenRevoked, RoleRequired: the caller is no administrator any more.
        AccountNotFound
        AccountBanned: nothing acts for a banned account.
        ImpersonationRefused: the account is an administrator's or a program's.
    """
    now = identity.clock.now()
    async with db.transaction("identity.impersonate") as tx:
        await lock_admins(tx)
        version = await lock_admin(tx, identity.clock, admin)
        if admin.session_id is None:
            raise TokenRevoked
        acting = ActingParty(sub=admin.user_id, sid=admin.session_id, ver=version)
        target = await lock_admin_account(tx, user_id)
        account = await get_account(tx, user_id)
        if target is None or account is None or target.status == "deleted":
            raise AccountNotFound
        if target.status == "banned":
            raise AccountBanned
        if target.role == "admin" or await get_service_account(tx, user_id) is not None:
            raise ImpersonationRefused
        session = NewSession(
            user_id=user_id,
            id=new_id(),
            created_at=now,
            idle_expires_at=now + IMPERSONATION_LIFETIME,
            expires_at=now + IMPERSONATION_LIFETIME,
            methods=("impersonation",),
            device=Device(admin.device.ip, admin.device.user_agent, "impersonation"),
        )
        await insert_impersonation(tx, session)
        data = orjson.dumps({"reason": reason, "user_id": str(user_id), "session_id": str(session.id)}).decode()
        for owner in (user_id, admin.user_id):
            await record_security_event(tx, identity.clock, admin, "impersonated", user_id=owner, data=data)
    return identity.issuer.issue_for_actor(
        session, acting, _SCOPES, version=account.version, lifetime=int(IMPERSONATION_LIFETIME.total_seconds())
    )
