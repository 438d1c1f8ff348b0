"""API keys: credentials for programs, with scopes of their own."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from app.identity.errors import ApiKeyNotFound, TooManyApiKeys
from app.identity.queries.api_keys import insert_api_key, list_api_keys, revoke_api_keys
from app.identity.records import Actor
from app.identity.records.credentials import ApiKeyRow
from app.identity.service.callers import lock_maker
from app.identity.service.container import IdentityServices
from app.identity.service.emails import mail_notice
from app.identity.service.tokens import new_api_key
from app.kernel.auth import InsufficientScope
from app.kernel.database import Database, Tx
from app.kernel.errors import FieldError, Unprocessable
from app.kernel.ids import UserId, new_id
from app.kernel.pagination import Cursors, Page


async def create(
    tx: Tx,
    identity: IdentityServices,
    actor: Actor,
    *,
    name: str,
    scopes: Sequence[str],
    own_scopes: frozenset[str],
    expires_at: datetime | None,
) -> tuple[ApiKeyRow, str]:
    """The key's row and the key itself, which cannot be read again. `tx` is a transaction.

    Raises:
        TokenRevoked: the caller's session has ended meanwhile.
        InsufficientScope: the caller lacks one of `scopes`.
        Unprocessable: it would have expired already.
        TooManyApiKeys
    """
    if not set(scopes) <= own_scopes:
        raise InsufficientScope(set(scopes) - own_scopes)
    now = identity.clock.now()
    if expires_at is not None and expires_at <= now:
        raise Unprocessable(errors=[FieldError("#/expires_at", "It is in the past.", "in_the_past")])
    await lock_maker(tx, identity.clock, actor)
    key = new_api_key(actor.user_id, new_id())
    row = await insert_api_key(
        tx,
        user_id=actor.user_id,
        key_id=key.id,
        name=name,
        secret_hash=key.secret_hash,
        scopes=sorted(set(scopes)),
        expires_at=expires_at,
        now=now,
        event=(new_id(), actor.session_id, actor.device.ip, actor.device.user_agent),
        limit=identity.settings.max_api_keys,
    )
    if row is None:
        raise TooManyApiKeys
    await mail_notice(tx, identity.queue, actor.user_id, "api_key_created")
    return row, key.encode()


async def list_own(
    db: Database, cursors: Cursors, user_id: UserId, *, limit: int, cursor: str | None
) -> Page[ApiKeyRow]:
    """A page of the living keys, newest first.

    Raises:
        InvalidCursor
    """
    async with db.read("identity.api_keys") as conn:
        keys = await list_api_keys(conn, user_id)
    return cursors.paginate_in_memory(
        "api_keys", user_id, keys, lambda row: (row.id,), tuple[UUID], limit=limit, cursor=cursor, descending=True
    )


async def revoke(db: Database, identity: IdentityServices, actor: Actor, key_id: UUID) -> None:
    """Ends a key of the caller, in every process, before it returns.

    Raises:
        ApiKeyNotFound: the caller has no such living key.
    """
    async with db.statement("identity.revoke_api_key") as tx:
        ended = await end_api_keys(tx, identity, actor, actor.user_id, key_id=key_id, live_session_id=actor.session_id)
        if not ended:
            raise ApiKeyNotFound


async def end_api_keys(
    tx: Tx,
    identity: IdentityServices,
    actor: Actor,
    user_id: UserId,
    *,
    key_id: UUID | None = None,
    live_session_id: UUID | None = None,
) -> int:
    """Ends one key of `user_id`, or all; the answer is how many.

    `live_session_id`: of the actor, where the unit has not locked it; nothing happens if it has ended.
    """
    revocations = await revoke_api_keys(
        tx,
        user_id=user_id,
        event_id=new_id(),
        key_id=key_id,
        now=identity.clock.now(),
        revocations_end=identity.revocations_end(),
        actor=actor,
        live_session_id=live_session_id,
    )
    identity.feed.announce(tx, revocations)
    return len(revocations)
