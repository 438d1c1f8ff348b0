"""From a bearer token or a session cookie to the caller: verified once per process, remembered, and checked against
revocations every time.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from math import ceil
from typing import NamedTuple
from uuid import UUID

from prometheus_client import Counter

from app.identity.queries.api_keys import use_api_key
from app.identity.queries.sessions import use_session
from app.identity.records.tokens import roles_of
from app.identity.service.revocation import RevocationFeed
from app.identity.service.tokens import (
    ActingParty,
    Claims,
    KeyRing,
    MalformedToken,
    RefreshTokens,
    decode_api_key,
    is_api_key,
)
from app.kernel.auth import SCOPES_OF_ROLE, InvalidToken, bearer_token
from app.kernel.clock import Clock
from app.kernel.database import Database
from app.kernel.errors import Unauthenticated
from app.kernel.headers.session_cookie import value_in
from app.kernel.ids import UserId
from app.kernel.request.principal import Principal

AUDIENCE = "onehop"
# How long a process trusts what it has read of an API key or a session; revocations do not wait for it.
TRUSTED_SECONDS = 600
# Tokens that a process keeps of one user, who gets a new one with each refresh; the oldest go first.
MAX_REMEMBERED_OF_USER = 128

_verifications_total = Counter(
    "onehop_identity_token_verifications", "Access token verifications outside the cache, by outcome.", ["outcome"]
)


class TokenExpired(InvalidToken):
    """The access token is older than its lifetime. Get another one with the refresh token."""

    code = "token_expired"
    title = "Access token expired"


class TokenRevoked(InvalidToken):
    """The session or API key of the token has ended. Log in again."""

    code = "token_revoked"
    title = "Access token revoked"


class _Verified(NamedTuple):
    principal: Principal
    expires_at: float
    session_id: UUID | None
    api_key_id: UUID | None
    version: int
    actor: ActingParty | None = None
    # Of a cookie: the seconds until the session ends unless it is used.
    session_seconds: int = 0


class TokenAuthenticator:
    """The `Authenticator` of the kernel. One per API process."""

    def __init__(
        self,
        key_ring: KeyRing,
        feed: RevocationFeed,
        clock: Clock,
        db: Database,
        *,
        cookies: RefreshTokens,
        issuer: Callable[[], str],
        cache_size: int,
        session_idle_seconds: int,
    ) -> None:
        self._key_ring = key_ring
        self._cookies = cookies
        self._session_idle = timedelta(seconds=session_idle_seconds)
        self._feed = feed
        self._clock = clock
        self._db = db
        self._issuer = issuer
        self._cache_size = cache_size
        # By the whole credential: by its signature alone, a changed payload would be taken for the genuine one. Of the
        # many spellings of one header, with other capitals or spaces, only the usual one is kept.
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._credentials_of: dict[UserId, dict[bytes, None]] = {}

    def forget_all(self) -> None:
        """Each token is verified anew when it comes again."""
        self._verified.clear()
        self._credentials_of.clear()

    def cached_principal(self, credential: bytes) -> Principal | None:
        """See `Authenticator`."""
        verified = self._verified.get(credential)
        if verified is None or not self._feed.is_complete or self._is_dead(verified):
            return None
        return verified.principal

    async def authenticate(self, credential: bytes) -> Principal:
        """See `Authenticator`."""
        return (await self._authenticate(credential)).principal

    async def _authenticate(self, credential: bytes) -> _Verified:
        value = value_in(credential)
        token = bearer_token(credential) if value is None else None
        if token is not None:
            credential = b"Bearer " + token.encode("latin-1", "replace")
            verify = partial(self._verify, token)
        elif value is not None:
            verify = partial(self._verify_cookie, value)
        else:
            # Another scheme is none of our credentials, so that no error code is told (RFC 6750, section 3.1).
            raise Unauthenticated("Only bearer tokens are accepted.")
        verified = await self._trusted(verify, self._forget(credential))
        self._remember(credential, verified)
        return verified

    async def verify_cookie_anew(self, credential: bytes) -> tuple[Principal, int]:
        """As `authenticate`, and as if the cookie had not been seen before; also the seconds until its session ends
        unless it is used.
        """
        self._forget(credential)
        verified = await self._authenticate(credential)
        return verified.principal, verified.session_seconds

    async def inspect(self, token: str) -> tuple[Principal, Claims | None]:
        """The caller that a bearer token would be taken for, which is not remembered, and the claims of an access
        token; an API key has none.

        Raises:
            InvalidToken, Unavailable
        """
        await self._complete_feed()
        claims = None if is_api_key(token) else self._verified_claims(token)
        verified = await self._verify_api_key(token) if claims is None else _verified_by(claims)
        self._check(verified)
        return verified.principal, claims

    async def _trusted(self, verify: Callable[[], Awaitable[_Verified]], verified: _Verified | None) -> _Verified:
        """What `verify` finds, unless it was `verified` before and is still good."""
        await self._complete_feed()
        if verified is None or self._is_dead(verified):
            # What is remembered of an API key or a cookie ends long before it, and with its owner's role of then.
            verified = await verify()
        self._check(verified)
        return verified

    async def _complete_feed(self) -> None:
        if not self._feed.is_complete:
            await self._feed.refresh()

    def _check(self, verified: _Verified) -> None:
        """Raises TokenExpired or TokenRevoked."""
        if self._clock.timestamp() >= verified.expires_at:
            raise TokenExpired
        if self._is_dead(verified):
            raise TokenRevoked

    def _is_dead(self, verified: _Verified) -> bool:
        if self._clock.timestamp() >= verified.expires_at or self._feed.is_revoked(
            session_id=verified.session_id,
            api_key_id=verified.api_key_id,
            user_id=verified.principal.user_id,
            version=verified.version,
        ):
            return True
        actor = verified.actor
        return actor is not None and self._feed.is_revoked(
            session_id=actor.sid, api_key_id=None, user_id=actor.sub, version=actor.ver
        )

    async def _verify(self, token: str) -> _Verified:
        return await self._verify_api_key(token) if is_api_key(token) else _verified_by(self._verified_claims(token))

    def _verified_claims(self, token: str) -> Claims:
        """Of an access token of this service.

        Raises:
            InvalidToken, Unavailable
        """
        try:
            claims = self._key_ring.verify(token)
        except MalformedToken as error:
            _verifications_total.labels("malformed").inc()
            raise InvalidToken from error
        if claims.iss != self._issuer() or claims.aud != AUDIENCE:
            _verifications_total.labels("foreign").inc()
            raise InvalidToken
        _verifications_total.labels("good").inc()
        return claims

    async def _verify_api_key(self, token: str) -> _Verified:
        try:
            key = decode_api_key(token)
        except MalformedToken as error:
            raise InvalidToken from error
        async with self._db.statement("identity.use_api_key") as tx:
            owner = await use_api_key(tx, key.user_id, key.id, self._clock.now(), key.secret_hash)
        if owner is None:
            _verifications_total.labels("bad_api_key").inc()
            raise InvalidToken
        _verifications_total.labels("api_key").inc()
        looks_again_at = self._clock.timestamp() + TRUSTED_SECONDS
        # A key can do no more than its owner can today.
        principal = Principal(
            user_id=key.user_id,
            session_id=None,
            scopes=frozenset(owner.scopes) & SCOPES_OF_ROLE[owner.role],
            roles=frozenset(roles_of(owner.role)),
            token_id=str(key.id),
            kind="api_key",
        )
        ends_at = owner.expires_at.timestamp() if owner.expires_at else looks_again_at
        return _Verified(principal, min(ends_at, looks_again_at), None, key.id, owner.version)

    async def _verify_cookie(self, value: str) -> _Verified:
        try:
            cookie = self._cookies.decode(value)
        except MalformedToken as error:
            raise InvalidToken from error
        now = self._clock.now()
        async with self._db.statement("identity.use_session") as tx:
            owner = await use_session(tx, cookie.user_id, cookie.session_id, now, now + self._session_idle)
        if owner is None:
            _verifications_total.labels("ended_session").inc()
            raise TokenRevoked
        _verifications_total.labels("session").inc()
        scopes = SCOPES_OF_ROLE[owner.role]
        principal = Principal(
            user_id=cookie.user_id,
            session_id=cookie.session_id,
            scopes=scopes if cookie.scopes is None else scopes & cookie.scopes,
            roles=frozenset(roles_of(owner.role)),
            token_id=str(cookie.session_id),
            is_narrowed=cookie.scopes is not None,
        )
        looks_again_at = now.timestamp() + TRUSTED_SECONDS
        ends_at = min(owner.expires_at.timestamp(), looks_again_at)
        seconds = ceil((owner.expires_at - now).total_seconds())
        return _Verified(principal, ends_at, cookie.session_id, None, owner.version, session_seconds=seconds)

    def _remember(self, credential: bytes, verified: _Verified) -> None:
        if self._cache_size == 0:
            return
        self._verified[credential] = verified
        credentials = self._credentials_of.setdefault(verified.principal.user_id, {})
        credentials[credential] = None
        if len(credentials) > MAX_REMEMBERED_OF_USER:
            self._forget(next(iter(credentials)))
        if len(self._verified) > self._cache_size:
            self._forget(next(iter(self._verified)))

    def _forget(self, credential: bytes) -> _Verified | None:
        """The entry of `credential`, which is no longer kept."""
        verified = self._verified.pop(credential, None)
        if verified is not None:
            user_id = verified.principal.user_id
            credentials = self._credentials_of[user_id]
            del credentials[credential]
            if not credentials:
                del self._credentials_of[user_id]
        return verified


def _verified_by(claims: Claims) -> _Verified:
    principal = Principal(
        user_id=UserId(claims.sub),
        session_id=claims.sid,
        kind="user" if claims.sid is not None else "service",
        scopes=frozenset(claims.scope.split()),
        roles=frozenset(claims.roles),
        token_id=str(claims.jti),
        is_narrowed=claims.narrowed,
        actor_id=UserId(claims.act.sub) if claims.act else None,
    )
    return _Verified(principal, claims.exp, claims.sid, None, claims.ver, claims.act)
