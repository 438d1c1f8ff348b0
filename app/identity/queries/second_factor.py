"""TOTP seeds and recovery codes."""

from datetime import datetime

from app.identity.records.credentials import TotpFactor
from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

# A seed that was never confirmed is replaced; a confirmed one stays.
REPLACE_TOTP_FACTOR = """
INSERT INTO identity.totp_factors (user_id, secret_sealed, key_id, created_at)
VALUES ($1, $2, $3, $4)
ON CONFLICT (user_id) DO UPDATE
   SET secret_sealed = excluded.secret_sealed, key_id = excluded.key_id, created_at = excluded.created_at, last_step = 0
 WHERE totp_factors.confirmed_at IS NULL
"""


async def replace_totp_factor(tx: Tx, user_id: UserId, secret_sealed: bytes, key_id: str, now: datetime) -> bool:
    """False if the account has a confirmed factor."""
    return await tx.execute(REPLACE_TOTP_FACTOR, user_id, secret_sealed, key_id, now) == "INSERT 0 1"


GET_TOTP_FACTOR = """
SELECT factor.secret_sealed, factor.last_step, factor.confirmed_at,
       (SELECT count(*) FROM identity.recovery_codes AS code
         WHERE code.user_id = factor.user_id AND code.used_at IS NULL) AS recovery_codes_left
  FROM identity.totp_factors AS factor
 WHERE factor.user_id = $1
"""


async def get_totp_factor(conn: ReadConn, user_id: UserId) -> TotpFactor | None:
    row = await conn.fetchrow(GET_TOTP_FACTOR, user_id)
    return TotpFactor(**row) if row else None


# Compare and swap on the time step: a code works once, even for two requests at the same moment.
USE_TOTP_STEP = """
UPDATE identity.totp_factors SET last_step = $2
 WHERE user_id = $1 AND last_step < $2 AND secret_sealed = $3 AND confirmed_at IS NOT NULL
"""


async def use_totp_step(tx: Tx, user_id: UserId, step: int, secret_sealed: bytes) -> bool:
    """False if the step was used, or if the account has another seed by now."""
    return await tx.execute(USE_TOTP_STEP, user_id, step, secret_sealed) == "UPDATE 1"


# Of the seed that the code was checked against, and of no other that was made meanwhile.
CONFIRM_TOTP = """
WITH factor AS (
    UPDATE identity.totp_factors SET confirmed_at = $2, last_step = $3
     WHERE user_id = $1 AND confirmed_at IS NULL AND secret_sealed = $5
 RETURNING user_id
), codes AS (
    INSERT INTO identity.recovery_codes (user_id, code_hash)
    SELECT factor.user_id, code FROM factor, unnest($4::bytea[]) AS code
)
UPDATE identity.accounts SET totp_enabled = true, factor_epoch = factor_epoch + 1
 WHERE user_id IN (SELECT user_id FROM factor)
"""


async def confirm_totp(
    tx: Tx, user_id: UserId, now: datetime, step: int, code_hashes: list[bytes], secret_sealed: bytes
) -> bool:
    """False if there was nothing to confirm."""
    return await tx.execute(CONFIRM_TOTP, user_id, now, step, code_hashes, secret_sealed) == "UPDATE 1"


DELETE_TOTP = """
WITH factor AS (
    DELETE FROM identity.totp_factors WHERE user_id = $1 RETURNING user_id
), codes AS (
    DELETE FROM identity.recovery_codes WHERE user_id = $1
)
UPDATE identity.accounts SET totp_enabled = false, factor_epoch = factor_epoch + 1
 WHERE user_id IN (SELECT user_id FROM factor)
"""


async def delete_totp(tx: Tx, user_id: UserId) -> bool:
    """False if the account had no factor."""
    return await tx.execute(DELETE_TOTP, user_id) == "UPDATE 1"


USE_RECOVERY_CODE = """
UPDATE identity.recovery_codes SET used_at = $3 WHERE user_id = $1 AND code_hash = $2 AND used_at IS NULL
"""


async def use_recovery_code(tx: Tx, user_id: UserId, code_hash: bytes, now: datetime) -> bool:
    return await tx.execute(USE_RECOVERY_CODE, user_id, code_hash, now) == "UPDATE 1"


# In a unit that has locked the account, or two of these would leave twice as many codes.
REPLACE_RECOVERY_CODES = """
WITH factor AS (
    SELECT user_id FROM identity.totp_factors WHERE user_id = $1 AND confirmed_at IS NOT NULL
), gone AS (
    DELETE FROM identity.recovery_codes WHERE user_id IN (SELECT user_id FROM factor)
)
INSERT INTO identity.recovery_codes (user_id, code_hash)
SELECT factor.user_id, code FROM factor, unnest($2::bytea[]) AS code
"""


async def replace_recovery_codes(tx: Tx, user_id: UserId, code_hashes: list[bytes]) -> bool:
    """False if the account has no second factor."""
    return await tx.execute(REPLACE_RECOVERY_CODES, user_id, code_hashes) != "INSERT 0 0"
