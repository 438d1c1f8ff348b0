"""The challenges of passkeys, and the library that judges the answers to them.

A challenge is sealed state: what it is for, for whom, and until when. Nothing is stored for it. One that adds a passkey
adds it once, because no credential is known twice; one that logs in opens the session that it names, once. Behind
another factor it is the `mfa_token` that names the session, and the one of the challenge is used up unopened.
"""

import asyncio
import importlib
import ipaddress
import secrets
from base64 import urlsafe_b64decode
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

import msgspec

from app.identity.service.container import IdentityServices
from app.kernel.sealing import SealBroken

if TYPE_CHECKING:
    from app.identity.service.passkey_ceremonies import RelyingParty

_CHALLENGE_LIFETIME = timedelta(minutes=5)
_PURPOSE = "passkey-challenge"
_CEREMONIES = "app.identity.service.passkey_ceremonies"


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    """What a challenge says, sealed. `session_id`: of the caller who adds a passkey, or the one that a log-in opens."""

    kind: Literal["add", "login"]
    user_id: UUID | None
    session_id: UUID
    expires_at: float
    nonce: bytes


_module: ModuleType | None = None


async def load_ceremonies() -> Any:
    """`passkey_ceremonies`, imported in a thread when it is first needed."""
    global _module  # noqa: PLW0603 - a module is imported once for the process
    if _module is None:
        _module = await asyncio.to_thread(importlib.import_module, _CEREMONIES)
    return _module


async def relying_party(identity: IdentityServices) -> "RelyingParty":
    """By the public address. Browsers take no IP address for a domain, so loopback is `localhost`."""
    parts = urlsplit(identity.issuer.issuer)
    host = parts.hostname or ""
    origins = [origin.decode() for origin in sorted(identity.session_cookie.origins)]
    try:
        if ipaddress.ip_address(host).is_loopback:
            host = "localhost"
            origins.append(f"{parts.scheme}://localhost" + (f":{parts.port}" if parts.port else ""))
    except ValueError:
        pass
    ceremonies = await load_ceremonies()
    party: RelyingParty = ceremonies.RelyingParty(host, identity.product, tuple(origins))
    return party


def seal_challenge(
    identity: IdentityServices, kind: Literal["add", "login"], user_id: UUID | None, session_id: UUID
) -> bytes:
    expires_at = (identity.clock.now() + _CHALLENGE_LIFETIME).timestamp()
    challenge = Challenge(kind, user_id, session_id, expires_at, secrets.token_bytes(16))
    return identity.keys.encrypt(_PURPOSE, msgspec.msgpack.encode(challenge))


def unseal_challenge(identity: IdentityServices, kind: Literal["add", "login"], challenge: bytes) -> Challenge | None:
    try:
        plain = identity.keys.decrypt(_PURPOSE, challenge)
        state = msgspec.msgpack.decode(plain, type=Challenge)
    except (SealBroken, msgspec.MsgspecError):
        return None
    return state if state.kind == kind and identity.clock.timestamp() < state.expires_at else None


def decode_base64url(text: object) -> bytes:
    """The bytes of base64url without padding.

    Raises:
        ValueError, TypeError: it is none.
    """
    if not isinstance(text, str):
        raise TypeError
    return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))


def passkey_data(passkey_id: UUID, name: str | None = None) -> str:
    data = {"passkey_id": str(passkey_id)} | ({"name": name} if name else {})
    return msgspec.json.encode(data).decode()
