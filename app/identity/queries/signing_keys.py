"""The keys that sign access tokens."""

from app.identity.records.tokens import SigningKeyRow
from app.kernel.database import ReadConn, Tx

LIST_SIGNING_KEYS = """
SELECT kid, algorithm, private_sealed, key_id, public_key, state
  FROM identity.signing_keys
 WHERE state <> 'retired' OR retired_at > now() - interval '1 day'
 ORDER BY created_at
"""


async def list_signing_keys(conn: ReadConn) -> list[SigningKeyRow]:
    """The next key, the active one, and those that may still verify a living token."""
    return [SigningKeyRow(**row) for row in await conn.fetch(LIST_SIGNING_KEYS)]


# Of several processes that start at once on an empty table, one creates the active key.
INSERT_FIRST_SIGNING_KEY = """
INSERT INTO identity.signing_keys (kid, algorithm, private_sealed, key_id, public_key, state)
SELECT $1, $2, $3, $4, $5, $6
 WHERE NOT EXISTS (SELECT FROM identity.signing_keys WHERE state = $6)
ON CONFLICT (state) WHERE state = 'active' DO NOTHING
"""


async def insert_first_signing_key(tx: Tx, key: SigningKeyRow) -> None:
    await tx.execute(
        INSERT_FIRST_SIGNING_KEY, key.kid, key.algorithm, key.private_sealed, key.key_id, key.public_key, key.state
    )


RETIRE_SIGNING_KEY = "UPDATE identity.signing_keys SET state = 'retired', retired_at = now() WHERE state = 'active'"


async def retire_signing_key(tx: Tx) -> None:
    await tx.execute(RETIRE_SIGNING_KEY)


ACTIVATE_NEXT_SIGNING_KEY = """
UPDATE identity.signing_keys SET state = 'active'
 WHERE kid = (SELECT kid FROM identity.signing_keys WHERE state = 'next' ORDER BY created_at LIMIT 1)
RETURNING kid
"""


async def activate_next_signing_key(tx: Tx) -> str | None:
    """Its kid; None if there is no next key."""
    kid: str | None = await tx.fetchval(ACTIVATE_NEXT_SIGNING_KEY)
    return kid


INSERT_SIGNING_KEY = """
INSERT INTO identity.signing_keys (kid, algorithm, private_sealed, key_id, public_key, state)
VALUES ($1, $2, $3, $4, $5, $6)
"""


async def insert_signing_key(tx: Tx, key: SigningKeyRow) -> None:
    await tx.execute(
        INSERT_SIGNING_KEY, key.kid, key.algorithm, key.private_sealed, key.key_id, key.public_key, key.state
    )


DELETE_OLD_SIGNING_KEYS = """
DELETE FROM identity.signing_keys WHERE state = 'retired' AND retired_at < now() - interval '30 days'
"""


async def delete_old_signing_keys(tx: Tx) -> None:
    await tx.execute(DELETE_OLD_SIGNING_KEYS)


DELETE_ALL_SIGNING_KEYS = "DELETE FROM identity.signing_keys"


async def delete_all_signing_keys(tx: Tx) -> None:
    await tx.execute(DELETE_ALL_SIGNING_KEYS)
