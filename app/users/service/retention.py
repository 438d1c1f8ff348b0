"""Events are kept for as long as the settings say."""

from collections.abc import Sequence

from app.kernel.cache import FORGET_TOPIC
from app.kernel.database import Database
from app.users.queries import retention as queries
from app.users.records import RetentionPosition
from app.users.service import events_tag
from app.users.settings import RetentionRule

_USERS = 500
_SCANNED = 1_000


async def expire_events(
    db: Database, rules: Sequence[RetentionRule], position: RetentionPosition
) -> tuple[int, RetentionPosition | None]:
    """Deletes what has expired of the next old events behind `position`, in one statement that reads a bounded part of
    them; answers how many, and where to go on; None: that was the end.
    """
    if not rules:
        return 0, None
    async with db.statement("users.expire_events") as tx:
        expired = await queries.delete_expired_events(
            *(tx, position),
            patterns=[rule.like for rule in rules],
            days=[rule.days for rule in rules],
            users=_USERS,
            scanned=_SCANNED,
        )
        for user_id in expired.owners:
            tx.emit(FORGET_TOPIC, events_tag(user_id))
    return expired.count, expired.position
