"""Tokens for a session at one of its generations."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from uuid import UUID, uuid4

from app.identity.records.credentials import ServiceClient
from app.identity.records.sessions import NewSession
from app.identity.records.tokens import AccessToken, Tokens, roles_of
from app.identity.service.authentication import AUDIENCE
from app.identity.service.tokens import ActingParty, Claims, KeyRing, RefreshToken, RefreshTokens, epoch_seconds
from app.kernel.auth import SCOPES_OF_ROLE, Role
from app.kernel.ids import UserId

# All clients that log in with a password are the installation's own: none is registered, and none has a secret.
CLIENT_ID = "first-party"


@dataclass(frozen=True, slots=True)
class TokenScope:
    """What tokens may be used for (RFC 6749, sections 3.3 and 6); None: all that the account's role may do.

    `granted` is that of the session and stays with its refresh tokens, `asked` that of one access token.
    """

    granted: frozenset[str] | None = None
    asked: frozenset[str] | None = None

    @property
    def is_narrowed(self) -> bool:
        return self.granted is not None or self.asked is not None

    def of_access_token(self, permitted: frozenset[str]) -> frozenset[str]:
        """The scopes, of which the account's role permits `permitted` today."""
        for limit in (self.granted, self.asked):
            if limit is not None:
                permitted &= limit
        return permitted


WHOLE_SCOPE = TokenScope()


class TokenIssuer:
    """Everything in the tokens follows from the arguments, so each request for the same generation gets the same
    tokens.

    `base_url` is asked with each use, because in development it is known only once the server listens.
    """

    def __init__(
        self, key_ring: KeyRing, refresh_tokens: RefreshTokens, *, base_url: Callable[[], str], lifetime: int
    ) -> None:
        self._key_ring = key_ring
        self._refresh_tokens = refresh_tokens
        self._base_url = base_url
        self.lifetime = lifetime

    @property
    def issuer(self) -> str:
        """The `iss` of the tokens, of which the addresses in the metadata are made."""
        return self._base_url()

    def issue(
        self,
        user_id: UserId,
        session_id: UUID,
        *,
        generation: int,
        issued_at: datetime,
        session_ends_at: datetime,
        role: Role,
        version: int,
        scope: TokenScope = WHOLE_SCOPE,
    ) -> Tokens:
        """The pair of this generation. `session_ends_at`: unless the session is used after `issued_at`.

        Raises:
            Unavailable: the signing key could not be loaded yet.
        """
        issued = epoch_seconds(issued_at)
        scopes = scope.of_access_token(SCOPES_OF_ROLE[role])
        text = " ".join(sorted(scopes))
        is_narrowed = scope.is_narrowed
        claims = Claims(
            iss=self.issuer,
            aud=AUDIENCE,
            sub=user_id,
            sid=session_id,
            jti=self._refresh_tokens.access_token_id(session_id, generation, text if is_narrowed else ""),
            iat=issued,
            exp=issued + self.lifetime,
            scope=text,
            roles=roles_of(role),
            ver=version,
            inc=self._key_ring.incarnation,
            client_id=CLIENT_ID,
            narrowed=is_narrowed,
        )
        refresh_token = self._refresh_tokens.encode(RefreshToken(user_id, session_id, generation, scope.granted))
        session_seconds = ceil((session_ends_at - issued_at).total_seconds())
        return Tokens(self._key_ring.sign(claims), refresh_token, self.lifetime, text, session_seconds)

    def issue_to_client(self, client: ServiceClient, scopes: frozenset[str], *, issued_at: datetime) -> AccessToken:
        """An access token for a program, which belongs to no session and has no role.

        Raises:
            Unavailable: the signing key could not be loaded yet.
        """
        issued = epoch_seconds(issued_at)
        text = " ".join(sorted(scopes))
        claims = Claims(
            iss=self.issuer,
            aud=AUDIENCE,
            sub=client.user_id,
            jti=uuid4(),
            iat=issued,
            exp=issued + self.lifetime,
            scope=text,
            roles=(),
            ver=client.version,
            inc=self._key_ring.incarnation,
            client_id=str(client.user_id),
        )
        return AccessToken(self._key_ring.sign(claims), self.lifetime, text)

    def issue_for_actor(
        self, session: NewSession, actor: ActingParty, scopes: frozenset[str], *, version: int, lifetime: int
    ) -> AccessToken:
        """An access token of a user's session for `actor`, good for `lifetime` seconds.

        Raises:
            Unavailable: the signing key could not be loaded yet.
        """
        issued = epoch_seconds(session.created_at)
        text = " ".join(sorted(scopes))
        claims = Claims(
            iss=self.issuer,
            aud=AUDIENCE,
            sub=session.user_id,
            sid=session.id,
            jti=uuid4(),
            iat=issued,
            exp=issued + lifetime,
            scope=text,
            roles=roles_of("user"),
            ver=version,
            inc=self._key_ring.incarnation,
            client_id=CLIENT_ID,
            act=actor,
        )
        return AccessToken(self._key_ring.sign(claims), lifetime, text)
