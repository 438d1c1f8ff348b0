"""What a user keeps costs the copy of it, and its deletion, many small steps and little memory."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import orjson
import pytest

from app.jobs.queries import erasure
from app.jobs.service.exporting import Column, Values, write_json_array
from app.kernel.database import Database, StatementTimeout
from app.kernel.http.idempotency import delete_keys_of
from app.kernel.ids import UserId, new_id
from app.kernel.queue import JobContext, JobKind, job
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.waiting import eventually
from tests.jobs.kinds import Numbered

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

MEBIBYTE = 1024 * 1024


async def test_long_rows_are_written_a_few_at_a_time() -> None:
    async def rows() -> AsyncIterator[Values]:
        for number in range(20):
            yield (str(number), orjson.dumps("x" * MEBIBYTE).decode())

    pieces: list[bytes] = []

    async def write(piece: bytes) -> None:
        pieces.append(piece)

    async def advance(done: int) -> None:
        pass

    assert await write_json_array((Column("n", "text"), Column("text", "json")), rows(), write, advance) == 20
    assert max(map(len, pieces)) < 5 * MEBIBYTE
    assert [item["n"] for item in orjson.loads(b"".join(pieces))] == [str(number) for number in range(20)]


def timing_out(runs: list[int]) -> dict[str, JobKind[Any]]:
    @job("test.slow", args=Numbered, max_attempts=1)
    async def slow(ctx: JobContext, args: Numbered) -> None:
        runs.append(ctx.attempt)
        raise StatementTimeout

    return {"test.slow": slow}


async def test_a_statement_that_takes_too_long_again_is_an_attempt(settings: Settings, connection: Connection) -> None:
    runs: list[int] = []
    async with open_worker(settings, timing_out(runs)) as worker:
        async with worker.db.statement("test.enqueue") as tx:
            await worker.queue.enqueue_rows(tx, [worker.queue.new_job("test.slow", {}, user_id=None, max_attempts=1)])

        async def state() -> tuple[Any, ...]:
            row = await connection.fetchrow("SELECT state, attempt, error ->> 'code', is_due FROM jobs.jobs")
            return tuple(row or ())

        async def is_put_off() -> bool:
            return await state() == (0, 0, None, False)

        async def is_failed() -> bool:
            return (await state())[:3] == (3, 1, "timeout")

        # The first time the database may have been busy.
        await eventually(is_put_off)
        await connection.execute("UPDATE jobs.jobs SET run_at = now()")
        await eventually(is_failed)
    assert runs == [1, 1]


async def test_a_time_out_is_no_attempt_while_the_database_hangs(settings: Settings, connection: Connection) -> None:
    runs: list[int] = []
    go_on = asyncio.Event()

    @job("test.slow", args=Numbered, max_attempts=1)
    async def slow(ctx: JobContext, args: Numbered) -> None:
        runs.append(ctx.attempt)
        await go_on.wait()
        raise StatementTimeout

    async def is_put_off() -> bool:
        row = await connection.fetchrow("SELECT state, attempt, error, is_due FROM jobs.jobs")
        return row is not None and tuple(row) == (0, 0, None, False)

    async def runs_again() -> bool:
        return len(runs) >= 2

    async with open_worker(settings, {"test.slow": slow}) as worker:
        go_on.set()
        async with worker.db.statement("test.enqueue") as tx:
            await worker.queue.enqueue_rows(tx, [worker.queue.new_job("test.slow", {}, user_id=None, max_attempts=1)])
        await eventually(is_put_off)
        go_on.clear()
        await connection.execute("UPDATE jobs.jobs SET run_at = now()")
        await eventually(runs_again)
        async with connection.transaction():
            # No question about the queues is answered for now.
            await connection.execute("LOCK TABLE jobs.lanes IN ACCESS EXCLUSIVE MODE")
            go_on.set()
            await eventually(is_put_off)
    # Each of them, however many there were by now, was the first one.
    assert set(runs) == {1}


@pytest.mark.settings(APP_DATABASE_EXPORT_TIMEOUT="1")
async def test_a_long_statement_of_a_snapshot_is_told_from_an_outage(db: Database) -> None:
    with pytest.raises(StatementTimeout):
        async with db.snapshot("test.snapshot") as conn:
            await conn.fetch("SELECT pg_sleep(60)")


FILL = """
WITH ids AS (SELECT n, gen_random_uuid() AS id FROM generate_series(1, 30) AS n),
messages AS (
    INSERT INTO jobs.webhook_messages (user_id, id, event_type, payload) SELECT $1, id, 'job.failed', '{}' FROM ids
), deliveries AS (
    INSERT INTO jobs.webhook_deliveries (user_id, id, endpoint_id, message_id) SELECT $1, id, $1, id FROM ids
), invoices AS (
    INSERT INTO jobs.invoices (user_id, id, number, order_id, customer, currency, lines, tax_rate_percent,
                               subtotal_minor, tax_minor, total_minor, status, job_id)
    SELECT $1, id, n::text, n::text, '{}', 'EUR', '[]', '0', 0, 0, 0, 'sent', id FROM ids
), sends AS (
    INSERT INTO jobs.mail_sends (job_id, recipient_hash, purpose, sender_id, send_at)
    SELECT id, $2, 'invoice', $1, now() FROM ids
)
INSERT INTO kernel.idempotency_keys (caller, operation, key, request_hash, expires_at)
SELECT $1::text, 'test', n::text, $2, now() + interval '1 day' FROM ids
"""
LEFT = """
SELECT (SELECT count(*) FROM jobs.webhook_messages WHERE user_id = $1),
       (SELECT count(*) FROM jobs.webhook_deliveries WHERE user_id = $1),
       (SELECT count(*) FROM jobs.invoices WHERE user_id = $1),
       (SELECT count(*) FROM jobs.mail_sends WHERE sender_id = $1),
       (SELECT count(*) FROM kernel.idempotency_keys WHERE caller = $1::text)
"""


async def test_a_purge_deletes_a_bounded_number_of_rows_at_a_time(db: Database, connection: Connection) -> None:
    user_id, other = UserId(new_id()), UserId(new_id())
    hashes = {user_id: b"u" * 32, other: b"o" * 32}

    async def left(whose: UUID) -> tuple[int, ...]:
        return tuple(await connection.fetchrow(LEFT, whose) or ())

    for whose, address in hashes.items():
        await connection.execute(FILL, whose, address)
    for expected, count in ((18, 12), (6, 12), (0, 6), (0, 0)):
        async with db.transaction("test.erase") as tx:
            assert await erasure.delete_user_deliveries(tx, user_id, 12) == count
            assert await erasure.delete_user_messages(tx, user_id, 12) == count
            assert await erasure.delete_user_invoices(tx, user_id, 12) == count
            assert await erasure.delete_user_sends(tx, user_id, [hashes[user_id]], 12) == count
            assert await delete_keys_of(tx, user_id, 12) == count
        assert await left(user_id) == (expected,) * 5
    assert await left(other) == (30,) * 5
