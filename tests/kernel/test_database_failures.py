"""How each failure of a statement ends, and what collides runs again."""

import asyncio

import asyncpg
import pytest

from app.kernel.database import ConstraintViolated, Database, InvalidValue, TransactionConflict, retries_conflicts
from tests.fixtures.servers import Connection
from tests.kernel.accounts import ADD, AMOUNTS
from tests.kernel.conftest import pool_becomes_whole


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
