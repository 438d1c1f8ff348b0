"""The work of an account ends with it, and within the same transaction.

Jobs that were put in before are cancelled by the claim that would have started them, however many there are. What is
put in afterwards runs: the program alone does that, to tell of the ban or the deletion.
"""

from app.jobs.queries import suspending as queries
from app.kernel.database import Tx
from app.kernel.ids import UserId
from app.kernel.queue import Queue


async def suspend_user(tx: Tx, queue: Queue, user_id: UserId, reason: str) -> None:
    """For an account that is banned or closed. `reason` is the error code of its jobs and deliveries."""
    for job_id in await queries.suspend_user(tx, user_id, reason):
        queue.stop_running(tx, job_id)


async def resume_user(tx: Tx, user_id: UserId) -> None:
    """Lets jobs run again whose time has not come meanwhile; the others can be retried by their owner."""
    await queries.resume_user(tx, user_id)
