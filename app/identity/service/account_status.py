"""What becomes of an account: its role, a ban, its deletion. All of it is effective before the call returns."""

from collections.abc import Callable
from datetime import datetime, timedelta

from app.identity.errors import AccountNotFound, LastAdmin, OwnAccount, ServiceAccountRole
from app.identity.queries.accounts import (
    ban_account,
    delete_account,
    lock_admin_account,
    lock_admins,
    set_role,
    unban_account,
)
from app.identity.queries.one_time_tokens import delete_one_time_tokens
from app.identity.queries.service_accounts import get_service_account
from app.identity.records import Account, Actor, AdminAccount
from app.identity.service.api_keys import end_api_keys
from app.identity.service.audit_log import record_security_event
from app.identity.service.callers import lock_admin, lock_caller
from app.identity.service.container import IdentityServices
from app.identity.service.credentials import make_stale
from app.identity.service.emails import mail_notice
from app.identity.service.purging import new_purge
from app.identity.service.reauthentication import check_current_password
from app.identity.service.sessions import end_sessions
from app.kernel.auth import Role
from app.kernel.database import Database, retries_conflicts
from app.kernel.database.versions import Versions
from app.kernel.ids import UserId
from app.users import api as users


@retries_conflicts
async def change_role(
    db: Database,
    identity: IdentityServices,
    admin: Actor,
    user_id: UserId,
    role: Role,
    *,
    check: Callable[[AdminAccount], None] | None = None,
) -> None:
    """Gives an account a role; its older tokens stop working, so that the change is effective at once. The role that
    it has already changes nothing.

    `check` lets the account pass as it is; what it raises ends it all.

    Raises:
        AccountNotFound
        LastAdmin: it is the only administrator.
        ServiceAccountRole: a program is made no administrator.
    """
    async with db.transaction("identity.change_role") as tx:
        admins = await lock_admins(tx)
        await lock_admin(tx, identity.clock, admin)
        if role != "admin" and admins == [user_id]:
            raise LastAdmin
        account = await lock_admin_account(tx, user_id)
        if account is None or account.status == "deleted":
            raise AccountNotFound
        if check is not None:
            check(account)
        if account.role == role:
            return
        if role == "admin" and await get_service_account(tx, user_id) is not None:
            raise ServiceAccountRole
        version = await set_role(tx, user_id, role)
        if version is None:
            raise AccountNotFound
        await make_stale(tx, identity, user_id, version)
        await record_security_event(
            tx, identity.clock, admin, "role_changed", user_id=user_id, data=f'{{"role": "{role}"}}'
        )
        await mail_notice(tx, identity.queue, user_id, "role_changed")


@retries_conflicts
async def ban(db: Database, identity: IdentityServices, admin: Actor, user_id: UserId, reason: str | None) -> None:
    """Ends everything an account can do, its jobs and webhooks included, until it is unbanned.

    Raises:
        AccountNotFound
        OwnAccount: administrators cannot ban themselves, so that one of them is always left.
    """
    if user_id == admin.user_id:
        raise OwnAccount
    async with db.transaction("identity.ban") as tx:
        # All administrators in one order first, because the actor and the account may both be among them.
        await lock_admins(tx)
        await lock_admin(tx, identity.clock, admin)
        version = await ban_account(tx, user_id, identity.clock.now(), reason)
        if version is None:
            raise AccountNotFound
        await make_stale(tx, identity, user_id, version)
        await identity.suspend_work(tx, identity.queue, user_id, "account_banned")
        await end_sessions(tx, identity, user_id, admin.device, reason="banned", actor_id=admin.user_id, is_noted=False)
        await delete_one_time_tokens(tx, user_id)
        await record_security_event(tx, identity.clock, admin, "banned", user_id=user_id)


@retries_conflicts
async def unban(db: Database, identity: IdentityServices, admin: Actor, user_id: UserId) -> None:
    """Lets the owner log in again, and jobs run whose time has not come meanwhile.

    Raises:
        AccountNotFound
    """
    async with db.transaction("identity.unban") as tx:
        await lock_admins(tx)
        await lock_admin(tx, identity.clock, admin)
        if not await unban_account(tx, user_id):
            raise AccountNotFound
        await identity.resume_work(tx, user_id)
        await record_security_event(tx, identity.clock, admin, "unbanned", user_id=user_id)


async def delete_own(
    db: Database, identity: IdentityServices, actor: Actor, current_password: str, versions: Versions
) -> datetime:
    """Closes the caller's account at once; the answer is when its data go.

    Raises:
        InvalidCurrentPassword, TooManyAttempts
        LastAdmin: it is the only administrator.
        PreconditionFailed: the profile is in none of `versions`.
    """
    account = await check_current_password(db, identity, actor, current_password)
    return await _delete(db, identity, actor, account, versions)


@retries_conflicts
async def _delete(
    db: Database, identity: IdentityServices, actor: Actor, account: Account, versions: Versions
) -> datetime:
    now = identity.clock.now()
    purge_at = now + timedelta(seconds=identity.settings.deletion_grace)
    async with db.transaction("identity.delete_account") as tx:
        admins = await lock_admins(tx)
        await lock_caller(tx, identity.clock, actor, version=account.version)
        if admins == [actor.user_id]:
            raise LastAdmin
        version = await delete_account(tx, actor.user_id, now, purge_at)
        if version is None:
            raise AccountNotFound
        await make_stale(tx, identity, actor.user_id, version)
        await identity.suspend_work(tx, identity.queue, actor.user_id, "account_deleted")
        await end_sessions(
            tx, identity, actor.user_id, actor.device, reason="account_deleted", actor_id=actor.user_id, is_noted=False
        )
        await end_api_keys(tx, identity, actor, actor.user_id)
        await delete_one_time_tokens(tx, actor.user_id)
        await users.hide_user(tx, actor.user_id, versions)
        await identity.webhook_subscribers.publish(tx, actor.user_id, "user.deleted", [{"user_id": str(actor.user_id)}])
        await record_security_event(tx, identity.clock, actor, "account_deleted")
        await mail_notice(tx, identity.queue, actor.user_id, "account_deleted", email=account.email)
        await identity.queue.enqueue_rows(tx, [new_purge(identity.queue, actor.user_id, purge_at)])
    return purge_at
