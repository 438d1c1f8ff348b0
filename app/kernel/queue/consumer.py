"""The worker's side of Redis: arq's Worker with another heart.

Kept of arq are the connection, the run loop and the form of the queue (a sorted set of ids, scored by when they become
visible). Replaced are polling (a pub/sub wakeup, and one look a second as a net), claiming (one script for many ids and
queues; a claimed id hides for some seconds instead of being marked by a second key) and everything after the claim:
arguments, attempts, results and time-outs live in Postgres, so that nothing is ever unpickled and an empty Redis loses
nothing.
"""

import asyncio
import random
from collections.abc import Collection, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from arq.connections import ArqRedis
from arq.worker import Worker, func
from redis.exceptions import RedisError

from app.kernel.background import is_set_within
from app.kernel.errors import Unavailable
from app.kernel.observability.telemetry import get_logger
from app.kernel.queue.producer import CONTROL_CHANNEL, PAST_MS, VISIBLE_UNTIL_MS, WAKEUP_CHANNEL, Queue
from app.kernel.queue.slots import JobExecutor, Runner
from app.kernel.redis.gateway import LOST_ERRORS

if TYPE_CHECKING:
    from arq.typing import WorkerCoroutine

logger = get_logger(__name__)

_LOOK_EVERY = 1.0
_DIRECT_LOOK_EVERY = 0.25
_DIRECT_PAUSE = 0.02
_COALESCE = 0.002
_HIDDEN_MS = 10_000
_UNDECIDED_MS = 100
_REDIS_TIMEOUT = 1.0

# KEYS: the shards in the order to serve them. ARGV: for how long to hide, how many in all, how far in the past the
# scores of visible ids end (empty: do not look for what was hidden) and begin, then how many of each shard's queue, and
# the number of that queue. Answers until when the ids are hidden, then the shard and the id of each. Ids move
# behind all visible ones, so a queue whose head is being worked on never has to be scanned again, and the ids of a
# worker that died between this script and its Postgres claim come back by themselves. The time is that of Redis,
# because the clocks of workers differ.
_CLAIM = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local hidden_until = now + tonumber(ARGV[1])
local left = tonumber(ARGV[2])
local claimed, taken = {hidden_until}, {}
for i, key in ipairs(KEYS) do
    local queue = ARGV[4 + #KEYS + i]
    local want = math.min(tonumber(ARGV[4 + i]) - (taken[queue] or 0), left)
    if want > 0 then
        if ARGV[3] ~= '' then
            for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, now - ARGV[3], now, 'LIMIT', 0, 100)) do
                redis.call('ZADD', key, 'XX', now - ARGV[4], id)
            end
        end
        local ids = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, want)
        for _, id in ipairs(ids) do
            redis.call('ZADD', key, 'XX', hidden_until, id)
            claimed[#claimed + 1] = i
            claimed[#claimed + 1] = id
        end
        left = left - #ids
        taken[queue] = (taken[queue] or 0) + #ids
    end
end
return claimed
"""

# Makes claimed ids visible again after some milliseconds. KEYS and ARGV as below, behind that time.
_SHOW = """
local time = redis.call('TIME')
local shown_at = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
for i, key in ipairs(KEYS) do
    if redis.call('ZSCORE', key, ARGV[2 * i]) == ARGV[2 * i + 1] then
        redis.call('ZADD', key, 'XX', shown_at, ARGV[2 * i])
    end
end
"""

# KEYS: the shard of each id. ARGV: each id and the score that its claim gave it. An id that was put in again meanwhile
# has another score, and stays.
_FORGET = """
for i, key in ipairs(KEYS) do
    if redis.call('ZSCORE', key, ARGV[2 * i - 1]) == ARGV[2 * i] then
        redis.call('ZREM', key, ARGV[2 * i - 1])
    end
end
"""


class Consumer(Worker):
    """Feeds a `Runner` from one server. It ends with an exception when that Redis goes away, and is then made anew."""

    def __init__(self, redis: ArqRedis, queue: Queue, server: int, runner: Runner, executor: JobExecutor) -> None:
        super().__init__(
            functions=[func(cast("WorkerCoroutine", _never_called), name="job")],
            queue_name=queue.key("default", 0),
            redis_pool=redis,
            handle_signals=False,
            max_jobs=runner.slots,
        )
        self._queue = queue
        self._server = server
        self._runner = runner
        self._executor = executor
        self._claim_sha = self._forget_sha = self._show_sha = ""
        self._next_return = 0.0
        self._refused = False
        self._done: list[tuple[str, bytes, int]] = []

    async def main(self) -> None:
        # Loaded once: redis-py's own script objects ask before each pipeline whether the server still has them.
        async with asyncio.timeout(_REDIS_TIMEOUT):
            self._claim_sha = await self.pool.script_load(_CLAIM)
            self._forget_sha = await self.pool.script_load(_FORGET)
            self._show_sha = await self.pool.script_load(_SHOW)
        with self._runner.wakeup() as wakeup:
            subscription = self.loop.create_task(self._listen(wakeup))
            try:
                while not self._runner.draining:
                    started = monotonic()
                    await self._poll_iteration()
                    self._runner.looked_at[self._server] = monotonic()
                    await _wait(wakeup, 0 if self._refused else _LOOK_EVERY)
                    if subscription.done():
                        subscription.result()
                    # Many wakeups in one moment are one look.
                    if (spent := monotonic() - started) < _COALESCE:
                        await asyncio.sleep(_COALESCE - spent)
                await self._claim({})
            finally:
                subscription.cancel()
                await asyncio.gather(subscription, return_exceptions=True)

    async def _poll_iteration(self) -> None:
        claimed: list[tuple[str, bytes, int]] = []
        undecided: Collection[UUID] = ()
        try:
            async with self._runner.claiming:
                free_slots = self._runner.free_slots_by_queue()
                claimed = await self._claim(free_slots) if free_slots or self._done else []
                free = self._runner.free
                if claimed:
                    claim = await self._executor.claim(
                        [UUID(job_id.decode()) for _, job_id, _ in claimed], self._runner
                    )
                    self._runner.start(claim.jobs)
                    undecided = claim.undecided
                # Behind ids that Postgres did not give to this worker there may be others, for the same slots.
                self._refused = free - self._runner.free < len(claimed)
        except Unavailable:
            logger.warning("jobs.claim_postponed", count=len(claimed))
            await asyncio.sleep(_DIRECT_LOOK_EVERY)
            await self._show(claimed, after_ms=0)
        else:
            if undecided:
                kept = {str(job_id).encode() for job_id in undecided}
                await self._show([entry for entry in claimed if entry[1] in kept], after_ms=_UNDECIDED_MS)
                claimed = [entry for entry in claimed if entry[1] not in kept]
            self._done.extend(claimed)

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Never used, like `run_job`."""
        raise NotImplementedError

    async def run_job(self, job_id: str, score: int) -> None:
        """Never used: what runs is decided by the rows that Postgres gave to this process."""
        raise NotImplementedError

    async def _claim(self, free_slots: Mapping[str, int]) -> list[tuple[str, bytes, int]]:
        """Takes ids of the wanted queues and forgets the ones that Postgres has decided about, in one round trip."""
        keys: list[str] = []
        counts: list[int] = []
        numbers: list[int] = []
        for number, (queue, count) in enumerate(free_slots.items()):
            shards = self._queue.keys(queue, self._server)
            for key in random.sample(shards, len(shards)):
                keys.append(key)
                counts.append(count)
                numbers.append(number)
        looks_back: int | str = ""
        if (moment := monotonic()) >= self._next_return:
            self._next_return = moment + _LOOK_EVERY
            looks_back = VISIBLE_UNTIL_MS
        limits = [_HIDDEN_MS, self._runner.free, looks_back, PAST_MS]
        done, self._done = self._done, []
        try:
            async with asyncio.timeout(_REDIS_TIMEOUT), self.pool.pipeline(transaction=False) as pipe:
                if done:
                    args = [value for _, job_id, score in done for value in (job_id, score)]
                    pipe.execute_command("EVALSHA", self._forget_sha, len(done), *(key for key, _, _ in done), *args)
                if keys:
                    pipe.execute_command("EVALSHA", self._claim_sha, len(keys), *keys, *limits, *counts, *numbers)
                answers = await pipe.execute()
        except TimeoutError as error:
            raise RedisError("no answer in time") from error
        if not keys:
            return []
        hidden_until, *flat = answers[-1]
        return [(keys[index - 1], job_id, hidden_until) for index, job_id in zip(flat[::2], flat[1::2], strict=True)]

    async def _show(self, claimed: list[tuple[str, bytes, int]], *, after_ms: int) -> None:
        """Gives ids back whose jobs are undecided; without this they would come back by themselves, but later."""
        if claimed:
            keys = [key for key, _, _ in claimed]
            args = [value for _, job_id, score in claimed for value in (job_id, score)]
            async with asyncio.timeout(_REDIS_TIMEOUT), self.pool.pipeline(transaction=False) as pipe:
                pipe.execute_command("EVALSHA", self._show_sha, len(keys), *keys, after_ms, *args)
                await pipe.execute()

    async def _listen(self, wakeup: asyncio.Event) -> None:
        async with self.pool.pubsub() as pubsub:
            await pubsub.subscribe(WAKEUP_CHANNEL, CONTROL_CHANNEL)
            while True:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=None)
                if message is None:
                    continue
                if message["channel"] == WAKEUP_CHANNEL.encode():
                    wakeup.set()
                else:
                    verb, _, subject = message["data"].decode().partition(":")
                    if verb == "cancel":
                        self._runner.cancel(UUID(subject), "cancelled")
                    elif verb == "queues":
                        self._runner.queues_changed = True
                    self._runner.wake()


async def consume(server: int, queue: Queue, runner: Runner, executor: JobExecutor) -> None:
    """Runs until the runner drains: from this server while it is there, straight from Postgres while it is not."""
    while not runner.draining:
        redis = ArqRedis.from_url(queue.urls[server], socket_connect_timeout=_REDIS_TIMEOUT, health_check_interval=5)
        try:
            await Consumer(redis, queue, server, runner, executor).async_run()
        except LOST_ERRORS as error:
            logger.warning("jobs.redis_lost", server=server, error=type(error).__name__, reason=str(error))
            await _consume_directly(server, redis, runner, executor)
        finally:
            await redis.aclose()


async def _consume_directly(server: int, redis: ArqRedis, runner: Runner, executor: JobExecutor) -> None:
    """Claims from Postgres until Redis answers again."""
    next_ping = monotonic() + _LOOK_EVERY
    with runner.wakeup() as wakeup:
        while not runner.draining:
            try:
                async with runner.claiming:
                    if free_slots := runner.free_slots_by_queue():
                        runner.start(await executor.claim_direct(free_slots, runner.free))
            except Unavailable:
                logger.warning("jobs.claim_postponed")
            runner.looked_at[server] = monotonic()
            # While jobs end there is a look for each freed slot, but not one after the other without a pause.
            await asyncio.sleep(_DIRECT_PAUSE)
            await _wait(wakeup, _DIRECT_LOOK_EVERY)
            if monotonic() >= next_ping:
                next_ping = monotonic() + _LOOK_EVERY
                try:
                    async with asyncio.timeout(_REDIS_TIMEOUT):
                        await redis.ping()
                except LOST_ERRORS:
                    continue
                logger.info("jobs.redis_recovered")
                return


async def _wait(wakeup: asyncio.Event, seconds: float) -> None:
    """Until the event is set or the time is over."""
    if await is_set_within(wakeup, seconds):
        wakeup.clear()


async def _never_called(_: dict[Any, Any]) -> None:
    raise NotImplementedError
