"""Coalescing: which keys are read together, which are not, and what one caller's trouble means to the others."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from app.kernel.batching.coalescing import Coalescer, TooSlow
from app.kernel.batching.point_reads import PointReads
from app.kernel.database import Database, ReadConn
from app.kernel.errors import Unavailable
from app.kernel.fairness.callers import Caller, caller_var
from tests.fixtures.application import Budget
from tests.fixtures.waiting import eventually


class Source:
    """Answers each key with its present value; waits where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.value = "old"
        self.bad: dict[int, Exception] = {}
        self.hold: asyncio.Event | None = None

    async def ask(self, keys: Sequence[int]) -> Mapping[int, str]:
        self.batches.append(list(keys))
        value, hold = self.value, self.hold
        if hold is not None:
            await hold.wait()
        for key in keys:
            if key in self.bad:
                raise self.bad[key]
        return {key: f"{value} {key}" for key in keys if key >= 0}


@pytest.fixture
def source() -> Source:
    return Source()


async def test_who_asks_at_once_is_answered_by_one_question(source: Source) -> None:
    coalescer = Coalescer(source.ask)
    answers = await asyncio.gather(*(coalescer.get(key) for key in (1, 2, -3, 2)))
    assert answers == ["old 1", "old 2", None, "old 2"]
    assert source.batches == [[1, 2, -3]]
    await asyncio.gather(coalescer.get(1), coalescer.get(4))
    assert source.batches == [[1, 2, -3], [1, 4]]


async def test_batches_are_bounded_and_wait_for_those_under_way(source: Source) -> None:
    coalescer = Coalescer(source.ask, max_batch=2, max_running=1)
    source.hold = asyncio.Event()
    tasks = [asyncio.create_task(coalescer.get(key)) for key in range(5)]
    await eventually(lambda: source.batches == [[0, 1]])
    source.hold.set()
    assert await asyncio.gather(*tasks) == [f"old {key}" for key in range(5)]
    assert source.batches == [[0, 1], [2, 3], [4]]


async def test_no_answer_is_older_than_its_question(source: Source) -> None:
    coalescer = Coalescer(source.ask, max_running=1)
    source.hold = hold = asyncio.Event()
    early = asyncio.create_task(coalescer.get(1))
    await eventually(lambda: source.batches == [[1]])
    source.value, source.hold = "new", None
    late = asyncio.create_task(coalescer.get(1))
    await asyncio.sleep(0)
    hold.set()
    assert [await early, await late] == ["old 1", "new 1"]


async def test_one_bad_key_fails_nobody_else(source: Source) -> None:
    coalescer = Coalescer(source.ask)
    source.bad[2] = ValueError("two")
    answers = await asyncio.gather(*(coalescer.get(key) for key in (1, 2, 3)), return_exceptions=True)
    assert answers == ["old 1", source.bad[2], "old 3"]
    assert source.batches == [[1, 2, 3], [1], [2], [3]]


async def test_a_source_that_is_down_is_not_asked_for_each(source: Source) -> None:
    coalescer = Coalescer(source.ask, shared_failure=OSError)
    errors: tuple[Exception, ...] = (Unavailable(), OSError())
    for error in errors:
        source.batches.clear()
        source.bad[1] = error
        answers = await asyncio.gather(coalescer.get(1), coalescer.get(2), return_exceptions=True)
        assert list(answers) == [error, error]
        assert source.batches == [[1, 2]]


async def test_who_goes_away_takes_nobody_along(source: Source) -> None:
    coalescer = Coalescer(source.ask, max_running=1)
    source.hold = asyncio.Event()
    first, second = asyncio.create_task(coalescer.get(1)), asyncio.create_task(coalescer.get(2))
    await eventually(lambda: source.batches == [[1, 2]])
    third, fourth = asyncio.create_task(coalescer.get(3)), asyncio.create_task(coalescer.get(4))
    await asyncio.sleep(0)
    first.cancel()
    third.cancel()
    await asyncio.sleep(0)
    source.hold.set()
    assert [await second, await fourth] == ["old 2", "old 4"]
    # A caller that left before the statement was sent is not read for.
    assert source.batches == [[1, 2], [4]]
    assert first.cancelled()
    assert third.cancelled()


async def test_ends_with_its_owner(source: Source) -> None:
    coalescer = Coalescer(source.ask)
    source.hold = asyncio.Event()
    waiting = asyncio.create_task(coalescer.get(1))
    await eventually(lambda: source.batches == [[1]])
    await coalescer.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


SQUARES = "SELECT n AS number, n * n AS square FROM unnest($1::integer[]) AS n WHERE 100 / n > 0"


async def squares(conn: ReadConn, numbers: Sequence[int]) -> Mapping[int, int]:
    return {row["number"]: row["square"] for row in await conn.fetch(SQUARES, numbers)}


async def test_point_reads_are_one_statement(db: Database, budget: Budget) -> None:
    reads = PointReads(db)
    with budget(1):
        found = await asyncio.gather(*(reads.get("test", squares, number) for number in range(1, 31)))
    assert found == [number * number for number in range(1, 31)]
    with budget(1):
        assert await reads.get("test", squares, 101) is None
    # Each statement that fails is only its own caller's: 0 cannot be divided by.
    outcome = await asyncio.gather(*(reads.get("test", squares, number) for number in (3, 0)), return_exceptions=True)
    assert outcome[0] == 9
    assert isinstance(outcome[1], Exception)


async def test_a_batch_that_is_too_slow_is_asked_for_key_by_key(source: Source) -> None:
    callers: dict[int, object] = {}

    async def ask(keys: Sequence[int]) -> Mapping[int, str]:
        if len(keys) > 1:
            source.batches.append(list(keys))
            raise TooSlow
        caller = caller_var.get()
        callers[keys[0]] = caller.key if caller is not None else None
        return await source.ask(keys)

    async def get(key: int) -> str | None:
        caller_var.set(Caller(f"caller of {key}"))
        return await coalescer.get(key)

    # Nothing is answered quickly enough to go with others again.
    coalescer = Coalescer(ask, max_running=1, slow_seconds=0)
    source.bad[2] = Unavailable()
    answers = await asyncio.gather(*map(get, (1, 2, 3, 1)), return_exceptions=True)
    assert list(answers) == ["old 1", source.bad[2], "old 3", "old 1"]
    assert source.batches == [[1, 2, 3], [1], [2], [3]]
    assert callers == {key: f"caller of {key}" for key in (1, 2, 3)}
    source.batches.clear()
    assert await asyncio.gather(*map(get, (1, 4, 3))) == ["old 1", "old 4", "old 3"]
    assert sorted(source.batches) == [[1], [3], [4]]


async def test_a_key_that_is_quick_again_goes_with_others(source: Source) -> None:
    async def ask(keys: Sequence[int]) -> Mapping[int, str]:
        if 2 in keys and len(keys) > 1:
            raise TooSlow
        return await source.ask(keys)

    coalescer = Coalescer(ask, slow_seconds=60)
    assert await asyncio.gather(*map(coalescer.get, (1, 2))) == ["old 1", "old 2"]
    assert await asyncio.gather(*map(coalescer.get, (1, 3))) == ["old 1", "old 3"]
    assert source.batches == [[1], [2], [1, 3]]


async def test_a_slow_key_holds_no_batch_up(source: Source) -> None:
    async def ask(keys: Sequence[int]) -> Mapping[int, str]:
        if len(keys) > 1:
            raise TooSlow
        if keys == [2]:
            await asyncio.Event().wait()
        return await source.ask(keys)

    coalescer = Coalescer(ask, max_running=1)
    heavy, light = asyncio.create_task(coalescer.get(2)), asyncio.create_task(coalescer.get(1))
    assert await light == "old 1"
    assert await coalescer.get(3) == "old 3"
    assert not heavy.done()
    await coalescer.close()


SLOW_SQUARES = "SELECT n AS number, n * n AS square FROM unnest($1::integer[]) AS n, pg_sleep(0.3 * (n = 2)::integer)"


async def slow_squares(conn: ReadConn, numbers: Sequence[int]) -> Mapping[int, int]:
    return {row["number"]: row["square"] for row in await conn.fetch(SLOW_SQUARES, numbers)}


async def test_a_slow_read_is_repeated_for_each_reader(db: Database, budget: Budget) -> None:
    reads = PointReads(db, slow_seconds=0.1)
    with budget(4):
        found = await asyncio.gather(*(reads.get("test", slow_squares, number) for number in (1, 2, 3)))
    assert found == [1, 4, 9]
