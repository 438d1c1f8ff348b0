"""Deliveries of webhooks, as their owners and administrators see them and begin them anew."""

from typing import get_args
from uuid import UUID

import orjson

from app.identity.api import Actor, lock_admin, record_security_event
from app.jobs.errors import BacklogFull, DeliveryNotFound
from app.jobs.queries import webhook_deliveries
from app.jobs.records.webhooks import Delivery, DeliveryDetail, DeliveryState
from app.jobs.service.endpoints import check_enabled
from app.jobs.service.publishing import enqueue_again
from app.kernel.clock import Clock
from app.kernel.database import Database, Tx, retries_conflicts
from app.kernel.ids import UserId
from app.kernel.pagination import MAX_SCANNED, Cursors, Page
from app.kernel.queue import Queue

_STATES: tuple[str, ...] = get_args(DeliveryState.__value__)
_REDELIVER_SECONDS = 60


async def list_deliveries(
    db: Database,
    cursors: Cursors,
    user_id: UserId,
    *,
    endpoint_id: UUID | None,
    state: str | None,
    limit: int,
    cursor: str | None,
) -> Page[Delivery]:
    """A page of a user's deliveries, newest first; it may be short (`kernel.pagination`). Raises InvalidCursor."""
    scope = f"{user_id}|{endpoint_id}|{state}"
    before = cursors.decode("deliveries", scope, cursor, tuple[UUID])[0] if cursor is not None else None
    scan_end: UUID | None = None
    async with db.read("jobs.deliveries") as conn:
        if state is not None:
            scan_end = await webhook_deliveries.get_delivery_scan_end(
                conn, user_id, endpoint_id=endpoint_id, before=before, count=MAX_SCANNED
            )
        found = await webhook_deliveries.list_deliveries(
            conn, user_id, endpoint_id=endpoint_id, state=state, before=before, limit=limit + 1, scan_end=scan_end
        )
    return cursors.paginate(
        "deliveries",
        scope,
        found,
        lambda delivery: (delivery.id,),
        limit=limit,
        scan_end=(scan_end,) if scan_end else None,
    )


async def get_delivery_detail(db: Database, user_id: UserId, delivery_id: UUID) -> DeliveryDetail:
    """A delivery with its message and attempts. Raises DeliveryNotFound."""
    async with db.read("jobs.delivery_detail") as conn:
        delivery = _present(await webhook_deliveries.get_delivery(conn, user_id, delivery_id))
        message = await webhook_deliveries.get_message(conn, user_id, delivery.message_id)
        attempts = await webhook_deliveries.list_delivery_attempts(conn, user_id, delivery_id)
    if message is None:
        raise DeliveryNotFound
    return DeliveryDetail(delivery, message, attempts)


@retries_conflicts
async def redeliver(db: Database, queue: Queue, user_id: UserId, delivery_id: UUID) -> Delivery:
    """Begins a delivery anew, with the same message.

    Raises:
        DeliveryNotFound
        EndpointNotFound, EndpointDisabled: its endpoint was deleted or is disabled.
        BacklogFull: the user has as many pending deliveries as one may have.
    """
    async with db.transaction("jobs.redeliver") as tx:
        return await _redeliver(tx, queue, user_id, delivery_id)


@retries_conflicts
async def redeliver_any(db: Database, queue: Queue, clock: Clock, actor: Actor, delivery_id: UUID) -> Delivery:
    """Begins a delivery of any user anew. The trails of the actor and of the owner tell.

    Raises:
        TokenRevoked, RoleRequired: the actor is no administrator any more.
        DeliveryNotFound
        EndpointNotFound, EndpointDisabled: its endpoint was deleted or is disabled.
        BacklogFull: the owner has as many pending deliveries as one may have.
    """
    async with db.transaction("jobs.redeliver_any") as tx:
        await lock_admin(tx, clock, actor)
        owner = await webhook_deliveries.get_owner_of_delivery(tx, delivery_id)
        if owner is None:
            raise DeliveryNotFound
        data = orjson.dumps({"delivery_id": str(delivery_id)}).decode()
        for user_id in {actor.user_id, owner}:
            await record_security_event(tx, clock, actor, "webhook_redelivered_by_admin", user_id=user_id, data=data)
        return await _redeliver(tx, queue, owner, delivery_id)


async def _redeliver(tx: Tx, queue: Queue, user_id: UserId, delivery_id: UUID) -> Delivery:
    if not await webhook_deliveries.reopen_delivery(tx, user_id, delivery_id):
        delivery = _present(await webhook_deliveries.get_delivery(tx, user_id, delivery_id))
        await check_enabled(tx, user_id, delivery.endpoint_id)
        raise BacklogFull("Wait until some of your pending deliveries have ended.", retry_after=_REDELIVER_SECONDS)
    await enqueue_again(tx, queue, user_id, delivery_id)
    return _present(await webhook_deliveries.get_delivery(tx, user_id, delivery_id))


async def list_all_deliveries(
    db: Database,
    cursors: Cursors,
    *,
    user_id: UserId | None,
    endpoint_id: UUID | None,
    state: DeliveryState | None,
    limit: int,
    cursor: str | None,
) -> Page[Delivery]:
    """A page of the deliveries of all users, or of one, newest first; it may be short. Raises InvalidCursor.

    `endpoint_id` is that of an endpoint of `user_id`.
    """
    if user_id is not None:
        return await list_deliveries(
            db, cursors, user_id, endpoint_id=endpoint_id, state=state, limit=limit, cursor=cursor
        )
    before = cursors.decode("deliveries.all", state, cursor, tuple[UUID])[0] if cursor is not None else None
    states = _STATES if state is None else [state]
    async with db.read("jobs.all_deliveries") as conn:
        found = await webhook_deliveries.list_all_deliveries(conn, states, before=before, limit=limit + 1)
    return cursors.paginate("deliveries.all", state, found, lambda delivery: (delivery.id,), limit=limit)


def _present(delivery: Delivery | None) -> Delivery:
    if delivery is None:
        raise DeliveryNotFound
    return delivery
