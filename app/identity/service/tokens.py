"""The forms of our credentials: access tokens (JWT), refresh tokens and API keys.

Access token: JWT (RFC 7519) of type `at+jwt` (RFC 9068), signed with Ed25519. Refresh token: session and generation
under an HMAC, so that the successor of a token can be derived and nothing replayable is stored. API key: id, secret,
checksum.
"""

import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from binascii import crc32
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from app.identity.records.tokens import SigningKeyRow, SigningKeyState
from app.kernel.database.incarnation import Incarnation
from app.kernel.errors import Unavailable
from app.kernel.ids import UserId
from app.kernel.sealing import Keys

ALGORITHM = "EdDSA"
REFRESH_PREFIX = "rt_"
COOKIE_PREFIX = "sc_"
_API_KEY_PREFIX = "ak_"
_VERSION = b"\x01"
# Of a refresh token with scopes behind its generation.
_NARROWED_VERSION = b"\x02"
_MAC_BYTES = 32
_ID_BYTES = 16
_REFRESH_BODY_BYTES = 1 + 2 * _ID_BYTES + 4
_SECRET_BYTES = 32
_MAX_TOKEN_LENGTH = 4096
_PURPOSE_SIGNING = "signing-key"


class ActingParty(msgspec.Struct, frozen=True):
    """An administrator that acts for the subject of a token (RFC 8693, section 4.1), by which session, and the version
    of its account.
    """

    sub: UUID
    sid: UUID
    ver: int


class Claims(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The claims of an access token. `iat` and `exp` are seconds of the epoch; `ver` is the account's version, `inc`
    the database's incarnation.
    """

    iss: str
    aud: str
    sub: UUID
    # Missing in tokens of programs, which have no session.
    sid: UUID | None = None
    jti: UUID
    iat: int
    exp: int
    scope: str
    roles: tuple[str, ...]
    ver: int
    # Missing in tokens of a database that was never restored.
    inc: str = ""
    # Required by RFC 9068, section 2.2; tokens from before have none.
    client_id: str = ""
    # For less than the whole scope of the account's role.
    narrowed: bool = False
    act: ActingParty | None = None


class MalformedToken(Exception):
    """Not a token of ours, or not signed by a key of ours."""


@dataclass(frozen=True, slots=True)
class _SigningKey:
    kid: str
    header: bytes
    private: Ed25519PrivateKey


class KeyRing:
    """The keys that sign and verify access tokens.

    A token's header segment must be byte for byte one that we write ourselves. So there is nothing to parse before the
    signature has been checked, and no `alg`, `jwk`, `jku` or `kid` of an attacker is ever looked at.
    """

    def __init__(self, keys: Keys, incarnation: Incarnation) -> None:
        self._keys = keys
        self._incarnation = incarnation
        self._public: dict[bytes, Ed25519PublicKey] = {}
        self._raw_public: dict[str, bytes] = {}
        self._signing: _SigningKey | None = None

    def load(self, rows: Sequence[SigningKeyRow]) -> None:
        """Takes `rows` in place of what was there.

        Raises:
            SealBroken: the secret of this process is not the one that sealed the active key.
        """
        public: dict[bytes, Ed25519PublicKey] = {}
        signing = None
        for row in rows:
            header = _segment(msgspec.json.encode({"alg": ALGORITHM, "kid": row.kid, "typ": "at+jwt"}))
            public[header] = Ed25519PublicKey.from_public_bytes(row.public_key)
            if row.state == "active":
                raw = self._keys.decrypt(_PURPOSE_SIGNING, row.private_sealed, context=row.kid.encode())
                signing = _SigningKey(row.kid, header, Ed25519PrivateKey.from_private_bytes(raw))
        self._public = public
        self._raw_public = {row.kid: row.public_key for row in rows}
        self._signing = signing

    @property
    def can_sign(self) -> bool:
        return self._signing is not None and self._incarnation.is_known

    @property
    def incarnation(self) -> str:
        """The claim `inc` of the tokens of now; empty in a database that was never restored."""
        return self._incarnation.mark.hex()

    def sign(self, claims: Claims) -> str:
        """The access token that says `claims`; the same claims give the same token.

        Raises:
            Unavailable: no key has been read yet, or not which life of the database this is.
        """
        if self._signing is None or not self._incarnation.is_known:
            raise Unavailable("The signing key is not loaded yet.")
        signed = self._signing.header + b"." + _segment(msgspec.json.encode(claims))
        return (signed + b"." + _segment(self._signing.private.sign(signed))).decode()

    def verify(self, token: str) -> Claims:
        """The claims of a token whose signature is good; their times are not looked at.

        Raises:
            MalformedToken: it is not one of ours.
            Unavailable: no key has been read yet, so the token cannot be judged.
        """
        if len(token) > _MAX_TOKEN_LENGTH:
            raise MalformedToken
        if not self._public or not self._incarnation.is_known:
            raise Unavailable
        try:
            header, payload, signature = token.encode("ascii").split(b".")
            public = self._public[header]
            public.verify(_decode_segment(signature), header + b"." + payload)
            claims = msgspec.json.decode(_decode_segment(payload), type=Claims)
        except (KeyError, ValueError, InvalidSignature, msgspec.MsgspecError) as error:
            raise MalformedToken from error
        if claims.sid is None and claims.client_id != str(claims.sub):
            # Only a program has no session.
            raise MalformedToken
        if claims.inc != self.incarnation:
            # Of an account or a session that a restored backup may not know.
            raise MalformedToken
        return claims

    def public_jwks(self) -> dict[str, list[Mapping[str, str]]]:
        """The public keys as a JWK set (RFC 7517, RFC 8037)."""
        return {
            "keys": [
                {
                    "kty": "OKP",
                    "crv": "Ed25519",
                    "alg": ALGORITHM,
                    "use": "sig",
                    "kid": kid,
                    "x": _segment(raw).decode(),
                }
                for kid, raw in self._raw_public.items()
            ]
        }


def new_signing_key(keys: Keys, state: SigningKeyState) -> SigningKeyRow:
    """A fresh key, sealed."""
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    raw = private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    kid = _segment(sha256(public).digest()[:12]).decode()
    sealed = keys.encrypt(_PURPOSE_SIGNING, raw, context=kid.encode())
    return SigningKeyRow(kid, ALGORITHM, sealed, keys.key_id, public, state)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """What a refresh token says, or a session cookie, which stays the same for all generations: it says 0.

    `scopes`: what was granted, if less than all that the account's role may do.
    """

    user_id: UserId
    session_id: UUID
    generation: int
    scopes: frozenset[str] | None = None


class RefreshTokens:
    """Makes and reads refresh tokens, and with `prefix` and `purpose` of their own the values of session cookies. Their
    key is not in the database.
    """

    def __init__(
        self, keys: Keys, incarnation: Incarnation, *, prefix: str = REFRESH_PREFIX, purpose: str = "refresh-token"
    ) -> None:
        self._key = keys.derive(purpose)
        self._incarnation = incarnation
        self._prefix = prefix

    def encode(self, token: RefreshToken) -> str:
        body = token.user_id.bytes + token.session_id.bytes + token.generation.to_bytes(4)
        if token.scopes is None:
            body = _VERSION + body
        else:
            body = _NARROWED_VERSION + body + " ".join(sorted(token.scopes)).encode()
        return self._prefix + _segment(body + self._mac(body)).decode()

    def decode(self, text: str) -> RefreshToken:
        """What `text` says, found genuine without asking the database.

        Raises:
            MalformedToken: it is not one of ours.
            Unavailable: the database has not answered yet, so that its incarnation is not known.
        """
        if not self._incarnation.is_known:
            raise Unavailable
        if not text.startswith(self._prefix) or len(text) > _MAX_TOKEN_LENGTH:
            raise MalformedToken
        try:
            raw = _decode_segment(text.removeprefix(self._prefix).encode("ascii"))
        except ValueError as error:
            raise MalformedToken from error
        body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        version, ids, scopes = body[:1], body[1:_REFRESH_BODY_BYTES], body[_REFRESH_BODY_BYTES:]
        is_whole = len(body) >= _REFRESH_BODY_BYTES and version == (_NARROWED_VERSION if scopes else _VERSION)
        if not is_whole or not hmac.compare_digest(mac, self._mac(body)):
            raise MalformedToken
        return RefreshToken(
            UserId(UUID(bytes=ids[:_ID_BYTES])),
            UUID(bytes=ids[_ID_BYTES : 2 * _ID_BYTES]),
            int.from_bytes(ids[2 * _ID_BYTES :]),
            frozenset(scopes.decode().split()) if scopes else None,
        )

    def access_token_id(self, session_id: UUID, generation: int, scope: str = "") -> UUID:
        """The `jti` of the access token issued with this generation, the same for all requests for it. `scope`: of one
        that is for less than the others of the session.
        """
        mac = self._mac(b"jti" + session_id.bytes + generation.to_bytes(4) + scope.encode())
        return UUID(bytes=mac[:_ID_BYTES], version=4)

    def _mac(self, body: bytes) -> bytes:
        # A backup that is restored knows nothing of the tokens made since; they must not look stolen.
        return hmac.digest(self._key, body + self._incarnation.mark, sha256)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What an API key says. `secret` is compared by its hash."""

    user_id: UserId
    id: UUID
    secret: bytes

    @property
    def secret_hash(self) -> bytes:
        return sha256(self.secret).digest()

    def encode(self) -> str:
        body = self.user_id.bytes + self.id.bytes + self.secret
        # The checksum lets scanners and typing errors be told from guesses without a look-up.
        return _API_KEY_PREFIX + _segment(body + crc32(body).to_bytes(4)).decode()


def new_api_key(user_id: UserId, key_id: UUID) -> ApiKey:
    """A key with a fresh secret of 256 bits."""
    return ApiKey(user_id, key_id, secrets.token_bytes(_SECRET_BYTES))


def is_api_key(token: str) -> bool:
    return token.startswith(_API_KEY_PREFIX)


def decode_api_key(token: str) -> ApiKey:
    """What an API key says.

    Raises:
        MalformedToken: it is not one of ours.
    """
    if not is_api_key(token) or len(token) > _MAX_TOKEN_LENGTH:
        raise MalformedToken
    try:
        raw = _decode_segment(token.removeprefix(_API_KEY_PREFIX).encode("ascii"))
    except ValueError as error:
        raise MalformedToken from error
    body, checksum = raw[:-4], raw[-4:]
    if len(body) != 2 * _ID_BYTES + _SECRET_BYTES or crc32(body).to_bytes(4) != checksum:
        raise MalformedToken
    return ApiKey(
        UserId(UUID(bytes=body[:_ID_BYTES])), UUID(bytes=body[_ID_BYTES : 2 * _ID_BYTES]), body[2 * _ID_BYTES :]
    )


def new_secret(prefix: str = "") -> str:
    """A text of 256 random bits: the token of an e-mail, or a program's secret."""
    return prefix + secrets.token_urlsafe(_SECRET_BYTES)


def hash_secret(text: str) -> bytes:
    """What is stored of a secret. A plain hash of 256 random bits tells nothing."""
    return sha256(text.encode("utf-8", "replace")).digest()


def epoch_seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _segment(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")


def _decode_segment(segment: bytes) -> bytes:
    """Strict base64url: one text for one value, so that no second spelling of a token exists.

    Raises:
        ValueError: it is not.
    """
    try:
        raw = urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
    except Base64Error as error:
        raise ValueError(str(error)) from error
    if _segment(raw) != segment:
        raise ValueError("not canonical base64url")
    return raw
