"""All that this module knows about a person, for a copy of their data."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from app.identity.queries.accounts import get_admin_account
from app.identity.queries.api_keys import list_api_keys
from app.identity.queries.passkeys import list_passkeys
from app.identity.queries.security_events import list_security_events
from app.identity.queries.sessions import list_sessions
from app.identity.records.security_events import SecurityEvent
from app.kernel.clock import Clock
from app.kernel.database import ReadConn
from app.kernel.ids import UserId

_PAGE = 500


async def export_identity(conn: ReadConn, clock: Clock, user_id: UserId) -> dict[str, Any]:
    """Account, sessions, passkeys and API keys, each as its owner may see it; no hash and no secret."""
    account = await get_admin_account(conn, user_id)
    return {
        "account": account.view() if account else None,
        "sessions": await list_sessions(conn, user_id, clock.now()),
        "passkeys": [passkey.view() for passkey in await list_passkeys(conn, user_id)],
        "api_keys": [key.view() for key in await list_api_keys(conn, user_id)],
    }


async def iterate_security_events(conn: ReadConn, user_id: UserId) -> AsyncIterator[SecurityEvent]:
    """The audit trail, newest first, a page in memory at a time."""
    before: UUID | None = None
    while page := await list_security_events(conn, user_id, before, _PAGE):
        for event in page:
            yield event
        before = page[-1].id
