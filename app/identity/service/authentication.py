"""From a bearer token to the caller: verified once per process, remembered, and checked against revocations every
time.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

from prometheus_client import Counter

from app.identity.queries.api_keys import use_api_key
from app.identity.records import roles_of
from app.identity.service.revocation import RevocationFeed
from app.identity.service.tokens import Claims, KeyRing, MalformedToken, decode_api_key, is_api_key
from app.kernel.auth import SCOPES_OF_ROLE, InvalidToken, Principal
from app.kernel.clock import Clock
from app.kernel.database import Database
from app.kernel.ids import UserId

AUDIENCE = "onehop"
# How long a process trusts what it has read of an API key; revocations do not wait for it.
API_KEY_SECONDS = 600
# Tokens that a process keeps of one user, who gets a new one with each refresh; the oldest go first.
MAX_REMEMBERED_OF_USER = 128

_verifications_total = Counter(
    "app_identity_token_verifications", "Access token verifications outside the cache, by outcome.", ["outcome"]
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


class TokenAuthenticator:
    """The `Authenticator` of the kernel. One per API process."""

    def __init__(
        self,
        key_ring: KeyRing,
        feed: RevocationFeed,
        clock: Clock,
        db: Database,
        *,
        issuer: Callable[[], str],
        cache_size: int,
    ) -> None:
        self._key_ring = key_ring
        self._feed = feed
        self._clock = clock
        self._db = db
        self._issuer = issuer
        self._cache_size = cache_size
        # By the whole header: by its signature alone, a changed payload would be taken for the genuine one. Of the many
        # spellings of one header, with other capitals or spaces, only the usual one is kept.
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._headers_of: dict[UserId, dict[bytes, None]] = {}

    def forget_all(self) -> None:
        """Each token is verified anew when it comes again."""
        self._verified.clear()
        self._headers_of.clear()

    def cached_principal(self, header: bytes) -> Principal | None:
        """See `Authenticator`."""
        verified = self._verified.get(header)
        if verified is None or not self._feed.is_complete or self._is_dead(verified):
            return None
        return verified.principal

    async def authenticate(self, token: str, *, is_remembered: bool = False) -> Principal:
        """See `Authenticator`."""
        if not self._feed.is_complete:
            await self._feed.refresh()
        header = b"Bearer " + token.encode("latin-1", "replace")
        verified = self._forget(header) if is_remembered else None
        if verified is None or self._is_dead(verified):
            # What is remembered of an API key ends long before the key, and with its owner's role of then.
            verified = await self._verify(token)
        if self._clock.timestamp() >= verified.expires_at:
            raise TokenExpired
        if self._is_dead(verified):
            raise TokenRevoked
        if is_remembered:
            self._remember(header, verified)
        return verified.principal

    def _is_dead(self, verified: _Verified) -> bool:
        return self._clock.timestamp() >= verified.expires_at or self._feed.is_revoked(
            session_id=verified.session_id,
            api_key_id=verified.api_key_id,
            user_id=verified.principal.user_id,
            version=verified.version,
        )

    async def _verify(self, token: str) -> _Verified:
        if is_api_key(token):
            return await self._verify_api_key(token)
        try:
            claims = self._key_ring.verify(token)
        except MalformedToken as error:
            _verifications_total.labels("malformed").inc()
            raise InvalidToken from error
        if claims.iss != self._issuer() or claims.aud != AUDIENCE:
            _verifications_total.labels("foreign").inc()
            raise InvalidToken
        _verifications_total.labels("good").inc()
        return _Verified(_principal_of(claims), claims.exp, claims.sid, None, claims.ver)

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
        looks_again_at = self._clock.timestamp() + API_KEY_SECONDS
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

    def _remember(self, header: bytes, verified: _Verified) -> None:
        if self._cache_size == 0:
            return
        self._verified[header] = verified
        headers = self._headers_of.setdefault(verified.principal.user_id, {})
        headers[header] = None
        if len(headers) > MAX_REMEMBERED_OF_USER:
            self._forget(next(iter(headers)))
        if len(self._verified) > self._cache_size:
            self._forget(next(iter(self._verified)))

    def _forget(self, header: bytes) -> _Verified | None:
        """The entry of `header`, which is no longer kept."""
        verified = self._verified.pop(header, None)
        if verified is not None:
            user_id = verified.principal.user_id
            headers = self._headers_of[user_id]
            del headers[header]
            if not headers:
                del self._headers_of[user_id]
        return verified


def _principal_of(claims: Claims) -> Principal:
    return Principal(
        user_id=UserId(claims.sub),
        session_id=claims.sid,
        scopes=frozenset(claims.scope.split()),
        roles=frozenset(claims.roles),
        token_id=str(claims.jti),
        is_narrowed=claims.narrowed,
    )
