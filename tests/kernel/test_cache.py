"""The cache of finished answers: what it may never serve, and when it asks anew."""

import asyncio

import pytest
import redis

from app.dev.embedded import EmbeddedValkey
from app.kernel.cache import CachedAnswer
from app.kernel.errors import Unavailable
from tests.fixtures.waiting import eventually
from tests.kernel.caches import TAGS, Source, StartProcess, entries


async def test_fills_once_and_answers_from_memory(start_process: StartProcess, source: Source) -> None:
    process = await start_process()
    assert [await process.get() for _ in range(3)] == [b"0"] * 3
    assert source.reads == 1
    source.value = b"1"
    assert await process.get() == b"0"
    assert await process.get("another key") == b"1"


async def test_other_process_finds_it_in_redis(
    start_process: StartProcess, source: Source, valkey: EmbeddedValkey
) -> None:
    first, second = await start_process(), await start_process()
    await first.get()
    await first.stored()
    assert await second.get() == b"0"
    assert source.reads == 1
    assert second.local == b"0"
    assert await entries(valkey) == ["cache:entry:{key}"]


async def test_time_to_live_is_spread(start_process: StartProcess, valkey: EmbeddedValkey) -> None:
    process = await start_process(ttl=1000)
    for number in range(40):
        await process.get(f"key{number}", (f"tag{number}",))
    await process.stored()
    async with redis.asyncio.Redis.from_url(valkey.url()) as client:
        left = [await client.pttl(f"cache:entry:{{key{number}}}") for number in range(40)]
        tags = [await client.pttl(f"cache:tag:{{tag{number}}}") for number in range(40)]
    # From 900 to 1,100 seconds, less what went by since.
    assert 800_000 < min(left) < max(left) <= 1_100_000
    assert max(left) - min(left) > 50_000
    # A tag outlives every entry that names it.
    assert min(tags) > 1_500_000
    entries = process.cache._local._entries.values()
    assert max(entry.expires_at for entry in entries) - min(entry.expires_at for entry in entries) > 50


async def test_ends_by_its_time_to_live(start_process: StartProcess, source: Source, valkey: EmbeddedValkey) -> None:
    process = await start_process(ttl=1)
    process.is_renewable = False
    await process.get()
    await process.stored()
    source.value = b"1"

    async def is_gone() -> bool:
        # The copy in Redis has a spread of its own.
        return process.local is None and await entries(valkey) == []

    await eventually(is_gone)
    assert await process.get() == b"1"


async def test_what_is_asked_for_near_its_end_is_renewed_once_and_nobody_waits(
    start_process: StartProcess, source: Source, valkey: EmbeddedValkey
) -> None:
    process = await start_process()
    await process.get()
    await process.stored()
    for answers in (b"1", b"2"):
        async with redis.asyncio.Redis.from_url(valkey.url()) as administrator:
            await administrator.flushdb()
        before, source.value = process.local, answers
        reads = source.reads
        process.make_due()
        source.hold = asyncio.Event()
        assert [process.local for _ in range(3)] == [before] * 3
        await eventually(lambda: source.reads == reads + 1)  # noqa: B023 - used at once
        assert process.local == before
        source.hold.set()
        await eventually(lambda: process.local == answers)  # noqa: B023 - used at once
        assert source.reads == reads + 1
        await process.stored()


async def test_what_cannot_be_renewed_stays_until_its_end(
    start_process: StartProcess, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await start_process()
    await process.get()
    monkeypatch.setattr(process.cache, "_get_or_fill_alone", fail)
    process.make_due()
    assert process.local == b"0"
    await eventually(lambda: process.cache._renewals == 0)
    assert process.local == b"0"
    (entry,) = process.cache._local._entries.values()
    entry.due_at = entry.expires_at = 0.0
    assert process.local is None


async def fail(*_: object, **__: object) -> None:
    raise Unavailable


async def test_what_needs_its_caller_is_not_renewed(start_process: StartProcess, source: Source) -> None:
    process = await start_process()
    process.is_renewable = False
    await process.get()
    (entry,) = process.cache._local._entries.values()
    assert entry.due_at == entry.expires_at


async def test_a_write_overtakes_a_renewal(start_process: StartProcess, source: Source, valkey: EmbeddedValkey) -> None:
    reader, writer = await start_process(), await start_process()
    await reader.get()
    await reader.stored()
    async with redis.asyncio.Redis.from_url(valkey.url()) as administrator:
        await administrator.flushdb()
    reader.make_due()
    source.hold = asyncio.Event()
    assert reader.local == b"0"
    await eventually(lambda: source.reads == 2)
    source.value = b"1"
    await writer.cache.forget_now(["user:1"])
    await eventually(lambda: reader.local is None)
    source.hold.set()
    await eventually(lambda: reader.cache._renewals == 0)
    await reader.stored()
    assert reader.cache.get_local("key") is None
    assert [await writer.get(), await reader.get()] == [b"1", b"1"]


async def test_without_messages_memory_is_not_used_until_they_come_again(
    start_process: StartProcess, source: Source
) -> None:
    """Redis itself answers, but what others forget would not be heard."""
    writer, reader = await start_process(), await start_process()
    await reader.get()
    await reader.bus.close()
    for number in (b"1", b"2"):
        source.value = number
        await writer.cache.forget_now(["user:1"])
        assert [await reader.get(), reader.local] == [number, None]
    await reader.bus.start()
    assert [await reader.get(), reader.local] == [b"2", b"2"]


@pytest.mark.parametrize("tag", TAGS)
async def test_any_tag_ends_it_everywhere(start_process: StartProcess, source: Source, tag: str) -> None:
    writer, reader = await start_process(), await start_process()
    await writer.get()
    await reader.get()
    await reader.get("unrelated", ("user:2",))
    source.value = b"1"
    await writer.cache.forget_now([tag])
    assert writer.local is None
    await eventually(lambda: reader.local is None)
    assert [await reader.get(), await writer.get()] == [b"1", b"1"]
    assert await reader.get("unrelated", ("user:2",)) == b"0"


async def test_those_who_ask_at_once_share_one_read(start_process: StartProcess, source: Source) -> None:
    process = await start_process()
    source.hold = asyncio.Event()
    readers = [asyncio.create_task(process.get()) for _ in range(20)]
    await eventually(lambda: source.reads == 1)
    source.hold.set()
    assert await asyncio.gather(*readers) == [b"0"] * 20
    assert source.reads == 1


@pytest.mark.parametrize("writer_is_another_process", [False, True])
async def test_a_read_that_a_write_overtakes_is_not_kept(
    start_process: StartProcess, source: Source, writer_is_another_process: bool, valkey: EmbeddedValkey
) -> None:
    reader = await start_process()
    writer = await start_process() if writer_is_another_process else reader
    source.hold = asyncio.Event()
    early = asyncio.create_task(reader.get())
    await eventually(lambda: source.reads == 1)
    source.value = b"1"
    await writer.cache.forget_now(["user:1"])
    await eventually(lambda: reader.cache._local._forgotten_at.get("user:1") is not None)
    # A request after the write does not join the read that began before it.
    late = asyncio.create_task(reader.get())
    await eventually(lambda: source.reads == 2)
    source.hold.set()
    assert [await early, await late] == [b"0", b"1"]
    await reader.stored()
    assert reader.local == b"1"
    assert await writer.get() == b"1"


async def test_a_failing_read_leaves_the_others_to_themselves(start_process: StartProcess, source: Source) -> None:
    process = await start_process()
    both_ask = asyncio.Event()

    async def fail() -> CachedAnswer | None:
        await both_ask.wait()
        raise OSError

    failing = asyncio.create_task(process.cache.get_or_fill("key", TAGS, fail))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(process.cache.get_or_fill("key", TAGS, fail))
    await asyncio.sleep(0.01)
    both_ask.set()
    assert await waiting is None
    with pytest.raises(OSError):  # noqa: PT011 - bare on purpose
        await failing
    assert await process.get() == b"0"


async def test_a_waiting_reader_may_go_away(start_process: StartProcess, source: Source) -> None:
    process = await start_process()
    source.hold = asyncio.Event()
    first = asyncio.create_task(process.get())
    await eventually(lambda: source.reads == 1)
    second = asyncio.create_task(process.get())
    await asyncio.sleep(0)
    second.cancel()
    source.hold.set()
    assert await first == b"0"
    assert second.cancelled() or second.cancelling()


async def test_memory_is_bounded_by_number(start_process: StartProcess) -> None:
    process = await start_process(local_entries=3)
    for key in "abc":
        await process.get(key)
    assert process.cache.get_local("a") is not None
    await process.get("d")
    # What was not asked for the longest goes first.
    assert [key for key in "abcd" if process.cache.get_local(key)] == ["a", "c", "d"]


async def test_memory_is_bounded_by_bytes(start_process: StartProcess, source: Source) -> None:
    process = await start_process(local_bytes=5_000)
    source.value = b"x" * 10
    for key in "abc":
        await process.get(key)
    assert [key for key in "abc" if process.cache.get_local(key)] == ["b", "c"]
    # The body, the key, and the objects around them.
    assert process.cache._local._bytes == 2 * (10 + 1 + 2048)
    source.value = b"x" * 5_000
    assert await process.get("too large") == source.value
    assert process.cache._local._bytes <= 5_000
    await process.cache.forget_now(TAGS)
    local = process.cache._local
    assert (local._bytes, local._entries, local._keys_of_tag) == (0, {}, {})


async def test_two_answers_of_one_moment_may_share_a_tag(
    start_process: StartProcess, source: Source, valkey: EmbeddedValkey
) -> None:
    process = await start_process()
    await asyncio.gather(process.get("one", ("a", "b")), process.get("two", ("b", "c")))
    await process.stored()
    assert await entries(valkey) == ["cache:entry:{one}", "cache:entry:{two}"]


async def test_switched_off(start_process: StartProcess, source: Source, valkey: EmbeddedValkey) -> None:
    process = await start_process(enabled=False)
    assert [await process.get(), await process.get()] == [b"0", b"0"]
    assert source.reads == 2
    assert (process.local, await entries(valkey)) == (None, [])


async def test_one_message_that_is_no_message_does_no_harm(start_process: StartProcess, source: Source) -> None:
    process = await start_process()
    await process.bus.publish("onehop:cache:forget", b"\xc1 not msgpack")
    await process.cache.forget_now(["user:1"])
    assert await process.get() == b"0"
