"""The audit trail of an account."""

from datetime import UTC, datetime
from uuid import UUID

import orjson

from app.identity.queries.security_events import (
    get_security_events_end,
    insert_read_event,
    insert_security_event,
    list_all_security_events,
    list_security_events,
)
from app.identity.records import Actor, Device
from app.identity.records.security_events import NewSecurityEvent, SecurityEvent, TrailEntry
from app.kernel.clock import Clock
from app.kernel.database import Database, Tx
from app.kernel.ids import UserId, new_id
from app.kernel.pagination import MAX_SCANNED, Cursors, Page

_LIST = "security_events"
_SEARCH = "all_security_events"
_OLDEST = datetime(1970, 1, 1, tzinfo=UTC)
_NEWEST = (datetime(9999, 1, 1, tzinfo=UTC), UUID(int=2**128 - 1))


async def record_security_event(
    tx: Tx, clock: Clock, actor: Actor, action: str, *, user_id: UserId | None = None, data: str = "{}"
) -> None:
    """Adds an entry to the trail of `user_id`, or of the actor. `data` is JSON text without secrets."""
    event = NewSecurityEvent(
        user_id=user_id or actor.user_id,
        id=new_id(),
        action=action,
        actor_id=actor.acting_id,
        session_id=actor.session_id,
        device=actor.device,
        created_at=clock.now(),
        data=data,
    )
    await insert_security_event(tx, event)


async def record_failed_login_of(db: Database, clock: Clock, user_id: UserId, device: Device) -> None:
    """Adds to the trail of `user_id` that an unknown client has failed to log in."""
    event = NewSecurityEvent(
        user_id=user_id,
        id=new_id(),
        action="login_failed",
        actor_id=None,
        session_id=None,
        device=device,
        created_at=clock.now(),
        data="{}",
    )
    async with db.statement("identity.failed_login") as tx:
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


async def search_security_events(
    db: Database,
    cursors: Cursors,
    *,
    user_id: UserId | None,
    action: str | None,
    since: datetime | None,
    limit: int,
    cursor: str | None,
) -> Page[TrailEntry]:
    """A page of all trails, newest entry first; it may be short (`kernel.pagination`). Raises InvalidCursor."""
    scope = f"{user_id}|{action}|{since}"
    before = cursors.decode(_SEARCH, scope, cursor, tuple[datetime, UUID]) if cursor else _NEWEST
    scan_end: tuple[datetime, UUID] | None = None
    async with db.read("identity.search_security_events") as conn:
        if action is not None or (user_id is not None and since is not None):
            scan_end = await get_security_events_end(conn, user_id=user_id, before=before, count=MAX_SCANNED)
            if scan_end is not None and since is not None and scan_end[0] < since:
                # Behind it all entries are too old.
                scan_end = None
        found = await list_all_security_events(
            conn,
            user_id=user_id,
            action=action,
            since=since or _OLDEST,
            before=before,
            scan_end=scan_end,
            limit=limit + 1,
        )
    return cursors.paginate(
        _SEARCH, scope, found, lambda entry: (entry.created_at, entry.id), limit=limit, scan_end=scan_end
    )
