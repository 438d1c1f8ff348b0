"""The worker's side of Postgres: claims and runs jobs, judges how runs ended, and keeps the leases of running ones."""

import asyncio
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

from prometheus_client import Gauge, Histogram
from pydantic import ValidationError

from app.jobs.queries import execution as queries
from app.jobs.queries.cleaning import list_published_keys
from app.jobs.records import (
    POSTPONED_AT_MOST,
    ClaimedJob,
    Outcome,
    State,
    postponement,
    retry_delay,
)
from app.jobs.service.completion import CompletionWriter, LeaseLost
from app.jobs.service.outages import OutageLog, is_database_prompt, is_statement_timeout, outage_of
from app.jobs.service.run_context import JobServices, Run, RunContext, to_json
from app.jobs.service.submitting import Kinds
from app.jobs.service.turns import Turns
from app.jobs.service.watching import JobWatch
from app.jobs.settings import JobsSettings
from app.kernel.database import Tx, retries_conflicts
from app.kernel.errors import Unavailable
from app.kernel.observability.telemetry import get_logger, request_id_var, trace_parent_var
from app.kernel.queue import PermanentJobError, RetryJob, SnoozeJob
from app.kernel.queue.slots import Claim, Runner

_logger = get_logger(__name__)

_pickup_seconds = Histogram(
    "onehop_jobs_pickup_seconds",
    "Delay from when a job was due to the start of its handler, in seconds.",
    ["queue"],
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 120, 600, 3600),
)
RUN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_run_seconds = Histogram(
    "onehop_jobs_run_seconds",
    "Duration of job handlers in seconds.",
    ["kind"],
    buckets=RUN_BUCKETS,
)

_slots = Gauge("onehop_jobs_worker_slots", "Worker slots, by state.", ["state"], multiprocess_mode="livesum")

_UNKNOWN_KIND_SECONDS = 30.0
_PROGRESS_SECONDS = 0.5
_QUEUES_SECONDS = 3.0


class Executor:
    """One per worker process. `maintain` and the loops of `completions` run for as long as it lives."""

    def __init__(
        self,
        services: JobServices,
        *,
        watch: JobWatch,
        kinds: Kinds,
        settings: JobsSettings,
        caps: Mapping[str, int],
        worker_id: str,
    ) -> None:
        """`caps`: how many jobs of one user run at a time, by queue."""
        self.db = services.db
        self.services = services
        self.settings = settings
        self._kinds = kinds
        self._worker_id = worker_id
        self._caps = caps
        self._turns = Turns(caps)
        self._outages = OutageLog()
        self._runs: dict[UUID, Run] = {}
        self.completions = CompletionWriter(
            services.db, services.cache, services.queue, clock=services.clock, watch=watch, kinds=kinds
        )

    async def claim(self, ids: Sequence[UUID], _: Runner) -> Claim:
        """Those of `ids` that are this worker's now."""
        async with self.db.statement("jobs.claim") as tx:
            jobs = await self._claim(tx, ids)
        undecided: Sequence[UUID] = ()
        if len(jobs) < len(ids):
            async with self.db.read("jobs.undecided") as conn:
                undecided = await queries.list_undecided_jobs(conn, ids)
        return Claim(jobs, undecided)

    @retries_conflicts
    async def claim_direct(self, free_slots: Mapping[str, int], total: int) -> Sequence[ClaimedJob]:
        """Due jobs of the wanted queues, found without Redis: those that should be there, then the waiting ones."""
        async with self.db.transaction("jobs.claim_direct") as tx:
            ids = await queries.take_dispatched_jobs(tx, free_slots, total)
            for queue, want in free_slots.items():
                if len(ids) < total:
                    ids += [job.id for job in await self._turns.take(tx, queue, min(want, total - len(ids)))]
            return await self._claim(tx, ids) if ids else []

    async def _claim(self, tx: Tx, ids: Sequence[UUID]) -> list[ClaimedJob]:
        """Claims in the order of `ids`."""
        jobs = await queries.claim_jobs(
            tx,
            ids,
            run_token=uuid4(),
            worker_id=self._worker_id,
            lease_seconds=self.settings.lease,
            caps=self._caps,
        )
        self.completions.announce_changes((job.id, job.user_id) for job in jobs)
        turn = {job_id: number for number, job_id in enumerate(ids)}
        return sorted(jobs, key=lambda job: turn[job.id])

    async def run(self, job: ClaimedJob, runner: Runner) -> None:
        """Runs one claimed job and writes how it ended."""
        # Each job has a task, and so a context, of its own: every line its handler logs can be found by these two.
        request_id_var.set(str(job.id))
        trace_parent_var.set(job.trace_parent)
        run = Run(job, runner)
        self._runs[job.id] = run
        _pickup_seconds.labels(job.queue).observe(max(0.0, job.waited))
        started = monotonic()
        try:
            outcome = await self._handle(run)
            if outcome is None:
                return
            _run_seconds.labels(job.kind).observe(monotonic() - started)
            artifacts = run.artifacts if outcome.state is State.SUCCEEDED else []
            run.ended = True
            kept = await self.completions.add(job.kind, job.user_id, outcome, artifacts)
            if not kept or outcome.state is not State.SUCCEEDED:
                await self._discard(run)
        except asyncio.CancelledError:
            # A second cancel while the end was being written. The end stays in the batch and is written all the same.
            _logger.info("jobs.cancelled_while_ending", job_id=str(job.id))
            raise
        finally:
            del self._runs[job.id]

    async def maintain(self, runner: Runner) -> None:
        """Prolongs leases, writes progress, learns of cancels, lost leases and paused queues, for ever."""
        next_extension = monotonic() + self.settings.heartbeat
        next_queues = 0.0
        while True:
            if runner.queues_changed or monotonic() >= next_queues:
                runner.queues_changed = False
                next_queues = monotonic() + _QUEUES_SECONDS
                await self._read_queues(runner)
            await asyncio.sleep(min(_PROGRESS_SECONDS, self.settings.heartbeat))
            runner.maintained_at = monotonic()
            _slots.labels("used").set(len(runner.tasks))
            _slots.labels("total").set(runner.slots)
            due = monotonic() >= next_extension
            runs = [run for run in self._runs.values() if (due or run.progress is not None) and not run.completed]
            if due:
                next_extension = monotonic() + self.settings.heartbeat
            try:
                if runs:
                    await self._extend_leases(runs)
                if due:
                    runner.leases_kept_at = monotonic()
            except Unavailable:
                _logger.warning("jobs.heartbeat_postponed", running=len(runs))

    async def complete(self, run: Run, tx: Tx, result: Mapping[str, Any] | None) -> None:
        """Ends the run inside the handler's own transaction."""
        outcome = Outcome(run.job.id, run.job.run_token, State.SUCCEEDED, result=to_json(result), progress=run.progress)
        await self.completions.complete(tx, run.job.kind, outcome, run.artifacts)

        async def committed() -> None:
            run.completed = True

        tx.after_commit(committed)

    async def _handle(self, run: Run) -> Outcome | None:  # noqa: PLR0911 - one answer for each way to end
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
                result = await kind.handler(RunContext(run, self.services, self.complete), args)
        except asyncio.CancelledError:
            return self._stopped(run)
        except (LeaseLost, SnoozeJob, RetryJob, PermanentJobError) as signal:
            return None if run.completed else self._signalled(run, signal)
        except Exception as error:
            if run.completed:
                _logger.exception("jobs.failed_after_completion", job_id=str(job.id), kind=job.kind)
                return None
            if (cause := outage_of(error)) is not None:
                return await self._postponed(run, cause, error)
            if limit.expired():
                return self._retry(run, "timeout", f"The job took longer than {job.timeout_seconds} s.")
            _logger.exception("jobs.attempt_failed", job_id=str(job.id), kind=job.kind, attempt=job.attempt)
            return self._retry(run, "internal_error", f"An unexpected error occurred ({type(error).__name__}).")
        if run.completed:
            return None
        return Outcome(job.id, job.run_token, State.SUCCEEDED, result=to_json(result), progress=run.progress)

    def _stopped(self, run: Run) -> Outcome | None:
        reason = run.runner.reasons.get(run.job.id)
        if run.completed or reason == "lease_lost":
            return None
        task = asyncio.current_task()
        if reason is None or task is None:
            raise asyncio.CancelledError
        task.uncancel()
        if reason == "cancelled":
            error = to_json({"code": "cancelled", "message": "The job was cancelled."})
            return Outcome(run.job.id, run.job.run_token, State.CANCELLED, error=error)
        return self._again(run.job, 0.0, give_back=True)

    def _signalled(self, run: Run, signal: Exception) -> Outcome | None:
        job = run.job
        match signal:
            case LeaseLost():
                return None
            case SnoozeJob():
                return self._again(job, signal.seconds, give_back=True)
            case RetryJob():
                return self._retry(run, signal.code, str(signal), delay=signal.seconds, least_age=signal.least_age)
            case PermanentJobError():
                return self._failed(job, signal.code, str(signal))
            case _:
                raise TypeError(f"no signal of a handler: {signal!r}")

    async def _postponed(self, run: Run, cause: str, error: Exception) -> Outcome:
        """Something we depend on is away. That costs no attempt, but it does not go on for ever."""
        job = run.job
        if job.postponed is not None and is_statement_timeout(error) and await is_database_prompt(self.db):
            # Twice in a row, and the database answers others: it is the job that asks too much of it.
            return self._retry(run, "timeout", "The database took too long over what this job reads.")
        self._outages.record_outage(job.kind, cause, error)
        age = job.postponed or 0.0
        if age >= POSTPONED_AT_MOST:
            return self._failed(job, "unavailable", "Something this job needs has been away for days.")
        return Outcome(job.id, job.run_token, State.QUEUED, delay=postponement(age), give_back=True, postponed=True)

    def _retry(
        self, run: Run, code: str, message: str, *, delay: float | None = None, least_age: float = 0.0
    ) -> Outcome:
        job = run.job
        is_last = job.attempt >= job.max_attempts
        if is_last and (self.services.clock.now() - job.created_at).total_seconds() >= least_age:
            return self._failed(job, code, message)
        kind = self._kinds[job.kind]
        if delay is None:
            delay = retry_delay(job.attempt, kind.backoff_base, kind.backoff_cap)
        error = to_json({"code": code, "message": message})
        return Outcome(job.id, job.run_token, State.QUEUED, error=error, delay=delay, give_back=is_last)

    def _again(self, job: ClaimedJob, delay: float, *, give_back: bool) -> Outcome:
        return Outcome(job.id, job.run_token, State.QUEUED, delay=delay, give_back=give_back)

    def _failed(self, job: ClaimedJob, code: str, message: str) -> Outcome:
        error = to_json({"code": code, "message": message})
        return Outcome(job.id, job.run_token, State.FAILED, error=error)

    async def _read_queues(self, runner: Runner) -> None:
        try:
            async with self.db.read("jobs.queues") as conn:
                runner.paused = frozenset(await queries.list_paused_queues(conn))
        except Unavailable:
            return
        runner.wake()

    async def _extend_leases(self, runs: list[Run]) -> None:
        progress = [run.progress for run in runs]
        async with self.db.statement("jobs.heartbeat") as tx:
            heartbeats = await queries.extend_leases(
                tx,
                [(run.job.id, run.job.run_token) for run in runs],
                progress,
                lease_seconds=self.settings.lease,
            )
        alive = {heartbeat.id: heartbeat for heartbeat in heartbeats}
        for run, written in zip(runs, progress, strict=True):
            heartbeat = alive.get(run.job.id)
            # A run that ended meanwhile is no longer in the answer, and needs none.
            if self._runs.get(run.job.id) is not run or run.completed:
                continue
            if heartbeat is None:
                if not run.ended:
                    run.runner.cancel(run.job.id, "lease_lost")
                continue
            if run.progress is written:
                run.progress = None
            if written is not None:
                self.completions.announce_changes([(run.job.id, None)])
            if heartbeat.cancel_requested:
                run.runner.cancel(run.job.id, "cancelled")

    async def _discard(self, run: Run) -> None:
        """Deletes the files of a run that did not succeed; what is left after a crash the janitor finds."""
        if not run.stored_keys:
            return
        try:
            # A success whose answer got lost looks like a lost lease, but has published them.
            async with self.db.read("jobs.published_files") as conn:
                published = set(await list_published_keys(conn, run.stored_keys))
            await self.services.store.delete([key for key in run.stored_keys if key not in published])
        except (OSError, Unavailable):
            _logger.warning("jobs.files_orphaned", job_id=str(run.job.id))
