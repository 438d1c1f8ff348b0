"""The keys that sign access tokens."""

from app.identity.records import SigningKeyRow
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


# Of several processes that start at once on an empty table, one creates the key.
INSERT_FIRST_SIGNING_KEY = """
INSERT INTO identity.signing_keys (kid, algorithm, private_sealed, key_id, public_key, state)
SELECT $1, $2, $3, $4, $5, 'active'
 WHERE NOT EXISTS (SELECT FROM identity.signing_keys WHERE state = 'active')
ON CONFLICT (state) WHERE state = 'active' DO NOTHING
"""


async def insert_first_signing_key(tx: Tx, key: SigningKeyRow) -> None:
    await tx.execute(INSERT_FIRST_SIGNING_KEY, key.kid, key.algorithm, key.private_sealed, key.key_id, key.public_key)
