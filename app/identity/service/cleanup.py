"""Deletes expired one-time tokens, revocations and sessions, and sees to it that closed accounts are purged."""

import random
from datetime import timedelta

from app.identity.queries.one_time_tokens import delete_expired_one_time_tokens
from app.identity.queries.security_events import delete_old_security_events
from app.identity.queries.sessions import delete_ended_sessions, delete_expired_revocations, end_sessions_of_before
from app.identity.service.purging import renew_purges
from app.kernel.clock import Clock
from app.kernel.database import Database, in_batches
from app.kernel.database.incarnation import Incarnation
from app.kernel.queue import Queue

# For so long the owner of a session can still ask what became of it.
_KEPT_FOR = timedelta(days=30)
_SECONDS = 600.0
# Afterwards there are none left, and a look at all sessions is spared.
_ENDED_WITHIN = timedelta(days=1)


async def clean(db: Database, clock: Clock, incarnation: Incarnation, *, audit_days: int) -> int:
    """Deletes links, revocations, sessions and audit entries whose time is over, and ends sessions from before the
    database was restored; the answer is how many. Several processes may do so at once.
    """
    now, restored_at = clock.now(), incarnation.restored_at
    ended = 0
    if restored_at is not None and now - restored_at < _ENDED_WITHIN:
        ended = await in_batches(
            db, "identity.end_lost_sessions", lambda tx, limit: end_sessions_of_before(tx, restored_at, limit)
        )
    return ended + (
        await in_batches(
            db, "identity.clean_one_time_tokens", lambda tx, limit: delete_expired_one_time_tokens(tx, now, limit)
        )
        + await in_batches(db, "identity.clean_revocations", delete_expired_revocations)
        + await in_batches(
            db, "identity.clean_sessions", lambda tx, limit: delete_ended_sessions(tx, now - _KEPT_FOR, limit)
        )
        + await in_batches(
            db,
            "identity.clean_security_events",
            lambda tx, limit: delete_old_security_events(tx, now - timedelta(days=audit_days), limit),
        )
    )


async def clean_up(db: Database, queue: Queue, clock: Clock, incarnation: Incarnation, *, audit_days: int) -> None:
    """Asks for purges that are late, and deletes what is over."""
    await renew_purges(db, queue, clock)
    await clean(db, clock, incarnation, audit_days=audit_days)


def seconds_until_cleanup() -> float:
    """Ten minutes or so, so that not all processes clean up at the same moment."""
    return _SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret
