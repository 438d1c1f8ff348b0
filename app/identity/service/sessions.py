"""Opening, listing and ending sessions."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from app.identity.errors import InvalidCredentials, InvalidRefreshToken, SessionNotFound
from app.identity.queries.sessions import (
    end_surplus_sessions,
    get_session_status,
    insert_session,
    list_sessions,
    revoke_sessions,
)
from app.identity.records import Account, Actor, Device
from app.identity.records.sessions import NewSession, Session, SessionsEnd, SessionStatus, session_end
from app.identity.records.tokens import Revocation, Tokens
from app.identity.service.authentication import TokenRevoked
from app.identity.service.container import IdentityServices
from app.identity.service.session_ends import SESSION_REVOKED
from app.identity.service.token_issuer import TokenScope
from app.identity.service.tokens import MalformedToken, RefreshToken
from app.kernel.auth import InvalidToken
from app.kernel.database import Database, Tx, retries_conflicts
from app.kernel.headers.session_cookie import value_in
from app.kernel.ids import UserId, new_id
from app.kernel.pagination import Cursors, Page


@dataclass(frozen=True, slots=True)
class Opened:
    """The tokens of a session that was opened. `is_crowded`: the unit's end has to be followed by `end_surplus`."""

    tokens: Tokens
    is_crowded: bool


async def open_session(
    tx: Tx,
    identity: IdentityServices,
    account: Account,
    device: Device,
    *,
    action: str,
    methods: tuple[str, ...],
    new_password_hash: str | None = None,
    session_id: UUID | None = None,
    scopes: frozenset[str] | None = None,
) -> Opened:
    """A new session and its first tokens, with one statement. `methods`: RFC 8176 names of how the user logged in.

    `session_id`: its id, where a log-in in two steps has chosen it. No session is opened twice. `scopes`: what its
    tokens are good for, if less than all.

    Raises:
        InvalidCredentials: the account is not what it was when they were checked, or the session was opened before.
    """
    settings = identity.settings
    now = identity.clock.now()
    absolute_end = now + timedelta(seconds=settings.refresh_absolute_ttl)
    session = NewSession(
        user_id=account.user_id,
        id=session_id or new_id(),
        created_at=now,
        idle_expires_at=session_end(now, settings.refresh_idle_ttl, absolute_end),
        expires_at=absolute_end,
        methods=methods,
        device=device,
    )
    # Signed first, so that a missing key costs no row.
    tokens = identity.issuer.issue(
        account.user_id,
        session.id,
        generation=0,
        issued_at=now,
        session_ends_at=session.idle_expires_at,
        role=account.role,
        version=account.version,
        scope=TokenScope(granted=scopes),
    )
    revocations_end = identity.revocations_end()
    marks_ends = identity.webhook_subscribers.has(account.user_id)
    opened = await insert_session(
        tx,
        session,
        event_id=new_id(),
        action=action,
        new_password_hash=new_password_hash,
        limit=settings.max_sessions,
        revocations_end=revocations_end,
        version=account.version,
        totp_enabled=account.totp_enabled,
        marks_ends=marks_ends,
    )
    if not opened.is_opened:
        raise InvalidCredentials
    _announce_surplus(tx, identity, opened.ended, revocations_end, marks_ends=marks_ends)
    return Opened(tokens, opened.is_crowded)


async def end_surplus(tx: Tx, identity: IdentityServices, user_id: UserId) -> None:
    """Keeps an account within its number of sessions after log-ins at the same time, which could not see each other."""
    revocations_end = identity.revocations_end()
    marks_ends = identity.webhook_subscribers.has(user_id)
    ended = await end_surplus_sessions(
        tx,
        user_id,
        identity.clock.now(),
        limit=identity.settings.max_sessions,
        revocations_end=revocations_end,
        marks_ends=marks_ends,
    )
    _announce_surplus(tx, identity, ended, revocations_end, marks_ends=marks_ends)


def _announce_surplus(
    tx: Tx, identity: IdentityServices, ended: list[UUID], revocations_end: datetime, *, marks_ends: bool
) -> None:
    identity.feed.announce(tx, [Revocation("session", session, 0, revocations_end) for session in ended])
    if ended and marks_ends:
        identity.ends.announce(tx)


async def end_sessions(
    tx: Tx,
    identity: IdentityServices,
    user_id: UserId,
    device: Device,
    *,
    reason: str,
    actor_id: UUID | None,
    session_id: UUID | None = None,
    except_id: UUID | None = None,
    live_session_id: UUID | None = None,
    is_noted: bool = True,
) -> int:
    """Ends one session, or all but `except_id`, with one statement; the answer is how many have ended by this.

    `live_session_id`: of the actor, where the unit has not locked it; nothing happens if it has ended before.
    `is_noted` is off where the caller writes an audit entry that says more.

    When the caller's unit of work has committed, their tokens are dead in every process.
    """
    revocations_end = identity.revocations_end()
    ended = await revoke_sessions(
        tx,
        SessionsEnd(
            user_id=user_id,
            event_id=new_id(),
            session_id=session_id,
            except_id=except_id,
            now=identity.clock.now(),
            reason=reason,
            revocations_end=revocations_end,
            actor_id=actor_id,
            live_session_id=live_session_id,
            device=device,
            is_noted=is_noted,
        ),
    )
    identity.feed.announce(tx, [Revocation("session", session, 0, revocations_end) for session in ended])
    data = [{"session_id": str(session), "reason": reason} for session in ended]
    await identity.webhook_subscribers.publish(tx, user_id, SESSION_REVOKED, data)
    return len(ended)


async def read_session_status(db: Database, user_id: UserId, session_id: UUID) -> SessionStatus:
    """Of a session of the caller.

    Raises:
        TokenRevoked: it has ended meanwhile.
    """
    async with db.read("identity.session") as conn:
        status = await get_session_status(conn, user_id, session_id)
    if status is None:
        raise TokenRevoked
    return status


async def list_own_sessions(
    db: Database, cursors: Cursors, identity: IdentityServices, user_id: UserId, *, limit: int, cursor: str | None
) -> Page[Session]:
    """A page of the living sessions, the last used one first.

    Raises:
        InvalidCursor
    """
    async with db.read("identity.sessions") as conn:
        sessions = await list_sessions(conn, user_id, identity.clock.now())
    return cursors.paginate_in_memory(
        "sessions",
        user_id,
        sessions,
        lambda session: (session.last_used_at, session.id),
        tuple[datetime, UUID],
        limit=limit,
        cursor=cursor,
        descending=True,
    )


@retries_conflicts
async def end_own_session(db: Database, identity: IdentityServices, actor: Actor, session_id: UUID) -> None:
    """Ends a session of the caller.

    Raises:
        SessionNotFound: the caller has no such living session.
    """
    async with identity.webhook_subscribers.unit(db, actor.user_id, "identity.end_session") as tx:
        ended = await end_sessions(
            tx,
            identity,
            actor.user_id,
            actor.device,
            reason="session_ended",
            actor_id=actor.user_id,
            session_id=session_id,
            live_session_id=actor.session_id,
        )
    if not ended:
        raise SessionNotFound


@dataclass(frozen=True, slots=True)
class CookieSession:
    """What the cookie of a living session says, the scopes that it has now, and the seconds until the session ends
    unless it is used.
    """

    token: RefreshToken
    scope: str
    seconds: int


async def extend_cookie_session(identity: IdentityServices, credential: bytes) -> CookieSession:
    """Looks at the session of a cookie once more, which counts as a use.

    Raises:
        InvalidRefreshToken: `credential` is not the cookie of a living session.
    """
    try:
        token = identity.cookies.decode(value_in(credential) or "")
        principal, seconds = await identity.authenticator.verify_cookie_anew(credential)
    except (MalformedToken, InvalidToken) as error:
        raise InvalidRefreshToken from error
    return CookieSession(token, " ".join(sorted(principal.scopes)), seconds)


async def log_out(
    db: Database,
    identity: IdentityServices,
    device: Device,
    *,
    access_token: str | None,
    cookie: str | None,
    refresh_token: str | None,
) -> None:
    """Ends the sessions of what was brought, expired or not. Says nothing when there is none to end."""
    for user_id, session_id, actor_id in _sessions_of(identity, access_token, cookie, refresh_token):
        await end_session(
            db,
            identity,
            user_id,
            device,
            session_id,
            unit="identity.log_out",
            reason="logged_out",
            actor_id=actor_id,
        )


@retries_conflicts
async def end_session(
    db: Database,
    identity: IdentityServices,
    user_id: UserId,
    device: Device,
    session_id: UUID,
    *,
    unit: str,
    reason: str,
    actor_id: UUID | None = None,
) -> None:
    """Ends the session of a token that the caller holds, its user or `actor_id`. On return the token is dead in every
    process.
    """
    async with identity.webhook_subscribers.unit(db, user_id, unit) as tx:
        ended = await end_sessions(
            tx, identity, user_id, device, reason=reason, actor_id=actor_id or user_id, session_id=session_id
        )
        if not ended:
            # Another request has just ended it, and need not have told everybody yet; or the session is over, and its
            # last access token is not.
            identity.feed.announce(tx, [Revocation("session", session_id, 0, identity.revocations_end())])


@retries_conflicts
async def end_other_sessions(db: Database, identity: IdentityServices, actor: Actor, *, keep_current: bool) -> int:
    """Ends all sessions of the caller, but for the one that asks where it is to be kept."""
    async with identity.webhook_subscribers.unit(db, actor.user_id, "identity.log_out_all") as tx:
        return await end_sessions(
            tx,
            identity,
            actor.user_id,
            actor.device,
            reason="logged_out_all",
            actor_id=actor.user_id,
            except_id=actor.session_id if keep_current else None,
            live_session_id=actor.session_id,
        )


def _sessions_of(
    identity: IdentityServices, access_token: str | None, cookie: str | None, refresh_token: str | None
) -> set[tuple[UserId, UUID, UUID | None]]:
    """User and session of each, and the administrator that acts in it."""
    found: set[tuple[UserId, UUID, UUID | None]] = set()
    with suppress(MalformedToken):
        if access_token is not None:
            claims = identity.key_ring.verify(access_token)
            if claims.sid is not None:
                found.add((UserId(claims.sub), claims.sid, claims.act.sub if claims.act else None))
    for text, tokens in ((cookie, identity.cookies), (refresh_token, identity.refresh_tokens)):
        with suppress(MalformedToken):
            if text is not None:
                token = tokens.decode(text)
                found.add((token.user_id, token.session_id, None))
    return found
