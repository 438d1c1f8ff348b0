"""What is our own outage and no fault of a job: such a run is no attempt, and the job waits until it is over."""

import asyncio
import errno
import socket
from time import monotonic

from prometheus_client import Counter

from app.jobs.queries.execution import list_paused_queues
from app.kernel.database import Database, StatementTimeout
from app.kernel.errors import Unavailable
from app.kernel.observability.telemetry import get_logger
from app.kernel.redis.gateway import RedisUnavailable

_logger = get_logger(__name__)

_postponed_total = Counter("onehop_jobs_postponed", "Runs postponed by an outage of a dependency.", ["kind", "cause"])

# What the system says of a disk, of the network of this machine, or of the limits of this process, whichever job it is.
_SYSTEM_ERRORS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.EACCES,
        errno.EPERM,
        errno.ENXIO,
        errno.ENODEV,
        errno.ESTALE,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EADDRNOTAVAIL,
        errno.ENOBUFS,
    }
)
# What the system says where no name server gave an answer about a name.
NO_NAME_SERVER = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY, socket.EAI_SYSTEM})
_LOG_EVERY_SECONDS = 60.0
# Of a question that takes a millisecond.
_PROMPT_SECONDS = 2.0


def outage_of(error: BaseException) -> str | None:
    """A name for what is missing if `error`, or what caused it, is an outage of ours; else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Unavailable):
            return cause.code
        if isinstance(cause, RedisUnavailable):
            return "redis_unavailable"
        if isinstance(cause, MemoryError):
            return "out_of_memory"
        if isinstance(cause, socket.gaierror):
            if cause.errno in NO_NAME_SERVER:
                return "names_unavailable"
        elif isinstance(cause, OSError) and cause.errno in _SYSTEM_ERRORS:
            return errno.errorcode[cause.errno].lower()
        cause = cause.__cause__
    return None


def is_statement_timeout(error: BaseException) -> bool:
    """Whether a statement of the run took too long, which may be the fault of what it reads."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, StatementTimeout):
        cause = cause.__cause__
    return cause is not None


async def is_database_prompt(db: Database) -> bool:
    """Whether the database answers a small question on another connection. One that hangs lets every statement time
    out, which is no fault of a job.
    """
    try:
        async with asyncio.timeout(_PROMPT_SECONDS), db.read("jobs.probe") as conn:
            await list_paused_queues(conn)
    except (Unavailable, TimeoutError):
        return False
    return True


class OutageLog:
    """Counts postponed runs, and tells the operator of each cause once a minute. One per process."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def record_outage(self, kind: str, cause: str, error: BaseException) -> None:
        _postponed_total.labels(kind, cause).inc()
        now = monotonic()
        if now >= self._next.get(cause, 0.0):
            self._next[cause] = now + _LOG_EVERY_SECONDS
            _logger.error(
                "jobs.run_postponed", cause=cause, kind=kind, error=type(error).__name__, reason=str(error) or None
            )
