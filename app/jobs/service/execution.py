"""The worker's side of Postgres: claims, runs and finishes jobs, and keeps the leases of the running ones.

Claims and ends are written in batches. Whoever ends a run must hold its run token, so a worker that was frozen or cut
off past its lease changes nothing when it comes back. While Postgres is away, ends wait in memory and no job fails for
it.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import orjson
from prometheus_client import Counter, Histogram
from pydantic import ValidationError

from app.jobs.queries import execution as queries
from app.jobs.records import MAX_RESCUES, ClaimedJob, NewArtifact, Outcome, State, Transition, retry_delay
from app.jobs.service.publishing import publish_job_ends
from app.jobs.service.storage import ArtifactStore, StoredFile
from app.jobs.service.submitting import Kinds
from app.jobs.service.watching import JobWatch
from app.jobs.settings import JobsSettings
from app.kernel.cache import Cache
from app.kernel.clock import Clock
from app.kernel.database import ConstraintViolated, Database, InvalidValue, Tx
from app.kernel.errors import Unavailable
from app.kernel.ids import UserId
from app.kernel.queue import JobRef, PermanentJobError, Queue, RetryJob, SnoozeJob
from app.kernel.queue.slots import Runner
from app.kernel.telemetry import get_logger, request_id_var, trace_parent_var

_logger = get_logger(__name__)

_finished_total = Counter("app_jobs_finished", "Ends of runs.", ["kind", "outcome"])
_pickup_seconds = Histogram(
    "app_jobs_pickup_seconds",
    "From when a job was due to the start of its handler.",
    ["lane"],
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 120, 600, 3600),
)
_run_seconds = Histogram(
    "app_jobs_run_seconds",
    "How long handlers ran.",
    ["kind"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)

_UNKNOWN_KIND_SECONDS = 30.0
_UNAVAILABLE_SECONDS = 3.0
_PROGRESS_SECONDS = 0.5
_DATABASE_RETRY_SECONDS = 0.5
_ANNOUNCE_SECONDS = 0.02
_BATCH = 500
_LANES_SECONDS = 3.0


class LeaseLost(Exception):
    """Another worker owns the job by now; whatever this run did must not be kept."""


@dataclass(slots=True)
class _End:
    kind: str
    outcome: Outcome
    artifacts: list[NewArtifact]
    written: "asyncio.Future[bool]"


@dataclass(slots=True)
class _Run:
    """A job in this process. `progress` is JSON text that has not been written yet."""

    job: ClaimedJob
    runner: Runner
    progress: str | None = None
    artifacts: list[NewArtifact] = field(default_factory=list)
    stored_keys: list[str] = field(default_factory=list)
    completed: bool = False


class Executor:
    """One per worker process. `maintain`, `write_ends` and `announce` run for as long as it lives."""

    def __init__(
        self,
        db: Database,
        cache: Cache,
        queue: Queue,
        *,
        clock: Clock,
        store: ArtifactStore,
        watch: JobWatch,
        kinds: Kinds,
        settings: JobsSettings,
        worker_id: str,
    ) -> None:
        self.db = db
        self.cache = cache
        self.queue = queue
        self.clock = clock
        self.store = store
        self.settings = settings
        self._watch = watch
        self._kinds = kinds
        self._worker_id = worker_id
        self._runs: dict[UUID, _Run] = {}
        self._ends: list[_End] = []
        self._ends_ready = asyncio.Event()
        self._changes: list[tuple[UUID, UserId | None]] = []
        self._changes_ready = asyncio.Event()

    async def claim(self, ids: Sequence[UUID], _: Runner) -> Sequence[ClaimedJob]:
        """Those of `ids` that are this worker's now."""
        async with self.db.statement("jobs.claim") as tx:
            jobs = await queries.claim_jobs(
                tx,
                ids,
                run_token=uuid4(),
                worker_id=self._worker_id,
                lease_seconds=self.settings.lease,
                user_cap=self.settings.user_running,
            )
        self._note_changes((job.id, job.user_id) for job in jobs)
        turn = {job_id: number for number, job_id in enumerate(ids)}
        return sorted(jobs, key=lambda job: turn[job.id])

    async def claim_direct(self, wants: Mapping[str, int], total: int) -> Sequence[ClaimedJob]:
        """Due jobs of the wanted lanes, found without Redis."""
        async with self.db.statement("jobs.claim_direct") as tx:
            jobs = await queries.claim_next_jobs(
                tx,
                list(wants.items()),
                total,
                run_token=uuid4(),
                worker_id=self._worker_id,
                lease_seconds=self.settings.lease,
            )
        self._note_changes((job.id, job.user_id) for job in jobs)
        return jobs

    async def run(self, job: ClaimedJob, runner: Runner) -> None:
        """Runs one claimed job and writes how it ended."""
        # Each job has a task, and so a context, of its own: every line its handler logs can be found by these two.
        request_id_var.set(str(job.id))
        trace_parent_var.set(job.trace_parent)
        run = _Run(job, runner)
        self._runs[job.id] = run
        _pickup_seconds.labels(job.lane).observe(max(0.0, (self.clock.now() - job.ready_at).total_seconds()))
        started = monotonic()
        try:
            outcome = await self._handle(run)
            if outcome is None:
                return
            _run_seconds.labels(job.kind).observe(monotonic() - started)
            end = _End(job.kind, outcome, run.artifacts if outcome.state is State.SUCCEEDED else [], _new_future())
            self._ends.append(end)
            self._ends_ready.set()
            kept = await asyncio.shield(end.written)
            if not kept or outcome.state is not State.SUCCEEDED:
                await self._discard(run)
        except asyncio.CancelledError:
            # A second cancel while the end was being written. The end stays in the batch and is written all the same.
            _logger.info("jobs.cancelled_while_ending", job_id=str(job.id))
            raise
        finally:
            del self._runs[job.id]

    async def write_ends(self) -> None:
        """Writes the ends of runs, all that are there in one statement, for ever."""
        while True:
            await self._ends_ready.wait()
            self._ends_ready.clear()
            while self._ends:
                batch, self._ends = self._ends[:_BATCH], self._ends[_BATCH:]
                await self._write(batch)

    async def announce(self) -> None:
        """Tells caches and watchers of changed jobs, for ever; best effort and never in the way of a job."""
        while True:
            await self._changes_ready.wait()
            self._changes_ready.clear()
            changes, self._changes = self._changes, []
            tags = {f"jobs:{user_id}" for _, user_id in changes if user_id is not None}
            if tags:
                await self.cache.forget_now(sorted(tags))
            await self._watch.publish([job_id for job_id, _ in changes])
            # The first change is told at once; those that follow closely share a message.
            await asyncio.sleep(_ANNOUNCE_SECONDS)

    async def maintain(self, runner: Runner) -> None:
        """Prolongs leases, writes progress, learns of cancels, lost leases and paused lanes, for ever."""
        next_beat = monotonic() + self.settings.heartbeat
        next_lanes = 0.0
        while True:
            if runner.lanes_changed or monotonic() >= next_lanes:
                runner.lanes_changed = False
                next_lanes = monotonic() + _LANES_SECONDS
                await self._read_lanes(runner)
            await asyncio.sleep(min(_PROGRESS_SECONDS, self.settings.heartbeat))
            due = monotonic() >= next_beat
            runs = [run for run in self._runs.values() if (due or run.progress is not None) and not run.completed]
            if due:
                next_beat = monotonic() + self.settings.heartbeat
            if runs:
                try:
                    await self._beat(runs)
                except Unavailable:
                    _logger.warning("jobs.heartbeat_without_database", running=len(runs))

    async def complete(self, run: _Run, tx: Tx, result: Mapping[str, Any] | None) -> None:
        """Ends the run inside the handler's own transaction."""
        outcome = Outcome(run.job.id, run.job.run_token, State.SUCCEEDED, result=_to_json(result))
        changes = await queries.finish_jobs(tx, [outcome], run.artifacts)
        if not changes:
            raise LeaseLost
        await publish_job_ends(tx, self.queue, changes, self._is_public, self.clock.now())

        async def committed() -> None:
            run.completed = True
            self._count(run.job.kind, outcome)
            self._note_changes([(run.job.id, run.job.user_id)])

        tx.after_commit(committed)

    async def _handle(self, run: _Run) -> Outcome | None:  # noqa: PLR0911 - one answer for each way to end
        job = run.job
        kind = self._kinds.get(job.kind)
        if kind is None:
            # A newer release knows it; this worker is about to be replaced.
            return self._again(job, _UNKNOWN_KIND_SECONDS, give_back=True)
        try:
            args = kind.args.model_validate_json(job.args, extra="ignore")
        except ValidationError:
            return self._failed(job, "invalid_args", "The arguments do not fit this kind of job.")
        limit = asyncio.timeout(job.timeout_seconds)
        try:
            async with limit:
                result = await kind.handler(RunContext(self, run), args)
        except asyncio.CancelledError:
            return self._stopped(run)
        except (LeaseLost, SnoozeJob, RetryJob, PermanentJobError, Unavailable) as signal:
            return None if run.completed else self._signalled(run, signal)
        except Exception as error:
            if run.completed:
                _logger.exception("jobs.failed_after_completion", job_id=str(job.id), kind=job.kind)
                return None
            if limit.expired():
                return self._retry(run, "timeout", f"The job took longer than {job.timeout_seconds} s.")
            _logger.exception("jobs.attempt_failed", job_id=str(job.id), kind=job.kind, attempt=job.attempt)
            return self._retry(run, "internal_error", f"An unexpected error occurred ({type(error).__name__}).")
        if run.completed:
            return None
        return Outcome(job.id, job.run_token, State.SUCCEEDED, result=_to_json(result))

    def _stopped(self, run: _Run) -> Outcome | None:
        reason = run.runner.reasons.get(run.job.id)
        if run.completed or reason == "lease_lost":
            return None
        task = asyncio.current_task()
        if reason is None or task is None:
            raise asyncio.CancelledError
        task.uncancel()
        if reason == "cancelled":
            error = _to_json({"code": "cancelled", "message": "The job was cancelled."})
            return Outcome(run.job.id, run.job.run_token, State.CANCELLED, error=error)
        return self._again(run.job, 0.0, give_back=True)

    def _signalled(self, run: _Run, signal: Exception) -> Outcome | None:
        job = run.job
        match signal:
            case LeaseLost():
                return None
            case SnoozeJob():
                return self._again(job, signal.seconds, give_back=True)
            case RetryJob():
                return self._retry(run, signal.code, str(signal), delay=signal.seconds)
            case PermanentJobError():
                return self._failed(job, signal.code, str(signal))
            case _:
                # Something we depend on is away. That costs no attempt, as long as it does not happen to this job
                # alone.
                if job.rescues + 1 < MAX_RESCUES:
                    outcome = self._again(
                        job, retry_delay(1, _UNAVAILABLE_SECONDS, _UNAVAILABLE_SECONDS), give_back=True
                    )
                    return replace(outcome, rescued=True)
                return self._retry(run, "unavailable", "Something this job needs did not answer.")

    def _retry(self, run: _Run, code: str, message: str, *, delay: float | None = None) -> Outcome:
        job = run.job
        if job.attempt >= job.max_attempts:
            return self._failed(job, code, message)
        kind = self._kinds[job.kind]
        if delay is None:
            delay = retry_delay(job.attempt, kind.backoff_base, kind.backoff_cap)
        error = _to_json({"code": code, "message": message})
        return Outcome(job.id, job.run_token, State.QUEUED, error=error, delay=delay)

    def _again(self, job: ClaimedJob, delay: float, *, give_back: bool) -> Outcome:
        return Outcome(job.id, job.run_token, State.QUEUED, delay=delay, give_back=give_back)

    def _failed(self, job: ClaimedJob, code: str, message: str) -> Outcome:
        error = _to_json({"code": code, "message": message})
        return Outcome(job.id, job.run_token, State.FAILED, error=error)

    async def _write(self, batch: list[_End]) -> None:
        try:
            changes = await self._finish(batch)
        except (InvalidValue, ConstraintViolated):
            await self._write_one_by_one(batch)
            return
        self._note_changes((change.id, change.user_id) for change in changes)
        kinds = {change.id: change.kind for change in changes}
        for end in batch:
            kind = kinds.get(end.outcome.job_id)
            if kind is not None:
                self._count(kind, end.outcome)
            if not end.written.done():
                end.written.set_result(kind is not None)

    async def _finish(self, batch: list[_End]) -> list[Transition]:
        artifacts = [file for end in batch for file in end.artifacts]
        while True:
            try:
                # Only the end of what a user asked for is an event; all others are one statement.
                unit = self.db.transaction if self._may_be_event(batch) else self.db.statement
                async with unit("jobs.finish") as tx:
                    changes = await queries.finish_jobs(tx, [end.outcome for end in batch], artifacts)
                    await publish_job_ends(tx, self.queue, changes, self._is_public, self.clock.now())
                    for change in changes:
                        if change.state == State.QUEUED:
                            self._redispatch(tx, change, batch)
                return changes
            except (InvalidValue, ConstraintViolated):
                raise
            except Exception as error:
                # An end is never given up: what the handler did would be done again.
                if not isinstance(error, Unavailable):
                    _logger.exception("jobs.ends_not_written", count=len(batch))
                await asyncio.sleep(_DATABASE_RETRY_SECONDS)

    def _may_be_event(self, batch: list[_End]) -> bool:
        return any(end.outcome.state in (State.SUCCEEDED, State.FAILED) and self._is_public(end.kind) for end in batch)

    def _is_public(self, kind: str) -> bool:
        return kind in self._kinds and self._kinds[kind].public

    async def _write_one_by_one(self, batch: list[_End]) -> None:
        """One result that Postgres refuses must not keep the others from being written."""
        for end in batch:
            if len(batch) == 1:
                error = _to_json({"code": "invalid_result", "message": "The result cannot be stored."})
                end.outcome = Outcome(end.outcome.job_id, end.outcome.run_token, State.FAILED, error=error)
                end.artifacts = []
            await self._write([end])

    def _redispatch(self, tx: Tx, change: Transition, batch: list[_End]) -> None:
        """A job that was handed back goes straight to another worker."""
        if any(end.outcome.job_id == change.id and end.outcome.delay == 0 for end in batch):
            self.queue.redispatch(tx, JobRef(change.id, change.lane, change.user_id, change.priority))

    async def _read_lanes(self, runner: Runner) -> None:
        try:
            async with self.db.read("jobs.lanes") as conn:
                runner.paused = frozenset(await queries.list_paused_lanes(conn))
        except Unavailable:
            return
        runner.wake()

    async def _beat(self, runs: list[_Run]) -> None:
        progress = [run.progress for run in runs]
        async with self.db.statement("jobs.heartbeat") as tx:
            beats = await queries.beat(
                tx,
                [(run.job.id, run.job.run_token) for run in runs],
                progress,
                lease_seconds=self.settings.lease,
            )
        alive = {beat.id: beat for beat in beats}
        for run, written in zip(runs, progress, strict=True):
            beat = alive.get(run.job.id)
            # A run that ended meanwhile is no longer in the answer, and needs none.
            if self._runs.get(run.job.id) is not run or run.completed:
                continue
            if beat is None:
                if not any(end.outcome.job_id == run.job.id for end in self._ends):
                    run.runner.cancel(run.job.id, "lease_lost")
                continue
            if run.progress is written:
                run.progress = None
            if written is not None:
                self._note_changes([(run.job.id, None)])
            if beat.cancel_requested:
                run.runner.cancel(run.job.id, "cancelled")

    async def _discard(self, run: _Run) -> None:
        """Deletes the files of a run that did not succeed; what is left after a crash the janitor finds."""
        if run.stored_keys:
            try:
                await self.store.delete(run.stored_keys)
            except OSError:
                _logger.warning("jobs.files_left_behind", job_id=str(run.job.id))

    def _note_changes(self, changes: Any) -> None:
        self._changes.extend(changes)
        if self._changes:
            self._changes_ready.set()

    def _count(self, kind: str, outcome: Outcome) -> None:
        name = "retried" if outcome.state is State.QUEUED else outcome.state.name.lower()
        _finished_total.labels(kind, name).inc()


class RunContext:
    """What a handler gets (`kernel.queue.JobContext`)."""

    def __init__(self, executor: Executor, run: _Run) -> None:
        self.job_id = run.job.id
        self.user_id = run.job.user_id
        self.attempt = run.job.attempt
        self.created_at = run.job.created_at
        self.db = executor.db
        self.cache = executor.cache
        self.queue = executor.queue
        self.clock = executor.clock
        self._executor = executor
        self._run = run

    async def progress(self, done: int, total: int | None = None, message: str | None = None) -> None:
        self._run.progress = _to_json({"done": done, "total": total, "message": message})

    @asynccontextmanager
    async def artifact(self, name: str, content_type: str) -> AsyncIterator[StoredFile]:
        run = self._run
        async with self._executor.store.create(run.job.id, run.job.run_token, name) as (key, file):
            run.stored_keys.append(key)
            yield file
        run.artifacts.append(
            NewArtifact(
                job_id=run.job.id,
                name=name,
                content_type=content_type,
                size=file.size,
                sha256=file.hash.digest(),
                storage_key=key,
                expires_at=self.clock.now() + timedelta(days=self._executor.settings.artifact_days),
            )
        )

    @asynccontextmanager
    async def transaction(self, label: str) -> AsyncIterator[Tx]:
        async with self.db.transaction(label) as tx:
            if not await queries.lock_run(tx, self._run.job.id, self._run.job.run_token):
                raise LeaseLost
            yield tx

    async def complete(self, tx: Tx, result: Mapping[str, Any] | None = None) -> None:
        await self._executor.complete(self._run, tx, result)


def _to_json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _new_future() -> "asyncio.Future[bool]":
    return asyncio.get_running_loop().create_future()
