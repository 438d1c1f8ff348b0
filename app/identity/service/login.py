"""Log-in with e-mail address and password, and with a second factor where the account has one."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import msgspec

from app.identity.errors import AccountBanned, EmailNotVerified, InvalidCredentials, InvalidMfaToken
from app.identity.queries.accounts import get_account, get_account_by_email
from app.identity.queries.security_events import insert_failed_login
from app.identity.records import Account, Device, SignedIn
from app.identity.service.password_policy import MAX_PASSWORD_LENGTH, normalise_password
from app.identity.service.runtime import Identity
from app.identity.service.second_factor import use_code
from app.identity.service.sessions import open_session
from app.kernel.addresses import canonical_email
from app.kernel.database import Database
from app.kernel.ids import UserId, new_id
from app.kernel.keys import SealBroken
from app.users import api as users

_MFA_LIFETIME = timedelta(minutes=10)
_MFA_PURPOSE = "mfa-token"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What somebody who logs in brings. `device_cookie` is that of an earlier log-in, not yet verified."""

    email: str
    password: str
    device: Device
    device_cookie: str | None = None


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A session, and the cookie by which this device is known from now on."""

    signed_in: SignedIn
    device_cookie: str


@dataclass(frozen=True, slots=True)
class SecondFactorNeeded:
    """The password was right. `mfa_token` and a code together open the session, within ten minutes."""

    mfa_token: str


class _Pending(msgspec.Struct, frozen=True, array_like=True):
    """What an `mfa_token` says, sealed. `version`: the account as it was when the password was right."""

    user_id: str
    version: int
    expires_at: float
    device_name: str | None


async def log_in(db: Database, identity: Identity, credentials: Credentials) -> LoggedIn | SecondFactorNeeded:
    """Opens a session with three statements and no transaction, or asks for the second factor.

    Raises:
        TooManyAttempts: whatever the password is.
        InvalidCredentials: there is no such account, or the password is another; both take the same time.
        AccountBanned, EmailNotVerified: said only to who knows the password.
    """
    canonical = canonical_email(credentials.email)
    device_id = identity.devices.recognise(credentials.device_cookie, canonical)
    buckets = identity.throttle.login_buckets(canonical, credentials.device.ip, device_id)
    # No stored password is longer; hashing a megabyte for nothing would be a favour to an attacker.
    candidate = normalise_password(credentials.password)[: MAX_PASSWORD_LENGTH + 1]
    async with identity.throttle.attempt(buckets):
        async with db.read("identity.login") as conn:
            account = await get_account_by_email(conn, canonical)
        is_right = await identity.hashing.verify(account.password_hash if account else None, candidate)
    if account is None or not is_right:
        await _note_failure(db, identity, canonical, credentials.device)
        raise InvalidCredentials
    await identity.throttle.release(buckets)
    _check_may_log_in(identity, account)
    if account.totp_enabled:
        return SecondFactorNeeded(_seal(identity, account, credentials.device))
    new_hash = await _outgrown(identity, account, candidate)
    return await _open(db, identity, account, credentials.device, methods=("pwd",), new_hash=new_hash)


async def verify_second_factor(
    db: Database, identity: Identity, *, mfa_token: str, code: str, device: Device
) -> LoggedIn:
    """Opens the session that a log-in with the right password has begun. `code` is a TOTP or a recovery code.

    Raises:
        InvalidMfaToken: it is not ours, too old, or the account has changed since.
        InvalidCode: the code is wrong or was used before.
        TooManyAttempts: whatever the code is.
    """
    pending = _unseal(identity, mfa_token)
    user_id = UserId(UUID(pending.user_id))
    buckets = identity.throttle.proof_buckets("totp", user_id)
    async with identity.throttle.attempt(buckets):
        async with db.read("identity.login") as conn:
            account = await get_account(conn, user_id)
        if account is None or account.version != pending.version or account.status != "active":
            raise InvalidMfaToken
        method = await use_code(db, identity, user_id, code)
    await identity.throttle.release(buckets)
    named = Device(device.ip, device.user_agent, pending.device_name)
    return await _open(db, identity, account, named, methods=("pwd", method), new_hash=None)


def _check_may_log_in(identity: Identity, account: Account) -> None:
    """For somebody who knows the password.

    Raises:
        AccountBanned, EmailNotVerified
    """
    if account.status == "banned":
        raise AccountBanned
    if identity.settings.registration == "verify" and account.email_verified_at is None:
        raise EmailNotVerified


async def _open(
    db: Database,
    identity: Identity,
    account: Account,
    device: Device,
    *,
    methods: tuple[str, ...],
    new_hash: str | None,
) -> LoggedIn:
    async with db.read("identity.login_user") as conn:
        user = await users.get_user(conn, account.user_id)
    if user is None:
        raise InvalidCredentials
    async with db.statement("identity.open_session") as tx:
        tokens = await open_session(
            tx, identity, account, device, action="logged_in", methods=methods, new_password_hash=new_hash
        )
    return LoggedIn(SignedIn(user, tokens), identity.devices.issue(canonical_email(account.email)))


async def _outgrown(identity: Identity, account: Account, password: str) -> str | None:
    """A hash with the parameters of today, if the stored one has others."""
    if account.password_hash is None or not identity.hashing.is_outdated(account.password_hash):
        return None
    return await identity.hashing.hash(password)


async def _note_failure(db: Database, identity: Identity, canonical: str, device: Device) -> None:
    async with db.statement("identity.failed_login") as tx:
        await insert_failed_login(tx, canonical, new_id(), device.ip, device.user_agent, identity.clock.now())


def _seal(identity: Identity, account: Account, device: Device) -> str:
    expires_at = (identity.clock.now() + _MFA_LIFETIME).timestamp()
    pending = _Pending(str(account.user_id), account.version, expires_at, device.name)
    return identity.keys.seal(_MFA_PURPOSE, msgspec.msgpack.encode(pending)).hex()


def _unseal(identity: Identity, mfa_token: str) -> _Pending:
    try:
        plain = identity.keys.open(_MFA_PURPOSE, bytes.fromhex(mfa_token))
    except (SealBroken, ValueError) as error:
        raise InvalidMfaToken from error
    pending = msgspec.msgpack.decode(plain, type=_Pending)
    if identity.clock.timestamp() >= pending.expires_at:
        raise InvalidMfaToken
    return pending
