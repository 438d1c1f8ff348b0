"""Rotation of refresh tokens by compare-and-swap.

A token is good once. A client with the generation of the row turns it into the next; one with the generation before is
either a parallel request or a repeat of one whose answer got lost, and gets the same successor, or it is a replay,
which ends the session. A parallel request is told from a replay by the moment it came: before the winner's answer
went out, or after. Those moments are taken from one clock, that of Redis. A client sends parallel requests one after
the other, so the winner's answer waits until none has come for a moment. A winner that lost sight of its rotation
gives no answer at all, and leaves word of that, so that its client may come again when the database is back.
"""

import asyncio
import hmac
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from time import monotonic
from typing import Any, cast

from prometheus_client import Counter

from app.identity.errors import InvalidRefreshToken, ScopeExceeded
from app.identity.queries.sessions import get_rotation, rotate_session
from app.identity.records import Device
from app.identity.records.sessions import Rotation
from app.identity.records.tokens import Tokens
from app.identity.service.container import IdentityServices
from app.identity.service.emails import mail_notice
from app.identity.service.sessions import end_sessions
from app.identity.service.token_issuer import TokenScope
from app.identity.service.tokens import MalformedToken, RefreshToken
from app.kernel.auth import SCOPES_OF_ROLE
from app.kernel.database import Database, retries_conflicts
from app.kernel.errors import Unavailable
from app.kernel.redis.gateway import RedisGateway, RedisUnavailable

_MARKER_TTL_MS = 60_000
# How long a client may go on trying to learn what became of its token.
_UNKNOWN_OUTCOME_TTL_MS = 600_000
# How long after a rotation its winner may still be on the way to its answer. Without Redis this alone tells a parallel
# request from a replay.
_UNANSWERED_FOR = timedelta(seconds=2)

_refreshes_total = Counter("onehop_identity_refreshes", "Refresh requests.", ["outcome"])

_MAX_QUIET_PERIODS = 10

_ARRIVE = """
local arrived = redis.call('HINCRBY', KEYS[1], 'arrived', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return arrived
"""

_MARK_UNKNOWN_OUTCOME = """
redis.call('HSET', KEYS[1], ARGV[2], 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""

_MARK_ANSWERED = """
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'answered', string.format('%.0f', now[1] * 1000000 + now[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""


@dataclass(frozen=True, slots=True)
class RefreshRequest:
    """`idempotency_key` repeats the answer of a rotation whose answer got lost. `scopes`, if not None, are all that the
    new access token shall be good for; the refresh token stays good for what was granted (RFC 6749, section 6).
    """

    refresh_token: str
    idempotency_key: str | None
    device: Device
    scopes: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A request that did not win. `at`: when it came, in microseconds of the clock of Redis, or None."""

    token: RefreshToken
    retry_key: bytes | None
    at: int | None
    device: Device
    scopes: frozenset[str] | None


async def refresh(db: Database, redis: RedisGateway, identity: IdentityServices, request: RefreshRequest) -> Tokens:
    """The successor of a refresh token, with a new access token.

    Raises:
        InvalidRefreshToken: one error for every reason. If the token had been used before, its session has ended.
        ScopeExceeded: less was granted; the token is not used up.
    """
    came_at = monotonic()
    try:
        token = identity.refresh_tokens.decode(request.refresh_token)
    except MalformedToken as error:
        _refreshes_total.labels("malformed").inc()
        raise InvalidRefreshToken from error
    if request.scopes is not None:
        await _check_scope(db, identity, token, request.scopes)
    retry_key = _retry_key(identity, request.idempotency_key)
    arrivals = await _arrive(redis, token)
    has_redis = arrivals is not None and await identity.redis_clock.measure()
    now = identity.clock.now()
    try:
        async with db.statement("identity.rotate_session") as tx:
            rotation = await rotate_session(
                tx,
                user_id=token.user_id,
                session_id=token.session_id,
                generation=token.generation,
                now=now,
                rotation_key=retry_key,
                idle_expires_at=now + timedelta(seconds=identity.settings.refresh_idle_ttl),
                ip=request.device.ip,
                user_agent=request.device.user_agent,
            )
    except Unavailable:
        await _mark_unknown_outcome(redis, token, now)
        raise
    if rotation is not None:
        tokens = _tokens(identity, token, rotation, request.scopes)
        if arrivals is not None:
            await _let_others_arrive(redis, token, arrivals, identity.settings.refresh_quiet)
            await _mark_answered(redis, token)
        _refreshes_total.labels("rotated").inc()
        return tokens
    arrived_at = identity.redis_clock.microseconds(came_at) if has_redis else None
    arrival = _Arrival(token, retry_key, arrived_at, request.device, request.scopes)
    return await _repeat_or_end(db, redis, identity, arrival)


@retries_conflicts
async def _repeat_or_end(db: Database, redis: RedisGateway, identity: IdentityServices, arrival: _Arrival) -> Tokens:
    token, retry_key = arrival.token, arrival.retry_key
    now = identity.clock.now()
    async with db.read("identity.rotation") as conn:
        rotation = await get_rotation(conn, token.user_id, token.session_id, now)
    if rotation is None or not rotation.alive or rotation.status != "active":
        _refreshes_total.labels("dead").inc()
        raise InvalidRefreshToken
    if rotation.generation == token.generation + 1:
        is_retry = (
            retry_key is not None
            and rotation.rotation_key is not None
            and hmac.compare_digest(retry_key, rotation.rotation_key)
            and now - rotation.rotated_at <= timedelta(seconds=identity.settings.refresh_retry_ttl)
        )
        if is_retry or await _came_before_answer(redis, token, rotation, arrival.at, identity):
            _refreshes_total.labels("repeated").inc()
            return _tokens(identity, token, rotation, arrival.scopes)
    _refreshes_total.labels("replayed").inc()
    async with db.transaction("identity.token_reuse") as tx:
        ended = await end_sessions(
            tx,
            identity,
            token.user_id,
            arrival.device,
            reason="refresh_token_reused",
            actor_id=None,
            session_id=token.session_id,
        )
        if ended:
            await mail_notice(tx, identity.queue, token.user_id, "session_reused")
    raise InvalidRefreshToken


async def _check_scope(db: Database, identity: IdentityServices, token: RefreshToken, asked: frozenset[str]) -> None:
    """Raises ScopeExceeded."""
    granted = token.scopes
    if granted is None:
        granted = SCOPES_OF_ROLE["user"]
        if not asked <= granted:
            # Only the account's role tells, which the rotation would find too late.
            async with db.read("identity.rotation") as conn:
                rotation = await get_rotation(conn, token.user_id, token.session_id, identity.clock.now())
            granted = SCOPES_OF_ROLE[rotation.role] if rotation is not None else granted
    if not asked <= granted:
        raise ScopeExceeded


def _tokens(
    identity: IdentityServices, token: RefreshToken, rotation: Rotation, asked: frozenset[str] | None
) -> Tokens:
    return identity.issuer.issue(
        token.user_id,
        token.session_id,
        generation=rotation.generation,
        issued_at=rotation.rotated_at,
        session_ends_at=rotation.idle_expires_at,
        role=rotation.role,
        version=rotation.version,
        scope=TokenScope(token.scopes, asked),
    )


def _retry_key(identity: IdentityServices, idempotency_key: str | None) -> bytes | None:
    if idempotency_key is None or identity.settings.refresh_retry_ttl == 0:
        return None
    return sha256(idempotency_key.encode()).digest()


def _later(answer: Any) -> Awaitable[Any]:
    """redis-py types what its two clients share for both of them; this one answers later."""
    return cast("Awaitable[Any]", answer)


async def _arrive(redis: RedisGateway, token: RefreshToken) -> int | None:
    """Counts a request with this token; returns how many there have been, or None without Redis."""
    try:
        arrived = await redis.call(lambda client: _later(client.eval(_ARRIVE, 1, _marker(token), str(_MARKER_TTL_MS))))
    except RedisUnavailable:
        return None
    return int(arrived)


async def _let_others_arrive(redis: RedisGateway, token: RefreshToken, arrived: int, quiet: float) -> None:
    """Returns once no other request has brought this token for `quiet` seconds."""
    for _ in range(_MAX_QUIET_PERIODS):
        await asyncio.sleep(quiet)
        try:
            seen = await redis.call(lambda client: _later(client.hget(_marker(token), "arrived")))
        except RedisUnavailable:
            return
        if seen is None or int(seen) == arrived:
            return
        arrived = int(seen)


async def _mark_answered(redis: RedisGateway, token: RefreshToken) -> None:
    try:
        await redis.call(lambda client: _later(client.eval(_MARK_ANSWERED, 1, _marker(token), str(_MARKER_TTL_MS))))
    except RedisUnavailable:
        return


async def _mark_unknown_outcome(redis: RedisGateway, token: RefreshToken, rotated_at: datetime) -> None:
    """A rotation of that moment may have taken place without an answer to its client."""
    field = _unknown_outcome_of(rotated_at)
    try:
        await redis.call(
            lambda client: _later(
                client.eval(_MARK_UNKNOWN_OUTCOME, 1, _marker(token), str(_UNKNOWN_OUTCOME_TTL_MS), field)
            )
        )
    except RedisUnavailable:
        return


async def _came_before_answer(
    redis: RedisGateway, token: RefreshToken, rotation: Rotation, arrived_at: int | None, identity: IdentityServices
) -> bool:
    is_fresh = identity.clock.now() - rotation.rotated_at <= _UNANSWERED_FOR
    if arrived_at is None:
        return is_fresh
    # By its moment, so that a token spent long ago cannot be brought again when the database happens to be away.
    fields = ["answered", _unknown_outcome_of(rotation.rotated_at)]
    try:
        answered_at, unknown_outcome = await redis.call(lambda client: _later(client.hmget(_marker(token), fields)))
    except RedisUnavailable:
        return is_fresh
    if answered_at is not None:
        return arrived_at < int(answered_at)
    if unknown_outcome is not None:
        # This one is the answer now.
        await _mark_answered(redis, token)
        return True
    # The winner is still on its way, or died on it.
    return is_fresh


def _unknown_outcome_of(rotated_at: datetime) -> str:
    return f"doubt:{rotated_at.timestamp():.6f}"


def _marker(token: RefreshToken) -> str:
    return f"identity:rotated:{token.session_id}:{token.generation}"
