"""Telling and ending tokens by the OAuth protocols (RFC 7662, RFC 7009)."""

from typing import Any
from uuid import UUID

from app.identity.queries.sessions import get_rotation
from app.identity.records import Actor, Device
from app.identity.service.api_keys import end_api_keys
from app.identity.service.authentication import AUDIENCE
from app.identity.service.container import IdentityServices
from app.identity.service.sessions import end_session
from app.identity.service.tokens import REFRESH_PREFIX, MalformedToken, is_api_key
from app.kernel.auth import INTROSPECT, InvalidToken
from app.kernel.database import Database
from app.kernel.ids import UserId
from app.kernel.request.principal import Principal

_INACTIVE: dict[str, Any] = {"active": False}


class NotRevocable(Exception):
    """The token does not end before its time on its own."""


async def introspect(db: Database, identity: IdentityServices, caller: Principal, token: str) -> dict[str, Any]:
    """What a token is good for; nothing but `active: false` of a token that has ended or belongs to another user."""
    found = await _introspect_refresh(db, identity, token) if token.startswith(REFRESH_PREFIX) else None
    if found is None:
        try:
            principal, claims = await identity.authenticator.inspect(token)
        except InvalidToken:
            return _INACTIVE
        found = {
            "active": True,
            "sub": str(principal.user_id),
            "scope": " ".join(sorted(principal.scopes)),
            "jti": principal.token_id,
            "token_type": "Bearer",
        }
        if claims is not None:
            found |= {"iss": claims.iss, "aud": AUDIENCE, "iat": claims.iat, "exp": claims.exp}
            found |= {"client_id": claims.client_id} if claims.client_id else {}
            found |= {"act": {"sub": str(claims.act.sub)}} if claims.act else {}
    is_own = found.get("sub") == str(caller.user_id)
    return found if is_own or caller.is_admin or INTROSPECT in caller.scopes else _INACTIVE


async def revoke(db: Database, identity: IdentityServices, token: str, device: Device) -> None:
    """Ends an API key, or the session of an access or refresh token. Says nothing about tokens it does not know.

    Raises:
        NotRevocable: it is the token of a program, which ends by itself, with the secret, or with the account.
    """
    if is_api_key(token):
        await _revoke_api_key(db, identity, token, device)
        return
    actor_id: UUID | None = None
    try:
        if token.startswith(REFRESH_PREFIX):
            refresh_token = identity.refresh_tokens.decode(token)
            user_id, session_id = refresh_token.user_id, refresh_token.session_id
        else:
            claims = identity.key_ring.verify(token)
            if claims.sid is None:
                raise NotRevocable
            user_id, session_id = UserId(claims.sub), claims.sid
            actor_id = claims.act.sub if claims.act else None
    except MalformedToken:
        return
    await end_session(
        db,
        identity,
        user_id,
        device,
        session_id,
        unit="identity.revoke_token",
        reason="token_revoked",
        actor_id=actor_id,
    )


async def _introspect_refresh(db: Database, identity: IdentityServices, token: str) -> dict[str, Any]:
    try:
        refresh_token = identity.refresh_tokens.decode(token)
    except MalformedToken:
        return _INACTIVE
    async with db.read("identity.introspect") as conn:
        rotation = await get_rotation(conn, refresh_token.user_id, refresh_token.session_id, identity.clock.now())
    if rotation is None or not rotation.alive or rotation.generation != refresh_token.generation:
        return _INACTIVE
    return {"active": True, "sub": str(refresh_token.user_id), "token_type": "refresh_token"}


async def _revoke_api_key(db: Database, identity: IdentityServices, token: str, device: Device) -> None:
    try:
        principal, _ = await identity.authenticator.inspect(token)
    except InvalidToken:
        return
    async with db.statement("identity.revoke_api_key") as tx:
        await end_api_keys(
            tx, identity, Actor(principal.user_id, None, device), principal.user_id, key_id=UUID(principal.token_id)
        )
