"""Kinds of jobs that only tests know, and the like."""

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.kernel.database import Database
from app.kernel.queue import JobArgs, JobContext, JobKind, PermanentJobError, Queue, SnoozeJob, job
from app.kernel.redis.gateway import RedisGateway


@dataclass
class Producer:
    """A process that only enqueues."""

    db: Database
    redis: RedisGateway
    queue: Queue


class Steps:
    """What the test's kinds did, and the gates they wait at."""

    def __init__(self) -> None:
        self.started: list[UUID] = []
        self.ended: list[UUID] = []
        self.gate = asyncio.Event()
        self.failures_left = 0


class Numbered(JobArgs):
    number: int = 0


def kinds_of(steps: Steps) -> dict[str, JobKind[Any]]:  # noqa: C901 - a list of small functions
    @job("test.noop", args=Numbered, public=True)
    async def noop(ctx: JobContext, args: Numbered) -> dict[str, Any]:
        steps.started.append(ctx.job_id)
        return {"number": args.number}

    @job("test.wait", args=Numbered, public=True, timeout=600)
    async def wait(ctx: JobContext, args: Numbered) -> None:
        steps.started.append(ctx.job_id)
        await steps.gate.wait()
        steps.ended.append(ctx.job_id)

    @job("test.flaky", args=Numbered, public=True, max_attempts=3, backoff_base=0.05)
    async def flaky(ctx: JobContext, args: Numbered) -> dict[str, Any]:
        steps.started.append(ctx.job_id)
        if steps.failures_left:
            steps.failures_left -= 1
            raise RuntimeError("not this time")
        return {"attempt": ctx.attempt}

    @job("test.hopeless", args=Numbered, public=True)
    async def hopeless(ctx: JobContext, args: Numbered) -> None:
        steps.started.append(ctx.job_id)
        raise PermanentJobError("hopeless", "This never works.")

    @job("test.slow", args=Numbered, public=True, timeout=1, max_attempts=1)
    async def slow(ctx: JobContext, args: Numbered) -> None:
        steps.started.append(ctx.job_id)
        await asyncio.sleep(30)

    @job("test.snooze", args=Numbered, public=True)
    async def snooze(ctx: JobContext, args: Numbered) -> dict[str, Any]:
        steps.started.append(ctx.job_id)
        if len(steps.started) < 3:
            raise SnoozeJob(0.05)
        return {"attempt": ctx.attempt}

    @job("test.effect", args=Numbered, public=True)
    async def effect(ctx: JobContext, args: Numbered) -> None:
        steps.started.append(ctx.job_id)
        async with ctx.transaction("test.effect") as tx:
            await tx.execute("INSERT INTO effects (job_id) VALUES ($1)", ctx.job_id)
            await steps.gate.wait()
            await ctx.complete(tx, {"done": True})

    @job("test.file", args=Numbered, public=True)
    async def file(ctx: JobContext, args: Numbered) -> None:
        steps.started.append(ctx.job_id)
        async with ctx.artifact("numbers.txt", "text/plain") as writer:
            for number in range(args.number):
                await writer.write(f"{number}\n".encode())
            await ctx.progress(args.number, args.number, "written")
            await steps.gate.wait()

    kinds = (noop, wait, flaky, hopeless, slow, snooze, effect, file)
    return {kind.name: kind for kind in kinds}
