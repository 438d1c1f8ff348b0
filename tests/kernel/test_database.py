"""The database gateway: what is atomic, what follows a commit, how each failure ends and how long that takes."""

import asyncio
import time
from collections.abc import Coroutine, Generator
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.kernel.database import (
    ConstraintViolated,
    Database,
    DatabaseUnavailable,
    InvalidValue,
    PoolExhausted,
    TransactionConflict,
    Tx,
    retries_conflicts,
)
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually, in_time, scaled
from tests.kernel.conftest import OpenDatabase, pool_becomes_whole

TABLES = """
CREATE TABLE accounts (name text PRIMARY KEY, amount integer NOT NULL CONSTRAINT amount_positive CHECK (amount >= 0));
INSERT INTO accounts VALUES ('a', 10), ('b', 10);
"""
ADD = "UPDATE accounts SET amount = amount + $2 WHERE name = $1"
AMOUNTS = "SELECT array_agg(amount ORDER BY name) FROM accounts"
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"
# NULL where the server does not know it.
TRANSACTION_TIMEOUT = "SELECT current_setting('transaction_timeout', true)"


@pytest.fixture
async def accounts(connection: Connection) -> Connection:
    """A connection beside the gateway's, to a database with the accounts a and b of 10 each."""
    await connection.execute(TABLES)
    return connection


@pytest.fixture
async def database(open_database: OpenDatabase, accounts: Connection) -> Database:
    return await open_database(pool_size=4)


def bounds_transactions(connection: Connection) -> bool:
    """Whether the server ends a transaction that is too long, as PostgreSQL 17 and newer do."""
    return connection.get_server_version() >= (17,)


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


@pytest.mark.parametrize(
    ("sql", "constraint", "kind"),
    [
        ("INSERT INTO accounts VALUES ('a', 1)", "accounts_pkey", "unique"),
        ("UPDATE accounts SET amount = -1", "amount_positive", "check"),
        ("INSERT INTO accounts VALUES ('c', NULL)", "amount", "not_null"),
        (
            "INSERT INTO users.preferences (user_id) VALUES (gen_random_uuid())",
            "preferences_user_id_fkey",
            "foreign_key",
        ),
    ],
)
async def test_constraints_keep_their_names(database: Database, sql: str, constraint: str, kind: str) -> None:
    with pytest.raises(ConstraintViolated) as raised:
        async with database.transaction("test.unit") as tx:
            await tx.execute(sql)
    assert (raised.value.constraint, raised.value.kind) == (constraint, kind)
    await pool_becomes_whole(database)


@pytest.mark.parametrize(
    ("sql", "argument"),
    [
        ("SELECT $1::text", "nul \0 inside"),
        ("SELECT $1::int", 2**63),
        ("SELECT $1::text::int", "no number"),
        ("SELECT 1 / $1::int", 0),
        ("SELECT $1::text", "\ud800"),
    ],
)
async def test_values_that_cannot_be_stored_are_the_callers_error(
    database: Database, sql: str, argument: object
) -> None:
    with pytest.raises(InvalidValue) as raised:
        async with database.read("test.read") as conn:
            await conn.fetchval(sql, argument)
    assert (raised.value.status, raised.value.code) == (422, "invalid_value")
    async with database.read("test.read") as conn:
        assert await conn.fetchval("SELECT 1") == 1


async def test_our_own_mistakes_stay_visible(database: Database) -> None:
    with pytest.raises(asyncpg.PostgresSyntaxError):
        async with database.read("test.read") as conn:
            await conn.fetchval("SELECT FROM WHERE")


async def test_full_pool_answers_soon(open_database: OpenDatabase, accounts: Connection) -> None:
    database = await open_database(pool_size=1, acquire_timeout=0.2)
    async with database.read("test.holder"):
        started = time.perf_counter()
        async with in_time():
            with pytest.raises(PoolExhausted) as raised:
                async with database.read("test.other"):
                    pass
        assert time.perf_counter() - started >= 0.2
    assert (raised.value.status, raised.value.code) == (503, "pool_exhausted")
    assert raised.value.headers == {"Retry-After": "1"}
    async with database.read("test.other") as conn:
        assert await conn.fetchval("SELECT 1") == 1


async def test_reads_go_on_while_writes_wait(open_database: OpenDatabase, accounts: Connection) -> None:
    database = await open_database(pool_size=5, acquire_timeout=1, lock_timeout=60, statement_timeout=300)
    await pool_becomes_whole(database)

    async def add() -> None:
        async with database.statement("test.add") as tx:
            await tx.execute(ADD, "a", 1)

    async def writers_wait() -> bool:
        return bool(await accounts.fetchval(WAITING) == 4)

    async with AsyncExitStack() as reads:
        for _ in range(5):
            await reads.enter_async_context(database.read("test.holder"))
        for _ in range(5):
            with pytest.raises(PoolExhausted):
                await add()
    async with accounts.transaction():
        await accounts.execute(ADD, "a", 1)
        # As many as ever: those that waited in vain hold nothing.
        writers = [asyncio.create_task(add()) for _ in range(4)]
        await eventually(writers_wait)
        with pytest.raises(PoolExhausted):
            await add()
        async with database.read("test.read") as conn:
            assert await conn.fetchval(AMOUNTS) == [10, 10]
    await asyncio.gather(*writers)
    assert await accounts.fetchval(AMOUNTS) == [15, 10]


async def test_nobody_overtakes_who_waits_for_a_connection(open_database: OpenDatabase, accounts: Connection) -> None:
    database = await open_database(pool_size=1)
    order = []

    async def read(name: str) -> None:
        async with database.read("test.read"):
            order.append(name)

    async with database.read("test.holder"):
        waiting = [asyncio.create_task(read(name)) for name in ("first", "second")]
        await asyncio.sleep(0.02)
    # In the same turn of the loop in which the first of them is woken.
    await read("newcomer")
    await asyncio.gather(*waiting)
    assert order == ["first", "second", "newcomer"]


async def test_slow_statement_is_stopped_by_the_server(open_database: OpenDatabase, accounts: Connection) -> None:
    database = await open_database(statement_timeout=1)
    async with in_time():
        with pytest.raises(DatabaseUnavailable):
            async with database.transaction("test.slow") as tx:
                await tx.execute(ADD, "a", 1)
                await tx.fetchval("SELECT pg_sleep(300)")
    assert await accounts.fetchval(AMOUNTS) == [10, 10]
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(300)'"
    assert await accounts.fetchval(running) == 0
    await pool_becomes_whole(database)


async def test_a_transaction_of_many_statements_is_ended_by_the_server(
    open_database: OpenDatabase, accounts: Connection
) -> None:
    database = await open_database(transaction_timeout=0.5)
    is_bounded = bounds_transactions(accounts)
    slept = 0
    with pytest.raises(DatabaseUnavailable) if is_bounded else nullcontext():
        async with database.transaction("test.long") as tx:
            await tx.execute(ADD, "a", 1)
            for _ in range(200 if is_bounded else 10):
                await tx.fetchval("SELECT pg_sleep(0.05)")
                slept += 1
    # None of the statements is long; all of them together would be ten seconds.
    assert slept <= 10 if is_bounded else slept == 10
    assert await accounts.fetchval(AMOUNTS) == ([10, 10] if is_bounded else [11, 10])
    await pool_becomes_whole(database)


async def test_lock_is_not_waited_for_long(open_database: OpenDatabase, accounts: Connection) -> None:
    database = await open_database(lock_timeout=0.2)
    async with accounts.transaction():
        await accounts.execute(ADD, "a", 1)
        started = time.perf_counter()
        # The lock is held until the end of this block.
        async with in_time():
            with pytest.raises(DatabaseUnavailable):
                async with database.statement("test.blocked") as tx:
                    await tx.execute(ADD, "a", 100)
        assert time.perf_counter() - started >= 0.2
    assert await accounts.fetchval(AMOUNTS) == [11, 10]


async def test_deadlock_is_retried_without_a_double_effect(database: Database, accounts: Connection) -> None:
    await accounts.execute(
        f"ALTER DATABASE {await accounts.fetchval('SELECT current_database()')} SET deadlock_timeout = '50ms'"
    )
    await database.close()
    await database.open()
    both_hold = asyncio.Barrier(2)
    attempts: list[str] = []

    @retries_conflicts
    async def transfer(first: str, second: str) -> None:
        attempts.append(first)
        async with database.transaction("test.transfer") as tx:
            await tx.execute(ADD, first, -1)
            if len(attempts) <= 2:
                await both_hold.wait()
            await tx.execute(ADD, second, 1)

    await asyncio.gather(transfer("a", "b"), transfer("b", "a"))
    assert len(attempts) == 3
    assert await accounts.fetchval(AMOUNTS) == [10, 10]
    await pool_becomes_whole(database)


async def test_serialization_failure_is_retried(database: Database, accounts: Connection) -> None:
    attempts = 0

    @retries_conflicts
    async def add() -> None:
        nonlocal attempts
        attempts += 1
        async with database.transaction("test.serial") as tx:
            await tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await tx.fetchval(AMOUNTS)
            if attempts == 1:
                await accounts.execute(ADD, "a", 100)
            await tx.execute(ADD, "a", 1)

    await add()
    assert attempts == 2
    assert await accounts.fetchval(AMOUNTS) == [111, 10]


async def test_conflicts_without_end_become_503() -> None:
    attempts = 0

    @retries_conflicts
    async def collide() -> None:
        nonlocal attempts
        attempts += 1
        raise TransactionConflict

    with pytest.raises(TransactionConflict) as raised:
        await collide()
    assert attempts == 3
    assert (raised.value.status, raised.value.code) == (503, "transaction_conflict")


async def test_a_changed_schema_does_not_break_prepared_statements(database: Database, accounts: Connection) -> None:
    @retries_conflicts
    async def read() -> int:
        async with database.transaction("test.plan") as tx:
            row = await tx.fetchrow("SELECT * FROM accounts WHERE name = 'a'")
            assert row is not None
            return len(row)

    assert await read() == 2
    await accounts.execute("ALTER TABLE accounts ADD note text")
    assert await read() == 3


async def test_snapshot_sees_one_state(database: Database, accounts: Connection) -> None:
    chunks: list[bytes] = []

    async def write(data: bytes) -> None:
        chunks.append(data)

    async with database.snapshot("test.export") as conn:
        assert await conn.fetchval(AMOUNTS) == [10, 10]
        await accounts.execute(ADD, "a", 1)
        assert await conn.fetchval(AMOUNTS) == [10, 10]
        rows = [tuple(row) async for row in conn.cursor("SELECT name, amount FROM accounts ORDER BY name", prefetch=1)]
        assert rows == [("a", 10), ("b", 10)]
        sql = "SELECT name, amount FROM accounts WHERE amount >= $1 ORDER BY name"
        assert await conn.copy_to(sql, 10, output=write, format="csv", header=True) == 2
        # A write in it is our mistake, and stays one.
        with pytest.raises(DatabaseUnavailable):
            await conn.fetch("UPDATE accounts SET amount = 0")
    assert b"".join(chunks) == b"name,amount\na,10\nb,10\n"
    assert await accounts.fetchval(AMOUNTS) == [11, 10]


async def test_direct_connection_keeps_session_locks(database: Database, accounts: Connection) -> None:
    async with database.connect("test.leader") as conn:
        assert await conn.fetchval("SELECT pg_try_advisory_lock(7)") is True
        assert await accounts.fetchval("SELECT pg_try_advisory_lock(7)") is False
        assert await conn.execute("SELECT 1") == "SELECT 1"
        assert await conn.fetchval("SELECT current_setting('application_name')") == "onehop:test.leader"


async def test_direct_connection_goes_past_a_pooler(open_database: OpenDatabase, database_url: str) -> None:
    database = await open_database(direct_url=urlsplit(database_url)._replace(path="/postgres").geturl())
    async with database.read("test.pooled") as conn:
        assert await conn.fetchval("SELECT current_database()") == urlsplit(database_url).path[1:]
    async with database.connect("test.direct") as direct:
        assert await direct.fetchval("SELECT current_database()") == "postgres"


async def test_connections_carry_no_session_state(open_database: OpenDatabase, accounts: Connection) -> None:
    database = await open_database(pool_size=1, statement_timeout=7)
    async with database.transaction("test.unit") as tx:
        await tx.execute("SET LOCAL statement_timeout = 77")
    async with database.read("test.read") as conn:
        assert await conn.fetchval("SHOW statement_timeout") == "7s"
        assert await conn.fetchval(TRANSACTION_TIMEOUT) == ("30s" if bounds_transactions(accounts) else None)
        assert await conn.fetchval("SHOW TimeZone") == "UTC"
    behind_a_pooler = await open_database(session_settings="false")
    async with behind_a_pooler.read("test.read") as conn:
        assert await conn.fetchval("SHOW statement_timeout") == "0"
        assert await conn.fetchval(TRANSACTION_TIMEOUT) == ("0" if bounds_transactions(accounts) else None)


async def test_unopened_gateway_is_unavailable(database_url: str, open_database: OpenDatabase) -> None:
    database = await open_database()
    await database.close()
    with pytest.raises(DatabaseUnavailable):
        async with database.read("test.read"):
            pass
