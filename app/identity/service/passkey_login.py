"""Logging in with a passkey, alone or as the second factor."""

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from app.identity.errors import InvalidCredentials, InvalidMfaToken, InvalidPasskey
from app.identity.queries import passkeys as queries
from app.identity.queries.accounts import get_account
from app.identity.queries.sessions import spend_session_id
from app.identity.records import Account, Actor, Device
from app.identity.records.credentials import PasskeyCredential
from app.identity.service.audit_log import record_failed_login_of, record_security_event
from app.identity.service.container import IdentityServices
from app.identity.service.emails import mail_notice
from app.identity.service.login import (
    FirstFactor,
    LoggedIn,
    check_may_log_in,
    read_first_factor,
    record_failed_second_factor,
    user_of,
)
from app.identity.service.passkey_challenges import (
    Challenge,
    decode_base64url,
    load_ceremonies,
    passkey_data,
    relying_party,
    seal_challenge,
    unseal_challenge,
)
from app.identity.service.sessions import end_surplus, open_session
from app.kernel.database import Database, Tx, retries_conflicts
from app.kernel.ids import UserId, new_id
from app.users import api as users

if TYPE_CHECKING:
    from app.identity.service.passkey_ceremonies import VerifiedAssertion


@dataclass(frozen=True, slots=True)
class LoginOptions:
    """What a browser needs to log in with a passkey. `challenge` comes back with its answer."""

    public_key: dict[str, Any]
    challenge: str


@dataclass(frozen=True, slots=True)
class _Claim:
    """A passkey that a browser says it holds, and has signed a challenge of ours with."""

    credential: PasskeyCredential
    answer: Mapping[str, Any]
    challenge: bytes
    state: Challenge


@dataclass(frozen=True, slots=True)
class _Assertion:
    """A passkey of an account that a browser has proven to hold."""

    credential: PasskeyCredential
    verified: "VerifiedAssertion"
    state: Challenge

    @property
    def is_of_copy(self) -> bool:
        """Whether the counter, where there is one, did not grow (WebAuthn level 3, section 6.1.1)."""
        new, old = self.verified.sign_count, self.credential.sign_count
        return (new, old) != (0, 0) and new <= old

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of RFC 8176. The authenticator has verified its user, which makes it two factors."""
        return ("swk" if self.verified.is_synced else "hwk", "mfa")


async def begin_login(identity: IdentityServices) -> LoginOptions:
    """The options to log in with, which are for any passkey of the service, so that they tell of no address."""
    challenge = seal_challenge(identity, "login", None, new_id())
    ceremonies = await load_ceremonies()
    options = ceremonies.login_options(await relying_party(identity), challenge)
    return LoginOptions(options, urlsafe_b64encode(challenge).rstrip(b"=").decode())


async def _read_claim(
    db: Database,
    identity: IdentityServices,
    credential: Mapping[str, Any],
    challenge: str,
    *,
    owner: UserId | None = None,
) -> _Claim:
    """The passkey that the browser says it holds, of `owner` if one is given.

    Raises:
        InvalidPasskey: it is not known, or the challenge is too old or not ours.
    """
    try:
        raw = decode_base64url(challenge)
        state = unseal_challenge(identity, "login", raw)
        credential_id = decode_base64url(credential["rawId"])
    except (KeyError, ValueError, TypeError) as error:
        raise InvalidPasskey from error
    if state is None:
        raise InvalidPasskey
    async with db.read("identity.passkey") as conn:
        known = await queries.get_credential(conn, credential_id)
    if known is None or (owner is not None and known.user_id != owner):
        raise InvalidPasskey
    return _Claim(known, credential, raw, state)


async def _verify_claim(db: Database, identity: IdentityServices, claim: _Claim, device: Device) -> _Assertion:
    """The passkey that the browser holds.

    Raises:
        InvalidPasskey: it has not signed this challenge here, or it is a copy, which is told to the owner.
    """
    ceremonies = await load_ceremonies()
    party = await relying_party(identity)
    try:
        verified = ceremonies.verify_assertion(party, claim.answer, claim.challenge, claim.credential)
    except ceremonies.CeremonyFailed as error:
        raise InvalidPasskey from error
    assertion = _Assertion(claim.credential, verified, claim.state)
    if assertion.is_of_copy:
        await _warn_of_copy(db, identity, assertion, device)
        raise InvalidPasskey
    return assertion


@retries_conflicts
async def _warn_of_copy(db: Database, identity: IdentityServices, assertion: _Assertion, device: Device) -> None:
    """Tells the owner that two authenticators use one passkey. An answer that is sent again is no second one."""
    user_id = assertion.credential.user_id
    async with db.transaction("identity.warn_of_copy") as tx:
        if await _spend_challenge(tx, identity, assertion):
            data = passkey_data(assertion.credential.id)
            actor = Actor(user_id, None, device)
            await record_security_event(tx, identity.clock, actor, "passkey_copy_suspected", data=data)
            await mail_notice(tx, identity.queue, user_id, "passkey_copy_suspected")


async def log_in_by_passkey(
    db: Database, identity: IdentityServices, credential: Mapping[str, Any], challenge: str, device: Device
) -> LoggedIn:
    """Opens a session, for which no second factor is asked: the authenticator has verified its user.

    Raises:
        InvalidPasskey
        AccountBanned, EmailNotVerified: said only to who holds the passkey.
    """
    claim = await _read_claim(db, identity, credential, challenge)
    try:
        return await _log_in_by_claim(db, identity, claim, device)
    except InvalidPasskey:
        await record_failed_login_of(db, identity.clock, claim.credential.user_id, device)
        raise


async def _log_in_by_claim(db: Database, identity: IdentityServices, claim: _Claim, device: Device) -> LoggedIn:
    assertion = await _verify_claim(db, identity, claim, device)
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
        InvalidMfaToken: it is not ours, too old, or was used, or the account has changed since.
        InvalidPasskey: also that of another account.
    """
    first, account = await read_first_factor(db, identity, mfa_token)
    named = Device(device.ip, device.user_agent, first.device_name)
    try:
        claim = await _read_claim(db, identity, credential, challenge, owner=account.user_id)
        assertion = await _verify_claim(db, identity, claim, device)
        user = await user_of(db, account)
        return await _open(db, identity, account, user, named, assertion, first=first)
    except InvalidPasskey:
        await record_failed_second_factor(db, identity, account.user_id, device)
        raise
    except InvalidCredentials as error:
        raise InvalidMfaToken from error


@retries_conflicts
async def _open(
    db: Database,
    identity: IdentityServices,
    account: Account,
    user: users.User,
    device: Device,
    assertion: _Assertion,
    *,
    first: FirstFactor | None = None,
) -> LoggedIn:
    """An answer of a passkey, and an `mfa_token`, are spent for the session that they open, and for nothing else."""
    async with db.transaction("identity.log_in_by_passkey") as tx:
        opened = await open_session(
            tx,
            identity,
            account,
            device,
            action="logged_in",
            methods=(*(first.methods if first else ()), *assertion.methods),
            session_id=UUID(first.session_id) if first else assertion.state.session_id,
        )
        if first is not None and not await _spend_challenge(tx, identity, assertion):
            raise InvalidPasskey
        await _use(tx, identity, assertion)
        if opened.is_crowded:
            await end_surplus(tx, identity, account.user_id)
    return LoggedIn.of(identity, account, user, opened)


async def _spend_challenge(tx: Tx, identity: IdentityServices, assertion: _Assertion) -> bool:
    """Uses up the session that the challenge names. False: another answer to it came first."""
    return await spend_session_id(
        tx,
        assertion.credential.user_id,
        assertion.state.session_id,
        identity.clock.now(),
        datetime.fromtimestamp(assertion.state.expires_at, UTC),
    )


async def _use(tx: Tx, identity: IdentityServices, assertion: _Assertion) -> None:
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
