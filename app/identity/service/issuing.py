"""Tokens for a session at one of its generations."""

from datetime import datetime
from uuid import UUID

from app.identity.records import Tokens, roles_of
from app.identity.service.authentication import AUDIENCE
from app.identity.service.tokens import Claims, KeyRing, RefreshToken, RefreshTokens, epoch_seconds
from app.kernel.auth import SCOPES_OF_ROLE, Role
from app.kernel.errors import Unavailable
from app.kernel.ids import UserId


class TokenIssuer:
    """Everything in the tokens follows from the arguments, so whoever asks for the same generation gets the same
    tokens.
    """

    def __init__(self, key_ring: KeyRing, refresh_tokens: RefreshTokens, *, issuer: str, lifetime: int) -> None:
        self._key_ring = key_ring
        self._refresh_tokens = refresh_tokens
        self.issuer = issuer
        self.lifetime = lifetime

    def issue(
        self, user_id: UserId, session_id: UUID, *, generation: int, issued_at: datetime, role: Role, version: int
    ) -> Tokens:
        """The pair of this generation.

        Raises:
            Unavailable: the signing key could not be loaded yet.
        """
        if not self._key_ring.can_sign:
            raise Unavailable("The signing key is not loaded yet.")
        issued = epoch_seconds(issued_at)
        scope = " ".join(sorted(SCOPES_OF_ROLE[role]))
        claims = Claims(
            iss=self.issuer,
            aud=AUDIENCE,
            sub=user_id,
            sid=session_id,
            jti=self._refresh_tokens.access_token_id(session_id, generation),
            iat=issued,
            exp=issued + self.lifetime,
            scope=scope,
            roles=roles_of(role),
            ver=version,
            inc=self._key_ring.incarnation,
        )
        refresh_token = self._refresh_tokens.encode(RefreshToken(user_id, session_id, generation))
        return Tokens(self._key_ring.sign(claims), refresh_token, self.lifetime, scope)
