"""Keeping the clock of a process at the time of PostgreSQL."""

import asyncio

from app.kernel.clock import Clock, SteadyClock, elapsed
from app.kernel.database.gateway import Database
from app.kernel.errors import Unavailable
from app.kernel.observability.telemetry import get_logger

_SECONDS = 1.0

_logger = get_logger(__name__)

GET_TIME = "SELECT clock_timestamp()"


async def follow_database_time(db: Database, clock: Clock) -> None:
    """Asks once a second, for ever; for a process that learns the time by nothing else."""
    while isinstance(clock, SteadyClock):
        try:
            async with db.read("clock") as conn:
                asked_at = elapsed()
                told = await conn.fetchval(GET_TIME)
                clock.learn(told, asked_at, elapsed())
        except Unavailable as error:
            _logger.debug("clock.database_unreachable", error=error.code)
        await asyncio.sleep(_SECONDS)
