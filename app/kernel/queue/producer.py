"""Putting work in: the row belongs to the caller's transaction, the id goes to Redis after its commit, best effort."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Any, Protocol, TypeVar
from uuid import UUID
from zlib import crc32

from prometheus_client import Counter
from redis.asyncio import Redis

from app.kernel.background import Background
from app.kernel.database import Database, Tx
from app.kernel.ids import UserId, new_id
from app.kernel.observability.telemetry import get_logger, trace_parent_var
from app.kernel.queue.contracts import DEFAULT_PRIORITY, Allowance, Enqueued, JobRef, NewJob
from app.kernel.redis.gateway import RedisGateway, RedisUnavailable, Script

T = TypeVar("T")

logger = get_logger(__name__)

ENQUEUED = Counter("onehop_jobs_enqueued", "Job rows written.", ["kind"])

EPOCH_KEY = "jobs:epoch"
WAKEUP_CHANNEL = "jobs:wakeup"
CONTROL_CHANNEL = "jobs:control"

_DISPATCH_TOPIC = "queue.dispatch"
# The scores of visible ids lie this far in the past; those between `VISIBLE_UNTIL_MS` and now belong to ids that were
# hidden by a worker that died.
PAST_MS = 14 * 86_400_000
VISIBLE_UNTIL_MS = 8 * 86_400_000

_FULL_FOR_SECONDS = 0.25
_AGAIN_AFTER_SECONDS = (0.1, 0.5, 2.0)
_PRIORITY_STEP_MS = 60_000
_LOWEST_PRIORITY = 4
_TURN_MS = 10_000

# Start-time fair queueing: each user has a clock that every job of theirs moves on by one turn, and that never lies
# behind the time of day. A job is scored by its user's clock, so ten jobs of a quiet user go before the thousandth of
# a busy one, while a user who is alone gets everything. KEYS: queue and user clock of each job (the queue itself for
# no user). ARGV: turn, past, how far a clock may run ahead, channel, then id and priority bonus of each job. Answers
# the depth of each queue. The time is that of Redis: with the clocks of several hosts, the jobs from one whose clock is
# ahead would wait behind all others.
_DISPATCH = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local turn, past, latest = tonumber(ARGV[1]), tonumber(ARGV[2]), now + tonumber(ARGV[3])
local depths, seen = {}, {}
for i = 1, #KEYS / 2 do
    local queue, clock = KEYS[2 * i - 1], KEYS[2 * i]
    local start = now
    if clock ~= queue then
        start = math.min(math.max(now, tonumber(redis.call('GET', clock) or 0)), latest)
        redis.call('SET', clock, start + turn, 'PX', start + turn - now)
    end
    redis.call('ZADD', queue, start - past - tonumber(ARGV[4 + 2 * i]), ARGV[3 + 2 * i])
    if not seen[queue] then
        seen[queue] = true
        depths[#depths + 1] = queue
    end
end
for i, queue in ipairs(depths) do depths[i] = redis.call('ZCARD', queue) end
redis.call('PUBLISH', ARGV[4], '')
return depths
"""


class InsertJobs(Protocol):
    """Writes rows in ONE statement; answers in the order of `rows`, with None for what goes beyond its allowance."""

    async def __call__(self, tx: Tx, rows: Sequence[NewJob]) -> Sequence[Enqueued | None]: ...


class Queue:
    """The only way to background work.

    Redis keeps at most `window` ids a shard. Rows beyond it, and all rows while Redis is away, stay in
    Postgres only, until the worker's relay brings them over.

    The shards may be spread over several Redis servers: shard i is on server i modulo their number. A server
    that is away takes only its own shards along. Both numbers may change at any time; the relay's sweep finds what then
    is in the wrong place.
    """

    def __init__(
        self,
        insert: InsertJobs,
        redis: RedisGateway,
        *,
        shards: int = 1,
        window: int = 10_000,
        servers: Sequence[RedisGateway] = (),
    ) -> None:
        self._servers = tuple(servers) or (redis,)
        self.shards = max(shards, len(self._servers))
        self.window = window
        self._insert = insert
        self._full_until: dict[str, float] = {}
        self._background = Background()
        self._dispatch_script = Script(_DISPATCH)

    def bind(self, db: Database) -> None:
        """Notifies the workers after the commits of `db`."""
        db.on_commit(_DISPATCH_TOPIC, self._notify)

    async def close(self) -> None:
        """Closes the connections to the servers."""
        await self._background.close()
        for server in self._servers:
            await server.close()

    async def enqueue(
        self,
        tx: Tx,
        kind: str,
        args: Mapping[str, Any],
        *,
        user_id: UserId | None,
        queue: str = "default",
        run_at: datetime | None = None,
        unique_key: str | None = None,
        priority: int = DEFAULT_PRIORITY,
        max_attempts: int = 8,
        timeout_s: int = 300,
    ) -> UUID:
        """Adds one job to `tx` with one statement. A live job with the same unique key is returned instead."""
        row = self.new_job(
            kind,
            args,
            user_id=user_id,
            queue=queue,
            run_at=run_at,
            unique_key=unique_key,
            priority=priority,
            max_attempts=max_attempts,
            timeout_s=timeout_s,
        )
        (done,) = await self.enqueue_rows(tx, [row])
        return done.id

    def new_job(  # noqa: PLR0913 - the columns of a row
        self,
        kind: str,
        args: Mapping[str, Any],
        *,
        user_id: UserId | None,
        queue: str = "default",
        run_at: datetime | None = None,
        unique_key: str | None = None,
        priority: int = DEFAULT_PRIORITY,
        max_attempts: int = 8,
        timeout_s: int = 300,
        trace_parent: str | None = None,
        allowance: Allowance | None = None,
    ) -> NewJob:
        """A row for `enqueue_rows`, with its id and whether Redis can take it at once already decided.

        It continues the given trace, or else that of the request or the job that asks for it.
        """
        row_id = new_id()
        ref = JobRef(row_id, queue, user_id)
        server = self._servers[self._server_of(ref)]
        return NewJob(
            id=row_id,
            kind=kind,
            queue=queue,
            args=args,
            user_id=user_id,
            unique_key=unique_key,
            run_at=run_at,
            priority=priority,
            max_attempts=max_attempts,
            timeout_seconds=timeout_s,
            trace_parent=trace_parent or trace_parent_var.get(),
            dispatch=server.available and self._full_until.get(self.key_of(ref), 0.0) <= monotonic(),
            allowance=allowance,
        )

    async def enqueue_rows(self, tx: Tx, rows: Sequence[NewJob]) -> Sequence[Enqueued]:
        """Adds many jobs without an allowance with one statement.

        Unique keys must differ from each other within `rows`.
        """
        done = [outcome for outcome in await self.offer_rows(tx, rows) if outcome is not None]
        if len(done) < len(rows):
            raise ValueError("rows with an allowance are to be offered")
        return done

    async def offer_rows(self, tx: Tx, rows: Sequence[NewJob]) -> Sequence[Enqueued | None]:
        """The same; None for a row beyond its allowance, which is not written."""
        done = await self._insert(tx, rows)
        for row, outcome in zip(rows, done, strict=True):
            if outcome is None or not outcome.created:
                continue
            ENQUEUED.labels(row.kind).inc()
            if outcome.dispatched:
                tx.emit(_DISPATCH_TOPIC, JobRef(row.id, row.queue, row.user_id, row.priority))
        return done

    def key_of(self, ref: JobRef) -> str:
        """The sorted set that holds this job: one user's jobs of a queue share a shard."""
        return self.key(ref.queue, self._shard_of(ref))

    def key(self, queue: str, shard: int) -> str:
        return f"jobs:queue:{queue}:{shard}"

    def keys(self, queue: str, server: int) -> list[str]:
        """The shards of a queue that are on one server."""
        return [self.key(queue, shard) for shard in range(server, self.shards, len(self._servers))]

    @property
    def servers(self) -> tuple[RedisGateway, ...]:
        """The servers, by number."""
        return self._servers

    @property
    def urls(self) -> list[str]:
        """Where each server is."""
        return [server.url for server in self._servers]

    def redispatch(self, tx: Tx, ref: JobRef) -> None:
        """Brings an existing row's id to Redis after the commit of `tx`, which marked it as dispatched."""
        tx.emit(_DISPATCH_TOPIC, ref)

    async def dispatch(self, refs: Sequence[JobRef]) -> list[JobRef]:
        """Brings ids to Redis and notifies the workers, in one round trip a server; returns those that failed.

        Nothing is lost with them: the relay comes back to these rows.
        """
        parts = self._by_server(refs)
        arrived = await asyncio.gather(*(self._dispatch(server, part) for server, part in parts.items()))
        return [ref for part, there in zip(parts.values(), arrived, strict=True) if not there for ref in part]

    async def depths(self, queue: str) -> list[int]:
        """How many ids each shard of a queue holds in Redis; the window for a shard that cannot be asked.

        Raises:
            RedisUnavailable: none can be asked.
        """

        async def read(client: Redis, keys: list[str]) -> list[int]:
            async with client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.zcard(key)
                return await pipe.execute()

        numbers = range(len(self._servers))
        answers = await self._ask({number: partial(read, keys=self.keys(queue, number)) for number in numbers})
        return [
            answers[shard % len(self._servers)][shard // len(self._servers)]
            if shard % len(self._servers) in answers
            else self.window
            for shard in range(self.shards)
        ]

    async def missing(self, refs: Sequence[JobRef]) -> list[JobRef]:
        """Those of `refs` that Redis does not hold, as far as it can be asked.

        Raises:
            RedisUnavailable: no server that should hold one of them answered.
        """

        async def read(client: Redis, part: list[JobRef]) -> list[JobRef]:
            async with client.pipeline(transaction=False) as pipe:
                for ref in part:
                    pipe.zscore(self.key_of(ref), str(ref.id))
                scores = await pipe.execute()
            return [ref for ref, score in zip(part, scores, strict=True) if score is None]

        if not refs:
            return []
        parts = {server: partial(read, part=part) for server, part in self._by_server(refs).items()}
        return [ref for found in (await self._ask(parts, timeout=1.0)).values() for ref in found]

    async def read_epochs(self) -> list[str | None]:
        """The epoch each server that answers was filled in; None after a flush.

        Raises:
            RedisUnavailable: no server answered.
        """
        values = await self._ask(dict.fromkeys(range(len(self._servers)), _get_epoch))
        return [None if value is None else value.decode() for value in values.values()]

    async def write_epoch(self, epoch: str) -> None:
        """Marks all servers that answer; one that does not is found to differ later, and all is dispatched again."""
        await self._ask(dict.fromkeys(range(len(self._servers)), lambda client: client.set(EPOCH_KEY, epoch)))

    def stop_running(self, tx: Tx, job_id: UUID) -> None:
        """Has the worker that runs the job stop it, once `tx` is committed."""
        tx.after_commit(partial(self.control, f"cancel:{job_id}"))

    async def control(self, message: str) -> None:
        """Tells every worker at once, best effort: `cancel:<job id>` or `queues`. They would find out by themselves."""
        everywhere = range(len(self._servers))
        try:
            await self._ask(dict.fromkeys(everywhere, lambda client: client.publish(CONTROL_CHANNEL, message)))
        except RedisUnavailable:
            logger.info("jobs.control_not_sent", message=message)

    def _shard_of(self, ref: JobRef) -> int:
        return crc32((ref.user_id or ref.id).bytes) % self.shards

    def _server_of(self, ref: JobRef) -> int:
        return self._shard_of(ref) % len(self._servers)

    def _by_server(self, refs: Sequence[JobRef]) -> dict[int, list[JobRef]]:
        parts: dict[int, list[JobRef]] = {}
        for ref in refs:
            parts.setdefault(self._server_of(ref), []).append(ref)
        return parts

    async def _ask(
        self, work: Mapping[int, Callable[[Redis], Awaitable[T]]], *, timeout: float | None = None
    ) -> dict[int, T]:
        """The answers of the servers that gave one, side by side. Raises RedisUnavailable if there is none."""

        async def ask(server: int) -> tuple[T] | None:
            try:
                return (await self._servers[server].call(work[server], timeout=timeout),)
            except RedisUnavailable:
                return None

        answers = dict(zip(work, await asyncio.gather(*(ask(server) for server in work)), strict=True))
        found = {server: answer[0] for server, answer in answers.items() if answer is not None}
        if not found:
            raise RedisUnavailable
        return found

    async def _dispatch(self, server: int, refs: Sequence[JobRef]) -> bool:
        keys: list[str] = []
        args: list[str | int] = [_TURN_MS, PAST_MS, PAST_MS - VISIBLE_UNTIL_MS, WAKEUP_CHANNEL]
        for ref in refs:
            key = self.key_of(ref)
            keys += [key, key if ref.user_id is None else f"jobs:clock:{ref.queue}:{ref.user_id}"]
            args += [str(ref.id), (_LOWEST_PRIORITY - ref.priority) * _PRIORITY_STEP_MS]
        try:
            depths = await self._servers[server].call(lambda client: self._dispatch_script(client, keys, args))
        except RedisUnavailable:
            return False
        for key, depth in zip(dict.fromkeys(keys[::2]), depths, strict=True):
            if depth > self.window:
                self._full_until[key] = monotonic() + _FULL_FOR_SECONDS
        return True

    async def _notify(self, refs: list[JobRef]) -> None:
        if left := await self.dispatch(refs):
            logger.warning("jobs.not_dispatched", count=len(left))
            self._background.spawn(self._notify_later(left))

    async def _notify_later(self, refs: list[JobRef]) -> None:
        """After a hiccup; the relay looks for ids that are missing only after a while."""
        for pause in _AGAIN_AFTER_SECONDS:
            await asyncio.sleep(pause)
            refs = await self.dispatch(refs)
            if not refs:
                return


async def _get_epoch(client: Redis) -> bytes | None:
    epoch: bytes | None = await client.get(EPOCH_KEY)
    return epoch
