"""The cache of finished answers where Redis, or a part of what it held, is not there."""

import asyncio

import pytest
import redis

from app.dev.embedded import EmbeddedValkey
from tests.fixtures.waiting import eventually
from tests.kernel.caches import Source, StartProcess, entries


async def test_without_redis_everything_is_read_anew(
    start_process: StartProcess, source: Source, valkey: EmbeddedValkey
) -> None:
    process = await start_process()
    await process.get()
    valkey.stop()
    try:
        # Messages of other processes may be missed, so nothing in memory counts.
        await eventually(lambda: process.local is None)
        source.value = b"1"
        assert await process.get() == b"1"
        await process.cache.forget_now(["user:1"])
        source.value = b"2"
        assert await process.get() == b"2"
        assert process.local is None
    finally:
        valkey.start()
    await eventually(lambda: process.bus.is_connected)
    await eventually(lambda: not process.cache._pending)
    assert await process.get() == b"2"
    assert process.local == b"2"


async def test_what_could_not_be_forgotten_is_not_read_from_redis(
    start_process: StartProcess, source: Source, valkey: EmbeddedValkey
) -> None:
    """Redis is up again with its old entries before the tag of the write could be forgotten there."""
    process = await start_process()
    await process.get()
    await process.stored()
    process.cache._forget_local(["user:1"])
    process.cache._pending["user:1"] = 1
    source.value = b"1"
    assert await process.get() == b"1"
    process.cache._pending.clear()


async def test_lost_messages_are_made_up_for(
    start_process: StartProcess, source: Source, valkey: EmbeddedValkey
) -> None:
    writer, reader = await start_process(), await start_process()
    await reader.get()
    async with redis.asyncio.Redis.from_url(valkey.url()) as administrator:
        await administrator.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    source.value = b"1"
    await writer.cache.forget_now(["user:1"])
    await eventually(lambda: reader.local is None)
    assert await reader.get() == b"1"


async def test_an_entry_without_its_tags_is_no_answer(
    start_process: StartProcess, source: Source, valkey: EmbeddedValkey
) -> None:
    """Redis may evict a tag before the entries that name it."""
    first, second = await start_process(), await start_process()
    await first.get()
    await first.stored()
    async with redis.asyncio.Redis.from_url(valkey.url()) as administrator:
        assert await administrator.delete("cache:tag:{1}user") == 1
    source.value = b"1"
    assert await second.get() == b"1"


async def test_a_tag_that_was_forgotten_and_then_lost_keeps_the_old_answer_out(
    start_process: StartProcess, source: Source, valkey: EmbeddedValkey
) -> None:
    """Before the write and after the loss Redis has no version of the tag, which must not look the same."""
    reader, writer = await start_process(), await start_process()
    source.hold = asyncio.Event()
    early = asyncio.create_task(reader.get())
    await eventually(lambda: source.reads == 1)
    source.value = b"1"
    await writer.cache.forget_now(["user:1"])
    async with redis.asyncio.Redis.from_url(valkey.url()) as administrator:
        await administrator.flushdb()
    source.hold.set()
    assert await early == b"0"
    await reader.stored()
    assert await entries(valkey) == []
    assert [await writer.get(), await reader.get()] == [b"1", b"1"]


async def test_the_old_answer_does_not_come_back_while_redis_is_being_told(
    start_process: StartProcess, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a write's forgetting here and in Redis, another process may bring the old answer back from there."""
    first, second = await start_process(), await start_process()
    await first.get()
    await first.stored()
    forget = second.cache._remote.forget
    told, tell = asyncio.Event(), asyncio.Event()

    async def forget_slowly(tags: tuple[str, ...]) -> None:
        told.set()
        await tell.wait()
        await forget(tags)

    monkeypatch.setattr(second.cache._remote, "forget", forget_slowly)
    source.value = b"1"
    writing = asyncio.create_task(second.cache.forget_now(["user:1"]))
    await told.wait()
    # No client has been told yet that the write is done.
    assert await second.get() == b"0"
    tell.set()
    await writing
    assert await second.get() == b"1"
