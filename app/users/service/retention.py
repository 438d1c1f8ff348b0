"""Events are kept for as long as the settings say."""

from collections.abc import Sequence
from uuid import UUID

from app.kernel.cache import FORGET_TOPIC
from app.kernel.database import Database
from app.users.queries import retention as queries
from app.users.service import events_tag
from app.users.settings import RetentionRule

_USERS = 500
_EVENTS = 1_000


async def expire_events(db: Database, rules: Sequence[RetentionRule]) -> int:
    """Deletes the events whose time is over, some users and some events at a time; answers how many."""
    total = 0
    for number, rule in enumerate(rules):
        earlier = [other.like for other in rules[:number]]
        after: UUID | None = UUID(int=0)
        while after is not None:
            async with db.read("users.retention_page") as conn:
                last = await queries.get_end_of_page(conn, after, _USERS)
            total += await _expire_page(db, rule, earlier, after, last)
            after = last
    return total


async def _expire_page(
    db: Database, rule: RetentionRule, earlier: Sequence[str], after: UUID, last: UUID | None
) -> int:
    total = 0
    while True:
        async with db.statement("users.expire_events") as tx:
            owners = await queries.delete_expired_events(
                tx, pattern=rule.like, but=earlier, days=rule.days, after=after, last=last, limit=_EVENTS
            )
            for user_id in set(owners):
                tx.emit(FORGET_TOPIC, events_tag(user_id))
        total += len(owners)
        if len(owners) < _EVENTS:
            return total
