"""Passkeys: adding, listing and removing them, and logging in with one.

A challenge is sealed state: what it is for, for whom, and until when. Nothing is stored for it. One that adds a passkey
adds it once, because no credential is known twice; one that logs in opens the session that it names, once.
"""

import asyncio
import importlib
import ipaddress
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

import msgspec

from app.identity.errors import (
    InvalidCredentials,
    InvalidMfaToken,
    InvalidPasskey,
    PasskeyNotFound,
    PasskeyRejected,
    ReauthenticationRequired,
    TooManyPasskeys,
)
from app.identity.queries import passkeys as queries
from app.identity.queries.accounts import get_account
from app.identity.queries.sessions import get_session_status
from app.identity.records import Account, Actor, Device, NewPasskey, Passkey, PasskeyCredential
from app.identity.service.audit_log import record_security_event
from app.identity.service.authentication import TokenRevoked
from app.identity.service.callers import lock_caller, lock_maker
from app.identity.service.container import IdentityServices
from app.identity.service.emails import mail_notice
from app.identity.service.login import LoggedIn, check_may_log_in, read_first_factor, user_of
from app.identity.service.sessions import end_surplus, open_session
from app.kernel.database import Database, ReadConn, Tx, retries_conflicts
from app.kernel.fairness.threads import FairThreads
from app.kernel.ids import UserId, new_id
from app.kernel.pagination import Cursors, Page
from app.kernel.sealing import SealBroken
from app.users import api as users

if TYPE_CHECKING:
    from app.identity.service.passkey_ceremonies import RelyingParty, VerifiedAssertion, VerifiedCredential

FRESH_FOR = timedelta(minutes=15)
_CHALLENGE_LIFETIME = timedelta(minutes=5)
_MOST = 20
_PURPOSE = "passkey-challenge"
_LIST = "passkeys"
_CEREMONIES = "app.identity.service.passkey_ceremonies"


class _Challenge(msgspec.Struct, frozen=True, array_like=True):
    """What a challenge says, sealed. `session_id`: of the caller who adds a passkey, or the one that a log-in opens."""

    kind: Literal["add", "login"]
    user_id: UUID | None
    session_id: UUID
    expires_at: float
    nonce: bytes


@dataclass(frozen=True, slots=True)
class LoginOptions:
    """What a browser needs to log in with a passkey. `challenge` comes back with its answer."""

    public_key: dict[str, Any]
    challenge: str


@dataclass(frozen=True, slots=True)
class Assertion:
    """A passkey of an account that a browser has proven to hold."""

    credential: PasskeyCredential
    verified: "VerifiedAssertion"
    session_id: UUID

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of RFC 8176. The authenticator has verified its user, which makes it two factors."""
        return ("swk" if self.verified.is_synced else "hwk", "mfa")


async def begin_registration(db: Database, identity: IdentityServices, actor: Actor) -> dict[str, Any]:
    """The options to make a passkey with.

    Raises:
        TokenRevoked: the caller's session has ended.
        ReauthenticationRequired: the caller logged in too long ago.
    """
    async with db.read("identity.passkey_options") as conn:
        await check_freshness(conn, identity, actor)
        account = await get_account(conn, actor.user_id)
        known = await queries.list_credentials(conn, actor.user_id)
    if account is None or actor.session_id is None:
        raise TokenRevoked
    challenge = _seal(identity, "add", actor.user_id, actor.session_id)
    ceremonies = await _loaded()
    options: dict[str, Any] = ceremonies.registration_options(
        await _relying_party(identity), actor.user_id.bytes, account.email, challenge, known
    )
    return options


async def verify_new(
    threads: FairThreads, identity: IdentityServices, actor: Actor, credential: Mapping[str, Any]
) -> "VerifiedCredential":
    """What the browser has made, for the caller's own options.

    Raises:
        PasskeyRejected
    """
    ceremonies = await _loaded()
    party = await _relying_party(identity)
    try:
        challenge = ceremonies.challenge_of(credential)
        state = _unseal(identity, "add", challenge)
        if state is None or (state.user_id, state.session_id) != (actor.user_id, actor.session_id):
            raise PasskeyRejected("The options are too old, or were not for you. Get new ones.")
        verified: VerifiedCredential = await threads.run(
            partial(ceremonies.verify_registration, party, credential, challenge)
        )
    except ceremonies.CeremonyFailed as error:
        raise PasskeyRejected from error
    return verified


async def add_passkey(
    tx: Tx, identity: IdentityServices, actor: Actor, verified: "VerifiedCredential", name: str | None
) -> Passkey:
    """Stores a passkey that was verified. `tx` is a transaction.

    Raises:
        TokenRevoked, ReauthenticationRequired, TooManyAttempts
        PasskeyTaken: the credential is known.
        TooManyPasskeys
    """
    await lock_maker(tx, identity.clock, actor)
    await check_freshness(tx, identity, actor)
    passkey = NewPasskey(
        user_id=actor.user_id,
        id=new_id(),
        credential_id=verified.credential_id,
        public_key=verified.public_key,
        sign_count=verified.sign_count,
        name=name or verified.name,
        transports=verified.transports,
        backed_up=verified.backed_up,
    )
    stored = await queries.insert_passkey(tx, passkey, identity.clock.now(), _MOST)
    if stored is None:
        raise TooManyPasskeys
    await record_security_event(tx, identity.clock, actor, "passkey_added", data=_data(stored.id, stored.name))
    await mail_notice(tx, identity.queue, actor.user_id, "passkey_added")
    return stored


async def list_own_passkeys(
    db: Database, cursors: Cursors, user_id: UserId, *, limit: int, cursor: str | None
) -> Page[Passkey]:
    """One page, the newest first.

    Raises:
        InvalidCursor
    """
    async with db.read("identity.passkeys") as conn:
        found = await queries.list_passkeys(conn, user_id)
    return cursors.paginate_in_memory(
        _LIST,
        user_id,
        found,
        lambda passkey: (passkey.created_at, passkey.id),
        tuple[datetime, UUID],
        limit=limit,
        cursor=cursor,
        descending=True,
    )


@retries_conflicts
async def rename_passkey(
    db: Database, identity: IdentityServices, actor: Actor, passkey_id: UUID, name: str
) -> Passkey:
    """Raises TokenRevoked or PasskeyNotFound."""
    async with db.transaction("identity.rename_passkey") as tx:
        await lock_maker(tx, identity.clock, actor)
        passkey = await queries.rename_passkey(tx, actor.user_id, passkey_id, name)
        if passkey is None:
            raise PasskeyNotFound
        await record_security_event(tx, identity.clock, actor, "passkey_renamed", data=_data(passkey_id, name))
    return passkey


@retries_conflicts
async def remove_passkey(db: Database, identity: IdentityServices, actor: Actor, passkey_id: UUID) -> None:
    """Raises TokenRevoked, ReauthenticationRequired or PasskeyNotFound."""
    async with db.transaction("identity.remove_passkey") as tx:
        await lock_caller(tx, identity.clock, actor)
        await check_freshness(tx, identity, actor)
        if not await queries.delete_passkey(tx, actor.user_id, passkey_id):
            raise PasskeyNotFound
        await record_security_event(tx, identity.clock, actor, "passkey_removed", data=_data(passkey_id))
        await mail_notice(tx, identity.queue, actor.user_id, "passkey_removed")


async def check_freshness(conn: ReadConn, identity: IdentityServices, actor: Actor) -> None:
    """Returns if the user has logged in to the actor's session within the last 15 minutes.

    Raises:
        TokenRevoked: the session has ended.
        ReauthenticationRequired
    """
    status = await get_session_status(conn, actor.user_id, actor.session_id) if actor.session_id else None
    if status is None:
        raise TokenRevoked
    if identity.clock.now() - status.authenticated_at > FRESH_FOR:
        raise ReauthenticationRequired


async def begin_login(identity: IdentityServices) -> LoginOptions:
    """The options to log in with, which are for any passkey of the service, so that they tell of no address."""
    challenge = _seal(identity, "login", None, new_id())
    ceremonies = await _loaded()
    options = ceremonies.login_options(await _relying_party(identity), challenge)
    return LoginOptions(options, urlsafe_b64encode(challenge).rstrip(b"=").decode())


async def verify_assertion(
    db: Database, identity: IdentityServices, credential: Mapping[str, Any], challenge: str
) -> Assertion:
    """The passkey that the browser holds.

    Raises:
        InvalidPasskey: it is not known, or has not signed this challenge here, or the challenge is too old.
    """
    ceremonies = await _loaded()
    party = await _relying_party(identity)
    try:
        raw = _decode(challenge)
        state = _unseal(identity, "login", raw)
        credential_id = _decode(credential["rawId"])
    except (KeyError, ValueError, TypeError) as error:
        raise InvalidPasskey from error
    if state is None:
        raise InvalidPasskey
    async with db.read("identity.passkey") as conn:
        known = await queries.get_credential(conn, credential_id)
    if known is None:
        raise InvalidPasskey
    try:
        verified = ceremonies.verify_assertion(party, credential, raw, known)
    except ceremonies.CeremonyFailed as error:
        raise InvalidPasskey from error
    return Assertion(known, verified, state.session_id)


async def log_in_by_passkey(
    db: Database, identity: IdentityServices, credential: Mapping[str, Any], challenge: str, device: Device
) -> LoggedIn:
    """Opens a session, for which no second factor is asked: the authenticator has verified its user.

    Raises:
        InvalidPasskey
        AccountBanned, EmailNotVerified: said only to who holds the passkey.
    """
    assertion = await verify_assertion(db, identity, credential, challenge)
    async with db.read("identity.login") as conn:
        account = await get_account(conn, assertion.credential.user_id)
    if account is None or account.status == "deleted":
        raise InvalidPasskey
    check_may_log_in(identity, account)
    try:
        user = await user_of(db, account)
        return await _open(db, identity, account, user, device, assertion)
    except InvalidCredentials as error:
        raise InvalidPasskey from error


async def verify_passkey_as_second_factor(
    db: Database,
    identity: IdentityServices,
    *,
    mfa_token: str,
    credential: Mapping[str, Any],
    challenge: str,
    device: Device,
) -> LoggedIn:
    """Opens the session that a log-in with another factor has begun.

    Raises:
        InvalidMfaToken: it is not ours, or too old, or the account has changed since.
        InvalidPasskey: also that of another account.
    """
    first, account = await read_first_factor(db, identity, mfa_token)
    assertion = await verify_assertion(db, identity, credential, challenge)
    if assertion.credential.user_id != account.user_id:
        raise InvalidPasskey
    named = Device(device.ip, device.user_agent, first.device_name)
    try:
        user = await user_of(db, account)
        return await _open(db, identity, account, user, named, assertion, first_methods=first.methods)
    except InvalidCredentials as error:
        raise InvalidMfaToken from error


@retries_conflicts
async def _open(
    db: Database,
    identity: IdentityServices,
    account: Account,
    user: users.User,
    device: Device,
    assertion: Assertion,
    *,
    first_methods: tuple[str, ...] = (),
) -> LoggedIn:
    async with db.transaction("identity.log_in_by_passkey") as tx:
        opened = await open_session(
            tx,
            identity,
            account,
            device,
            action="logged_in",
            methods=(*first_methods, *assertion.methods),
            session_id=assertion.session_id,
        )
        await spend(tx, identity, assertion)
        if opened.is_crowded:
            await end_surplus(tx, identity, account.user_id)
    return LoggedIn.of(identity, account, user, opened)


async def spend(tx: Tx, identity: IdentityServices, assertion: Assertion) -> None:
    """Notes that the passkey was used.

    Raises:
        InvalidPasskey: it has been deleted, or another answer of it came first.
    """
    is_used = await queries.use_passkey(
        tx,
        assertion.credential.user_id,
        assertion.credential.id,
        sign_count=assertion.verified.sign_count,
        backed_up=assertion.verified.backed_up,
        now=identity.clock.now(),
    )
    if not is_used:
        raise InvalidPasskey


_module: ModuleType | None = None


async def _loaded() -> Any:
    """`passkey_ceremonies`, imported in a thread when it is first needed."""
    global _module  # noqa: PLW0603 - a module is imported once for the process
    if _module is None:
        _module = await asyncio.to_thread(importlib.import_module, _CEREMONIES)
    return _module


async def _relying_party(identity: IdentityServices) -> "RelyingParty":
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
    ceremonies = await _loaded()
    party: RelyingParty = ceremonies.RelyingParty(host, identity.product, tuple(origins))
    return party


def _seal(identity: IdentityServices, kind: Literal["add", "login"], user_id: UUID | None, session_id: UUID) -> bytes:
    expires_at = (identity.clock.now() + _CHALLENGE_LIFETIME).timestamp()
    challenge = _Challenge(kind, user_id, session_id, expires_at, secrets.token_bytes(16))
    return identity.keys.encrypt(_PURPOSE, msgspec.msgpack.encode(challenge))


def _unseal(identity: IdentityServices, kind: Literal["add", "login"], challenge: bytes) -> _Challenge | None:
    try:
        plain = identity.keys.decrypt(_PURPOSE, challenge)
        state = msgspec.msgpack.decode(plain, type=_Challenge)
    except (SealBroken, msgspec.MsgspecError):
        return None
    return state if state.kind == kind and identity.clock.timestamp() < state.expires_at else None


def _decode(text: object) -> bytes:
    """The bytes of base64url without padding.

    Raises:
        ValueError, TypeError: it is none.
    """
    if not isinstance(text, str):
        raise TypeError
    return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))


def _data(passkey_id: UUID, name: str | None = None) -> str:
    data = {"passkey_id": str(passkey_id)} | ({"name": name} if name else {})
    return msgspec.json.encode(data).decode()
