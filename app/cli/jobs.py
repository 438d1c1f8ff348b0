"""`python -m app jobs …` and `python -m app mail …`."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import orjson
import typer

from app.cli.environment import fail, servers_for_settings
from app.cli.terminal import operator_name, say

if TYPE_CHECKING:
    from app.identity.api import Actor
    from app.jobs.api import AdminJob
    from app.kernel.resources import Resources

jobs = typer.Typer(help="Background jobs and their queues.", no_args_is_help=True)

mail = typer.Typer(help="E-mail.", no_args_is_help=True)

_JobId = Annotated[UUID, typer.Argument(help="The job's id.")]
_Queue = Annotated[str, typer.Argument(help="The queue's name.")]


def _with_resources(work: "Callable[[Resources], Awaitable[Any]]") -> Any:
    """Runs `work` with open connections; an error of ours ends the command with its message."""
    from app.composition import close_resources, make_resources, open_database
    from app.jobs.api import JobWatch
    from app.kernel.errors import AppError

    with servers_for_settings() as settings:

        async def run() -> Any:
            resources = make_resources(settings, application_name="onehop-cli")
            JobWatch(resources.bus).attach(resources.db)
            await open_database(resources)
            try:
                return await work(resources)
            finally:
                await close_resources(resources)

        try:
            return asyncio.run(run())
        except AppError as error:
            fail(error.detail or error.title)


@jobs.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
) -> None:
    """The newest jobs of everybody."""
    from app.jobs.api import STATE_FILTERS, JobFilter, list_all_jobs

    if state is not None and state not in STATE_FILTERS:
        fail(f"There is no such state; take one of {', '.join(STATE_FILTERS)}.")
    wanted = JobFilter(state=state)
    page = _with_resources(lambda own: list_all_jobs(own.db, own.cursors, wanted, limit=limit, cursor=None))
    for job in page.items:
        say(_line(job))


@jobs.command()
def show(job_id: _JobId) -> None:
    """One job as JSON, with its failed attempts."""
    from app.jobs.api import get_any_job, list_attempts

    async def read(own: "Resources") -> dict[str, Any]:
        job = await get_any_job(own.db, job_id)
        words = {"state": _state(job), "attempts": await list_attempts(own.db, job_id)}
        return asdict(job) | words

    say(orjson.dumps(_with_resources(read), default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z).decode())


@jobs.command()
def retry(
    job_id: Annotated[UUID | None, typer.Argument(help="A failed or cancelled job.")] = None,
    kind: Annotated[str | None, typer.Option(help="With --failed: only jobs of this kind.")] = None,
    hours: Annotated[int, typer.Option(min=1, help="With --failed: only what failed in the last so many hours.")] = 24,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 1000,
    *,
    failed: Annotated[bool, typer.Option("--failed", help="All failed jobs instead of one.")] = False,
) -> None:
    """Run a job again, or all that have failed."""
    from app.jobs.api import retry_any_job, retry_failed_jobs

    if failed == (job_id is not None):
        fail("Give either a job's id or --failed.")
    if job_id is not None:
        chosen = job_id
        say(
            _line(
                _with_resources(lambda own: retry_any_job(own.db, own.queue, own.cache, own.clock, _operator(), chosen))
            )
        )
        return

    async def retry_all(own: "Resources") -> int:
        since: datetime = own.clock.now() - timedelta(hours=hours)
        return await retry_failed_jobs(
            own.db, own.queue, own.cache, own.clock, _operator(), kind=kind, since=since, limit=limit
        )

    say(f"{_with_resources(retry_all)} jobs run again.")


@jobs.command()
def cancel(job_id: _JobId) -> None:
    """End a queued job, or ask a running one to stop."""
    from app.jobs.api import cancel_any_job

    say(
        _line(_with_resources(lambda own: cancel_any_job(own.db, own.queue, own.cache, own.clock, _operator(), job_id)))
    )


@jobs.command()
def queues() -> None:
    """List the queues with their waiting and running jobs."""
    from app.jobs.api import list_queues

    say(f"{'queue':<10} {'waiting':>8} {'running':>8} {'done/min':>9}")
    for queue in _with_resources(lambda own: list_queues(own.db)):
        note = "  paused" if queue.paused else ""
        say(f"{queue.queue:<10} {queue.waiting:>8} {queue.running:>8} {queue.finished:>9}{note}")


@jobs.command()
def pause(queue: _Queue) -> None:
    """Pause a queue: start no more of its jobs."""
    from app.jobs.api import pause_queue

    _with_resources(lambda own: pause_queue(own.db, own.queue, own.clock, _operator(), queue, paused=True))
    say(f"{queue} is paused.")


@jobs.command()
def resume(queue: _Queue) -> None:
    """Resume a paused queue."""
    from app.jobs.api import pause_queue

    _with_resources(lambda own: pause_queue(own.db, own.queue, own.clock, _operator(), queue, paused=False))
    say(f"{queue} runs.")


@mail.command("lift-suppression")
def lift_suppression(email: Annotated[str, typer.Argument(help="The address.")]) -> None:
    """Lift the suppression of an address whose server refused an e-mail."""
    from app.identity.api import check_secret
    from app.jobs.api import lift_suppression as lift

    async def lift_it(own: "Resources") -> bool:
        # Under another secret every address is an unknown one.
        await check_secret(own.db, own.keys)
        return await lift(own.db, own.keys, own.clock, _operator(), email)

    is_lifted = _with_resources(lift_it)
    say(f"{email} is written to again." if is_lifted else f"{email} was not suppressed; nothing changed.")


def _operator() -> "Actor":
    from app.identity.api import operator

    return operator(operator_name())


def _line(job: "AdminJob") -> str:
    return f"{job.id}  {_state(job):<9}  {job.attempt}/{job.max_attempts}  {job.queue:<9} {job.kind}"


def _state(job: "AdminJob") -> str:
    """As the API tells it, and as `--state` takes it."""
    from app.jobs.api import api_state

    return api_state(job.state, job.attempt, is_due=job.is_due)
