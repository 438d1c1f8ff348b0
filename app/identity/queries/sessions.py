"""Sessions, and the revocations that end them at once."""

from datetime import datetime
from uuid import UUID

from app.identity.records.sessions import (
    NewSession,
    OpenedSession,
    Rotation,
    Session,
    SessionOwner,
    SessionsEnd,
    SessionStatus,
)
from app.identity.records.tokens import Revocation
from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

# One statement, so that a log-in needs no transaction: the session, the account's last log-in with a password hash of
# today's strength, the audit entry, and the end of the longest unused sessions beyond the limit, marked where a webhook
# wants to hear of it. None of it happens if the account has changed since the password was checked, because an old
# password must not open a session after its end, nor if the session was opened before.
# The sessions are counted as they were when the statement began. If it had to wait for another log-in of the account,
# that one's session is missing from the count; the counter of log-ins tells.
INSERT_SESSION = """
WITH account AS (
    UPDATE identity.accounts
       SET last_login_at = $4, password_hash = COALESCE($11, password_hash), log_ins = log_ins + 1
     WHERE user_id = $1 AND version = $15 AND totp_enabled = $17 AND status = 'active'
 RETURNING user_id, log_ins
), session AS (
    INSERT INTO identity.sessions (user_id, id, rotated_at, created_at, authenticated_at, last_used_at,
                                   idle_expires_at, expires_at, methods, ip, user_agent, device_name)
    SELECT user_id, $2, $4, $4, $4, $4, $5, $6, $7, $8, $9, $10 FROM account
    ON CONFLICT DO NOTHING
 RETURNING user_id
), surplus AS (
    UPDATE identity.sessions
       SET revoked_at = $4, revoke_reason = 'session_limit', has_unpublished_end = $16
     WHERE user_id IN (SELECT user_id FROM session) AND id IN (
           SELECT id FROM identity.sessions
            WHERE user_id = $1 AND revoked_at IS NULL AND methods <> '{impersonation}'
            ORDER BY last_used_at DESC OFFSET $12 - 1)
 RETURNING id
), revoked AS (
    INSERT INTO identity.revocations (kind, subject, expires_at)
    SELECT 'session', id, $13 FROM surplus
), audit AS (
    INSERT INTO identity.security_events (user_id, id, action, actor_id, session_id, ip, user_agent, data, created_at)
    SELECT user_id, $3, $14, user_id, $2, $8, $9, jsonb_build_object('methods', $7::text[]), $4 FROM session
)
SELECT EXISTS (SELECT FROM session) AS is_opened, ARRAY(SELECT id FROM surplus) AS ended,
       COALESCE((SELECT log_ins FROM account)
                > (SELECT log_ins + 1 FROM identity.accounts WHERE user_id = $1), false) AS is_crowded
"""


async def insert_session(
    tx: Tx,
    session: NewSession,
    *,
    event_id: UUID,
    action: str,
    new_password_hash: str | None,
    limit: int,
    revocations_end: datetime,
    version: int,
    totp_enabled: bool,
    marks_ends: bool,
) -> OpenedSession:
    """Opens a session of an account that is at `version`, and has or has not a second factor as `totp_enabled` says."""
    row = await tx.fetchrow(
        INSERT_SESSION,
        session.user_id,
        session.id,
        event_id,
        session.created_at,
        session.idle_expires_at,
        session.expires_at,
        list(session.methods),
        session.device.ip,
        session.device.user_agent,
        session.device.name,
        new_password_hash,
        limit,
        revocations_end,
        action,
        version,
        marks_ends,
        totp_enabled,
    )
    return OpenedSession(**row) if row else OpenedSession(is_opened=False, ended=[], is_crowded=False)


INSERT_IMPERSONATION = """
INSERT INTO identity.sessions (user_id, id, rotated_at, created_at, authenticated_at, last_used_at,
                               idle_expires_at, expires_at, methods, ip, user_agent, device_name)
VALUES ($1, $2, $3, $3, $3, $3, $4, $4, $5, $6, $7, $8)
"""


async def insert_impersonation(tx: Tx, session: NewSession) -> None:
    """Opens a session for another than its user, whom it neither logs in nor costs another session."""
    await tx.execute(
        INSERT_IMPERSONATION,
        session.user_id,
        session.id,
        session.created_at,
        session.expires_at,
        list(session.methods),
        session.device.ip,
        session.device.user_agent,
        session.device.name,
    )


# A session that has ended already: no session is opened twice, so its id is used up. It is deleted with the others.
SPEND_SESSION_ID = """
INSERT INTO identity.sessions (user_id, id, rotated_at, created_at, authenticated_at, last_used_at,
                               idle_expires_at, expires_at, methods, revoked_at, revoke_reason)
VALUES ($1, $2, $3, $3, $3, $3, $4, $4, '{}', $3, 'never_opened')
ON CONFLICT DO NOTHING
"""


async def spend_session_id(tx: Tx, user_id: UserId, session_id: UUID, now: datetime, expires_at: datetime) -> bool:
    """Whether the session had not been opened and its id not been spent before. `expires_at`: of what names it."""
    return await tx.execute(SPEND_SESSION_ID, user_id, session_id, now, expires_at) == "INSERT 0 1"


END_SURPLUS_SESSIONS = """
WITH surplus AS (
    UPDATE identity.sessions
       SET revoked_at = $2, revoke_reason = 'session_limit', has_unpublished_end = $5
     WHERE user_id = $1 AND revoked_at IS NULL AND id IN (
           SELECT id FROM identity.sessions
            WHERE user_id = $1 AND revoked_at IS NULL AND methods <> '{impersonation}'
            ORDER BY last_used_at DESC, id DESC OFFSET $3)
 RETURNING id
), revoked AS (
    INSERT INTO identity.revocations (kind, subject, expires_at)
    SELECT 'session', id, $4 FROM surplus
)
SELECT id FROM surplus
"""


async def end_surplus_sessions(
    tx: Tx, user_id: UserId, now: datetime, *, limit: int, revocations_end: datetime, marks_ends: bool
) -> list[UUID]:
    """Ends the longest unused sessions of an account beyond `limit`; the answer is which."""
    rows = await tx.fetch(END_SURPLUS_SESSIONS, user_id, now, limit, revocations_end, marks_ends)
    return [row["id"] for row in rows]


CLAIM_UNPUBLISHED_ENDS = """
UPDATE identity.sessions
   SET has_unpublished_end = false
 WHERE (user_id, id) IN (
       SELECT user_id, id FROM identity.sessions
        WHERE has_unpublished_end
        LIMIT $1
        FOR UPDATE SKIP LOCKED)
RETURNING user_id, id
"""


async def claim_unpublished_ends(tx: Tx, limit: int) -> list[tuple[UserId, UUID]]:
    """User and id of up to `limit` sessions whose end `tx` has to publish; no other unit gets them unless it fails."""
    return [(row["user_id"], row["id"]) for row in await tx.fetch(CLAIM_UNPUBLISHED_ENDS, limit)]


# Compare and swap: of all requests with one generation, one turns it into the next.
ROTATE_SESSION = """
UPDATE identity.sessions AS session
   SET generation = generation + 1, rotated_at = $4, last_used_at = $4, rotation_key = $5,
       idle_expires_at = LEAST($6, session.expires_at), ip = $7, user_agent = $8
  FROM identity.accounts AS account
 WHERE session.user_id = $1 AND session.id = $2 AND session.generation = $3
   AND session.revoked_at IS NULL AND session.idle_expires_at > $4 AND session.expires_at > $4
   AND account.user_id = session.user_id AND account.status = 'active'
RETURNING session.generation, session.rotated_at, session.rotation_key, session.idle_expires_at, true AS alive,
          account.status, account.role, account.version
"""


async def rotate_session(
    tx: Tx,
    *,
    user_id: UserId,
    session_id: UUID,
    generation: int,
    now: datetime,
    rotation_key: bytes | None,
    idle_expires_at: datetime,
    ip: str | None,
    user_agent: str | None,
) -> Rotation | None:
    row = await tx.fetchrow(
        ROTATE_SESSION, user_id, session_id, generation, now, rotation_key, idle_expires_at, ip, user_agent
    )
    return Rotation(**row) if row else None


GET_ROTATION = """
SELECT session.generation, session.rotated_at, session.rotation_key, session.idle_expires_at,
       session.revoked_at IS NULL AND session.idle_expires_at > $3 AND session.expires_at > $3 AS alive,
       account.status, account.role, account.version
  FROM identity.sessions AS session
  JOIN identity.accounts AS account USING (user_id)
 WHERE session.user_id = $1 AND session.id = $2
"""


async def get_rotation(conn: ReadConn, user_id: UserId, session_id: UUID, now: datetime) -> Rotation | None:
    row = await conn.fetchrow(GET_ROTATION, user_id, session_id, now)
    return Rotation(**row) if row else None


# Asked for once per cookie, process and ten minutes, so this is where the last use is noted.
USE_SESSION = """
UPDATE identity.sessions AS session
   SET last_used_at = $3, idle_expires_at = LEAST($4, session.expires_at)
  FROM identity.accounts AS account
 WHERE session.user_id = $1 AND session.id = $2
   AND session.revoked_at IS NULL AND session.idle_expires_at > $3 AND session.expires_at > $3
   AND account.user_id = session.user_id AND account.status = 'active'
RETURNING session.idle_expires_at AS expires_at, account.role, account.version
"""


async def use_session(
    tx: Tx, user_id: UserId, session_id: UUID, now: datetime, idle_expires_at: datetime
) -> SessionOwner | None:
    """None: the session has ended."""
    row = await tx.fetchrow(USE_SESSION, user_id, session_id, now, idle_expires_at)
    return SessionOwner(**row) if row else None


GET_SESSION_STATUS = """
SELECT authenticated_at, methods, LEAST(idle_expires_at, expires_at) AS expires_at
  FROM identity.sessions
 WHERE user_id = $1 AND id = $2 AND revoked_at IS NULL
"""


async def get_session_status(conn: ReadConn, user_id: UserId, session_id: UUID) -> SessionStatus | None:
    """None: the session has ended."""
    row = await conn.fetchrow(GET_SESSION_STATUS, user_id, session_id)
    return SessionStatus(**row) if row else None


LIST_SESSIONS = """
SELECT id, created_at, last_used_at, ip, user_agent, device_name, LEAST(idle_expires_at, expires_at) AS expires_at
  FROM identity.sessions
 WHERE user_id = $1 AND revoked_at IS NULL AND idle_expires_at > $2 AND expires_at > $2
 ORDER BY last_used_at DESC, id DESC
"""


async def list_sessions(conn: ReadConn, user_id: UserId, now: datetime) -> list[Session]:
    """All living sessions, of which the settings allow so many (`max_sessions`); the last used one first."""
    return [Session(**row) for row in await conn.fetch(LIST_SESSIONS, user_id, now)]


# $3 NULL: all sessions. $4: the one that stays. $12: the session that asks for it, which must be alive. The revocations
# stand in the same statement, so that no process can learn of one without the other.
REVOKE_SESSIONS = """
WITH ended AS (
    UPDATE identity.sessions
       SET revoked_at = $5, revoke_reason = $6
     WHERE user_id = $1 AND revoked_at IS NULL AND idle_expires_at > $5 AND expires_at > $5
       AND ($3::uuid IS NULL OR id = $3) AND id IS DISTINCT FROM $4
       AND ($12::uuid IS NULL OR EXISTS (
            SELECT FROM identity.sessions WHERE user_id = $8 AND id = $12 AND revoked_at IS NULL))
 RETURNING id
), revoked AS (
    INSERT INTO identity.revocations (kind, subject, expires_at)
    SELECT 'session', id, $7 FROM ended
), audit AS (
    INSERT INTO identity.security_events (user_id, id, action, actor_id, session_id, ip, user_agent, data, created_at)
    SELECT $1, $2, $6, $8, $3, $9, $10, jsonb_build_object('sessions', (SELECT count(*) FROM ended)), $5
     WHERE $11 AND EXISTS (SELECT FROM ended)
)
SELECT id FROM ended
"""


async def revoke_sessions(tx: Tx, end: SessionsEnd) -> list[UUID]:
    """Which sessions have ended by this."""
    rows = await tx.fetch(
        REVOKE_SESSIONS,
        end.user_id,
        end.event_id,
        end.session_id,
        end.except_id,
        end.now,
        end.reason,
        end.revocations_end,
        end.actor_id,
        end.device.ip,
        end.device.user_agent,
        end.is_noted,
        end.live_session_id,
    )
    return [row["id"] for row in rows]


# Age and end are measured by the clock that wrote the rows; that of this machine may differ from it by minutes.
LIST_REVOCATIONS = """
SELECT clock.now AS told, revocation.kind, revocation.subject, revocation.version, revocation.expires_at
  FROM (SELECT clock_timestamp() AS now) AS clock
  LEFT JOIN identity.revocations AS revocation
    ON revocation.created_at > clock.now - make_interval(secs => $1) AND revocation.expires_at > clock.now
"""


async def list_revocations(conn: ReadConn, age: float) -> tuple[datetime, list[Revocation]]:
    """The time of the database, and the revocations of the last `age` seconds that still matter then."""
    rows = await conn.fetch(LIST_REVOCATIONS, age)
    found = [Revocation(row["kind"], row["subject"], row["version"], row["expires_at"]) for row in rows if row["kind"]]
    return rows[0]["told"], found


# A day longer than they matter, so that they are there still when the clock of the database is set back.
DELETE_EXPIRED_REVOCATIONS = """
DELETE FROM identity.revocations
 WHERE id IN (
       SELECT id FROM identity.revocations
        WHERE expires_at < clock_timestamp() - interval '1 day'
        ORDER BY expires_at
        LIMIT $1
        FOR UPDATE SKIP LOCKED)
"""


async def delete_expired_revocations(tx: Tx, limit: int) -> int:
    """Deletes up to `limit` that no living token can be refused for any more; the answer is how many."""
    return int((await tx.execute(DELETE_EXPIRED_REVOCATIONS, limit)).removeprefix("DELETE "))


DELETE_ENDED_SESSIONS = """
DELETE FROM identity.sessions
 WHERE (user_id, id) IN (
       SELECT user_id, id FROM identity.sessions
        WHERE expires_at < $1
        ORDER BY expires_at
        LIMIT $2
        FOR UPDATE SKIP LOCKED)
"""


async def delete_ended_sessions(tx: Tx, before: datetime, limit: int) -> int:
    """Deletes up to `limit` sessions that could not have been used since `before`; the answer is how many."""
    return int((await tx.execute(DELETE_ENDED_SESSIONS, before, limit)).removeprefix("DELETE "))


# Their tokens are of a life of the database that was lost, and are refused.
END_SESSIONS_OF_BEFORE = """
UPDATE identity.sessions
   SET revoked_at = now(), revoke_reason = 'database_restored'
 WHERE (user_id, id) IN (
       SELECT user_id, id FROM identity.sessions
        WHERE revoked_at IS NULL AND created_at < $1
        LIMIT $2
        FOR UPDATE SKIP LOCKED)
"""


async def end_sessions_of_before(tx: Tx, moment: datetime, limit: int) -> int:
    """Ends up to `limit` sessions that were begun before `moment`; the answer is how many."""
    return int((await tx.execute(END_SESSIONS_OF_BEFORE, moment, limit)).removeprefix("UPDATE "))


INSERT_ACCOUNT_REVOCATION = """
INSERT INTO identity.revocations (kind, subject, version, expires_at) VALUES ('account', $1, $2, $3)
"""


async def insert_account_revocation(tx: Tx, user_id: UserId, version: int, expires_at: datetime) -> None:
    """Makes tokens of the account from before `version` stale."""
    await tx.execute(INSERT_ACCOUNT_REVOCATION, user_id, version, expires_at)
