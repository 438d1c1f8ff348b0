"""What we lack is no fault of a job: it waits, without using an attempt, and runs when what it needs is back."""

import asyncio
import errno
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr

from app.jobs.errors import StoreUnavailable
from app.jobs.records import POSTPONED_AT_MOST, postponement
from app.jobs.service.cleaning import expire_artifacts
from app.jobs.service.outages import outage_of
from app.jobs.service.storage import ArtifactStore
from app.jobs.settings import JobsSettings
from app.kernel.database import DatabaseUnavailable, PoolExhausted
from app.kernel.ids import UserId, new_id
from app.kernel.queue import JobContext, JobKind, job
from app.kernel.redis.gateway import RedisUnavailable
from app.settings import Settings
from app.worker import Worker, open_worker
from tests.fixtures.application import free_port
from tests.fixtures.people import Person
from tests.fixtures.waiting import eventually
from tests.jobs.conftest import StartWorker
from tests.jobs.kinds import Numbered, Steps, kinds_of

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

OUTAGES = {
    "database_unavailable": DatabaseUnavailable(),
    "pool_exhausted": PoolExhausted(),
    "redis_unavailable": RedisUnavailable(),
    "store_unavailable": StoreUnavailable(),
    "enospc": OSError(errno.ENOSPC, "No space left on device"),
    "edquot": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "erofs": OSError(errno.EROFS, "Read-only file system"),
    "eio": OSError(errno.EIO, "Input/output error"),
    "eacces": PermissionError(errno.EACCES, "Permission denied"),
    "emfile": OSError(errno.EMFILE, "Too many open files"),
    "out_of_memory": MemoryError(),
}
LIST_JOBS = """
SELECT state, attempt, error, postponed_since IS NOT NULL AS is_postponed FROM jobs.jobs
"""


class Outage:
    """What a kind of the test lacks, as long as it does."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.runs = 0


def needing(outage: Outage) -> dict[str, JobKind[Any]]:
    @job("test.needing", args=Numbered, max_attempts=1)
    async def needing(ctx: JobContext, args: Numbered) -> None:
        outage.runs += 1
        if outage.error is not None:
            raise outage.error

    return {"test.needing": needing}


def snapshots(steps: Steps, open_now: list[UUID]) -> dict[str, JobKind[Any]]:
    @job("test.snapshot", args=Numbered, queue="bulk", max_attempts=2)
    async def snapshot(ctx: JobContext, args: Numbered) -> None:
        steps.started.append(ctx.job_id)
        async with ctx.db.snapshot("test.snapshot"):
            open_now.append(ctx.job_id)
            await steps.gate.wait()
            open_now.remove(ctx.job_id)

    return {"test.snapshot": snapshot}


async def put(worker: Worker, kind: str, count: int = 1, user_id: UserId | None = None, **options: Any) -> list[UUID]:
    rows = [worker.queue.new_job(kind, {}, user_id=user_id, **options) for _ in range(count)]
    async with worker.db.statement("test.enqueue") as tx:
        return [done.id for done in await worker.queue.enqueue_rows(tx, rows)]


async def until_over(connection: Connection, count: int) -> None:
    async def are_over() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state = 2") == count)

    await eventually(are_over)


@pytest.mark.settings(APP_DATABASE_EXPORT_POOL_SIZE="2")
async def test_exports_wait_once_for_a_connection_and_one_user_never_has_them_all(
    settings: Settings, connection: Connection, steps: Steps
) -> None:
    """Found by running it: 7 of 12 exports failed for good while another user's long ones had both connections."""
    open_now: list[UUID] = []
    busy, other = UserId(new_id()), UserId(new_id())
    async with open_worker(settings, snapshots(steps, open_now)) as worker:
        of_the_busy = await put(worker, "test.snapshot", 5, busy, queue="bulk")
        await eventually(lambda: len(open_now) == 1)
        of_the_other = await put(worker, "test.snapshot", 2, other, queue="bulk")
        await eventually(lambda: len(open_now) == 2)
        assert len(set(open_now) & set(of_the_busy)) == 1
        assert len(set(open_now) & set(of_the_other)) == 1
        # Longer than a job would wait for a connection.
        await asyncio.sleep(6)
        rows = await connection.fetch("SELECT state, attempt, version FROM jobs.jobs ORDER BY state")
        assert [tuple(row) for row in rows] == [(0, 0, 1)] * 5 + [(1, 1, 2)] * 2
        assert len(steps.started) == 2
        steps.gate.set()
        await until_over(connection, 7)
    assert await connection.fetchval("SELECT array_agg(DISTINCT (attempt, version)::text) FROM jobs.jobs") == ["(1,3)"]


@pytest.mark.parametrize("cause", OUTAGES)
async def test_an_outage_of_ours_costs_no_attempt(settings: Settings, connection: Connection, cause: str) -> None:
    outage = Outage()
    outage.error = OUTAGES[cause]
    labels = {"kind": "test.needing", "cause": cause}
    before = REGISTRY.get_sample_value("onehop_jobs_postponed_total", labels) or 0.0
    async with open_worker(settings, needing(outage)) as worker:
        await put(worker, "test.needing", max_attempts=1)

        async def is_put_off() -> bool:
            return bool(await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state = 0 AND NOT is_due"))

        for number in range(1, 7):
            await eventually(lambda number=number: outage.runs == number)  # type: ignore[misc]
            await eventually(is_put_off)
            row = await connection.fetchrow(LIST_JOBS)
            assert row is not None
            assert tuple(row) == (0, 0, None, True)
            if number == 6:
                outage.error = None
            await connection.execute("UPDATE jobs.jobs SET run_at = now()")
        await until_over(connection, 1)
    row = await connection.fetchrow(LIST_JOBS)
    assert row is not None
    assert tuple(row) == (2, 1, None, False)
    assert REGISTRY.get_sample_value("onehop_jobs_postponed_total", labels) == before + 6
    assert await connection.fetchval("SELECT count(*) FROM jobs.attempts") == 0


@pytest.mark.settings(APP_MAIL_SMTP_URL=f"smtp://127.0.0.1:{free_port()}")
async def test_a_mail_server_that_is_away_is_waited_out(settings: Settings, connection: Connection) -> None:
    mail = {"to": "one@example.com", "subject": "s", "text": "t", "html": "h"}
    async with open_worker(settings) as worker:
        async with worker.db.statement("test.enqueue") as tx:
            await worker.queue.enqueue(tx, "email.send", mail, user_id=None, max_attempts=1)

        async def is_postponed() -> bool:
            return bool(await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE postponed_since IS NOT NULL"))

        await eventually(is_postponed)
    row = await connection.fetchrow("SELECT state, attempt, error FROM jobs.jobs WHERE kind = 'email.send'")
    assert row is not None
    assert tuple(row) == (0, 0, None)


async def test_an_outage_is_not_waited_out_for_ever(settings: Settings, connection: Connection) -> None:
    outage = Outage()
    outage.error = DatabaseUnavailable()
    async with open_worker(settings, needing(outage)) as worker:
        await put(worker, "test.needing")
        await eventually(lambda: outage.runs == 1)

        async def age() -> bool:
            done = await connection.execute(
                "UPDATE jobs.jobs SET run_at = now(), postponed_since = now() - $1 * interval '1 s' WHERE state = 0",
                POSTPONED_AT_MOST,
            )
            return done == "UPDATE 1"

        await eventually(age)

        async def has_failed() -> bool:
            return bool(
                await connection.fetchval("SELECT error ->> 'code' FROM jobs.jobs WHERE state = 3") == "unavailable"
            )

        await eventually(has_failed)
    assert outage.runs == 2


def test_only_outages_are_told_as_such() -> None:
    for cause, error in OUTAGES.items():
        assert outage_of(error) == cause
        wrapped = ValueError("the file cannot be written")
        wrapped.__cause__ = error
        assert outage_of(wrapped) == cause
    assert outage_of(ValueError("a fault of the handler")) is None
    assert outage_of(FileNotFoundError(errno.ENOENT, "No such file")) is None
    assert outage_of(ConnectionResetError(errno.ECONNRESET, "Connection reset")) is None


def test_a_longer_outage_is_asked_after_less_often() -> None:
    assert all(1.5 <= postponement(0.0) <= 3 for _ in range(100))
    assert all(15 <= postponement(60.0) <= 30 for _ in range(100))
    assert all(150 <= postponement(86_400.0) <= 300 for _ in range(100))


async def test_a_disk_that_refuses_is_waited_out(
    start_worker: StartWorker, settings: Settings, connection: Connection, steps: Steps
) -> None:
    """Found by running it: five attempts within two minutes, and the jobs had failed for good."""
    worker = await start_worker()
    steps.gate.set()
    folder = settings.data_dir / "artifacts"
    await asyncio.to_thread(_break, folder)
    async with worker.db.statement("test.enqueue") as tx:
        await worker.queue.enqueue(tx, "test.file", {"number": 3}, user_id=None, max_attempts=1)

    async def is_postponed() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE postponed_since IS NOT NULL"))

    await eventually(is_postponed)
    row = await connection.fetchrow("SELECT state, attempt, error FROM jobs.jobs")
    assert row is not None
    assert tuple(row) == (0, 0, None)
    await asyncio.to_thread(_mend, folder)
    await connection.execute("UPDATE jobs.jobs SET run_at = now() WHERE state = 0")
    await until_over(connection, 1)
    key = await connection.fetchval("SELECT storage_key FROM jobs.artifacts")
    files = await asyncio.to_thread(
        lambda: [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    )
    assert files == [key]
    assert await worker.store.read_all(key) == b"0\n1\n2\n"


async def test_a_download_says_that_the_files_are_away(
    person: Person, settings: Settings, connection: Connection, steps: Steps
) -> None:
    steps.gate.set()
    async with open_worker(settings, kinds_of(steps)) as worker:
        async with worker.db.statement("test.enqueue") as tx:
            job_id = await worker.queue.enqueue(tx, "test.file", {"number": 3}, user_id=UserId(person.id))
        await until_over(connection, 1)
    path = f"/v1/jobs/{job_id}/artifacts/numbers.txt"
    assert (await person.get(path)).status_code == 200
    await asyncio.to_thread((settings.data_dir / "artifacts").rename, settings.data_dir / "away")
    await asyncio.to_thread((settings.data_dir / "artifacts").write_bytes, b"")
    answer = await person.get(path)
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert int(answer.headers["retry-after"]) >= 1


async def test_an_object_store_that_is_away_is_an_outage(tmp_path: Path) -> None:
    settings = JobsSettings(
        artifact_url="s3://files/onehop",
        artifact_s3_endpoint=f"http://127.0.0.1:{free_port()}",
        artifact_s3_key_id="key",
        artifact_s3_secret=SecretStr("secret"),
    )
    store = ArtifactStore(settings, tmp_path)

    async def create() -> None:
        async with store.create(uuid4(), uuid4(), "one.txt") as (_, file):
            await file.write(b"1")

    async def list_all() -> None:
        async for _ in store.list_before(datetime.now(UTC)):
            pass

    for step in (create(), store.open("a", 0, 1), store.read_all("a"), store.delete(["a", "b", "c"]), list_all()):
        with pytest.raises(StoreUnavailable):
            await step


async def test_a_file_that_cannot_be_deleted_keeps_no_other_file(
    worker: Worker, settings: Settings, connection: Connection, steps: Steps
) -> None:
    steps.gate.set()
    for _ in range(2):
        async with worker.db.statement("test.enqueue") as tx:
            await worker.queue.enqueue(tx, "test.file", {"number": 3}, user_id=None)
    await until_over(connection, 2)
    await connection.execute("UPDATE jobs.artifacts SET expires_at = now()")
    first, second = [
        row["storage_key"]
        for row in await connection.fetch("SELECT storage_key FROM jobs.artifacts ORDER BY expires_at, storage_key")
    ]
    # A folder that is not empty, where the store expects a file.
    stuck = settings.data_dir / "artifacts" / first
    await asyncio.to_thread(stuck.unlink)
    await asyncio.to_thread((stuck / "inside").mkdir, parents=True)
    assert await expire_artifacts(worker.db, worker.store) == 1
    left = await connection.fetch("SELECT storage_key FROM jobs.artifacts WHERE deleted_at IS NULL")
    assert [row["storage_key"] for row in left] == [first]
    assert not await asyncio.to_thread((settings.data_dir / "artifacts" / second).exists)


def _break(folder: Path) -> None:
    folder.rmdir()
    folder.write_bytes(b"")


def _mend(folder: Path) -> None:
    folder.unlink()
    folder.mkdir()
