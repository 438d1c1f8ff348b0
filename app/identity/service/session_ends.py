"""Tells of sessions that had to end for a new one, after the log-in and not within it.

A log-in is one statement, and a job row for the event would make a transaction of it. So the statement marks the
sessions that it ends where a webhook subscribes to it, and the marks are turned into job rows a moment later: by the
process that made them, or, if that has died meanwhile, by any other within a minute.
"""

import asyncio

from app.identity.queries.sessions import claim_unpublished_ends
from app.kernel.background import Background
from app.kernel.database import Database, Tx, retries_conflicts
from app.kernel.webhook_subscribers import WebhookSubscribers

SESSION_REVOKED = "session.revoked"

_AT_A_TIME = 500
_SECONDS = 60.0


class SessionEndPublisher:
    """One per API process."""

    def __init__(self, db: Database, webhook_subscribers: WebhookSubscribers) -> None:
        self._db = db
        self._webhook_subscribers = webhook_subscribers
        self._marked = asyncio.Event()

    def announce(self, tx: Tx) -> None:
        """After the commit of `tx`, which has marked sessions, their ends are published soon."""

        async def wake() -> None:
            self._marked.set()

        tx.after_commit(wake)

    async def publish(self) -> None:
        """Publishes the ends that are marked."""
        claimed = _AT_A_TIME
        while claimed == _AT_A_TIME:
            claimed = await self._publish_some()

    @retries_conflicts
    async def _publish_some(self) -> int:
        async with self._db.transaction("identity.publish_ends") as tx:
            ends = await claim_unpublished_ends(tx, _AT_A_TIME)
            if ends:
                # Also where no subscriber is known: this process may know less than the one that marked them.
                await self._webhook_subscribers.publish_noted(
                    tx,
                    [
                        (user_id, SESSION_REVOKED, {"session_id": str(session_id), "reason": "too_many_sessions"})
                        for user_id, session_id in ends
                    ],
                )
        return len(ends)

    def start(self, background: Background) -> None:
        """Publishes at once where this process has marked something; else now and then, for those that have died."""
        background.repeat(self.publish, name="identity.session_ends", every=_SECONDS, wake=self._marked)
