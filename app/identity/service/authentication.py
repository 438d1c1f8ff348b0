"""From a bearer token to the caller: verified once per process, remembered, and checked against revocations every
time.
"""

from collections import OrderedDict
from typing import NamedTuple
from uuid import UUID

from prometheus_client import Counter

from app.identity.service.revocation import RevocationFeed
from app.identity.service.tokens import Claims, KeyRing, MalformedToken
from app.kernel.auth import InvalidToken, Principal
from app.kernel.clock import Clock
from app.kernel.ids import UserId

AUDIENCE = "onehop"

_verifications_total = Counter(
    "app_identity_token_verifications", "Access tokens that were not remembered.", ["outcome"]
)


class TokenExpired(InvalidToken):
    code = "token_expired"
    title = "The access token has expired"


class TokenRevoked(InvalidToken):
    code = "token_revoked"
    title = "The access token has been revoked"


class _Verified(NamedTuple):
    principal: Principal
    expires_at: float
    session_id: UUID | None
    api_key_id: UUID | None
    version: int


class TokenAuthenticator:
    """The `Authenticator` of the kernel. One per API process."""

    def __init__(self, key_ring: KeyRing, feed: RevocationFeed, clock: Clock, *, issuer: str, remembered: int) -> None:
        self._key_ring = key_ring
        self._feed = feed
        self._clock = clock
        self._issuer = issuer
        self._remembered = remembered
        # By the whole token: by its signature alone, a changed payload would be taken for the genuine one.
        self._verified: OrderedDict[str, _Verified] = OrderedDict()

    def recall(self, token: str) -> Principal | None:
        """See `Authenticator`."""
        verified = self._verified.get(token)
        if verified is None or not self._feed.is_complete or self._is_dead(verified):
            return None
        return verified.principal

    async def authenticate(self, token: str) -> Principal:
        """See `Authenticator`."""
        if not self._feed.is_complete:
            await self._feed.refresh()
        verified = self._verified.get(token) or self._verify(token)
        if self._clock.timestamp() >= verified.expires_at:
            self._verified.pop(token, None)
            raise TokenExpired
        if self._is_dead(verified):
            self._verified.pop(token, None)
            raise TokenRevoked
        self._remember(token, verified)
        return verified.principal

    def _is_dead(self, verified: _Verified) -> bool:
        return self._clock.timestamp() >= verified.expires_at or self._feed.is_revoked(
            session_id=verified.session_id,
            api_key_id=verified.api_key_id,
            user_id=verified.principal.user_id,
            version=verified.version,
        )

    def _verify(self, token: str) -> _Verified:
        try:
            claims = self._key_ring.verify(token)
        except MalformedToken as error:
            _verifications_total.labels("malformed").inc()
            raise InvalidToken from error
        if claims.iss != self._issuer or claims.aud != AUDIENCE:
            _verifications_total.labels("foreign").inc()
            raise InvalidToken
        _verifications_total.labels("good").inc()
        return _Verified(_principal_of(claims), claims.exp, claims.sid, None, claims.ver)

    def _remember(self, token: str, verified: _Verified) -> None:
        if self._remembered == 0:
            return
        self._verified[token] = verified
        if len(self._verified) > self._remembered:
            self._verified.popitem(last=False)


def _principal_of(claims: Claims) -> Principal:
    return Principal(
        user_id=UserId(claims.sub),
        session_id=claims.sid,
        scopes=frozenset(claims.scope.split()),
        roles=frozenset(claims.roles),
        token_id=str(claims.jti),
    )
