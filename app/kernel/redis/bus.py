"""Messages between the processes of one installation, over Redis pub/sub.

Delivery is not guaranteed, so every channel's owner also has another way to the truth; `on_down` and `on_up` tell it
when to use that way. One connection a process carries all channels.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.kernel.background import end_tasks
from app.kernel.observability.telemetry import get_logger
from app.kernel.redis.gateway import LOST_ERRORS, RedisGateway, RedisUnavailable

_logger = get_logger(__name__)
_RECONNECT_SECONDS = 0.2
_PING_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Subscription:
    on_message: Callable[[bytes], None]
    on_up: Callable[[], None]
    on_down: Callable[[], None]


def _ignore() -> None:
    """The default of the connection callbacks."""


class Bus:
    """One per process. Subscribe before `start`."""

    def __init__(self, redis: RedisGateway) -> None:
        self._redis = redis
        self._subscriptions: dict[bytes, _Subscription] = {}
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._failure = "it does not answer"

    @property
    def is_connected(self) -> bool:
        """Whether messages are being received at this moment, as far as one can know."""
        return self._connected.is_set()

    def subscribe(
        self,
        channel: str,
        on_message: Callable[[bytes], None],
        *,
        on_up: Callable[[], None] = _ignore,
        on_down: Callable[[], None] = _ignore,
    ) -> None:
        """Calls `on_message` for each message; `on_up` when reception begins, `on_down` when messages may be lost."""
        self._subscriptions[self._redis.channel(channel).encode()] = _Subscription(on_message, on_up, on_down)

    async def start(self, *, wait: float = 0.5) -> None:
        """Begins to receive; returns once connected, or after `wait` seconds without Redis."""
        self._task = asyncio.create_task(self._receive_for_ever())
        try:
            async with asyncio.timeout(wait):
                await self._connected.wait()
        except TimeoutError:
            _logger.warning("redis.unreachable_at_start", reason=self._failure)

    async def close(self) -> None:
        if self._task is not None:
            await end_tasks([self._task])

    async def publish(self, channel: str, payload: bytes) -> int:
        """Sends to all processes, this one included; the answer is how many receive.

        Raises:
            RedisUnavailable: it could not be sent.
        """
        return await self._redis.call(lambda client: client.publish(self._redis.channel(channel), payload))

    async def _receive_for_ever(self) -> None:
        while True:
            try:
                await self._receive()
            except (*LOST_ERRORS, RedisUnavailable) as error:
                self._failure = str(error) or type(error).__name__
                _logger.debug("bus.connection_lost", error=type(error).__name__)
            except Exception:
                # Without this loop the process would never hear of anything again.
                _logger.exception("bus.receive_failed")
            finally:
                self._went_down()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _receive(self) -> None:
        # A client of its own: a blocking read must not hold a connection of the request pool.
        client = self._redis.subscriber()
        try:
            async with client.pubsub() as pubsub:
                async with asyncio.timeout(_PING_SECONDS):
                    await pubsub.subscribe(*self._subscriptions)
                confirmed = 0
                while True:
                    message = await pubsub.get_message(timeout=_PING_SECONDS)
                    if message is None:
                        await self._check_alive(pubsub)
                    elif message["type"] == "subscribe":
                        confirmed += 1
                        if confirmed == len(self._subscriptions):
                            self._went_up()
                    elif message["type"] == "message":
                        self._deliver(message["channel"], message["data"])
        finally:
            await client.aclose()

    async def _check_alive(self, pubsub: Any) -> None:
        """A silent connection may be a dead one: asks, and takes silence for an answer after a second."""
        await pubsub.ping()
        async with asyncio.timeout(_PING_SECONDS):
            while (message := await pubsub.get_message(timeout=_PING_SECONDS)) is not None:
                if message["type"] == "pong":
                    return
                if message["type"] == "message":
                    self._deliver(message["channel"], message["data"])
        raise TimeoutError

    def _deliver(self, channel: bytes, payload: bytes) -> None:
        try:
            self._subscriptions[channel].on_message(payload)
        except Exception:
            _logger.exception("bus.handler_failed", channel=channel.decode())

    def _went_up(self) -> None:
        self._connected.set()
        for subscription in self._subscriptions.values():
            subscription.on_up()

    def _went_down(self) -> None:
        if self._connected.is_set():
            self._connected.clear()
            for subscription in self._subscriptions.values():
                subscription.on_down()
