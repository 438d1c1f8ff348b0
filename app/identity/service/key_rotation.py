"""Rotation of the keys that sign access tokens: next, active, retired.

The next key is published long before it signs, so that whoever keeps our key set knows it; a retired one verifies
what it has signed for a day more.
"""

from app.identity.queries.signing_keys import (
    activate_next_signing_key,
    delete_old_signing_keys,
    insert_signing_key,
    retire_signing_key,
)
from app.identity.service.tokens import new_signing_key
from app.kernel.database import Database, retries_conflicts
from app.kernel.keys import Keys


@retries_conflicts
async def rotate_signing_keys(db: Database, keys: Keys) -> str:
    """Retires the active key, activates the next one and makes another next one; the answer is the active key's id."""
    async with db.transaction("identity.rotate_keys") as tx:
        await retire_signing_key(tx)
        active = await activate_next_signing_key(tx)
        if active is None:
            key = new_signing_key(keys, "active")
            await insert_signing_key(tx, key)
            active = key.kid
        await insert_signing_key(tx, new_signing_key(keys, "next"))
        await delete_old_signing_keys(tx)
    return active
