"""Messages between processes, and word of when they may be lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import redis
from pydantic import SecretStr

from app.dev.embedded import EmbeddedValkey
from app.kernel.redis.bus import Bus
from app.kernel.redis.gateway import RedisGateway, RedisUnavailable
from app.kernel.settings import RedisSettings
from tests.faults.signals import frozen
from tests.fixtures.waiting import eventually, scaled
from tests.kernel.conftest import OpenRedis


class Listener:
    """Notes what it hears and whether it may miss something."""

    def __init__(self, bus: Bus, channel: str = "test") -> None:
        self.heard: list[bytes] = []
        self.states: list[str] = []
        bus.subscribe(
            channel,
            self.heard.append,
            on_up=lambda: self.states.append("up"),
            on_down=lambda: self.states.append("down"),
        )

    async def hears(self, *payloads: bytes) -> None:
        await eventually(lambda: self.heard == list(payloads))

    async def goes(self, *states: str) -> None:
        await eventually(lambda: self.states == list(states))


OpenBus = Callable[[], Awaitable[Bus]]


@pytest.fixture
async def open_bus(open_redis: OpenRedis) -> AsyncIterator[OpenBus]:
    buses: list[Bus] = []

    async def open_bus() -> Bus:
        buses.append(Bus(await open_redis()))
        return buses[-1]

    yield open_bus
    for bus in buses:
        await bus.close()


async def test_everybody_hears_the_sender_too(open_bus: OpenBus) -> None:
    first, second = await open_bus(), await open_bus()
    receivers = [Listener(first), Listener(second)]
    other = Listener(second, "other")
    await first.start(wait=scaled(10))
    await second.start(wait=scaled(10))
    assert (first.is_connected, second.is_connected) == (True, True)
    assert await first.publish("test", b"one \0\xff") == 2
    for listener in receivers:
        await listener.hears(b"one \0\xff")
    assert other.heard == []
    assert [listener.states for listener in (*receivers, other)] == [["up"]] * 3


async def test_databases_of_one_server_do_not_hear_each_other(open_bus: OpenBus, valkey: EmbeddedValkey) -> None:
    patient = {"operation_timeout": 10, "connect_timeout": 10}
    gateways = [RedisGateway(RedisSettings(url=SecretStr(valkey.url(number)), **patient)) for number in (0, 1, 1)]
    buses = [Bus(gateway) for gateway in gateways]
    receivers = [Listener(bus) for bus in buses]
    try:
        for bus in buses:
            await bus.start(wait=scaled(10))
        assert await buses[1].publish("test", b"of one") == 2
        assert await buses[0].publish("test", b"of zero") == 1
        for listener, heard in zip(receivers, (b"of zero", b"of one", b"of one"), strict=True):
            await listener.hears(heard)
    finally:
        for bus, gateway in zip(buses, gateways, strict=True):
            await bus.close()
            await gateway.close()


async def test_a_failing_handler_does_not_end_the_others(open_bus: OpenBus) -> None:
    bus = await open_bus()

    def fail(_: bytes) -> None:
        raise KeyError

    bus.subscribe("broken", fail)
    listener = Listener(bus)
    await bus.start(wait=scaled(10))
    await bus.publish("broken", b"x")
    await bus.publish("test", b"y")
    await listener.hears(b"y")


async def test_an_unforeseen_error_does_not_end_reception(open_bus: OpenBus) -> None:
    bus = await open_bus()
    begun: list[None] = []

    def fail_once() -> None:
        begun.append(None)
        if len(begun) == 1:
            raise KeyError

    heard: list[bytes] = []
    bus.subscribe("test", heard.append, on_up=fail_once)
    await bus.start(wait=scaled(10))
    await eventually(lambda: len(begun) == 2 and bus.is_connected)
    await bus.publish("test", b"after")
    await eventually(lambda: heard == [b"after"])


async def test_a_cut_connection_is_told_and_made_anew(open_bus: OpenBus, valkey: EmbeddedValkey) -> None:
    bus = await open_bus()
    listener = Listener(bus)
    await bus.start(wait=scaled(10))
    with redis.Redis.from_url(valkey.url()) as administrator:
        administrator.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await listener.goes("up", "down", "up")
    await bus.publish("test", b"after")
    await listener.hears(b"after")


async def test_a_restarted_server(open_bus: OpenBus, valkey: EmbeddedValkey) -> None:
    bus = await open_bus()
    listener = Listener(bus)
    await bus.start(wait=scaled(10))
    valkey.stop()
    try:
        await listener.goes("up", "down")
        assert not bus.is_connected
        with pytest.raises(RedisUnavailable):
            await bus.publish("test", b"lost")
    finally:
        valkey.start()
    await listener.goes("up", "down", "up")
    await bus.publish("test", b"after")
    await listener.hears(b"after")


async def test_silence_of_a_frozen_server_is_noticed(open_bus: OpenBus, valkey: EmbeddedValkey) -> None:
    bus = await open_bus()
    listener = Listener(bus)
    await bus.start(wait=scaled(10))
    pid = valkey.pid()
    assert pid is not None
    with frozen(pid):
        await listener.goes("up", "down")
    await listener.goes("up", "down", "up")


async def test_a_quiet_connection_stays(open_bus: OpenBus) -> None:
    bus = await open_bus()
    listener = Listener(bus)
    await bus.start(wait=scaled(10))
    await asyncio.sleep(2.5)
    assert listener.states == ["up"]
    await bus.publish("test", b"still here")
    await listener.hears(b"still here")


async def test_starts_without_a_server(open_bus: OpenBus, valkey: EmbeddedValkey) -> None:
    valkey.stop()
    try:
        bus = await open_bus()
        listener = Listener(bus)
        await bus.start(wait=0.1)
        assert (bus.is_connected, listener.states) == (False, [])
    finally:
        valkey.start()
    await listener.goes("up")
