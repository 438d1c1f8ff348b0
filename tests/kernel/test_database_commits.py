"""Units of work of the database gateway: what is atomic, and what follows a commit."""

import asyncio
from collections.abc import Coroutine, Generator
from functools import partial
from itertools import count
from typing import Any

import pytest

from app.kernel.database import ConstraintViolated, Database, Tx
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually, scaled
from tests.kernel.accounts import ADD, AMOUNTS
from tests.kernel.conftest import pool_becomes_whole


class Committed:
    """Notes what happened after commits."""

    def __init__(self, database: Database) -> None:
        self.batches: list[list[str]] = []
        self.calls: list[str] = []
        database.on_commit("topic", self.take)

    async def take(self, items: list[str]) -> None:
        self.batches.append(items)

    def register(self, tx: Tx, name: str) -> None:
        async def call() -> None:
            self.calls.append(name)

        tx.emit("topic", name)
        tx.after_commit(call)


async def test_transaction_commits_and_then_runs_its_work_once(database: Database, accounts: Connection) -> None:
    committed = Committed(database)
    async with database.transaction("test.unit") as tx:
        await tx.execute(ADD, "a", 1)
        committed.register(tx, "first")
        committed.register(tx, "second")
        assert await accounts.fetchval(AMOUNTS) == [10, 10]
        assert committed.calls == []
    assert await accounts.fetchval(AMOUNTS) == [11, 10]
    assert committed.batches == [["first", "second"]]
    assert committed.calls == ["first", "second"]


async def test_rollback_leaves_nothing_behind(database: Database, accounts: Connection) -> None:
    committed = Committed(database)
    with pytest.raises(KeyError):
        async with database.transaction("test.unit") as tx:
            await tx.execute(ADD, "a", 1)
            committed.register(tx, "never")
            raise KeyError
    assert await accounts.fetchval(AMOUNTS) == [10, 10]
    assert (committed.batches, committed.calls) == ([], [])
    await pool_becomes_whole(database)


async def test_a_swallowed_failure_is_not_taken_for_success(database: Database, accounts: Connection) -> None:
    committed = Committed(database)
    with pytest.raises(RuntimeError, match=r"test\.unit: a transaction with a failed statement cannot be committed"):
        async with database.transaction("test.unit") as tx:
            await tx.execute(ADD, "a", 1)
            committed.register(tx, "never")
            with pytest.raises(ConstraintViolated):
                await tx.execute(ADD, "a", -100)
    assert await accounts.fetchval(AMOUNTS) == [10, 10]
    assert committed.calls == []
    await pool_becomes_whole(database)


async def test_one_failing_callback_does_not_stop_the_others(database: Database) -> None:
    committed = Committed(database)
    async with database.transaction("test.unit") as tx:

        async def fail() -> None:
            raise OSError

        tx.after_commit(fail)
        committed.register(tx, "second")
    assert committed.calls == ["second"]


async def test_work_after_commit_survives_a_caller_that_goes_away(database: Database, accounts: Connection) -> None:
    begun, proceed, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await proceed.wait()
        done.set()

    async def write() -> None:
        async with database.transaction("test.unit") as tx:
            await tx.execute(ADD, "a", 1)
            tx.after_commit(work)

    task = asyncio.create_task(write())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    proceed.set()
    await asyncio.wait_for(done.wait(), scaled(10))
    assert await accounts.fetchval(AMOUNTS) == [11, 10]


class Suspensions:
    """Runs `work` as far as it goes, and tells when it waits for the `number`th time."""

    def __init__(self, work: Coroutine[Any, Any, None], number: int) -> None:
        self._work = work
        self._number = number
        self.reached = asyncio.Event()

    async def run(self) -> None:
        await self

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._work.__await__()
        go_on = partial(next, steps)
        for number in count(1):
            try:
                awaited = go_on()
            except StopIteration:
                return
            if number == self._number:
                self.reached.set()
            try:
                yield awaited
            except BaseException as error:  # noqa: BLE001 - handed on
                go_on = partial(steps.throw, error)
            else:
                go_on = partial(next, steps)


@pytest.mark.parametrize("unit", ["statement", "transaction"])
async def test_whatever_committed_is_followed_by_its_work(database: Database, accounts: Connection, unit: str) -> None:
    """A caller is cancelled wherever it waits, at once and when the database may have answered; a row without its work
    would be a stale cache.
    """
    names = (f"{unit}{number}" for number in count())

    async def write(name: str, committed: Committed) -> None:
        async with getattr(database, unit)("test.unit") as tx:
            committed.register(tx, name)
            await tx.execute("INSERT INTO accounts VALUES ($1, 0)", name)

    async def cancel_at(number: int, pause: float) -> bool:
        """False if it does not wait so often."""
        committed, name = Committed(database), next(names)
        work = Suspensions(write(name, committed), number)
        task = asyncio.create_task(work.run())
        reached = asyncio.create_task(work.reached.wait())
        await asyncio.wait({task, reached}, return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        await asyncio.sleep(pause)
        task.cancel()
        await asyncio.gather(task, reached, return_exceptions=True)
        # Nothing is under way any more; there may be no connection left.
        await eventually(lambda: len(set(database._pool.connections)) == 1)  # type: ignore[union-attr]
        if await accounts.fetchval("SELECT count(*) FROM accounts WHERE name = $1", name):
            await eventually(lambda: len(committed.calls) == 1)
        return work.reached.is_set()

    numbers = 1
    while all([await cancel_at(numbers, pause) for pause in (0, 0.0005, 0.001, 0.002, 0.01)]):
        numbers += 1
    assert numbers > (3 if unit == "transaction" else 1)
    await pool_becomes_whole(database)


async def test_statement_is_one_round_trip_and_only_one(database: Database, accounts: Connection) -> None:
    committed = Committed(database)
    with database.recorder() as seen:
        async with database.statement("test.one") as tx:
            assert await tx.execute(ADD, "a", 5) == "UPDATE 1"
            committed.register(tx, "after")
    assert [(statement.label, statement.sql) for statement in seen] == [("test.one", ADD)]
    assert committed.calls == ["after"]
    with pytest.raises(RuntimeError, match=r"test\.two: a single-statement unit cannot run a second statement"):
        async with database.statement("test.two") as tx:
            await tx.execute(ADD, "b", 1)
            await tx.execute(ADD, "b", 1)
    assert await accounts.fetchval(AMOUNTS) == [15, 11]


async def test_recorder_sees_begin_and_commit(database: Database) -> None:
    with database.recorder() as seen:
        async with database.transaction("test.unit") as tx:
            await tx.execute(ADD, "a", 1)
        async with database.read("test.read") as conn:
            assert await conn.fetchval("SELECT amount FROM accounts WHERE name = 'a'") == 11
    assert [statement.sql.split()[0] for statement in seen] == ["BEGIN", "UPDATE", "COMMIT", "SELECT"]
