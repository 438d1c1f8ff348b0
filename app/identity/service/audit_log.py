"""The audit trail of an account."""

from uuid import UUID

import orjson

from app.identity.queries.security_events import insert_read_event, insert_security_event, list_security_events
from app.identity.records import Actor, NewSecurityEvent, SecurityEvent
from app.kernel.clock import Clock
from app.kernel.database import Database, Tx
from app.kernel.ids import UserId, new_id
from app.kernel.pagination import Cursors, Page

_LIST = "security_events"


async def record_security_event(
    tx: Tx, clock: Clock, actor: Actor, action: str, *, user_id: UserId | None = None, data: str = "{}"
) -> None:
    """Adds an entry to the trail of `user_id`, or of the actor. `data` is JSON text without secrets."""
    event = NewSecurityEvent(
        user_id=user_id or actor.user_id,
        id=new_id(),
        action=action,
        actor_id=actor.user_id,
        session_id=actor.session_id,
        device=actor.device,
        created_at=clock.now(),
        data=data,
    )
    await insert_security_event(tx, event)


async def record_admin_read(db: Database, clock: Clock, admin: Actor, what: str, user_id: UUID | None = None) -> None:
    """Adds to the administrator's own trail that they have read data of others, or of `user_id`."""
    data = {"what": what} if user_id is None else {"what": what, "user_id": str(user_id)}
    event = NewSecurityEvent(
        user_id=admin.user_id,
        id=new_id(),
        action="admin_read",
        actor_id=admin.user_id,
        session_id=admin.session_id,
        device=admin.device,
        created_at=clock.now(),
        data=orjson.dumps(data).decode(),
    )
    async with db.statement("identity.admin_read") as tx:
        await insert_read_event(tx, event)


async def record_operator_act(db: Database, clock: Clock, actor: Actor, action: str, *, data: str = "{}") -> None:
    """Adds to the operator's trail what was done in another transaction, or in another module."""
    async with db.statement("identity.operator_act") as tx:
        await record_security_event(tx, clock, actor, action, data=data)


async def read_security_events(
    db: Database, cursors: Cursors, user_id: UserId, *, limit: int, cursor: str | None
) -> Page[SecurityEvent]:
    """One page of the trail, newest first.

    Raises:
        InvalidCursor
    """
    before: UUID | None = cursors.decode(_LIST, user_id, cursor, tuple[UUID])[0] if cursor else None
    async with db.read("identity.security_events") as conn:
        events = await list_security_events(conn, user_id, before, limit + 1)
    return cursors.paginate(_LIST, user_id, events, lambda event: (event.id,), limit=limit)
