"""Accounts."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from app.identity.errors import EmailTaken
from app.identity.records import Account, AdminAccount, MailAccount
from app.kernel.auth import Role
from app.kernel.database import ConstraintViolated, ReadConn, Tx
from app.kernel.ids import UserId

_EMAIL_KEY = "accounts_email_canonical_key"

INSERT_ACCOUNT = """
INSERT INTO identity.accounts (user_id, email, email_canonical, password_hash, role, created_at, password_changed_at,
                               email_verified_at)
VALUES ($1, $2, $3, $4, $5, $6, $6, $7)
"""


async def insert_account(
    tx: Tx,
    *,
    user_id: UserId,
    email: str,
    email_canonical: str,
    password_hash: str | None,
    role: str,
    created_at: datetime,
    email_verified_at: datetime | None,
) -> None:
    """Raises `EmailTaken` if a living account has the address."""
    try:
        await tx.execute(
            INSERT_ACCOUNT, user_id, email, email_canonical, password_hash, role, created_at, email_verified_at
        )
    except ConstraintViolated as error:
        if error.constraint == _EMAIL_KEY:
            raise EmailTaken from error
        raise


GET_ACCOUNT_BY_EMAIL = """
SELECT user_id, email, email_verified_at, password_hash, status, role, version, totp_enabled, factor_epoch
  FROM identity.accounts
 WHERE email_canonical = $1 AND status <> 'deleted'
"""


async def get_account_by_email(conn: ReadConn, email_canonical: str) -> Account | None:
    row = await conn.fetchrow(GET_ACCOUNT_BY_EMAIL, email_canonical)
    return Account(**row) if row else None


GET_ACCOUNT = """
SELECT user_id, email, email_verified_at, password_hash, status, role, version, totp_enabled, factor_epoch
  FROM identity.accounts
 WHERE user_id = $1
"""


async def get_account(conn: ReadConn, user_id: UUID) -> Account | None:
    row = await conn.fetchrow(GET_ACCOUNT, user_id)
    return Account(**row) if row else None


GET_MAIL_ACCOUNT = """
SELECT status = 'active' AS is_active, email_verified_at IS NOT NULL AS is_verified, email_canonical
  FROM identity.accounts
 WHERE user_id = $1
"""


async def get_mail_account(conn: ReadConn, user_id: UUID) -> MailAccount | None:
    """What decides, just before a message is sent, whether it may be."""
    row = await conn.fetchrow(GET_MAIL_ACCOUNT, user_id)
    return MailAccount(**row) if row else None


# Nothing happens for an address that is taken, and the caller cannot tell.
INSERT_ACCOUNT_IF_NEW = """
INSERT INTO identity.accounts (user_id, email, email_canonical, password_hash, created_at, password_changed_at)
VALUES ($1, $2, $3, $4, $5, $5)
ON CONFLICT (email_canonical) WHERE status <> 'deleted' DO NOTHING
"""


async def insert_account_if_new(
    tx: Tx, *, user_id: UserId, email: str, email_canonical: str, password_hash: str, created_at: datetime
) -> bool:
    """Whether the account was made."""
    tag = await tx.execute(INSERT_ACCOUNT_IF_NEW, user_id, email, email_canonical, password_hash, created_at)
    return tag == "INSERT 0 1"


# The first lock of each unit that changes what may act for an account, so that such units run one after the other, each
# statement behind it sees what the one before has done, and a caller whose session or key has ended changes nothing. A
# caller with neither is a program, whose account must be there.
LOCK_CALLER = """
WITH account AS MATERIALIZED (
    SELECT user_id, email, email_verified_at, password_hash, status, role, version, totp_enabled, factor_epoch
      FROM identity.accounts
     WHERE user_id = $1 AND status = 'active'
       FOR NO KEY UPDATE
), session AS (
    SELECT user_id FROM identity.sessions
     WHERE user_id IN (SELECT user_id FROM account) AND id = $2
       AND revoked_at IS NULL AND idle_expires_at > $4 AND expires_at > $4
       FOR SHARE
), key AS (
    SELECT user_id FROM identity.api_keys
     WHERE user_id IN (SELECT user_id FROM account) AND id = $3
       AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $4)
       FOR SHARE
), program AS (
    SELECT user_id FROM identity.service_accounts
     WHERE user_id IN (SELECT user_id FROM account) AND $2::uuid IS NULL AND $3::uuid IS NULL
       FOR SHARE
)
SELECT user_id, email, email_verified_at, password_hash, status, role, version, totp_enabled, factor_epoch
  FROM account
 WHERE EXISTS (SELECT FROM session) OR EXISTS (SELECT FROM key) OR EXISTS (SELECT FROM program)
"""


async def lock_caller(
    tx: Tx, user_id: UserId, session_id: UUID | None, api_key_id: UUID | None, now: datetime
) -> Account | None:
    """The account of a caller, locked with the session or the key; None if that has ended."""
    row = await tx.fetchrow(LOCK_CALLER, user_id, session_id, api_key_id, now)
    return Account(**row) if row else None


SET_EMAIL_VERIFIED = """
UPDATE identity.accounts
   SET email_verified_at = $2, version = version + 1
 WHERE user_id = $1 AND version = $3 AND status <> 'deleted'
RETURNING version
"""


async def set_email_verified(tx: Tx, user_id: UserId, now: datetime, version: int) -> int | None:
    """The account's new version; None if it is not at `version` any more."""
    new_version: int | None = await tx.fetchval(SET_EMAIL_VERIFIED, user_id, now, version)
    return new_version


# The new version is what a log-in under way with the old password fails by.
SET_PASSWORD = """
UPDATE identity.accounts SET password_hash = $2, password_changed_at = $3, version = version + 1
 WHERE user_id = $1 AND version = $4 AND status <> 'deleted'
RETURNING version
"""


async def set_password(tx: Tx, user_id: UserId, password_hash: str, now: datetime, version: int) -> int | None:
    """The account's new version; None if it is not at `version` any more."""
    new_version: int | None = await tx.fetchval(SET_PASSWORD, user_id, password_hash, now, version)
    return new_version


SET_EMAIL = """
UPDATE identity.accounts
   SET email = $2, email_canonical = $3, email_verified_at = $4, version = version + 1
 WHERE user_id = $1 AND version = $5 AND status <> 'deleted'
RETURNING version
"""


async def set_email(
    tx: Tx, user_id: UserId, email: str, email_canonical: str, now: datetime, version: int
) -> int | None:
    """The account's new version; None if it is not at `version` any more.

    Raises `EmailTaken` if a living account has the address.
    """
    try:
        new_version: int | None = await tx.fetchval(SET_EMAIL, user_id, email, email_canonical, now, version)
    except ConstraintViolated as error:
        if error.constraint == _EMAIL_KEY:
            raise EmailTaken from error
        raise
    return new_version


LIST_ADMINS = """
SELECT user_id FROM identity.accounts WHERE user_id = ANY($1::uuid[]) AND role = 'admin' AND status = 'active'
"""


async def list_admins(conn: ReadConn, user_ids: Sequence[UserId]) -> list[UserId]:
    """Those of these users who are administrators now."""
    return [row["user_id"] for row in await conn.fetch(LIST_ADMINS, user_ids)]


IS_ADMIN_AT = """
SELECT 1 FROM identity.accounts WHERE user_id = $1 AND role = 'admin' AND status = 'active' AND version = $2
"""


async def is_admin_at(conn: ReadConn, user_id: UserId, version: int) -> bool:
    """Whether the user is an administrator, with an account that has not changed since it was at `version`."""
    return await conn.fetchval(IS_ADMIN_AT, user_id, version) is not None


# A unit that changes what an administrator is takes these locks first, in one order, so that two of them cannot each
# leave the other as the last one. A program does not count as one, because it cannot log in to administer anything.
LOCK_ADMINS = """
SELECT user_id FROM identity.accounts AS account
 WHERE role = 'admin' AND status = 'active'
   AND NOT EXISTS (SELECT FROM identity.service_accounts AS service WHERE service.user_id = account.user_id)
 ORDER BY user_id
   FOR UPDATE
"""


async def lock_admins(tx: Tx) -> list[UUID]:
    return [row["user_id"] for row in await tx.fetch(LOCK_ADMINS)]


BUMP_VERSION = "UPDATE identity.accounts SET version = version + 1 WHERE user_id = $1 RETURNING version"


async def bump_version(tx: Tx, user_id: UserId) -> int:
    """The new version of an account that is there."""
    version: int = await tx.fetchval(BUMP_VERSION, user_id)
    return version


SET_ROLE = """
UPDATE identity.accounts SET role = $2, version = version + 1
 WHERE user_id = $1 AND status <> 'deleted'
RETURNING version
"""


async def set_role(tx: Tx, user_id: UserId, role: Role) -> int | None:
    """The account's new version; None if there is no such account."""
    version: int | None = await tx.fetchval(SET_ROLE, user_id, role)
    return version


BAN_ACCOUNT = """
UPDATE identity.accounts SET status = 'banned', banned_at = $2, ban_reason = $3, version = version + 1
 WHERE user_id = $1 AND status IN ('active', 'banned')
RETURNING version
"""


async def ban_account(tx: Tx, user_id: UserId, now: datetime, reason: str | None) -> int | None:
    """The account's new version; None if there is no such account."""
    version: int | None = await tx.fetchval(BAN_ACCOUNT, user_id, now, reason)
    return version


UNBAN_ACCOUNT = """
UPDATE identity.accounts SET status = 'active', banned_at = NULL, ban_reason = NULL
 WHERE user_id = $1 AND status IN ('active', 'banned')
"""


async def unban_account(tx: Tx, user_id: UserId) -> bool:
    return await tx.execute(UNBAN_ACCOUNT, user_id) == "UPDATE 1"


DELETE_ACCOUNT = """
UPDATE identity.accounts SET status = 'deleted', deleted_at = $2, purge_at = $3, version = version + 1
 WHERE user_id = $1 AND status <> 'deleted'
RETURNING version
"""


async def delete_account(tx: Tx, user_id: UserId, now: datetime, purge_at: datetime) -> int | None:
    """Marks the account; the answer is its new version, None if it is deleted already."""
    version: int | None = await tx.fetchval(DELETE_ACCOUNT, user_id, now, purge_at)
    return version


LIST_OVERDUE_PURGES = """
SELECT purge_at, user_id FROM identity.accounts
 WHERE purge_at < $1
   AND (purge_at, user_id)
       > (coalesce($2::timestamptz, '-infinity'), coalesce($3::uuid, '00000000-0000-0000-0000-000000000000'))
 ORDER BY purge_at, user_id
 LIMIT $4
"""


async def list_overdue_purges(
    conn: ReadConn, before: datetime, after: tuple[datetime, UUID] | None, limit: int
) -> list[tuple[datetime, UUID]]:
    """When accounts were to be purged, before `before`, that have not been; and whose they are, from behind `after`."""
    rows = await conn.fetch(LIST_OVERDUE_PURGES, before, *(after or (None, None)), limit)
    return [(row["purge_at"], row["user_id"]) for row in rows]


# What identifies the person goes; that there was an account, and when, stays.
ANONYMISE_ACCOUNT = """
WITH account AS (
    UPDATE identity.accounts
       SET email = 'deleted', email_canonical = 'deleted:' || user_id, password_hash = NULL, ban_reason = NULL,
           purge_at = NULL
     WHERE user_id = $1 AND status = 'deleted'
 RETURNING user_id
), sessions AS (
    DELETE FROM identity.sessions WHERE user_id IN (SELECT user_id FROM account)
), factors AS (
    DELETE FROM identity.totp_factors WHERE user_id IN (SELECT user_id FROM account)
), codes AS (
    DELETE FROM identity.recovery_codes WHERE user_id IN (SELECT user_id FROM account)
), tokens AS (
    DELETE FROM identity.one_time_tokens WHERE user_id IN (SELECT user_id FROM account)
), keys AS (
    DELETE FROM identity.api_keys WHERE user_id IN (SELECT user_id FROM account)
), passkeys AS (
    DELETE FROM identity.passkeys WHERE user_id IN (SELECT user_id FROM account)
), services AS (
    DELETE FROM identity.service_accounts WHERE user_id IN (SELECT user_id FROM account)
), trail AS (
    UPDATE identity.security_events SET ip = NULL, user_agent = NULL, data = '{}'
     WHERE user_id IN (SELECT user_id FROM account)
), acts AS (
    UPDATE identity.security_events SET ip = NULL, user_agent = NULL
     WHERE actor_id IN (SELECT user_id FROM account) AND actor_id <> user_id
)
SELECT user_id FROM account
"""


async def anonymise_account(tx: Tx, user_id: UserId) -> bool:
    """Whether there was a deleted account to anonymise."""
    return await tx.fetchval(ANONYMISE_ACCOUNT, user_id) is not None


GET_ADMIN_ACCOUNT = """
SELECT user_id, email, email_verified_at, status, role, totp_enabled, banned_at, ban_reason, last_login_at, created_at,
       deleted_at, purge_at
  FROM identity.accounts
 WHERE user_id = $1
"""


async def get_admin_account(conn: ReadConn, user_id: UUID) -> AdminAccount | None:
    row = await conn.fetchrow(GET_ADMIN_ACCOUNT, user_id)
    return AdminAccount(**row) if row else None


LOCK_ADMIN_ACCOUNT = """
SELECT user_id, email, email_verified_at, status, role, totp_enabled, banned_at, ban_reason, last_login_at, created_at,
       deleted_at, purge_at
  FROM identity.accounts
 WHERE user_id = $1
   FOR NO KEY UPDATE
"""


async def lock_admin_account(tx: Tx, user_id: UserId) -> AdminAccount | None:
    """The account as it stays until the transaction ends."""
    row = await tx.fetchrow(LOCK_ADMIN_ACCOUNT, user_id)
    return AdminAccount(**row) if row else None


# $1 is a LIKE pattern for the trigram index; ids are UUIDv7, so the newest come first.
LIST_ADMIN_ACCOUNTS = """
SELECT user_id, email, email_verified_at, status, role, totp_enabled, banned_at, ban_reason, last_login_at, created_at,
       deleted_at, purge_at
  FROM identity.accounts
 WHERE ($1::text IS NULL OR email_canonical LIKE $1)
   AND ($2::text IS NULL OR status = $2)
   AND ($3::text IS NULL OR role = $3)
   AND ($4::uuid IS NULL OR user_id < $4)
 ORDER BY user_id DESC
 LIMIT $5
"""


async def list_admin_accounts(
    conn: ReadConn, *, pattern: str | None, status: str | None, role: str | None, before: UUID | None, limit: int
) -> list[AdminAccount]:
    rows = await conn.fetch(LIST_ADMIN_ACCOUNTS, pattern, status, role, before, limit)
    return [AdminAccount(**row) for row in rows]
