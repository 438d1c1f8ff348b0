"""The Redis gateway: bounded, without retries, behind a breaker."""

import asyncio
from collections.abc import Callable
from time import monotonic

import pytest
import redis
import uvloop

from app.dev.embedded import EmbeddedValkey
from app.kernel.redis.gateway import RedisGateway, RedisUnavailable
from tests.faults.signals import frozen
from tests.fixtures.waiting import eventually, in_time, scaled
from tests.kernel.conftest import OpenRedis


async def ping(gateway: RedisGateway) -> bool:
    return bool(await gateway.call(lambda client: client.ping()))


def available(gateway: RedisGateway) -> bool:
    return gateway.available


async def fail(gateway: RedisGateway, timeout: float | None = None) -> None:
    """The gateway gives up, although the server neither answers nor ends the connection."""
    async with in_time():
        with pytest.raises(RedisUnavailable):
            await gateway.call(lambda client: client.ping(), timeout=timeout)


async def test_answers(open_redis: OpenRedis) -> None:
    gateway = await open_redis()
    assert await ping(gateway)
    assert await gateway.call(lambda client: client.incr("n")) == 1
    assert (gateway.calls, available(gateway)) == (2, True)


Advance = Callable[[float], None]


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Advance:
    """Lets time go by for the breaker."""
    passed = 0.0

    def advance(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr("app.kernel.redis.gateway.monotonic", lambda: monotonic() + passed)
    return advance


async def test_stopped_server(open_redis: OpenRedis, valkey: EmbeddedValkey, advance: Advance) -> None:
    gateway = await open_redis(breaker_threshold=3, breaker_cooldown=60)
    assert await ping(gateway)
    valkey.stop()
    try:
        for _ in range(3):
            assert available(gateway)
            await fail(gateway)
        calls = gateway.calls
        # Open: refused without asking.
        assert not available(gateway)
        await fail(gateway)
        assert gateway.calls == calls
        advance(60)
        # Half open: one probe, which fails, and closed again.
        assert available(gateway)
        await fail(gateway)
        assert (gateway.calls, available(gateway)) == (calls + 1, False)
    finally:
        valkey.start()
    advance(60)
    assert await ping(gateway)
    assert available(gateway)


async def test_only_one_probe_at_a_time(open_redis: OpenRedis, valkey: EmbeddedValkey, advance: Advance) -> None:
    gateway = await open_redis(breaker_threshold=1, breaker_cooldown=60, operation_timeout=0.1)
    pid = valkey.pid()
    assert pid is not None
    with frozen(pid):
        await fail(gateway)
        advance(60)
        calls = gateway.calls
        outcomes = await asyncio.gather(*(ping(gateway) for _ in range(10)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {RedisUnavailable}
        assert gateway.calls == calls + 1
    advance(60)
    # The probe has a tenth of a second on a server that has just come back, so another one may be needed.
    await eventually(lambda: probe(gateway, advance))


async def probe(gateway: RedisGateway, advance: Advance) -> bool:
    advance(60)
    try:
        return await ping(gateway)
    except RedisUnavailable:
        return False


async def test_frozen_server(open_redis: OpenRedis, valkey: EmbeddedValkey) -> None:
    gateway = await open_redis(operation_timeout=0.1, connect_timeout=0.2, breaker_threshold=100)
    assert await ping(gateway)
    pid = valkey.pid()
    assert pid is not None
    with frozen(pid):
        # Also where a new connection is needed.
        for _ in range(2):
            await fail(gateway)
    assert await gateway.call(lambda client: client.ping(), timeout=scaled(10))


async def test_a_call_may_have_a_time_out_of_its_own(open_redis: OpenRedis, valkey: EmbeddedValkey) -> None:
    gateway = await open_redis(operation_timeout=10, breaker_threshold=100)
    assert await ping(gateway)
    pid = valkey.pid()
    assert pid is not None
    with frozen(pid):
        patient = asyncio.create_task(ping(gateway))
        await fail(gateway, timeout=0.02)
        assert not patient.done()
    assert await patient


async def test_full_server_refuses_but_is_not_taken_for_lost(open_redis: OpenRedis, valkey: EmbeddedValkey) -> None:
    gateway = await open_redis(breaker_threshold=2)
    administrator = redis.Redis.from_url(valkey.url())
    administrator.config_set("maxmemory", "1")
    try:
        for _ in range(5):
            with pytest.raises(RedisUnavailable):
                await gateway.call(lambda client: client.set("key", "value"))
        assert available(gateway)
        assert await gateway.call(lambda client: client.get("key")) is None
    finally:
        administrator.config_set("maxmemory", "0")
        administrator.close()


async def test_a_late_answer_is_not_given_to_the_next_caller(open_redis: OpenRedis, valkey: EmbeddedValkey) -> None:
    """A connection that was given up in the middle of an answer must not be used again."""
    gateway = await open_redis(pool_size=1, operation_timeout=1, breaker_threshold=100)
    await gateway.call(lambda client: client.mset({"a": "1", "b": "2"}))
    pid = valkey.pid()
    assert pid is not None
    with frozen(pid), pytest.raises(RedisUnavailable):
        await gateway.call(lambda client: client.get("a"), timeout=0.2)
    assert await gateway.call(lambda client: client.get("b"), timeout=scaled(10)) == b"2"


async def test_cancelled_commands_cross_no_answers(open_redis: OpenRedis) -> None:
    """A caller that hangs up in the middle of a command leaves no answer behind for the next one."""
    gateway = await open_redis(pool_size=4)
    await gateway.call(lambda client: client.mset({f"key:{number}": number for number in range(50)}))
    crossed, answered = [], 0

    async def read(number: int) -> None:
        nonlocal answered
        try:
            value = await gateway.call(lambda client: client.get(f"key:{number}"), timeout=2)
        except RedisUnavailable:
            return
        answered += 1
        if value != str(number).encode():
            crossed.append((number, value))

    for turn in range(40):
        tasks = [asyncio.create_task(read(number)) for number in range(50)]
        for _ in range(turn % 5):
            await asyncio.sleep(0)
        for task in tasks[turn % 2 :: 2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert crossed == []
    assert answered > 0
    assert await gateway.call(lambda client: client.get("key:7")) == b"7"


@pytest.mark.parametrize("steps", range(0, 14, 2))
async def test_a_call_under_way_while_the_gateway_is_closed_leaves_no_connection_behind(
    open_redis: OpenRedis, steps: int
) -> None:
    """Whether it has just begun to connect, waits for its answer, or comes too late."""
    gateway = await open_redis()
    calling = asyncio.create_task(ping(gateway))
    for _ in range(steps):
        await asyncio.sleep(0)
    await gateway.close()
    (outcome,) = await asyncio.gather(calling, return_exceptions=True)
    assert outcome is True if steps else isinstance(outcome, RedisUnavailable)
    pool = gateway.client.connection_pool
    assert [connection.is_connected for connection in pool._available_connections] == [False] * bool(steps)
    assert not pool._in_use_connections
    with pytest.raises(RedisUnavailable):
        await ping(gateway)
    assert not available(gateway)
    # It may serve several roles, whose owners all close it.
    await gateway.close()


async def test_more_callers_than_connections_wait_for_their_turn(open_redis: OpenRedis) -> None:
    gateway = await open_redis(pool_size=2)
    assert await asyncio.gather(*(ping(gateway) for _ in range(50))) == [True] * 50


async def test_needs_an_address(open_redis: OpenRedis) -> None:
    settings = (await open_redis())._settings.model_copy(update={"url": None})
    with pytest.raises(ValueError, match="the Redis URL is not set"):
        RedisGateway(settings)


async def test_a_connection_lost_before_a_command_is_written(open_redis: OpenRedis) -> None:
    async def lose_and_write(client: redis.asyncio.Redis) -> None:
        """As redis-py does while it connects, on uvloop's transport, which raises RuntimeError."""
        connection = await client.connection_pool.get_connection()
        try:
            connection._writer.transport.abort()
            await asyncio.sleep(0.01)
            connection._writer.writelines([b"PING\r\n"])
        finally:
            await client.connection_pool.release(connection)

    async def ask() -> None:
        gateway = await open_redis()
        with pytest.raises(RedisUnavailable):
            await gateway.call(lose_and_write)
        await gateway.close()

    await asyncio.to_thread(uvloop.run, ask())
