"""What passes between the queue and the module that owns the rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from app.kernel.ids import UserId

DEFAULT_PRIORITY = 2


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one user may have unfinished in a queue: so many jobs, the oldest of which has waited so many seconds."""

    jobs: int
    seconds: float


@dataclass(frozen=True, slots=True)
class NewJob:
    """A row to be. `run_at` None means now, by the clock of the database, which also judges whether it has come.

    `dispatch`: if the job is due, its id goes to Redis right after the commit. `allowance`: the row is written only if
    its user keeps within it; None: in any case.
    """

    id: UUID
    kind: str
    queue: str
    args: Mapping[str, Any]
    user_id: UserId | None
    unique_key: str | None
    run_at: datetime | None
    priority: int
    max_attempts: int
    timeout_seconds: int
    trace_parent: str | None
    dispatch: bool
    allowance: Allowance | None = None


class Enqueued(Protocol):
    """`created` is false when a living job with the same unique key was there already; `id` is then its id.

    `dispatched`: the row says that its id is in Redis, so it has to be brought there.
    """

    @property
    def id(self) -> UUID: ...
    @property
    def created(self) -> bool: ...
    @property
    def dispatched(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class JobRef:
    """What Redis has to know about a job. `user_id` decides the shard."""

    id: UUID
    queue: str
    user_id: UserId | None
    priority: int = DEFAULT_PRIORITY
