"""What is over and tells nobody anything any more."""

import asyncio
import random
from datetime import timedelta

from app.identity.queries.one_time_tokens import delete_expired_one_time_tokens
from app.identity.queries.sessions import delete_ended_sessions, delete_expired_revocations
from app.kernel.clock import Clock
from app.kernel.database import Database, in_batches
from app.kernel.errors import Unavailable
from app.kernel.telemetry import get_logger

# For so long the owner of a session can still ask what became of it.
_KEPT_FOR = timedelta(days=30)
_SECONDS = 600.0

_logger = get_logger(__name__)


async def clean(db: Database, clock: Clock) -> int:
    """Deletes links, revocations and sessions whose time is over; the answer is how many. Several processes may do so
    at once.
    """
    now = clock.now()
    return (
        await in_batches(
            db, "identity.clean_one_time_tokens", lambda tx, limit: delete_expired_one_time_tokens(tx, now, limit)
        )
        + await in_batches(db, "identity.clean_revocations", delete_expired_revocations)
        + await in_batches(
            db, "identity.clean_sessions", lambda tx, limit: delete_ended_sessions(tx, now - _KEPT_FOR, limit)
        )
    )


async def clean_for_ever(db: Database, clock: Clock) -> None:
    """Every ten minutes or so, not all processes at the same moment."""
    while True:
        await asyncio.sleep(_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
        try:
            await clean(db, clock)
        except Unavailable as error:
            _logger.debug("identity cannot be cleaned", error=error.code)
        except Exception:
            _logger.exception("cleaning identity failed")
