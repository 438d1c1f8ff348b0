"""What the jobs tables hold, and the rules about states, retries and visibility that need no I/O.

Columns of type jsonb (`args`, `progress`, `result`, `error`) arrive as JSON text and are handed on as they are.
"""

import random
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Literal
from uuid import UUID

import orjson
from typing_extensions import TypeAliasType

from app.kernel.ids import UserId
from app.kernel.queue.slots import QueueShare

JobState = TypeAliasType(
    "JobState", Literal["scheduled", "queued", "running", "retrying", "succeeded", "failed", "cancelled"]
)

MAX_RESCUES = 3

# A run that ends with an outage of ours is no attempt. How soon the next one comes, and for how long there are any, in
# seconds.
SHORTEST_POSTPONEMENT = 3.0
LONGEST_POSTPONEMENT = 300.0
POSTPONED_AT_MOST = 3 * 86_400.0

# How the slots of a worker are shared. `bulk` can never take them all, `critical` always finds some, and PDFs are
# bounded because each keeps a core busy.
QUEUES = {
    "critical": QueueShare(weight=100, floor=4),
    "default": QueueShare(weight=6, floor=4),
    "webhooks": QueueShare(weight=3, floor=4, ceiling=30),
    "pdf": QueueShare(weight=2, floor=2, ceiling=4),
    "bulk": QueueShare(weight=1, floor=2, ceiling=10),
}

# The queue whose jobs each hold a connection for long snapshots.
EXPORT_QUEUE = "bulk"

# Where one user's jobs, each long, could keep everybody else waiting although turns are fair.
CAPPED_QUEUES = ("bulk", "pdf")

# Never refused, whatever waits.
ALWAYS_ADMITTED = ("critical",)


def queue_shares(export_connections: int) -> dict[str, QueueShare]:
    """How a process with so many connections for long snapshots shares its slots: no job waits for one in vain."""
    share = QUEUES[EXPORT_QUEUE]
    ceiling = min(share.ceiling or export_connections, export_connections)
    return QUEUES | {EXPORT_QUEUE: QueueShare(share.weight, min(share.floor, ceiling), ceiling)}


class State(IntEnum):
    """The stored states. `scheduled` and `retrying` are read off a queued row."""

    QUEUED = 0
    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4

    @property
    def is_final(self) -> bool:
        return self >= State.SUCCEEDED


@dataclass(frozen=True, slots=True)
class StateFilter:
    """A state of the API as conditions on a row; None does not matter."""

    state: State
    attempted: bool | None = None
    future: bool | None = None

    @property
    def is_narrower(self) -> bool:
        """Whether only some rows in the stored state are meant."""
        return self.attempted is not None or self.future is not None


STATE_FILTERS: dict[JobState, StateFilter] = {
    "scheduled": StateFilter(State.QUEUED, attempted=False, future=True),
    "queued": StateFilter(State.QUEUED, attempted=False, future=False),
    "running": StateFilter(State.RUNNING),
    "retrying": StateFilter(State.QUEUED, attempted=True),
    "succeeded": StateFilter(State.SUCCEEDED),
    "failed": StateFilter(State.FAILED),
    "cancelled": StateFilter(State.CANCELLED),
}


def api_state(state: int, attempt: int, *, is_due: bool) -> JobState:
    """The state as callers see it. `is_due` is by the clock of the database, which decides when a job may start."""
    match State(state):
        case State.QUEUED:
            if attempt:
                return "retrying"
            return "queued" if is_due else "scheduled"
        case State.RUNNING:
            return "running"
        case State.SUCCEEDED:
            return "succeeded"
        case State.FAILED:
            return "failed"
        case State.CANCELLED:
            return "cancelled"


def retry_delay(attempt: int, base: float, cap: float) -> float:
    """Seconds until the next attempt: exponential with full jitter (AWS, "Exponential Backoff and Jitter")."""
    return random.uniform(0, min(cap, base * 2 ** (attempt - 1)))  # noqa: S311 - jitter, not a secret


def postponement(age: float) -> float:
    """Seconds until a job is tried again that an outage of ours has kept from running for `age` seconds."""
    return min(LONGEST_POSTPONEMENT, max(SHORTEST_POSTPONEMENT, age / 2)) * random.uniform(0.5, 1)  # noqa: S311 - jitter, not a secret


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its owner sees it; `artifacts` is a JSON array of `{name, content_type, size, sha256, expires_at}`."""

    id: UUID
    user_id: UserId | None
    kind: str
    state: int
    version: int
    attempt: int
    max_attempts: int
    is_due: bool
    progress: str | None
    result: str | None
    error: str | None
    artifacts: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class InsertedJob:
    """A job just written, or (`created` false) the living one that holds its unique key.

    `dispatched`: its id goes to Redis after the commit.
    """

    id: UUID
    created: bool
    dispatched: bool
    state: int
    version: int
    attempt: int
    max_attempts: int
    is_due: bool
    progress: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that one run owns: only the holder of `run_token` may finish it.

    `waited` is in seconds, from when the job was due to its claim; `postponed` since an outage of ours first kept it
    from running, None if it has not been kept.
    """

    id: UUID
    user_id: UserId | None
    kind: str
    queue: str
    args: str
    attempt: int
    max_attempts: int
    rescues: int
    timeout_seconds: int
    run_token: UUID
    created_at: datetime
    waited: float
    postponed: float | None
    trace_parent: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. For `QUEUED` the job runs again after `delay` seconds. `progress` has not been written yet.

    `give_back`: the run counts as no attempt. `postponed`: it failed by an outage of ours.
    """

    job_id: UUID
    run_token: UUID
    state: State
    result: str | None = None
    error: str | None = None
    delay: float = 0.0
    give_back: bool = False
    postponed: bool = False
    progress: str | None = None


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """A stored file that becomes visible with its job's success, for so many days."""

    job_id: UUID
    name: str
    content_type: str
    size: int
    sha256: bytes
    storage_key: str
    days: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published file of a job of this kind; `is_expired` once its time is over, or it has been deleted."""

    kind: str
    name: str
    content_type: str
    size: int
    sha256: bytes
    storage_key: str
    is_expired: bool


@dataclass(frozen=True, slots=True)
class Transition:
    """A row whose state has just changed."""

    id: UUID
    user_id: UserId | None
    kind: str
    queue: str
    priority: int
    state: int
    version: int
    trace_parent: str | None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a heartbeat found about a job that this worker believes to own."""

    id: UUID
    cancel_requested: bool


# Beyond, jobs in a state are not counted, so that the overview costs the same whatever a user has.
COUNTED_AT_MOST = 1_000


@dataclass(frozen=True, slots=True)
class JobOverview:
    """Counts of a user's jobs by state, up to `COUNTED_AT_MOST`. `recent`: the newest, as JSON in the API's shape."""

    queued: int
    running: int
    succeeded: int
    failed: int
    recent: str


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A due row whose id has to be brought to Redis."""

    id: UUID
    user_id: UserId | None
    queue: str
    priority: int


@dataclass(frozen=True, slots=True)
class DispatchedJob:
    """A queued row whose id should be in Redis since `dispatched_at`."""

    id: UUID
    user_id: UserId | None
    queue: str
    priority: int
    dispatched_at: datetime


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How much of a queue waits, how much runs, and how much ended in the last minute, `failed` among it.

    `oldest_seconds` is the age of the oldest job that waits, None if none does.
    """

    queue: str
    paused: bool
    waiting: int
    oldest_seconds: float | None
    running: int
    finished: int
    failed: int


@dataclass(frozen=True, slots=True)
class AdminJob:
    """A job as an administrator sees it."""

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
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A run that failed: what came of its job (`lost` leaves that to the rescue), and which worker ran it.

    `n` counts the failures of a job, also over replays, which start its `attempt` anew.
    """

    n: int
    started_at: datetime
    ended_at: datetime
    outcome: Literal["retried", "failed", "cancelled", "lost"]
    error: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule as it is stored."""

    name: str
    kind: str
    args: dict[str, Any]
    cron: str
    timezone: str
    catch_up: str
    next_run_at: datetime


@dataclass(frozen=True, slots=True)
class DueSchedule:
    """A schedule one of whose times has come; `args` is JSON text."""

    name: str
    kind: str
    args: str
    cron: str
    timezone: str
    catch_up: str
    next_run_at: datetime

    def parsed_args(self) -> dict[str, Any]:
        args: dict[str, Any] = orjson.loads(self.args)
        return args
