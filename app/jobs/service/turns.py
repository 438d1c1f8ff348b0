"""Which due job is next where Redis does not decide: in the relay's hands, and in a worker's while Redis is away."""

from collections.abc import Mapping
from uuid import UUID

from app.jobs.queries import relay as queries
from app.jobs.records import CAPPED_QUEUES, WaitingJob
from app.jobs.settings import JobsSettings
from app.kernel.database import Tx
from app.kernel.queue.slots import QueueShare

_NO_USER = UUID(int=0)


def user_caps(queues: Mapping[str, QueueShare], settings: JobsSettings) -> dict[str, int]:
    """How many jobs of one user run at a time, by queue of long work: never all that a process can run of them."""
    return {
        queue: min(settings.user_running, max(1, (queues[queue].ceiling or settings.slots) - 1))
        for queue in CAPPED_QUEUES
        if queue in queues
    }


class Turns:
    """The users' turns in each queue, as one process gives them."""

    def __init__(self, caps: Mapping[str, int]) -> None:
        self._caps = caps
        self._last_users: dict[str, UUID] = {}
        self._system_first: dict[str, bool] = {}

    async def take(self, tx: Tx, queue: str, limit: int) -> list[WaitingJob]:
        """Marks up to `limit` due jobs as dispatched; the next call goes on behind the last user of this one."""
        system_first = self._system_first.get(queue, True)
        jobs, last_user = await queries.take_waiting_jobs(
            tx,
            queue,
            limit,
            after=self._last_users.get(queue, _NO_USER),
            cap=self._caps.get(queue),
            system_first=system_first,
        )
        self._last_users[queue] = last_user
        # Where there is room for one, it goes to users and to the system by turns.
        self._system_first[queue] = not system_first
        return jobs
