"""What a worker's probes are told: whether its loops go round, and whether it has what it needs."""

import asyncio
from time import monotonic

from app.jobs.settings import JobsSettings
from app.kernel.database import Database
from app.kernel.errors import Unavailable
from app.kernel.observability.probes import Check, Checks
from app.kernel.queue import Queue
from app.kernel.queue.slots import Runner
from app.kernel.redis.gateway import RedisUnavailable
from app.kernel.schema.revision import SchemaState, read_schema

_LOOK_SECONDS = 2.0


class WorkerHealth:
    """Reads what the loops of a worker note in its `Runner`."""

    def __init__(self, db: Database, queue: Queue, runner: Runner, settings: JobsSettings) -> None:
        self._db = db
        self._queue = queue
        self._runner = runner
        self._settings = settings

    def live(self) -> Checks:
        """Fails where only a restart helps: a loop that has not come round for `max_stall` seconds.

        A lost server fails nothing here; the loops go round without it.
        """
        if self._runner.draining:
            # They end one after the other, and so does the process.
            return {"claims": "ok", "maintenance": "ok"}
        since = monotonic() - self._settings.max_stall
        return {
            "claims": _check(is_good=all(moment > since for moment in self._runner.looked_at.values())),
            "maintenance": _check(is_good=self._runner.maintained_at > since),
        }

    async def ready(self) -> Checks:
        """Fails while jobs cannot be worked on."""
        (database, schema), redis = await asyncio.gather(self._schema(), self._redis())
        is_kept = monotonic() - self._runner.leases_kept_at < self._settings.lease
        return {
            **self.live(),
            "accepting": _check(is_good=not self._runner.draining),
            "heartbeat": _check(is_good=is_kept),
            "database": database,
            "schema": schema,
            "redis": redis,
        }

    async def _schema(self) -> tuple[Check, Check]:
        try:
            async with asyncio.timeout(_LOOK_SECONDS), self._db.read("jobs.worker_ready") as conn:
                schema = await read_schema(conn)
        except (Unavailable, TimeoutError):
            return "failing", "failing"
        return "ok", _check(is_good=schema is not SchemaState.OLD)

    async def _redis(self) -> Check:
        """Without it jobs are claimed straight from Postgres, later."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await asyncio.gather(*(server.call(lambda client: client.ping()) for server in self._queue.servers))
        except (RedisUnavailable, TimeoutError):
            return "degraded"
        return "ok"


def _check(*, is_good: bool) -> Check:
    return "ok" if is_good else "failing"
