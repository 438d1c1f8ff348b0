"""Tokens sent by e-mail. One per account and purpose; a new one takes the place of the old."""

from datetime import datetime

from app.identity.records import OneTimeToken, TokenPurpose
from app.kernel.database import Tx
from app.kernel.ids import UserId

REPLACE_ONE_TIME_TOKEN = """
INSERT INTO identity.one_time_tokens (user_id, purpose, token_hash, payload, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (user_id, purpose) DO UPDATE
   SET token_hash = excluded.token_hash, payload = excluded.payload, created_at = excluded.created_at,
       expires_at = excluded.expires_at
"""


async def replace_one_time_token(
    tx: Tx,
    *,
    user_id: UserId,
    purpose: TokenPurpose,
    token_hash: bytes,
    payload: str,
    now: datetime,
    expires_at: datetime,
) -> None:
    """`payload` is JSON text."""
    await tx.execute(REPLACE_ONE_TIME_TOKEN, user_id, purpose, token_hash, payload, now, expires_at)


# Deleting is using: of two who bring the same token, one gets the row.
USE_ONE_TIME_TOKEN = """
DELETE FROM identity.one_time_tokens WHERE token_hash = $1 AND purpose = $2 AND expires_at > $3
RETURNING user_id, payload
"""


async def use_one_time_token(tx: Tx, token_hash: bytes, purpose: TokenPurpose, now: datetime) -> OneTimeToken | None:
    row = await tx.fetchrow(USE_ONE_TIME_TOKEN, token_hash, purpose, now)
    return OneTimeToken(**row) if row else None


DELETE_ONE_TIME_TOKENS = "DELETE FROM identity.one_time_tokens WHERE user_id = $1"


async def delete_one_time_tokens(tx: Tx, user_id: UserId) -> None:
    await tx.execute(DELETE_ONE_TIME_TOKENS, user_id)


DELETE_EXPIRED_ONE_TIME_TOKENS = """
DELETE FROM identity.one_time_tokens
 WHERE (user_id, purpose) IN (
       SELECT user_id, purpose FROM identity.one_time_tokens
        WHERE expires_at <= $1
        ORDER BY expires_at
        LIMIT $2
        FOR UPDATE SKIP LOCKED)
"""


async def delete_expired_one_time_tokens(tx: Tx, now: datetime, limit: int) -> int:
    """Deletes up to `limit` that nobody can use any more; the answer is how many."""
    return int((await tx.execute(DELETE_EXPIRED_ONE_TIME_TOKENS, now, limit)).removeprefix("DELETE "))
