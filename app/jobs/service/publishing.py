"""Events for webhooks: stored once, delivered to each endpoint that wants them by a job of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import orjson

from app.identity import api as identity
from app.jobs.queries import webhook_deliveries, webhook_endpoints
from app.jobs.records import State, Transition
from app.jobs.records.webhooks import ADMIN_EVENTS, ALL_EVENTS, MAX_ATTEMPTS, MatchingEndpoint, Message, NewDelivery
from app.kernel.database import Tx
from app.kernel.ids import UserId, new_id
from app.kernel.queue import Queue

KIND_DELIVER = "webhook.deliver"
QUEUE = "webhooks"
DELIVERY_TIMEOUT = 60
_EVENT_OF_STATE: dict[int, str] = {State.SUCCEEDED: "job.succeeded", State.FAILED: "job.failed"}


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """Something that has happened to a user. The same id is never published twice.

    `trace_parent` is that of its cause; None: its publisher's trace.
    """

    id: UUID
    user_id: UserId
    type: str
    data: Mapping[str, Any]
    trace_parent: str | None = None


async def publish_event(
    tx: Tx,
    queue: Queue,
    user_id: UserId,
    event_type: str,
    data: Mapping[str, Any],
    *,
    event_id: UUID,
    now: datetime,
) -> None:
    """Publishes one event within `tx`."""
    await publish_events(tx, queue, [WebhookEvent(event_id, user_id, event_type, data)], now)


async def publish_admin_event(
    tx: Tx, queue: Queue, event_type: str, data: Mapping[str, Any], *, event_id: UUID, now: datetime
) -> None:
    """Publishes an event of the installation to the endpoints of administrators that name it.

    Administrators are looked up now: an endpoint outlives its owner's role.
    """
    admins = await identity.list_admins(tx, await webhook_endpoints.list_subscribers(tx, event_type))
    if admins:
        await publish_events(tx, queue, [WebhookEvent(event_id, admin, event_type, data) for admin in admins], now)


async def publish_job_ends(
    tx: Tx, queue: Queue, changes: Sequence[Transition], is_public: Callable[[str], bool], now: datetime
) -> None:
    """Publishes the ends of jobs that users asked for. Never those of webhooks, which would go on for ever."""
    events = [
        WebhookEvent(
            uuid5(change.id, str(change.version)),
            change.user_id,
            _EVENT_OF_STATE[change.state],
            {"job_id": str(change.id), "kind": change.kind},
            change.trace_parent,
        )
        for change in changes
        if change.user_id is not None and change.state in _EVENT_OF_STATE and is_public(change.kind)
    ]
    if events:
        await publish_events(tx, queue, events, now)


async def publish_events(tx: Tx, queue: Queue, events: Sequence[WebhookEvent], now: datetime) -> None:
    """Publishes events within `tx`. Without a subscriber this is one look at an index and nothing else."""
    endpoints = await webhook_endpoints.list_matching_endpoints(
        tx, sorted({event.user_id for event in events}), sorted({event.type for event in events})
    )
    wanted = [(event, [endpoint for endpoint in endpoints if _wants(endpoint, event)]) for event in events]
    messages = [message_of(event, now) for event, subscribed in wanted if subscribed]
    deliveries = [
        NewDelivery(new_id(), event.user_id, endpoint.id, event.id, event.trace_parent)
        for event, subscribed in wanted
        for endpoint in subscribed
    ]
    if deliveries:
        await send_messages(tx, queue, messages, deliveries)


async def send_messages(tx: Tx, queue: Queue, messages: Sequence[Message], deliveries: Sequence[NewDelivery]) -> None:
    """Stores messages and enqueues their deliveries, as far as their users may have any pending."""
    fresh = await webhook_deliveries.insert_messages(tx, messages, deliveries)
    await enqueue_deliveries(
        tx,
        queue,
        [(delivery.user_id, delivery.id, delivery.trace_parent) for delivery in deliveries if delivery.id in fresh],
    )


async def enqueue_again(tx: Tx, queue: Queue, user_id: UserId, delivery_id: UUID) -> None:
    """A job for a delivery that has had one. Asked for again and again, it stays one job, which runs at once."""
    unique_key = str(delivery_id)
    await webhook_deliveries.hasten_job(tx, user_id, KIND_DELIVER, unique_key)
    await queue.enqueue(
        tx,
        KIND_DELIVER,
        {"delivery_id": str(delivery_id)},
        user_id=user_id,
        queue=QUEUE,
        unique_key=unique_key,
        max_attempts=MAX_ATTEMPTS,
        timeout_s=DELIVERY_TIMEOUT,
    )


async def enqueue_deliveries(tx: Tx, queue: Queue, deliveries: Sequence[tuple[UserId, UUID, str | None]]) -> None:
    """A job for each delivery, given as its user, its id and the trace it continues. As long as one is unfinished, no
    other is made (`enqueue_again`): two would send the message twice, and end its delivery in different ways.
    """
    rows = [
        queue.new_job(
            KIND_DELIVER,
            {"delivery_id": str(delivery_id)},
            user_id=user_id,
            queue=QUEUE,
            unique_key=str(delivery_id),
            max_attempts=MAX_ATTEMPTS,
            timeout_s=DELIVERY_TIMEOUT,
            trace_parent=trace_parent,
        )
        for user_id, delivery_id, trace_parent in deliveries
    ]
    if rows:
        await queue.enqueue_rows(tx, rows)


def _wants(endpoint: MatchingEndpoint, event: WebhookEvent) -> bool:
    wanted = {event.type} if event.type in ADMIN_EVENTS else {event.type, ALL_EVENTS}
    return endpoint.user_id == event.user_id and not wanted.isdisjoint(endpoint.event_types)


def message_of(event: WebhookEvent, now: datetime) -> Message:
    """The event as it is sent."""
    stamp = now.astimezone(UTC).isoformat().replace("+00:00", "Z")
    payload = orjson.dumps({"type": event.type, "timestamp": stamp, "data": dict(event.data)}).decode()
    return Message(event.id, event.user_id, event.type, payload, now)
