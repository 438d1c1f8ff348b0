"""Log-in with e-mail address and password, and with a second factor where the account has one."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import msgspec

from app.identity.errors import (
    AccountBanned,
    EmailNotVerified,
    InvalidCode,
    InvalidCredentials,
    InvalidMfaToken,
    ScopeExceeded,
    TooManyAttempts,
)
from app.identity.queries.accounts import get_account, get_account_by_email
from app.identity.queries.passkeys import has_passkeys
from app.identity.queries.security_events import insert_failed_login
from app.identity.records import Account, Actor, Device, SecondFactorMethod
from app.identity.records.tokens import SignedIn
from app.identity.service import second_factor
from app.identity.service.audit_log import record_security_event
from app.identity.service.container import IdentityServices
from app.identity.service.emails import mail_notice
from app.identity.service.password_policy import MAX_PASSWORD_LENGTH, normalise_password
from app.identity.service.sessions import Opened, end_surplus, open_session
from app.kernel.auth import SCOPES_OF_ROLE
from app.kernel.database import Database, retries_conflicts
from app.kernel.ids import UserId, new_id
from app.kernel.sealing import SealBroken
from app.kernel.validation.addresses import canonical_email
from app.users import api as users

_MFA_LIFETIME = timedelta(minutes=10)
_MFA_PURPOSE = "mfa-token"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a log-in brings. `device_cookie` is that of an earlier one, not yet verified; `scopes`, if not None, are all
    that the session shall be good for.
    """

    email: str
    password: str
    device: Device
    device_cookie: str | None = None
    scopes: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A session, and the cookie by which this device is known from now on."""

    signed_in: SignedIn
    device_cookie: str

    @classmethod
    def of(cls, identity: IdentityServices, account: Account, user: users.User, opened: Opened) -> "LoggedIn":
        """A session that was `opened` after all the factors of `account` were proven."""
        epoch = account.factor_epoch if account.totp_enabled else 0
        cookie = identity.devices.issue(
            canonical_email(account.email), account.user_id, account.version, factor_epoch=epoch
        )
        return cls(SignedIn(user, opened.tokens), cookie)


@dataclass(frozen=True, slots=True)
class SecondFactorNeeded:
    """The first factor was proven. `mfa_token` and one of `methods` together open the session, within ten minutes."""

    mfa_token: str
    methods: tuple[SecondFactorMethod, ...]


class FirstFactor(msgspec.Struct, frozen=True, array_like=True):
    """What an `mfa_token` says, sealed.

    `version`: the account as it was when the first factor was proven, by `methods`. `session_id`: the session that it
    opens; as no session is opened twice, the token works once.
    """

    user_id: str
    version: int
    expires_at: float
    device_name: str | None
    session_id: str
    email_canonical: str
    methods: tuple[str, ...]


async def log_in(db: Database, identity: IdentityServices, credentials: Credentials) -> LoggedIn | SecondFactorNeeded:
    """Opens a session with three statements and no transaction, or asks for the second factor.

    Raises:
        TooManyAttempts: whatever the password is.
        InvalidCredentials: there is no such account, or the password is another; both take the same time.
        AccountBanned, EmailNotVerified, ScopeExceeded: said only to a client that knows the password.
    """
    canonical = canonical_email(credentials.email)
    ip = credentials.device.ip
    known = identity.devices.recognise(credentials.device_cookie, canonical)
    buckets = identity.throttle.login_buckets(canonical, ip, known.id if known else None)
    # No stored password is longer; hashing a megabyte for nothing would be a favour to an attacker.
    candidate = normalise_password(credentials.password)[: MAX_PASSWORD_LENGTH + 1]
    async with identity.throttle.attempt(buckets) as attempt:
        async with db.read("identity.login") as conn:
            account = await get_account_by_email(conn, canonical)
        if known is not None and (account is None or not known.is_of(account)):
            await attempt.add(identity.throttle.stranger_buckets(canonical, ip))
        is_right = await identity.hashing.verify(account.password_hash if account else None, candidate)
    if account is None or not is_right:
        await record_failed_login(db, identity, canonical, credentials.device)
        raise InvalidCredentials
    await identity.throttle.release(attempt.buckets)
    check_may_log_in(identity, account)
    if credentials.scopes is not None and not credentials.scopes <= SCOPES_OF_ROLE[account.role]:
        raise ScopeExceeded
    if account.totp_enabled:
        return await ask_for_second_factor(db, identity, account, credentials.device, ("pwd",))
    new_hash = await _outgrown(identity, account, candidate)
    return await _open(db, identity, account, credentials, new_hash=new_hash)


async def verify_second_factor(
    db: Database, identity: IdentityServices, *, mfa_token: str, code: str, device: Device, device_cookie: str | None
) -> LoggedIn:
    """Opens the session that a log-in with the right password has begun. `code` is a TOTP or a recovery code.

    Raises:
        InvalidMfaToken: it is not ours, too old, or was used, or the account has changed since.
        InvalidCode: the code is wrong or was used before.
        TooManyAttempts: whatever the code is.
    """
    pending, account = await read_first_factor(db, identity, mfa_token)
    code = second_factor.as_shown(code)
    user_id = account.user_id
    known = identity.devices.recognise(device_cookie, pending.email_canonical)
    # With the password alone a client can collect any number of cookies that have not passed the factor.
    has_passed = known is not None and known.is_of(account) and known.factor_epoch == account.factor_epoch
    buckets = identity.throttle.code_buckets(
        user_id, device.ip, known.id if known and has_passed else None, is_totp=second_factor.is_totp(code)
    )
    named = Device(device.ip, device.user_agent, pending.device_name)
    try:
        async with identity.throttle.attempt(buckets):
            proof = await second_factor.check_code(db, identity, user_id, code)
            outcome = await _open_with_proof(db, identity, account, named, pending, proof)
    except InvalidCode:
        await record_failed_second_factor(db, identity, user_id, device)
        raise
    except TooManyAttempts:
        await _warn(db, identity, Actor(user_id, None, device))
        raise
    await identity.throttle.release(buckets)
    return outcome


async def read_first_factor(db: Database, identity: IdentityServices, mfa_token: str) -> "tuple[FirstFactor, Account]":
    """What was proven, and the account, which is as it was then.

    Raises:
        InvalidMfaToken
    """
    pending = _unseal(identity, mfa_token)
    async with db.read("identity.login") as conn:
        account = await get_account(conn, UUID(pending.user_id))
    if account is None or account.version != pending.version or account.status != "active" or not account.totp_enabled:
        raise InvalidMfaToken
    return pending, account


@retries_conflicts
async def _open_with_proof(
    db: Database,
    identity: IdentityServices,
    account: Account,
    device: Device,
    pending: FirstFactor,
    proof: second_factor.Proof,
) -> LoggedIn:
    """A code is spent for the session that it opens, and for nothing else."""
    user = await user_of(db, account)
    async with db.transaction("identity.second_factor") as tx:
        try:
            opened = await open_session(
                tx,
                identity,
                account,
                device,
                action="logged_in",
                methods=(*pending.methods, proof.method),
                session_id=UUID(pending.session_id),
            )
        except InvalidCredentials as error:
            raise InvalidMfaToken from error
        await second_factor.spend(tx, identity, account.user_id, proof)
        if opened.is_crowded:
            await end_surplus(tx, identity, account.user_id)
    return LoggedIn.of(identity, account, user, opened)


async def _warn(db: Database, identity: IdentityServices, actor: Actor) -> None:
    """Tells the owner, once a day, that codes are being guessed by a person who knows the password."""
    if await identity.throttle.may_warn(actor.user_id):
        await _store_warning(db, identity, actor)


@retries_conflicts
async def _store_warning(db: Database, identity: IdentityServices, actor: Actor) -> None:
    async with db.transaction("identity.warn_of_guesses") as tx:
        await record_security_event(tx, identity.clock, actor, "second_factor_guessed")
        await mail_notice(tx, identity.queue, actor.user_id, "second_factor_guessed")


def check_may_log_in(identity: IdentityServices, account: Account) -> None:
    """For a client that knows the password.

    Raises:
        AccountBanned, EmailNotVerified
    """
    if account.status == "banned":
        raise AccountBanned
    if identity.settings.registration == "verify" and account.email_verified_at is None:
        raise EmailNotVerified


async def _open(
    db: Database,
    identity: IdentityServices,
    account: Account,
    credentials: Credentials,
    *,
    new_hash: str | None,
) -> LoggedIn:
    user = await user_of(db, account)
    async with db.statement("identity.open_session") as tx:
        opened = await open_session(
            tx,
            identity,
            account,
            credentials.device,
            action="logged_in",
            methods=("pwd",),
            new_password_hash=new_hash,
            scopes=credentials.scopes,
        )
    if opened.is_crowded:
        async with db.statement("identity.end_surplus_sessions") as tx:
            await end_surplus(tx, identity, account.user_id)
    return LoggedIn.of(identity, account, user, opened)


async def user_of(db: Database, account: Account) -> users.User:
    """The profile for the answer.

    Raises:
        InvalidCredentials: the account is being closed.
    """
    async with db.read("identity.login_user") as conn:
        user = await users.get_user(conn, account.user_id)
    if user is None:
        raise InvalidCredentials
    return user


async def _outgrown(identity: IdentityServices, account: Account, password: str) -> str | None:
    """A hash with the parameters of today, if the stored one has others."""
    if account.password_hash is None or not identity.hashing.is_outdated(account.password_hash):
        return None
    return await identity.hashing.hash(password)


async def record_failed_login(db: Database, identity: IdentityServices, canonical: str, device: Device) -> None:
    """Leaves an entry in the trail of the account with this address, if there is one."""
    async with db.statement("identity.failed_login") as tx:
        await insert_failed_login(tx, canonical, new_id(), device.ip, device.user_agent, identity.clock.now())


async def record_failed_second_factor(
    db: Database, identity: IdentityServices, user_id: UserId, device: Device
) -> None:
    """Leaves an entry in the trail of an account whose first factor was proven."""
    async with db.statement("identity.wrong_code") as tx:
        await record_security_event(tx, identity.clock, Actor(user_id, None, device), "second_factor_failed")


async def ask_for_second_factor(
    db: Database, identity: IdentityServices, account: Account, device: Device, methods: tuple[str, ...]
) -> SecondFactorNeeded:
    """What a log-in needs whose first factor was proven by `methods`."""
    async with db.read("identity.second_factors") as conn:
        has_passkey = await has_passkeys(conn, account.user_id)
    return SecondFactorNeeded(
        _seal(identity, account, device, methods),
        ("totp", "recovery_code", "passkey") if has_passkey else ("totp", "recovery_code"),
    )


def _seal(identity: IdentityServices, account: Account, device: Device, methods: tuple[str, ...]) -> str:
    expires_at = (identity.clock.now() + _MFA_LIFETIME).timestamp()
    pending = FirstFactor(
        str(account.user_id),
        account.version,
        expires_at,
        device.name,
        str(new_id()),
        canonical_email(account.email),
        methods,
    )
    return identity.keys.encrypt(_MFA_PURPOSE, msgspec.msgpack.encode(pending)).hex()


def _unseal(identity: IdentityServices, mfa_token: str) -> FirstFactor:
    try:
        plain = identity.keys.decrypt(_MFA_PURPOSE, bytes.fromhex(mfa_token))
    except (SealBroken, ValueError) as error:
        raise InvalidMfaToken from error
    try:
        pending = msgspec.msgpack.decode(plain, type=FirstFactor)
    except msgspec.ValidationError as error:
        # Sealed by a version of the program whose tokens said less.
        raise InvalidMfaToken from error
    if identity.clock.timestamp() >= pending.expires_at:
        raise InvalidMfaToken
    return pending
