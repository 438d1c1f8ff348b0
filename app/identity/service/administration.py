"""What administrators see of accounts."""

from dataclasses import dataclass
from uuid import UUID

from app.identity.errors import AccountNotFound
from app.identity.queries.accounts import get_admin_account, list_admin_accounts
from app.identity.records import AccountStatus, Actor, AdminAccount
from app.identity.records.security_events import SecurityEvent
from app.identity.records.sessions import Session
from app.identity.service import audit_log
from app.identity.service.container import IdentityServices
from app.identity.service.sessions import end_sessions, list_own_sessions
from app.kernel.auth import Role
from app.kernel.database import Database, retries_conflicts
from app.kernel.ids import UserId
from app.kernel.pagination import Cursors, Page
from app.kernel.validation.addresses import canonical_email_part

_LIST = "admin_accounts"


@dataclass(frozen=True, slots=True)
class AccountFilter:
    """Which accounts; `text` is part of the e-mail address."""

    text: str | None
    status: AccountStatus | None
    role: Role | None


async def find_accounts(
    db: Database, cursors: Cursors, wanted: AccountFilter, *, limit: int, cursor: str | None
) -> Page[AdminAccount]:
    """One page, the newest account first.

    Raises:
        InvalidCursor
    """
    scope = (wanted.text, wanted.status, wanted.role)
    before: UUID | None = cursors.decode(_LIST, scope, cursor, tuple[UUID])[0] if cursor else None
    pattern = f"%{_escape_like(canonical_email_part(wanted.text))}%" if wanted.text else None
    async with db.read("identity.admin_accounts") as conn:
        found = await list_admin_accounts(
            conn, pattern=pattern, status=wanted.status, role=wanted.role, before=before, limit=limit + 1
        )
    return cursors.paginate(_LIST, scope, found, lambda account: (account.user_id,), limit=limit)


async def read_account(db: Database, user_id: UUID) -> AdminAccount:
    """Raises `AccountNotFound`."""
    async with db.read("identity.admin_account") as conn:
        account = await get_admin_account(conn, user_id)
    if account is None:
        raise AccountNotFound
    return account


async def read_sessions(
    db: Database, cursors: Cursors, identity: IdentityServices, user_id: UserId, *, limit: int, cursor: str | None
) -> Page[Session]:
    """A page of the living sessions of an account, the last used one first.

    Raises:
        AccountNotFound, InvalidCursor
    """
    await read_account(db, user_id)
    return await list_own_sessions(db, cursors, identity, user_id, limit=limit, cursor=cursor)


async def read_security_events(
    db: Database, cursors: Cursors, user_id: UserId, *, limit: int, cursor: str | None
) -> Page[SecurityEvent]:
    """One page of an account's audit trail, newest first.

    Raises:
        AccountNotFound, InvalidCursor
    """
    await read_account(db, user_id)
    return await audit_log.read_security_events(db, cursors, user_id, limit=limit, cursor=cursor)


@retries_conflicts
async def revoke_sessions(db: Database, identity: IdentityServices, admin: Actor, user_id: UserId) -> int:
    """Ends all sessions of an account; the answer is how many.

    Raises:
        AccountNotFound
    """
    await read_account(db, user_id)
    async with identity.webhook_subscribers.unit(db, user_id, "identity.admin_revoke_sessions") as tx:
        return await end_sessions(
            tx,
            identity,
            user_id,
            admin.device,
            reason="revoked_by_admin",
            actor_id=admin.user_id,
            live_session_id=admin.session_id,
        )


def _escape_like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
