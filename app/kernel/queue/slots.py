"""The slots of a worker process, and what it asks of the side that knows the rows."""

import asyncio
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol
from uuid import UUID

from app.kernel.observability.telemetry import get_logger

logger = get_logger(__name__)


class OwnedJob(Protocol):
    """A job that this process owns until its lease ends."""

    @property
    def id(self) -> UUID: ...
    @property
    def queue(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """What came of ids from Redis. `undecided` are still to be run: another transaction has locked their rows."""

    jobs: Sequence[OwnedJob]
    undecided: Collection[UUID] = ()


class JobExecutor(Protocol):
    """The worker's side of Postgres."""

    async def claim(self, ids: Sequence[UUID], runner: "Runner") -> Claim: ...

    async def claim_direct(self, free_slots: Mapping[str, int], total: int) -> Sequence[OwnedJob]: ...

    async def run(self, job: Any, runner: "Runner") -> None: ...


@dataclass(frozen=True, slots=True)
class QueueShare:
    """How a queue shares the slots of a process.

    Queues are served in random order, weighted by `weight`. `floor` slots are kept free for this queue, and it never
    has more than `ceiling` of them.
    """

    weight: float
    floor: int = 0
    ceiling: int | None = None


class Runner:
    """The slots of one process: which jobs run, and how many more of each queue may start."""

    def __init__(self, executor: JobExecutor, queues: Mapping[str, QueueShare], slots: int) -> None:
        self.queues = dict(queues)
        self.slots = slots
        self.paused: frozenset[str] = frozenset()
        self.queues_changed = False
        self.draining = False
        self.tasks: dict[UUID, asyncio.Task[None]] = {}
        self.reasons: dict[UUID, str] = {}
        self._executor = executor
        self._running: Counter[str] = Counter()
        # Two that claim at once would fill the same slots.
        self.claiming = asyncio.Lock()
        self._wakeups: list[asyncio.Event] = []
        # For the probes, in seconds of `monotonic`: when the loop of each server last came round, when that of the
        # leases did, and when all leases of running jobs were last prolonged.
        self.looked_at: dict[int, float] = {}
        self.maintained_at = self.leases_kept_at = monotonic()

    @property
    def free(self) -> int:
        return 0 if self.draining else self.slots - len(self.tasks)

    def free_slots_by_queue(self) -> dict[str, int]:
        """How many jobs of each queue may start now, in the order in which the queues are to be served."""
        kept = {queue: max(0, share.floor - self._running[queue]) for queue, share in self.queues.items()}
        free_slots: dict[str, int] = {}
        # Drawn by weight; guessing the order gains nothing.
        for queue in sorted(self.queues, key=lambda name: -(random.random() ** (1 / self.queues[name].weight))):  # noqa: S311 - a fair draw, not a secret
            if queue in self.paused:
                continue
            share = self.queues[queue]
            room = self.free - (sum(kept.values()) - kept[queue])
            if share.ceiling is not None:
                room = min(room, share.ceiling - self._running[queue])
            if room > 0:
                free_slots[queue] = room
        return free_slots

    def start(self, jobs: Sequence[OwnedJob]) -> None:
        for job in jobs:
            task = asyncio.get_running_loop().create_task(self._executor.run(job, self), name=f"job:{job.id}")
            self.tasks[job.id] = task
            self._running[job.queue] += 1
            task.add_done_callback(lambda done, job=job: self._ended(job, done))  # type: ignore[misc]  # mypy cannot type defaults

    def cancel(self, job_id: UUID, reason: str) -> None:
        """Stops one job; `reason` tells the executor what to make of it. The first reason counts."""
        task = self.tasks.get(job_id)
        if task is not None and job_id not in self.reasons:
            self.reasons[job_id] = reason
            task.cancel()

    @contextmanager
    def wakeup(self) -> Iterator[asyncio.Event]:
        """Is set when a slot frees, and on every `wake`. Each that waits has one of its own, and clears it."""
        wakeup = asyncio.Event()
        self._wakeups.append(wakeup)
        try:
            yield wakeup
        finally:
            self._wakeups.remove(wakeup)

    def wake(self) -> None:
        """Wakes all, in random order: a freed slot goes to the first to wake, and that must not always be the same."""
        for wakeup in random.sample(self._wakeups, len(self._wakeups)):
            wakeup.set()

    async def drain(self, grace: float) -> None:
        """Takes nothing more, gives what runs `grace` seconds, and hands the rest back."""
        self.draining = True
        self.wake()
        if self.tasks:
            await asyncio.wait(self.tasks.values(), timeout=grace)
        for job_id in list(self.tasks):
            self.cancel(job_id, "drained")
        if self.tasks:
            await asyncio.wait(self.tasks.values())

    def _ended(self, job: OwnedJob, task: asyncio.Task[None]) -> None:
        del self.tasks[job.id]
        self.reasons.pop(job.id, None)
        self._running[job.queue] -= 1
        self.wake()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("jobs.executor_failed", job_id=str(job.id), exc_info=error)
