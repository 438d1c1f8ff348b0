"""What administrators ask for and see: jobs of all users, and what is done with many of them."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from typing_extensions import TypeAliasType

from app.jobs.records import STATE_FILTERS, JobState, State, StateFilter
from app.kernel.ids import UserId, first_id_of

BulkAction = TypeAliasType("BulkAction", Literal["retry", "cancel", "delete"])

# The states in which an action finds something to do.
STATES_OF_ACTION: dict[BulkAction, frozenset[State]] = {
    "retry": frozenset({State.FAILED, State.CANCELLED}),
    "cancel": frozenset({State.QUEUED, State.RUNNING}),
    "delete": frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED}),
}
# Seconds. An id has the time at which its host made it; `created_at` is when its transaction began in the database.
_ID_SLACK = 10.0
_LOWEST, _HIGHEST = UUID(int=0), UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs are meant; None does not matter. `error` is a code; `since` and `until` are about `created_at`."""

    state: JobState | None = None
    kind: str | None = None
    queue: str | None = None
    user_id: UserId | None = None
    error: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def state_filter(self) -> StateFilter | None:
        return None if self.state is None else STATE_FILTERS[self.state]

    def is_exact(self, states: Collection[State] | None) -> bool:
        """Whether an index finds exactly the jobs that are meant, in these stored states, None: in any; otherwise a
        search also reads others.
        """
        is_narrow = self.state_filter is not None and self.state_filter.is_narrower
        if is_narrow or self.since is not None or self.until is not None:
            return False
        if self.user_id is not None:
            return (self.kind, self.queue, self.error) == (None, None, None)
        return self.error is None or (states, self.kind, self.queue) == (None, None, None)

    @property
    def lowest_id(self) -> UUID:
        """No job that is meant has a lower one."""
        return _LOWEST if self.since is None else lowest_id_since(self.since)

    @property
    def end_id(self) -> UUID:
        """Every job that is meant has a lower one."""
        return _HIGHEST if self.until is None else end_id_until(self.until)


def lowest_id_since(moment: datetime) -> UUID:
    """No row of `moment` or later has a lower id, whichever host made it."""
    return first_id_of(moment, -_ID_SLACK)


def end_id_until(moment: datetime) -> UUID:
    """Every row of before `moment` has a lower id, whichever host made it."""
    return first_id_of(moment, _ID_SLACK)


@dataclass(frozen=True, slots=True)
class JobDetail:
    """A job as an administrator sees it by itself. `attempts` and `artifacts` are JSON arrays in the API's shape."""

    id: UUID
    user_id: UserId | None
    kind: str
    queue: str
    state: int
    attempt: int
    max_attempts: int
    rescues: int
    is_due: bool
    worker_id: str | None
    args: str
    progress: str | None
    result: str | None
    error: str | None
    attempts: str
    artifacts: str
    trace_parent: str | None
    run_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Position:
    """How far a job that works through many rows has come: behind `last_id`, None before the first.

    `done` and `skipped` count what it has changed and what it found changed meanwhile, of about `total`.
    """

    last_id: UUID | None
    done: int
    skipped: int
    total: int


@dataclass(frozen=True, slots=True)
class ScheduleStatus:
    """A schedule with its newest run; what is about the run's job is None where that is not there any more."""

    name: str
    kind: str
    cron: str
    timezone: str
    paused_at: datetime | None
    next_run_at: datetime
    last_run_at: datetime | None
    last_job_id: UUID | None
    job_state: int | None
    job_attempt: int | None
    job_is_due: bool | None
    job_finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker process as it has last reported itself."""

    worker_id: str
    version: str
    queues: list[str]
    slots: int
    running: int
    started_at: datetime
    heartbeat_at: datetime
