"""Rotation of the keys that sign access tokens: next, active, retired.

The next key is published long before it signs, so that clients with a cached key set know it; a retired one
verifies what it has signed for a day more.
"""

import orjson

from app.identity.queries.signing_keys import (
    activate_next_signing_key,
    delete_all_signing_keys,
    delete_old_signing_keys,
    insert_signing_key,
    list_signing_keys,
    retire_signing_key,
)
from app.identity.records import Actor
from app.identity.service.audit_log import record_security_event
from app.identity.service.tokens import KeyRing, new_signing_key
from app.kernel.clock import Clock
from app.kernel.database import Database, retries_conflicts
from app.kernel.database.incarnation import Incarnation
from app.kernel.sealing import Keys, SealBroken
from app.kernel.settings import SettingsError

SEALED_BY_ANOTHER = (
    "APP_SECRET_KEY: the signing keys in this database were sealed with another secret. Set the one that the database "
    "was used with; if that is lost or must not be used again: python -m app keys replace"
)


@retries_conflicts
async def rotate_signing_keys(db: Database, keys: Keys, clock: Clock, actor: Actor) -> str:
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
        await record_security_event(
            tx, clock, actor, "signing_keys_rotated", data=orjson.dumps({"kid": active}).decode()
        )
    return active


async def check_secret(db: Database, keys: Keys) -> None:
    """Reads the active signing key, if there is one.

    Raises:
        SettingsError: it was sealed with another secret than that of `keys`.
    """
    async with db.read("identity.signing_keys") as conn:
        rows = await list_signing_keys(conn)
    try:
        KeyRing(keys, Incarnation()).load(rows)
    except SealBroken as error:
        raise SettingsError([SEALED_BY_ANOTHER]) from error


@retries_conflicts
async def replace_signing_keys(db: Database, keys: Keys, clock: Clock, actor: Actor) -> str:
    """Makes new keys in place of all there are, whatever they were sealed with; the answer is the active key's id.

    No token that the old ones have signed is accepted any more.
    """
    active = new_signing_key(keys, "active")
    async with db.transaction("identity.replace_keys") as tx:
        await delete_all_signing_keys(tx)
        await insert_signing_key(tx, active)
        await insert_signing_key(tx, new_signing_key(keys, "next"))
        await record_security_event(
            tx, clock, actor, "signing_keys_replaced", data=orjson.dumps({"kid": active.kid}).decode()
        )
    return active.kid
