"""Access tokens and API keys as credentials: what is accepted, and everything that must not be."""

import base64
import hmac
import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import httpx
import pyotp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from app.identity.api import IdentityServices
from app.identity.service.tokens import MalformedToken, RefreshToken, RefreshTokens, decode_api_key, new_api_key
from app.kernel.auth import SCOPES
from app.kernel.ids import UserId
from app.kernel.sealing import Keys
from tests.fixtures.answers import problem_of
from tests.fixtures.clocks import ManualClock
from tests.fixtures.lives import first_life
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.identity.conftest import LogIn

Json: TypeAlias = dict[str, Any]
Forge = Callable[["Forger"], str]
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def encode(value: Json | bytes) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(segment: str) -> Json:
    value: Json = json.loads(base64.urlsafe_b64decode(segment + "=="))
    return value


class Forger:
    """What an attacker has: a genuine token, the published keys, and a key of their own."""

    def __init__(self, person: Person, identity: IdentityServices, mfa_token: str, api_key: str) -> None:
        self.person = person
        self.token = str(person.tokens["access_token"])
        self.head, self.payload, self.signature = self.token.split(".")
        self.header, self.claims = decode(self.head), decode(self.payload)
        jwks = identity.key_ring.public_jwks()["keys"]
        self.public = base64.urlsafe_b64decode(jwks[0]["x"] + "=")
        self.own_key = Ed25519PrivateKey.generate()
        self.own_public = encode(self.own_key.public_key().public_bytes_raw())
        self.mfa_token = mfa_token
        self.api_key = api_key
        self._identity = identity
        self.person_id = UserId(person.id)

    def signed_by_stranger(self, header: Json) -> str:
        signed = f"{encode(header)}.{self.payload}"
        return f"{signed}.{encode(self.own_key.sign(signed.encode()))}"

    def hs256(self, key: bytes) -> str:
        signed = f"{encode(self.header | {'alg': 'HS256'})}.{self.payload}"
        return f"{signed}.{encode(hmac.digest(key, signed.encode(), sha256))}"

    def signed_by_us(self, **changes: object) -> str:
        """As if another service of the same issuer, or a bug, had made it."""
        signing = self._identity.key_ring._signing
        assert signing is not None
        claims = {name: value for name, value in (self.claims | changes).items() if value is not None}
        signed = f"{signing.header.decode()}.{encode(claims)}"
        return f"{signed}.{encode(signing.private.sign(signed.encode()))}"

    def other_spelling(self) -> str:
        """The same 64 bytes: four bits of the last character do not count."""
        last = ALPHABET[ALPHABET.index(self.signature[-1]) ^ 1]
        respelt = self.signature[:-1] + last
        assert base64.urlsafe_b64decode(respelt + "==") == base64.urlsafe_b64decode(self.signature + "==")
        return f"{self.head}.{self.payload}.{respelt}"


FORGERIES: dict[str, Forge] = {
    "alg none": lambda f: f"{encode({'alg': 'none', 'typ': 'at+jwt'})}.{f.payload}.",
    "alg none with our kid": lambda f: f"{encode(f.header | {'alg': 'none'})}.{f.payload}.",
    "alg none with our signature": lambda f: f"{encode(f.header | {'alg': 'None'})}.{f.payload}.{f.signature}",
    "HS256 with the public key": lambda f: f.hs256(f.public),
    "HS256 with the public key as text": lambda f: f.hs256(encode(f.public).encode()),
    "HS256 with no key": lambda f: f.hs256(b""),
    "another key, our kid": lambda f: f.signed_by_stranger(f.header),
    "another key, another kid": lambda f: f.signed_by_stranger(f.header | {"kid": "attacker"}),
    "a key in the header": lambda f: f.signed_by_stranger(
        f.header | {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": f.own_public}}
    ),
    "a key set elsewhere": lambda f: f.signed_by_stranger(f.header | {"jku": "https://attacker.example/jwks.json"}),
    "a file as kid": lambda f: f.signed_by_stranger(f.header | {"kid": "../../dev/null"}),
    "another payload": lambda f: f"{f.head}.{encode(f.claims | {'roles': ['user', 'admin']})}.{f.signature}",
    "the header in another order": lambda f: f"{encode(dict(reversed(f.header.items())))}.{f.payload}.{f.signature}",
    "a second spelling": lambda f: f.other_spelling(),
    "padding": lambda f: f.token + "==",
    "a tail": lambda f: f.token + ".x",
    "a space inside": lambda f: f.token.replace(".", ". "),
    "no signature": lambda f: f"{f.head}.{f.payload}.",
    "an ID token's type": lambda f: f.signed_by_stranger(f.header | {"typ": "JWT"}),
    "a refresh token": lambda f: str(f.person.tokens["refresh_token"]),
    "an mfa token": lambda f: f.mfa_token,
    "an API key as JWT": lambda f: f.api_key.removeprefix("ak_"),
    "an API key as refresh token": lambda f: f.api_key.replace("ak_", "rt_"),
    "an API key of another secret": lambda f: new_api_key(f.person_id, decode_api_key(f.api_key).id).encode(),
    "an API key that never was": lambda f: new_api_key(f.person_id, uuid4()).encode(),
    "an API key with a typing error": lambda f: (
        f.api_key[:-8] + ("A" if f.api_key[-8] != "A" else "B") + f.api_key[-7:]
    ),
    "an API key without an owner": lambda f: new_api_key(UserId(uuid4()), decode_api_key(f.api_key).id).encode(),
    "another issuer": lambda f: f.signed_by_us(iss="https://staging.example.com"),
    "another audience": lambda f: f.signed_by_us(aud="billing"),
    "a list of audiences": lambda f: f.signed_by_us(aud=["onehop", "billing"]),
    "no expiry": lambda f: f.signed_by_us(exp=None),
    "expiry as text": lambda f: f.signed_by_us(exp="9999999999"),
    "no session": lambda f: f.signed_by_us(sid=None),
    "a huge token": lambda f: f"{f.head}.{'A' * 5000}.{f.signature}",
    "half a token": lambda f: f.token[: len(f.token) // 2],
}


@pytest.fixture
async def forger(
    person: Person, identity: IdentityServices, make_person: MakePerson, client: httpx.AsyncClient
) -> Forger:
    answer = await person.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["events:write"]})
    other = await make_person()
    secret = (await other.post("/v1/auth/mfa/totp")).json()["secret"]
    await other.post("/v1/auth/mfa/totp/activate", json={"code": pyotp.TOTP(secret).now()})
    half = await client.post("/v1/auth/login", json={"email": other.email, "password": PASSWORD})
    return Forger(person, identity, half.json()["mfa_token"], answer.json()["key"])


async def test_no_forgery_is_accepted(client: httpx.AsyncClient, forger: Forger) -> None:
    accepted = {}
    for name, forge in FORGERIES.items():
        # Twice, because the second time it must not have been remembered.
        for _ in range(2):
            answer = await client.get("/v1/users/me", headers={"Authorization": f"Bearer {forge(forger)}"})
            if (answer.status_code, answer.headers.get("www-authenticate")) != (401, 'Bearer error="invalid_token"'):
                accepted[name] = answer.status_code
    assert accepted == {}
    assert (await forger.person.get("/v1/users/me")).status_code == 200


async def test_a_token_in_the_query_or_a_cookie_is_not_looked_at(client: httpx.AsyncClient, person: Person) -> None:
    token = person.tokens["access_token"]
    assert (await client.get("/v1/overview", params={"access_token": token})).status_code == 401
    cookie = {"Cookie": f"access_token={token}; token={token}; Authorization=Bearer {token}"}
    assert (await client.get("/v1/overview", headers=cookie)).status_code == 401


async def test_a_token_ends_after_ten_minutes(clock: ManualClock, client: httpx.AsyncClient, person: Person) -> None:
    claims = decode(str(person.tokens["access_token"]).split(".")[1])
    assert claims["exp"] - claims["iat"] == 600
    clock.advance(claims["exp"] - clock.timestamp() - 0.001)
    assert (await person.get("/v1/users/me")).status_code == 200
    clock.advance(0.001)
    for _ in range(2):
        problem_of(await person.get("/v1/users/me"), 401, "token_expired")


async def test_what_a_token_says(person: Person, identity: IdentityServices) -> None:
    head, payload, _ = str(person.tokens["access_token"]).split(".")
    header, claims = decode(head), decode(payload)
    assert header == {"alg": "EdDSA", "kid": header["kid"], "typ": "at+jwt"}
    assert header["kid"] in {key["kid"] for key in identity.key_ring.public_jwks()["keys"]}
    assert set(claims) == {"iss", "aud", "sub", "sid", "jti", "iat", "exp", "scope", "roles", "ver", "client_id"}
    assert (claims["sub"], claims["aud"], claims["roles"], claims["ver"]) == (str(person.id), "onehop", ["user"], 1)
    assert person.email not in payload
    assert claims["iss"] == "http://127.0.0.1:8000"


async def test_every_login_has_a_session_of_its_own(person: Person, log_in: LogIn) -> None:
    again = await log_in(person)
    sessions = {decode(str(each.tokens["access_token"]).split(".")[1])["sid"] for each in (person, again)}
    assert len(sessions) == 2


REFRESH_TOKENS = RefreshTokens(Keys("k" * 32), first_life())


@given(
    user=st.uuids(),
    session=st.uuids(),
    generation=st.integers(0, 2**32 - 1),
    scopes=st.none() | st.frozensets(st.sampled_from(sorted(SCOPES)), min_size=1),
    place=st.integers(0),
    bit=st.integers(0, 5),
)
def test_one_changed_bit_spoils_a_refresh_token(
    user: UUID, session: UUID, generation: int, scopes: frozenset[str] | None, place: int, bit: int
) -> None:
    token = RefreshToken(UserId(user), session, generation, scopes)
    text = REFRESH_TOKENS.encode(token)
    assert REFRESH_TOKENS.decode(text) == token
    index = 3 + place % (len(text) - 3)
    changed = text[:index] + ALPHABET[ALPHABET.index(text[index]) ^ (1 << bit)] + text[index + 1 :]
    with pytest.raises(MalformedToken):
        REFRESH_TOKENS.decode(changed)
    with pytest.raises(MalformedToken):
        RefreshTokens(Keys("other" * 8), first_life()).decode(text)


@given(text=st.text() | st.text(ALPHABET).map("rt_".__add__) | st.text(ALPHABET).map("ak_".__add__))
def test_any_text_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(MalformedToken):
        REFRESH_TOKENS.decode(text)
    with pytest.raises(MalformedToken):
        decode_api_key(text)


async def test_before_the_keys_are_read_nobody_is_told_that_a_token_is_bad(
    client: httpx.AsyncClient, person: Person, identity: IdentityServices
) -> None:
    """A process that comes up without the database cannot tell; a 401 would make callers throw their tokens away."""
    ring = identity.key_ring
    public, ring._public = ring._public, {}
    problem_of(await person.get("/v1/users/me"), 503, "unavailable")
    ring._public = public
    assert (await person.get("/v1/users/me")).status_code == 200
