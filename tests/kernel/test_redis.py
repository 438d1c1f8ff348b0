"""The Redis gateway: bounded, without retries, behind a breaker."""

import asyncio
import time
from functools import partial

import pytest
import redis
import uvloop

from app.kernel.embedded import EmbeddedValkey
from app.kernel.redis import RedisGateway, RedisUnavailable
from tests.faults.signals import frozen
from tests.fixtures.waiting import quickest
from tests.kernel.conftest import OpenRedis


async def ping(gateway: RedisGateway) -> bool:
    return bool(await gateway.call(lambda client: client.ping()))


def available(gateway: RedisGateway) -> bool:
    return gateway.available


async def fail(gateway: RedisGateway, timeout: float | None = None) -> float:
    """Seconds until the gateway gave up."""
    started = time.perf_counter()
    with pytest.raises(RedisUnavailable):
        await gateway.call(lambda client: client.ping(), timeout=timeout)
    return time.perf_counter() - started


async def test_answers(open_redis: OpenRedis) -> None:
    gateway = await open_redis()
    assert await ping(gateway)
    assert await gateway.call(lambda client: client.incr("n")) == 1
    assert (gateway.calls, available(gateway)) == (2, True)


async def test_stopped_server(open_redis: OpenRedis, valkey: EmbeddedValkey) -> None:
    gateway = await open_redis(breaker_threshold=3, breaker_cooldown=0.3)
    assert await ping(gateway)
    valkey.stop()
    try:
        for _ in range(3):
            assert available(gateway)
            assert await fail(gateway) < 4
        calls = gateway.calls
        # Open: refused without asking.
        assert not available(gateway)
        await fail(gateway)
        assert gateway.calls == calls
        await asyncio.sleep(0.3)
        # Half open: one probe, which fails, and closed again.
        assert available(gateway)
        await fail(gateway)
        assert (gateway.calls, available(gateway)) == (calls + 1, False)
    finally:
        valkey.start()
    await asyncio.sleep(0.3)
    assert await ping(gateway)
    assert available(gateway)


async def test_only_one_probe_at_a_time(open_redis: OpenRedis, valkey: EmbeddedValkey) -> None:
    gateway = await open_redis(breaker_threshold=1, breaker_cooldown=0.3, operation_timeout=0.1)
    pid = valkey.pid()
    assert pid is not None
    with frozen(pid):
        await fail(gateway)
        await asyncio.sleep(0.3)
        calls = gateway.calls
        outcomes = await asyncio.gather(*(ping(gateway) for _ in range(10)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {RedisUnavailable}
        assert gateway.calls == calls + 1
    await asyncio.sleep(0.3)
    assert await ping(gateway)


async def test_frozen_server(open_redis: OpenRedis, valkey: EmbeddedValkey) -> None:
    gateway = await open_redis(operation_timeout=0.1, connect_timeout=0.2, breaker_threshold=100)
    assert await ping(gateway)
    pid = valkey.pid()
    assert pid is not None
    with frozen(pid):
        # The operation's time-out, twice at most; also where a new connection is needed.
        for _ in range(2):
            await quickest(partial(fail, gateway), below=0.3)
        await quickest(partial(fail, gateway, timeout=0.02), below=0.1)
    assert await gateway.call(lambda client: client.ping(), timeout=10)


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
    gateway = await open_redis(pool_size=1, operation_timeout=0.2)
    await gateway.call(lambda client: client.mset({"a": "1", "b": "2"}))
    pid = valkey.pid()
    assert pid is not None
    with frozen(pid), pytest.raises(RedisUnavailable):
        await gateway.call(lambda client: client.get("a"))
    assert await gateway.call(lambda client: client.get("b")) == b"2"


async def test_cancelled_commands_cross_no_answers(open_redis: OpenRedis) -> None:
    """Whoever hangs up in the middle of a command leaves no answer behind for the next one."""
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
