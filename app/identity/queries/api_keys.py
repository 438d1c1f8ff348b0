"""API keys."""

from datetime import datetime
from uuid import UUID

from app.identity.records import Actor
from app.identity.records.credentials import ApiKeyOwner, ApiKeyRow
from app.identity.records.tokens import Revocation
from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

# In a unit that has locked the account, or several of these could count at the same time.
INSERT_API_KEY = """
WITH key AS (
    INSERT INTO identity.api_keys (user_id, id, name, secret_hash, scopes, expires_at, created_at)
    SELECT $1, $2, $3, $4, $5, $6, $7
     WHERE (SELECT count(*) FROM identity.api_keys WHERE user_id = $1 AND revoked_at IS NULL) < $12
 RETURNING id, name, scopes, expires_at, last_used_at, created_at
), audit AS (
    INSERT INTO identity.security_events (user_id, id, action, actor_id, session_id, ip, user_agent, data, created_at)
    SELECT $1, $8, 'api_key_created', $1, $9, $10, $11, jsonb_build_object('name', name), $7 FROM key
)
SELECT id, name, scopes, expires_at, last_used_at, created_at FROM key
"""


async def insert_api_key(
    tx: Tx,
    *,
    user_id: UserId,
    key_id: UUID,
    name: str,
    secret_hash: bytes,
    scopes: list[str],
    expires_at: datetime | None,
    now: datetime,
    event: tuple[UUID, UUID | None, str | None, str | None],
    limit: int,
) -> ApiKeyRow | None:
    """The key; None if the account has `limit` of them. `event` is the audit entry: id, session, ip, user agent."""
    row = await tx.fetchrow(INSERT_API_KEY, user_id, key_id, name, secret_hash, scopes, expires_at, now, *event, limit)
    return ApiKeyRow(**row) if row else None


LIST_API_KEYS = """
SELECT id, name, scopes, expires_at, last_used_at, created_at
  FROM identity.api_keys
 WHERE user_id = $1 AND revoked_at IS NULL
 ORDER BY id DESC
"""


async def list_api_keys(conn: ReadConn, user_id: UserId) -> list[ApiKeyRow]:
    return [ApiKeyRow(**row) for row in await conn.fetch(LIST_API_KEYS, user_id)]


# $3 NULL: all keys of the account. $10: the session that asks for it, which must be alive.
REVOKE_API_KEYS = """
WITH ended AS (
    UPDATE identity.api_keys SET revoked_at = $4
     WHERE user_id = $1 AND revoked_at IS NULL AND ($3::uuid IS NULL OR id = $3)
       AND ($10::uuid IS NULL OR EXISTS (
            SELECT FROM identity.sessions WHERE user_id = $6 AND id = $10 AND revoked_at IS NULL))
 RETURNING id, name
), audit AS (
    INSERT INTO identity.security_events (user_id, id, action, actor_id, session_id, ip, user_agent, data, created_at)
    SELECT $1, $2, 'api_key_revoked', $6, $9, $7, $8,
           jsonb_build_object('names', (SELECT jsonb_agg(name) FROM ended)), $4
     WHERE EXISTS (SELECT FROM ended)
)
INSERT INTO identity.revocations (kind, subject, expires_at)
SELECT 'api_key', id, $5 FROM ended
RETURNING kind, subject, version, expires_at
"""


async def revoke_api_keys(
    tx: Tx,
    *,
    user_id: UserId,
    event_id: UUID,
    key_id: UUID | None,
    now: datetime,
    revocations_end: datetime,
    actor: Actor,
    live_session_id: UUID | None,
) -> list[Revocation]:
    """Nothing happens if the actor's session `live_session_id` has ended before."""
    rows = await tx.fetch(
        REVOKE_API_KEYS,
        user_id,
        event_id,
        key_id,
        now,
        revocations_end,
        actor.user_id,
        actor.device.ip,
        actor.device.user_agent,
        actor.session_id,
        live_session_id,
    )
    return [Revocation(**row) for row in rows]


# Asked for once per key, process and ten minutes, so this is where the last use is noted; not that of a wrong secret.
USE_API_KEY = """
UPDATE identity.api_keys AS key
   SET last_used_at = $3
  FROM identity.accounts AS account
 WHERE key.user_id = $1 AND key.id = $2 AND key.secret_hash = $4 AND key.revoked_at IS NULL
   AND (key.expires_at IS NULL OR key.expires_at > $3)
   AND account.user_id = key.user_id AND account.status = 'active'
RETURNING key.scopes, key.expires_at, account.role, account.version
"""


async def use_api_key(tx: Tx, user_id: UserId, key_id: UUID, now: datetime, secret_hash: bytes) -> ApiKeyOwner | None:
    row = await tx.fetchrow(USE_API_KEY, user_id, key_id, now, secret_hash)
    return ApiKeyOwner(**row) if row else None
