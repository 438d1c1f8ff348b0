"""`python -m benchmarks.jobs.worker`: a worker with kinds that do almost nothing."""

import asyncio
import time
from typing import Any

import uvloop

from app.jobs.api import JOB_KINDS
from app.kernel.queue import JobArgs, JobContext, JobKind, job
from app.settings import load_settings
from app.worker import run


class Sleep(JobArgs):
    seconds: float = 0.0


@job("bench.noop", args=Sleep)
async def noop(_: JobContext, __: Sleep) -> None:
    """Nothing but being claimed and finished."""


@job("bench.stamp", args=Sleep)
async def stamp(_: JobContext, __: Sleep) -> dict[str, Any]:
    """Tells when the handler started."""
    return {"at": time.time()}


@job("bench.sleep", args=Sleep)
async def sleep(_: JobContext, args: Sleep) -> None:
    await asyncio.sleep(args.seconds)


KINDS: dict[str, JobKind[Any]] = {kind.name: kind for kind in (noop, stamp, sleep)}

if __name__ == "__main__":
    uvloop.run(run(load_settings(), {**JOB_KINDS, **KINDS}))
