"""Users with a webhook endpoint, cached per process, so that writes of other users cost nothing extra.

An event with a subscriber is a job row in the transaction of its cause. The set of subscribers is read whole every
few seconds and told over the bus in between; where the bus is down, an endpoint may miss what happens in the first
seconds of its life, and nothing afterwards.

An event belongs to a user, and only they hear of it. None stands for an event of the installation, which administrators
hear of.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from app.kernel.background import Background
from app.kernel.database import Database, ReadConn, Tx
from app.kernel.errors import Unavailable
from app.kernel.ids import UserId, new_id
from app.kernel.observability.telemetry import get_logger
from app.kernel.queue import Queue
from app.kernel.redis.bus import Bus
from app.kernel.redis.gateway import RedisUnavailable

KIND_PUBLISH = "webhook.publish"
QUEUE = "webhooks"

_CHANNEL = "onehop:listeners"
_READ_SECONDS = 5.0

_logger = get_logger(__name__)


class WebhookSubscribers:
    """One per process. Until the first read every user may be one."""

    def __init__(
        self, db: Database, bus: Bus, queue: Queue, read: Callable[[ReadConn], Awaitable[Sequence[UserId | None]]]
    ) -> None:
        self._db = db
        self._bus = bus
        self._queue = queue
        self._read_all = read
        self._users: set[UUID | None] | None = None
        self._told: set[UUID | None] = set()
        self._wake = asyncio.Event()
        self._background = Background()
        bus.subscribe(_CHANNEL, self._on_message, on_up=self._wake.set)

    async def start(self) -> None:
        """Reads the subscribers and keeps them fresh. Postgres need not be there yet."""
        await self._read()
        self._background.repeat(
            self._read, name="webhooks.subscribers", every=_READ_SECONDS, wake=self._wake, rests_first=True
        )

    async def close(self) -> None:
        await self._background.close()

    def has(self, user_id: UserId | None) -> bool:
        """Whether a webhook may subscribe to this user's events."""
        return self._users is None or user_id in self._users

    @asynccontextmanager
    async def unit(self, db: Database, user_id: UserId, label: str) -> AsyncIterator[Tx]:
        """A unit of one statement; a transaction where that statement's event has a subscriber."""
        is_published = self.has(user_id)
        async with db.transaction(label) if is_published else db.statement(label) as tx:
            tx.skips_events = not is_published
            yield tx

    async def publish(self, tx: Tx, user_id: UserId | None, event_type: str, data: Sequence[Mapping[str, Any]]) -> None:
        """Publishes one event for each of `data` within `tx`, if there is a subscriber.

        A `unit` that was begun without a subscriber publishes nothing, though there may be one by now.

        Raises:
            RuntimeError: `tx` is a single statement that did not come from `unit`: the event could never be stored.
        """
        if not data or tx.skips_events:
            return
        if not tx.has_statements_left:
            message = f"{tx.unit}: an event is a second statement; begin a transaction, or the unit of the subscribers"
            raise RuntimeError(message)
        if self.has(user_id):
            await self.publish_noted(tx, [(user_id, event_type, item) for item in data])

    async def publish_noted(self, tx: Tx, events: Sequence[tuple[UserId | None, str, Mapping[str, Any]]]) -> None:
        """Publishes events, each as user, type and data, that had a subscriber when they were noted."""
        rows = [
            self._queue.new_job(
                KIND_PUBLISH,
                {"event_id": str(new_id()), "event_type": event_type, "data": item},
                user_id=user_id,
                queue=QUEUE,
            )
            for user_id, event_type, item in events
        ]
        await self._queue.enqueue_rows(tx, rows)

    def add(self, tx: Tx, user_id: UserId | None) -> None:
        """After the commit of `tx` every process knows that this user listens."""

        async def tell() -> None:
            self._add(user_id)
            try:
                await self._bus.publish(_CHANNEL, b"" if user_id is None else user_id.bytes)
            except RedisUnavailable:
                _logger.info("webhooks.subscriber_not_announced")

        tx.after_commit(tell)

    def _on_message(self, payload: bytes) -> None:
        self._add(UUID(bytes=payload) if payload else None)

    def _add(self, user_id: UUID | None) -> None:
        # A read that is under way may have begun before this user's commit.
        self._told.add(user_id)
        if self._users is not None:
            self._users.add(user_id)

    async def _read(self) -> None:
        self._told.clear()
        try:
            async with self._db.read("webhook_subscribers") as conn:
                users = await self._read_all(conn)
        except Unavailable:
            return
        self._users = {*users, *self._told}
