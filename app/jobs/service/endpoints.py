"""Webhook endpoints and deliveries, for their owner."""

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit
from uuid import UUID

import orjson

from app.identity.api import Actor, lock_caller, lock_maker, record_security_event
from app.jobs.errors import DeliveryNotFound, EndpointDisabled, EndpointNotFound, TooManyEndpoints
from app.jobs.queries import webhook_deliveries, webhook_endpoints
from app.jobs.records.webhooks import (
    ADMIN_EVENTS,
    CALLS_BURST,
    CALLS_EVERY,
    MAX_ENDPOINTS,
    OLD_SECRET_TTL,
    SECRET_BYTES,
    Delivery,
    Endpoint,
    NewDelivery,
    format_secret,
)
from app.jobs.service.publishing import WebhookEvent, message_of, send_messages
from app.jobs.service.sending import WebhookSender
from app.kernel.clock import Clock
from app.kernel.database import Database, ReadConn, Tx, retries_conflicts
from app.kernel.errors import TooManyRequests
from app.kernel.ids import UserId, new_id
from app.kernel.pagination import Cursors, Page
from app.kernel.queue import Queue
from app.kernel.sealing import Keys
from app.kernel.webhook_subscribers import WebhookSubscribers

SEAL_PURPOSE = "webhook-secret"
_CHANGEABLE = ("url", "event_types", "description")
# Raises what has to keep an endpoint in this state from being changed.
EndpointCheck = Callable[[Endpoint], None]


@dataclass(frozen=True, slots=True)
class EndpointChanges:
    """None leaves a field as it is, except that `has_description` says whether `description` is meant."""

    url: str | None
    event_types: Sequence[str] | None
    description: str | None
    has_description: bool


@dataclass(frozen=True, slots=True)
class Created:
    """An endpoint with its secret, which is shown this once."""

    endpoint: Endpoint
    secret: str


async def create_endpoint(
    tx: Tx,
    keys: Keys,
    clock: Clock,
    webhook_subscribers: WebhookSubscribers,
    actor: Actor,
    *,
    url: str,
    event_types: Sequence[str],
    description: str | None,
) -> Created:
    """Registers an address that `sender.check_url` has let pass. `tx` is a transaction.

    Raises:
        TokenRevoked: the caller's session or API key has ended meanwhile.
        TooManyEndpoints
    """
    user_id = actor.user_id
    await lock_maker(tx, clock, actor)
    endpoint_id = new_id()
    secret = secrets.token_bytes(SECRET_BYTES)
    _add_subscriber(webhook_subscribers, tx, user_id, event_types)
    endpoint = await webhook_endpoints.insert_endpoint(
        tx,
        endpoint_id=endpoint_id,
        user_id=user_id,
        url=url,
        event_types=sorted(set(event_types)),
        description=description,
        secret=keys.encrypt(SEAL_PURPOSE, secret, context=endpoint_id.bytes),
        limit=MAX_ENDPOINTS,
    )
    if endpoint is None:
        raise TooManyEndpoints
    await _record(tx, clock, actor, "webhook_endpoint_created", endpoint_id, host=_host_of(url))
    return Created(endpoint, format_secret(secret))


async def list_endpoints(
    db: Database, cursors: Cursors, user_id: UserId, *, limit: int, cursor: str | None
) -> Page[Endpoint]:
    """A page of the endpoints of a user, the oldest first. Raises InvalidCursor."""
    async with db.read("jobs.endpoints") as conn:
        found = await webhook_endpoints.list_endpoints(conn, user_id)
    return cursors.paginate_in_memory(
        "endpoints", user_id, found, lambda endpoint: (endpoint.id,), tuple[UUID], limit=limit, cursor=cursor
    )


async def get_endpoint(db: Database, user_id: UserId, endpoint_id: UUID) -> Endpoint:
    """Raises EndpointNotFound."""
    async with db.read("jobs.endpoint") as conn:
        return _found(await webhook_endpoints.get_endpoint(conn, user_id, endpoint_id))


@retries_conflicts
async def change_endpoint(
    db: Database,
    sender: WebhookSender,
    clock: Clock,
    webhook_subscribers: WebhookSubscribers,
    actor: Actor,
    endpoint_id: UUID,
    *,
    changes: EndpointChanges,
    check: EndpointCheck | None = None,
) -> Endpoint:
    """`check` lets the endpoint pass as it is. Raises TokenRevoked, EndpointNotFound, UrlBlocked or what it raises."""
    if changes.url is not None:
        sender.check_url(changes.url)
    event_types = changes.event_types
    async with db.transaction("jobs.change_endpoint") as tx:
        await lock_maker(tx, clock, actor)
        present = await _lock_present(tx, actor.user_id, endpoint_id, check)
        _add_subscriber(webhook_subscribers, tx, actor.user_id, event_types or ())
        endpoint = await webhook_endpoints.update_endpoint(
            tx,
            actor.user_id,
            endpoint_id,
            url=changes.url,
            event_types=sorted(set(event_types)) if event_types is not None else None,
            description=changes.description,
            has_description=changes.has_description,
        )
        found = _found(endpoint)
        fields = [name for name in _CHANGEABLE if getattr(found, name) != getattr(present, name)]
        if fields:
            host = _host_of(found.url)
            await _record(tx, clock, actor, "webhook_endpoint_changed", endpoint_id, fields=fields, host=host)
    return found


@retries_conflicts
async def delete_endpoint(
    db: Database, clock: Clock, actor: Actor, endpoint_id: UUID, *, check: EndpointCheck | None = None
) -> None:
    """Deliveries under way end without being sent. `check` lets the endpoint pass as it is.

    Raises:
        TokenRevoked, EndpointNotFound, and what `check` raises.
    """
    async with db.transaction("jobs.delete_endpoint") as tx:
        await lock_caller(tx, clock, actor)
        await _lock_present(tx, actor.user_id, endpoint_id, check)
        if not await webhook_endpoints.delete_endpoint(tx, actor.user_id, endpoint_id):
            raise EndpointNotFound
        await _record(tx, clock, actor, "webhook_endpoint_deleted", endpoint_id)


@retries_conflicts
async def rotate_secret(
    db: Database, keys: Keys, clock: Clock, actor: Actor, endpoint_id: UUID, *, expire_old_now: bool = False
) -> Created:
    """A new secret; for a day both it and the old one sign, unless that is to end now.

    Raises:
        TokenRevoked, EndpointNotFound
    """
    old_secret_ttl = timedelta(0) if expire_old_now else OLD_SECRET_TTL
    secret = secrets.token_bytes(SECRET_BYTES)
    sealed = keys.encrypt(SEAL_PURPOSE, secret, context=endpoint_id.bytes)
    async with db.transaction("jobs.rotate_secret") as tx:
        await lock_maker(tx, clock, actor)
        endpoint = await webhook_endpoints.rotate_secret(tx, actor.user_id, endpoint_id, sealed, old_secret_ttl)
        found = _found(endpoint)
        await _record(tx, clock, actor, "webhook_secret_rotated", endpoint_id, old_secret_expired=expire_old_now)
    return Created(found, format_secret(secret))


@retries_conflicts
async def enable_endpoint(
    db: Database, clock: Clock, webhook_subscribers: WebhookSubscribers, actor: Actor, endpoint_id: UUID
) -> Endpoint:
    """Has deliveries sent again to an endpoint that was disabled. One that is enabled stays as it is, with its breaker.

    Raises:
        TokenRevoked, EndpointNotFound
        TooManyRequests: the endpoint was tested, enabled or replayed too often.
    """
    async with db.transaction("jobs.enable_endpoint") as tx:
        await lock_maker(tx, clock, actor)
        await take_call(tx, actor.user_id, endpoint_id)
        # Before its events are known: a false alarm ends with the next read of the subscribers.
        _add_subscriber(webhook_subscribers, tx, actor.user_id, ADMIN_EVENTS)
        enabled = await webhook_endpoints.enable_endpoint(tx, actor.user_id, endpoint_id)
        if enabled is None:
            return _found(await webhook_endpoints.get_endpoint(tx, actor.user_id, endpoint_id))
        await _record(tx, clock, actor, "webhook_endpoint_enabled", endpoint_id)
    return enabled


async def take_call(tx: Tx, user_id: UserId, endpoint_id: UUID) -> None:
    """Counts a test, an enabling or a replay of an endpoint. Raises EndpointNotFound or TooManyRequests."""
    if await webhook_endpoints.take_call(tx, user_id, endpoint_id, every=CALLS_EVERY, burst=CALLS_BURST):
        return
    _found(await webhook_endpoints.get_endpoint(tx, user_id, endpoint_id))
    raise TooManyRequests(
        "The webhook endpoint was tested, enabled or replayed too often.", retry_after=int(CALLS_EVERY.total_seconds())
    )


async def check_enabled(conn: ReadConn, user_id: UserId, endpoint_id: UUID) -> None:
    """Raises EndpointNotFound or EndpointDisabled, because what is begun anew for such an endpoint would only fail."""
    if _found(await webhook_endpoints.get_endpoint(conn, user_id, endpoint_id)).disabled_at is not None:
        raise EndpointDisabled


async def _record(
    tx: Tx, clock: Clock, actor: Actor, action: str, endpoint_id: UUID, **data: str | Sequence[str] | bool | None
) -> None:
    text = orjson.dumps({"endpoint_id": str(endpoint_id)} | data).decode()
    await record_security_event(tx, clock, actor, action, data=text)


def _host_of(url: str) -> str | None:
    """What the trail tells of an address: the rest of it may be long, and may hold a secret of the receiver."""
    return urlsplit(url).hostname


async def disable_endpoints(tx: Tx, user_id: UserId) -> None:
    """For an account whose credentials have just ended, because another person than the owner may have made them. The
    owner can enable them again.
    """
    await webhook_endpoints.disable_endpoints(tx, user_id, "credentials_ended")


@retries_conflicts
async def test_endpoint(db: Database, queue: Queue, clock: Clock, user_id: UserId, endpoint_id: UUID) -> Delivery:
    """Sends a test event to this endpoint alone.

    Raises:
        EndpointNotFound
        TooManyRequests: the endpoint was tested, enabled or replayed too often.
    """
    event = WebhookEvent(new_id(), user_id, "webhook.test", {"endpoint_id": str(endpoint_id)})
    delivery = NewDelivery(new_id(), user_id, endpoint_id, event.id)
    async with db.transaction("jobs.test_endpoint") as tx:
        await take_call(tx, user_id, endpoint_id)
        await send_messages(tx, queue, [message_of(event, clock.now())], [delivery])
        found = await webhook_deliveries.get_delivery(tx, user_id, delivery.id)
    if found is None:
        raise DeliveryNotFound
    return found


async def _lock_present(tx: Tx, user_id: UserId, endpoint_id: UUID, check: EndpointCheck | None) -> Endpoint:
    """The endpoint as it stays until this unit changes it. Raises EndpointNotFound, or what `check` raises."""
    endpoint = _found(await webhook_endpoints.lock_endpoint(tx, user_id, endpoint_id))
    if check is not None:
        check(endpoint)
    return endpoint


def _found(endpoint: Endpoint | None) -> Endpoint:
    if endpoint is None:
        raise EndpointNotFound
    return endpoint


def _add_subscriber(
    webhook_subscribers: WebhookSubscribers, tx: Tx, user_id: UserId, event_types: Collection[str]
) -> None:
    webhook_subscribers.add(tx, user_id)
    if not ADMIN_EVENTS.isdisjoint(event_types):
        webhook_subscribers.add(tx, None)
