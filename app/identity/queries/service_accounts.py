"""Accounts of programs."""

from datetime import datetime
from uuid import UUID

from app.identity.records.credentials import ServiceAccount, ServiceClient
from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

INSERT_SERVICE_ACCOUNT = """
INSERT INTO identity.service_accounts (user_id, name, scopes, secret_hash, created_by, created_at)
VALUES ($1, $2, $3, $4, $5, $6)
RETURNING user_id, name, scopes, old_secret_expires_at, created_at
"""


async def insert_service_account(
    tx: Tx,
    *,
    user_id: UserId,
    name: str,
    scopes: list[str],
    secret_hash: bytes,
    created_by: UserId,
    now: datetime,
) -> ServiceAccount:
    row = await tx.fetchrow(INSERT_SERVICE_ACCOUNT, user_id, name, scopes, secret_hash, created_by, now)
    return ServiceAccount(**row)  # type: ignore[arg-type]  # an INSERT without a condition returns its row


# Ids are UUIDv7, so the newest come first.
LIST_SERVICE_ACCOUNTS = """
SELECT user_id, name, scopes, old_secret_expires_at, created_at
  FROM identity.service_accounts
 WHERE $1::uuid IS NULL OR user_id < $1
 ORDER BY user_id DESC
 LIMIT $2
"""


async def list_service_accounts(conn: ReadConn, before: UUID | None, limit: int) -> list[ServiceAccount]:
    return [ServiceAccount(**row) for row in await conn.fetch(LIST_SERVICE_ACCOUNTS, before, limit)]


GET_SERVICE_ACCOUNT = """
SELECT user_id, name, scopes, old_secret_expires_at, created_at
  FROM identity.service_accounts
 WHERE user_id = $1
"""


async def get_service_account(conn: ReadConn, user_id: UserId) -> ServiceAccount | None:
    row = await conn.fetchrow(GET_SERVICE_ACCOUNT, user_id)
    return ServiceAccount(**row) if row else None


GET_SERVICE_CLIENT = """
SELECT service.user_id, service.scopes, service.secret_hash, service.old_secret_hash, service.old_secret_expires_at,
       account.version
  FROM identity.service_accounts AS service
  JOIN identity.accounts AS account USING (user_id)
 WHERE service.user_id = $1 AND account.status = 'active'
"""


async def get_service_client(conn: ReadConn, user_id: UUID) -> ServiceClient | None:
    """What the issue of a token needs; None: there is no such account, or it is banned."""
    row = await conn.fetchrow(GET_SERVICE_CLIENT, user_id)
    return ServiceClient(**row) if row else None


ROTATE_SECRET = """
UPDATE identity.service_accounts
   SET secret_hash = $2, old_secret_hash = secret_hash, old_secret_expires_at = $3
 WHERE user_id = $1
RETURNING user_id, name, scopes, old_secret_expires_at, created_at
"""


async def rotate_secret(
    tx: Tx, user_id: UserId, secret_hash: bytes, old_secret_expires_at: datetime
) -> ServiceAccount | None:
    """The secret of before is good until `old_secret_expires_at`, the one before that no longer."""
    row = await tx.fetchrow(ROTATE_SECRET, user_id, secret_hash, old_secret_expires_at)
    return ServiceAccount(**row) if row else None


DELETE_SERVICE_ACCOUNT = "DELETE FROM identity.service_accounts WHERE user_id = $1"


async def delete_service_account(tx: Tx, user_id: UserId) -> bool:
    return await tx.execute(DELETE_SERVICE_ACCOUNT, user_id) == "DELETE 1"
