"""Jobs that come by the clock.

A schedule is declared in code and kept in Postgres, where one row and one lock decide that each of its times makes one
job, whichever process leads. Times are those of the schedule's zone: where a clock goes forward over one, it comes at
once afterwards; where an hour happens twice, it comes once.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import orjson
from cronsim import CronSim

from app.identity.api import Actor, lock_admin, record_security_event
from app.jobs.errors import JobNotFound, ScheduleNotFound
from app.jobs.queries import scheduling as queries
from app.jobs.queries.administration import get_any_job
from app.jobs.queries.relay import get_time
from app.jobs.records import AdminJob, DueSchedule, ScheduleRow
from app.jobs.records.administration import ScheduleStatus
from app.jobs.service.submitting import Kinds
from app.kernel.clock import Clock
from app.kernel.database import Database, Tx, retries_conflicts
from app.kernel.observability.telemetry import get_logger
from app.kernel.queue import Enqueued, Queue

_logger = get_logger(__name__)

CatchUp = Literal["none", "one", "all"]

# A time that is not older than this was not missed.
_GRACE = timedelta(minutes=1)
_MAX_CAUGHT_UP = 100


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a kind runs. `catch_up`: which of the times run that passed while no worker was there."""

    name: str
    kind: str
    cron: str
    timezone: str = "UTC"
    args: Mapping[str, Any] = field(default_factory=dict)
    catch_up: CatchUp = "one"


def next_time(cron: str, timezone: str, after: datetime) -> datetime:
    """The first time of `cron` behind `after`, in UTC."""
    found: datetime = next(CronSim(cron, after.astimezone(ZoneInfo(timezone))))
    return found.astimezone(after.tzinfo)


def due_times(schedule: DueSchedule, now: datetime) -> list[datetime]:
    """The times that have come, the oldest first, as far as the schedule's catch-up wants them."""
    times = [schedule.next_run_at]
    while (following := next_time(schedule.cron, schedule.timezone, times[-1])) <= now:
        times.append(following)
        if len(times) > _MAX_CAUGHT_UP:
            del times[0]
    match schedule.catch_up:
        case "all":
            return times[-_MAX_CAUGHT_UP:]
        case "one":
            return times[-1:]
        case _:
            return [time for time in times[-1:] if now - time <= _GRACE]


@retries_conflicts
async def store_schedules(db: Database, now: datetime, schedules: Sequence[Schedule]) -> None:
    """Makes the table hold exactly `schedules`; one whose times have changed starts afresh."""
    # The rules of a time zone are read from a file.
    rows = await asyncio.to_thread(lambda: [_row_of(schedule, now) for schedule in schedules])
    async with db.transaction("jobs.store_schedules") as tx:
        await queries.store_schedules(tx, rows)
        await queries.delete_other_schedules(tx, [row.name for row in rows])


@retries_conflicts
async def run_schedules(db: Database, queue: Queue, now: datetime, kinds: Kinds) -> int:
    """Enqueues what is due, together with the step to each schedule's next time; answers how many jobs."""
    made = 0
    async with db.transaction("jobs.run_schedules") as tx:
        for schedule in await queries.lock_due_schedules(tx, now):
            kind = kinds.get(schedule.kind)
            if kind is None:
                _logger.error("jobs.schedule_kind_unknown", schedule=schedule.name, kind=schedule.kind)
            times = await asyncio.to_thread(due_times, schedule, now) if kind is not None else []
            job_id = None
            for time in times:
                unique_key = f"{schedule.name}@{time.isoformat()}"
                queue_name = kind.queue if kind is not None else ""
                job_id = (await _enqueue(tx, queue, schedule, queue_name, time, unique_key)).id
            made += len(times)
            following = await asyncio.to_thread(next_time, schedule.cron, schedule.timezone, now)
            await queries.set_next_run(tx, schedule.name, following, job_id)
    return made


async def list_schedules(db: Database) -> list[ScheduleStatus]:
    """All schedules, by name, with their next and newest runs."""
    async with db.read("jobs.schedules") as conn:
        return await queries.list_schedules(conn)


@retries_conflicts
async def pause_schedule(db: Database, clock: Clock, actor: Actor, name: str, *, paused: bool) -> None:
    """Keeps all workers from running a schedule by the clock, or lets them again from its next time on: what passed
    meanwhile is not caught up. The actor's trail tells.

    Raises:
        TokenRevoked, RoleRequired: the actor is no administrator any more.
        ScheduleNotFound
    """
    async with db.transaction("jobs.pause_schedule") as tx:
        await lock_admin(tx, clock, actor)
        schedule = await _lock_schedule(tx, name)
        if paused:
            await queries.pause_schedule(tx, name)
        else:
            now = await get_time(tx)
            following = await asyncio.to_thread(next_time, schedule.cron, schedule.timezone, now)
            await queries.resume_schedule(tx, name, following)
        action = "schedule_paused" if paused else "schedule_resumed"
        await record_security_event(tx, clock, actor, action, data=orjson.dumps({"schedule": name}).decode())


@retries_conflicts
async def run_schedule_now(db: Database, queue: Queue, clock: Clock, kinds: Kinds, actor: Actor, name: str) -> AdminJob:
    """Puts in a job of a schedule that stands for this moment, and the actor's trail tells; or finds the one that was
    put in so and is unfinished, and changes nothing.

    Raises:
        TokenRevoked, RoleRequired: the actor is no administrator any more.
        ScheduleNotFound: also where this release has no such kind of job.
    """
    async with db.transaction("jobs.run_schedule") as tx:
        await lock_admin(tx, clock, actor)
        schedule = await _lock_schedule(tx, name)
        kind = kinds.get(schedule.kind)
        if kind is None:
            raise ScheduleNotFound
        now = await get_time(tx)
        done = await _enqueue(tx, queue, schedule, kind.queue, now, f"{name}@demand")
        if done.created:
            await queries.set_last_run(tx, name, now, done.id)
            data = orjson.dumps({"schedule": name, "job_id": str(done.id)}).decode()
            await record_security_event(tx, clock, actor, "schedule_run", data=data)
        job = await get_any_job(tx, done.id)
    if job is None:
        raise JobNotFound
    return job


async def _lock_schedule(tx: Tx, name: str) -> DueSchedule:
    schedule = await queries.lock_schedule(tx, name)
    if schedule is None:
        raise ScheduleNotFound
    return schedule


async def _enqueue(
    tx: Tx, queue: Queue, schedule: DueSchedule, queue_name: str, time: datetime, unique_key: str
) -> Enqueued:
    """The job that stands for `time`."""
    args = {**schedule.parsed_args(), "scheduled_at": time.isoformat()}
    row = queue.new_job(schedule.kind, args, user_id=None, queue=queue_name, unique_key=unique_key)
    (done,) = await queue.enqueue_rows(tx, [row])
    return done


def _row_of(schedule: Schedule, now: datetime) -> ScheduleRow:
    return ScheduleRow(
        name=schedule.name,
        kind=schedule.kind,
        args=dict(schedule.args),
        cron=schedule.cron,
        timezone=schedule.timezone,
        catch_up=schedule.catch_up,
        next_run_at=next_time(schedule.cron, schedule.timezone, now),
    )
