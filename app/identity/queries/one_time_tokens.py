"""Tokens and codes sent by e-mail. One per account and purpose; a new one takes the place of the old.

Each is good for the account's version that it was made at, and no longer.
"""

from datetime import datetime

from app.identity.records import OneTimeToken, TokenPurpose
from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

# The lock makes this wait for a change of the account that is under way, and then find its new version.
REPLACE_ONE_TIME_TOKEN = """
WITH account AS (
    SELECT user_id, version FROM identity.accounts
     WHERE user_id = $1 AND version = $7 AND status <> 'deleted'
       FOR SHARE
)
INSERT INTO identity.one_time_tokens (user_id, purpose, token_hash, payload, created_at, expires_at, version)
SELECT user_id, $2, $3, $4, $5, $6, version FROM account
ON CONFLICT (user_id, purpose) DO UPDATE
   SET token_hash = excluded.token_hash, payload = excluded.payload, created_at = excluded.created_at,
       expires_at = excluded.expires_at, version = excluded.version, failures = 0, known_failures = 0
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
    version: int,
) -> bool:
    """False if the account is not at `version` any more. `payload` is JSON text."""
    tag = await tx.execute(REPLACE_ONE_TIME_TOKEN, user_id, purpose, token_hash, payload, now, expires_at, version)
    return tag == "INSERT 0 1"


# Counted before it is compared, so that parallel tries cannot overrun. It does not wait for the disk, which would tell
# an account with a code from any other by time.
TRY_LOGIN_CODE = """
UPDATE identity.one_time_tokens AS token
   SET failures = failures + ($3::boolean IS FALSE)::integer, known_failures = known_failures + $3::integer
  FROM identity.accounts AS account, (SELECT set_config('synchronous_commit', 'off', true)) AS quick
 WHERE token.user_id = $1 AND token.purpose = 'log_in' AND token.expires_at > $2
   AND CASE WHEN $3 THEN known_failures ELSE failures END < 5
   AND account.user_id = token.user_id AND account.version = token.version AND account.status = 'active'
RETURNING token.token_hash
"""


async def try_login_code(tx: Tx, user_id: UserId, now: datetime, *, is_known: bool) -> bytes | None:
    """The hash of the account's code, of which one try is used up; None: there is none, or no try is left.

    `is_known`: the try comes from a device that the account knows, whose tries are counted apart.
    """
    found: bytes | None = await tx.fetchval(TRY_LOGIN_CODE, user_id, now, is_known)
    return found


HAS_ONE_TIME_TOKEN = """
SELECT 1 FROM identity.one_time_tokens WHERE token_hash = $1 AND purpose = $2 AND expires_at > $3
"""


async def has_one_time_token(conn: ReadConn, token_hash: bytes, purpose: TokenPurpose, now: datetime) -> bool:
    """Whether there is such a token; only its use tells whether it is good."""
    return await conn.fetchval(HAS_ONE_TIME_TOKEN, token_hash, purpose, now) is not None


# Deleting is using: of two requests with the same token, one gets the row. The account is locked first, as everywhere.
USE_ONE_TIME_TOKEN = """
WITH account AS MATERIALIZED (
    SELECT account.user_id, account.email, account.email_verified_at, account.role, account.version
      FROM identity.one_time_tokens AS token
      JOIN identity.accounts AS account ON account.user_id = token.user_id AND account.version = token.version
     WHERE token.token_hash = $1 AND token.purpose = $2 AND token.expires_at > $3 AND account.status <> 'deleted'
       FOR NO KEY UPDATE OF account
)
DELETE FROM identity.one_time_tokens AS token
 USING account
 WHERE token.user_id = account.user_id AND token.purpose = $2 AND token.token_hash = $1
RETURNING account.user_id, account.email, account.email_verified_at, account.role, account.version, token.payload
"""


async def use_one_time_token(tx: Tx, token_hash: bytes, purpose: TokenPurpose, now: datetime) -> OneTimeToken | None:
    """The account of the token, locked."""
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
    """Deletes up to `limit` expired or used tokens; returns how many."""
    return int((await tx.execute(DELETE_EXPIRED_ONE_TIME_TOKENS, now, limit)).removeprefix("DELETE "))
