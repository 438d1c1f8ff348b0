"""Passkeys."""

from datetime import datetime
from uuid import UUID

from app.identity.errors import PasskeyTaken
from app.identity.records.credentials import NewPasskey, Passkey, PasskeyCredential
from app.kernel.database import ConstraintViolated, ReadConn, Tx
from app.kernel.ids import UserId

_CREDENTIAL_KEY = "passkeys_credential_id_key"

# In a unit that has locked the account, or several of these could count at the same time.
INSERT_PASSKEY = """
INSERT INTO identity.passkeys (user_id, id, credential_id, public_key, sign_count, name, transports, backed_up,
                               created_at)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9
 WHERE (SELECT count(*) FROM identity.passkeys WHERE user_id = $1) < $10
RETURNING id, name, created_at, last_used_at, backed_up, transports
"""


async def insert_passkey(tx: Tx, passkey: NewPasskey, now: datetime, limit: int) -> Passkey | None:
    """None if the account has `limit` of them. Raises `PasskeyTaken` if the credential is known."""
    try:
        row = await tx.fetchrow(
            INSERT_PASSKEY,
            passkey.user_id,
            passkey.id,
            passkey.credential_id,
            passkey.public_key,
            passkey.sign_count,
            passkey.name,
            passkey.transports,
            passkey.backed_up,
            now,
            limit,
        )
    except ConstraintViolated as error:
        if error.constraint == _CREDENTIAL_KEY:
            raise PasskeyTaken from error
        raise
    return Passkey(**row) if row else None


LIST_PASSKEYS = """
SELECT id, name, created_at, last_used_at, backed_up, transports
  FROM identity.passkeys
 WHERE user_id = $1
 ORDER BY id DESC
"""


async def list_passkeys(conn: ReadConn, user_id: UserId) -> list[Passkey]:
    """The newest first; there are few of an account."""
    return [Passkey(**row) for row in await conn.fetch(LIST_PASSKEYS, user_id)]


LIST_CREDENTIALS = """
SELECT user_id, id, credential_id, public_key, sign_count
  FROM identity.passkeys
 WHERE user_id = $1
"""


async def list_credentials(conn: ReadConn, user_id: UserId) -> list[PasskeyCredential]:
    return [PasskeyCredential(**row) for row in await conn.fetch(LIST_CREDENTIALS, user_id)]


HAS_PASSKEYS = "SELECT EXISTS (SELECT FROM identity.passkeys WHERE user_id = $1)"


async def has_passkeys(conn: ReadConn, user_id: UserId) -> bool:
    return bool(await conn.fetchval(HAS_PASSKEYS, user_id))


GET_CREDENTIAL = """
SELECT user_id, id, credential_id, public_key, sign_count
  FROM identity.passkeys
 WHERE credential_id = $1
"""


async def get_credential(conn: ReadConn, credential_id: bytes) -> PasskeyCredential | None:
    row = await conn.fetchrow(GET_CREDENTIAL, credential_id)
    return PasskeyCredential(**row) if row else None


# A counter that did not grow, where there is one, is that of a copy (WebAuthn level 3, section 6.1.1).
USE_PASSKEY = """
UPDATE identity.passkeys
   SET sign_count = $3, backed_up = $4, last_used_at = $5
 WHERE user_id = $1 AND id = $2 AND (sign_count < $3 OR sign_count = 0 AND $3 = 0)
"""


async def use_passkey(
    tx: Tx, user_id: UserId, passkey_id: UUID, *, sign_count: int, backed_up: bool, now: datetime
) -> bool:
    """False if the passkey was deleted, or its counter did not grow."""
    return await tx.execute(USE_PASSKEY, user_id, passkey_id, sign_count, backed_up, now) == "UPDATE 1"


RENAME_PASSKEY = """
UPDATE identity.passkeys SET name = $3 WHERE user_id = $1 AND id = $2
RETURNING id, name, created_at, last_used_at, backed_up, transports
"""


async def rename_passkey(tx: Tx, user_id: UserId, passkey_id: UUID, name: str) -> Passkey | None:
    row = await tx.fetchrow(RENAME_PASSKEY, user_id, passkey_id, name)
    return Passkey(**row) if row else None


DELETE_PASSKEY = "DELETE FROM identity.passkeys WHERE user_id = $1 AND id = $2"


async def delete_passkey(tx: Tx, user_id: UserId, passkey_id: UUID) -> bool:
    return await tx.execute(DELETE_PASSKEY, user_id, passkey_id) == "DELETE 1"


DELETE_PASSKEYS = "DELETE FROM identity.passkeys WHERE user_id = $1"


async def delete_passkeys(tx: Tx, user_id: UserId) -> None:
    await tx.execute(DELETE_PASSKEYS, user_id)
