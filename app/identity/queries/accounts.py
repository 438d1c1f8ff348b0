"""Accounts."""

from datetime import datetime
from uuid import UUID

from app.identity.errors import EmailTaken
from app.identity.records import Account
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
SELECT user_id, email, email_verified_at, password_hash, status, role, version, totp_enabled
  FROM identity.accounts
 WHERE email_canonical = $1 AND status <> 'deleted'
"""


async def get_account_by_email(conn: ReadConn, email_canonical: str) -> Account | None:
    row = await conn.fetchrow(GET_ACCOUNT_BY_EMAIL, email_canonical)
    return Account(**row) if row else None


GET_ACCOUNT = """
SELECT user_id, email, email_verified_at, password_hash, status, role, version, totp_enabled
  FROM identity.accounts
 WHERE user_id = $1
"""


async def get_account(conn: ReadConn, user_id: UUID) -> Account | None:
    row = await conn.fetchrow(GET_ACCOUNT, user_id)
    return Account(**row) if row else None
