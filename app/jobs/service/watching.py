"""Waiting for a job to change, for long polls and event streams.

Workers publish the ids of changed jobs; an API process wakes the requests that watch them, and each looks at the row
again. A message is only a hint: each waiting request also looks by itself from time to time, so that nothing depends on
Redis.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from uuid import UUID

from app.jobs.records import Job, State
from app.jobs.service.submitting import CHANGED_TOPIC, get_job
from app.kernel.background import is_set_within, until
from app.kernel.database import Database
from app.kernel.ids import UserId
from app.kernel.redis.bus import Bus
from app.kernel.redis.gateway import RedisUnavailable

_CHANNEL = "jobs:changed"
_UUID_BYTES = 16
# Each request that waits, and each stream, reads from time to time, so that both are bounded for a user of a process.
MOST_OF_A_USER = 64
# Requests that wait (`Prefer: wait`) in a process, and the part of what is free that one user may have of it. A part of
# what is free (dynamic thresholds, Choudhury and Hahne 1998) is wide while few want it, and always leaves some.
MOST_WAITING = 512
_FREE_FOR_ONE_USER = 4
_LOOK_SECONDS = 5.0
_LOOK_WITHOUT_BUS_SECONDS = 1.0


class JobWatch:
    """One per process; to be made before the bus starts."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._watchers: defaultdict[UUID, set[asyncio.Event]] = defaultdict(set)
        self._of_users: Counter[UserId] = Counter()
        self._waiting: Counter[UserId] = Counter()
        bus.subscribe(_CHANNEL, self._on_message, on_up=self._wake_all, on_down=self._wake_all)

    def attach(self, db: Database) -> None:
        """Publishes the changes that units of work of `db` announce."""
        db.on_commit(CHANGED_TOPIC, self.publish)

    async def publish(self, job_ids: Sequence[UUID]) -> None:
        """Wakes the requests that watch one of these jobs, in every process."""
        unique = dict.fromkeys(job_ids)
        if not unique:
            return
        try:
            await self._bus.publish(_CHANNEL, b"".join(job_id.bytes for job_id in unique))
        except RedisUnavailable:
            self._wake(unique)

    @property
    def poll_interval(self) -> float:
        """Seconds after which one should look without having been woken."""
        return _LOOK_SECONDS if self._bus.is_connected else _LOOK_WITHOUT_BUS_SECONDS

    def is_full(self, user_id: UserId) -> bool:
        """Whether this user watches as many jobs as one may."""
        return self._of_users[user_id] >= MOST_OF_A_USER

    def may_wait(self, user_id: UserId) -> bool:
        """Whether one more request of this user may wait here without taking what others need."""
        free = MOST_WAITING - self._waiting.total()
        mine = self._waiting[user_id]
        return free > 0 and mine < max(1, free // _FREE_FOR_ONE_USER) and not self.is_full(user_id)

    @contextmanager
    def waiting(self, user_id: UserId) -> Iterator[None]:
        """Counts a request of this user that waits."""
        with _counted(self._waiting, user_id), _counted(self._of_users, user_id):
            yield

    @contextmanager
    def streaming(self, user_id: UserId) -> Iterator[None]:
        """Counts a stream of this user; from before its head is sent, because afterwards none can be refused."""
        with _counted(self._of_users, user_id):
            yield

    @contextmanager
    def watching(self, job_id: UUID) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job may have changed."""
        event = asyncio.Event()
        self._watchers[job_id].add(event)
        try:
            yield event
        finally:
            self._watchers[job_id].discard(event)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    def _on_message(self, payload: bytes) -> None:
        self._wake(UUID(bytes=payload[i : i + _UUID_BYTES]) for i in range(0, len(payload), _UUID_BYTES))

    def _wake(self, job_ids: Iterable[UUID]) -> None:
        for job_id in job_ids:
            for event in self._watchers.get(job_id, ()):
                event.set()

    def _wake_all(self) -> None:
        for events in self._watchers.values():
            for event in events:
                event.set()


@contextmanager
def _counted(counts: Counter[UserId], user_id: UserId) -> Iterator[None]:
    counts[user_id] += 1
    try:
        yield
    finally:
        counts[user_id] -= 1
        if not counts[user_id]:
            del counts[user_id]


async def follow_job(
    db: Database,
    watch: JobWatch,
    job_id: UUID,
    user_id: UserId,
    *,
    seconds: float | None = None,
    before_each: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[Job]:
    """The job now, and again after each change, until it is over or `seconds` have passed.

    `before_each` is called before each look, the last of which is at most five seconds ago; what it raises ends it all.
    No connection is held between two looks.

    Raises:
        JobNotFound: no such job of this user, or it was deleted meanwhile.
    """
    end = None if seconds is None else monotonic() + seconds
    version = -1
    with watch.watching(job_id) as changed:
        while True:
            changed.clear()
            if before_each is not None:
                await before_each()
            job = await read_job(db, job_id, user_id)
            if job.version != version:
                version = job.version
                yield job
            if State(job.state).is_final:
                return
            timeout = watch.poll_interval if end is None else min(watch.poll_interval, end - monotonic())
            if timeout <= 0:
                return
            await is_set_within(changed, timeout)


async def wait_for_job(
    db: Database, watch: JobWatch, job_id: UUID, user_id: UserId, *, seconds: float, stop: asyncio.Event | None = None
) -> Job:
    """The job once it is over, or as it is after `seconds` or when `stop` is set.

    Raises:
        JobNotFound: no such job of this user.
    """
    latest: Job | None = None
    with watch.waiting(user_id):
        async for job in until(stop, follow_job(db, watch, job_id, user_id, seconds=seconds)):
            latest = job
    return latest or await read_job(db, job_id, user_id)


async def read_job(db: Database, job_id: UUID, user_id: UserId) -> Job:
    """The job as it is now.

    Raises:
        JobNotFound: no such job of this user.
    """
    async with db.read("jobs.follow") as conn:
        return await get_job(conn, job_id, user_id)
