"""Writes how runs ended, in batches, and tells the rest of the program which jobs have changed.

Only the holder of its run token can end a run, so a worker that was frozen or cut off past its lease changes nothing
when it comes back. While Postgres is away, ends wait in memory and no job fails for it.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

import orjson
from prometheus_client import Counter

from app.jobs.queries import execution as queries
from app.jobs.records import NewArtifact, Outcome, State, Transition
from app.jobs.service.publishing import publish_job_ends
from app.jobs.service.submitting import Kinds
from app.jobs.service.watching import JobWatch
from app.kernel.cache import Cache
from app.kernel.clock import Clock
from app.kernel.database import ConstraintViolated, Database, InvalidValue, Tx
from app.kernel.errors import Unavailable
from app.kernel.ids import UserId
from app.kernel.observability.telemetry import get_logger
from app.kernel.queue import JobRef, Queue

_logger = get_logger(__name__)

_finished_total = Counter("onehop_jobs_finished", "Finished runs of jobs, by outcome.", ["kind", "outcome"])
_retries_total = Counter("onehop_jobs_retries", "Failed runs of jobs that will be retried.", ["kind"])

_DATABASE_RETRY_SECONDS = 0.5
_ANNOUNCE_SECONDS = 0.02
_BATCH = 500


class LeaseLost(Exception):
    """Another worker owns the job by now; whatever this run did must not be kept."""


@dataclass(slots=True)
class _End:
    kind: str
    user_id: UserId | None
    outcome: Outcome
    artifacts: Sequence[NewArtifact]
    written: "asyncio.Future[bool]"


class CompletionWriter:
    """One per worker process. `write_for_ever` and `announce_for_ever` run for as long as it lives."""

    def __init__(
        self, db: Database, cache: Cache, queue: Queue, *, clock: Clock, watch: JobWatch, kinds: Kinds
    ) -> None:
        self._db = db
        self._cache = cache
        self._queue = queue
        self._clock = clock
        self._watch = watch
        self._kinds = kinds
        self._ends: list[_End] = []
        self._ends_ready = asyncio.Event()
        self._changes: list[tuple[UUID, UserId | None]] = []
        self._changes_ready = asyncio.Event()

    async def add(self, kind: str, user_id: UserId | None, outcome: Outcome, artifacts: Sequence[NewArtifact]) -> bool:
        """Returns once the end is written; whether the run still owned its job. A caller may go away meanwhile.

        Also false if it was written by a try whose answer got lost.
        """
        end = _End(kind, user_id, outcome, artifacts, asyncio.get_running_loop().create_future())
        self._ends.append(end)
        self._ends_ready.set()
        return await asyncio.shield(end.written)

    def announce_changes(self, changes: Iterable[tuple[UUID, UserId | None]]) -> None:
        """These jobs have changed, each with the user whose cached answers must be forgotten."""
        self._changes.extend(changes)
        if self._changes:
            self._changes_ready.set()

    async def complete(self, tx: Tx, kind: str, outcome: Outcome, artifacts: Sequence[NewArtifact]) -> None:
        """Ends a run inside the handler's own transaction.

        Raises:
            LeaseLost
        """
        changes = await queries.finish_jobs(tx, [outcome], artifacts)
        if not changes:
            raise LeaseLost
        await publish_job_ends(tx, self._queue, changes, self._is_public, self._clock.now())

        async def committed() -> None:
            _count(kind, outcome)
            self.announce_changes((change.id, change.user_id) for change in changes)

        tx.after_commit(committed)

    async def write_for_ever(self) -> None:
        """Writes the ends of runs, all that are there in one statement."""
        while True:
            await self._ends_ready.wait()
            self._ends_ready.clear()
            while self._ends:
                batch, self._ends = self._ends[:_BATCH], self._ends[_BATCH:]
                await self._write(batch)

    async def announce_for_ever(self) -> None:
        """Tells caches and watchers of changed jobs; best effort and never in the way of a job."""
        while True:
            await self._changes_ready.wait()
            self._changes_ready.clear()
            changes, self._changes = self._changes, []
            tags = {f"jobs:{user_id}" for _, user_id in changes if user_id is not None}
            if tags:
                await self._cache.forget_now(sorted(tags))
            await self._watch.publish([job_id for job_id, _ in changes])
            # The first change is told at once; those that follow closely share a message.
            await asyncio.sleep(_ANNOUNCE_SECONDS)

    async def _write(self, batch: list[_End]) -> None:
        try:
            changes = await self._finish(batch)
        except (InvalidValue, ConstraintViolated):
            await self._write_one_by_one(batch)
            return
        self.announce_changes((change.id, change.user_id) for change in changes)
        kinds = {change.id: change.kind for change in changes}
        for end in batch:
            kind = kinds.get(end.outcome.job_id)
            if kind is not None:
                _count(kind, end.outcome)
            if not end.written.done():
                end.written.set_result(kind is not None)

    async def _finish(self, batch: list[_End]) -> list[Transition]:
        artifacts = [file for end in batch for file in end.artifacts]
        while True:
            try:
                # Only the end of what a user asked for is an event; all others are one statement.
                unit = self._db.transaction if self._may_be_event(batch) else self._db.statement
                async with unit("jobs.finish") as tx:
                    changes = await queries.finish_jobs(tx, [end.outcome for end in batch], artifacts)
                    await publish_job_ends(tx, self._queue, changes, self._is_public, self._clock.now())
                    for change in changes:
                        if change.state == State.QUEUED:
                            self._redispatch(tx, change, batch)
                return changes
            except (InvalidValue, ConstraintViolated):
                raise
            except Exception as error:
                # An end is never given up: what the handler did would be done again.
                if not isinstance(error, Unavailable):
                    _logger.exception("jobs.completions_not_written", count=len(batch))
                await asyncio.sleep(_DATABASE_RETRY_SECONDS)
                # It may have been written all the same, and then the next try finds nothing that has changed.
                self.announce_changes((end.outcome.job_id, end.user_id) for end in batch)

    def _may_be_event(self, batch: list[_End]) -> bool:
        return any(end.outcome.state in (State.SUCCEEDED, State.FAILED) and self._is_public(end.kind) for end in batch)

    def _is_public(self, kind: str) -> bool:
        return kind in self._kinds and self._kinds[kind].public

    async def _write_one_by_one(self, batch: list[_End]) -> None:
        """One result that Postgres refuses must not keep the others from being written."""
        for end in batch:
            if len(batch) == 1:
                error = orjson.dumps({"code": "invalid_result", "message": "The result cannot be stored."}).decode()
                end.outcome = Outcome(end.outcome.job_id, end.outcome.run_token, State.FAILED, error=error)
                end.artifacts = ()
            await self._write([end])

    def _redispatch(self, tx: Tx, change: Transition, batch: list[_End]) -> None:
        """A job that was handed back goes straight to another worker."""
        if any(end.outcome.job_id == change.id and end.outcome.delay == 0 for end in batch):
            self._queue.redispatch(tx, JobRef(change.id, change.queue, change.user_id, change.priority))


def _count(kind: str, outcome: Outcome) -> None:
    name = "retried" if outcome.state is State.QUEUED else outcome.state.name.lower()
    _finished_total.labels(kind, name).inc()
    if outcome.state is State.QUEUED and outcome.error is not None:
        _retries_total.labels(kind).inc()
