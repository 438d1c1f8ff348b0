"""Log-in with a code that is sent by e-mail.

A code has six digits, lives ten minutes, and is replaced by the next one. Five tries of strangers and five of known
devices are judged, whatever they are; beyond a hundred in 30 days none is.
"""

import hmac
import secrets
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256

from app.identity.errors import InvalidCode, InvalidCredentials
from app.identity.queries.accounts import get_account_by_email
from app.identity.queries.one_time_tokens import replace_one_time_token, try_login_code, use_one_time_token
from app.identity.records import NO_ACCOUNT_ID, Account, Actor, Device
from app.identity.service.addresses import prove_address
from app.identity.service.audit_log import record_security_event
from app.identity.service.container import IdentityServices
from app.identity.service.emails import mail_code
from app.identity.service.login import LoggedIn, SecondFactorNeeded, ask_for_second_factor, record_failed_login, user_of
from app.identity.service.mail_requests import ask_for_mail
from app.identity.service.second_factor import as_shown
from app.identity.service.sessions import Opened, end_surplus, open_session
from app.kernel.clock import Clock
from app.kernel.database import Database, retries_conflicts
from app.kernel.ids import UserId
from app.kernel.sealing import Keys
from app.kernel.validation.addresses import canonical_email
from app.users import api as users

CODE_LIFETIME = timedelta(minutes=10)
_METHODS = ("email",)
_CODE_DIGITS = 6


@dataclass(frozen=True, slots=True)
class CodeCredentials:
    """What a log-in by code brings; `code` as it was typed. `device_cookie` is not yet verified."""

    email: str
    code: str
    device: Device
    device_cookie: str | None


def hash_login_code(keys: Keys, user_id: UserId, code: str) -> bytes:
    """What is stored of a code, which says nothing without the secret of the installation."""
    return hmac.digest(keys.derive("login-code"), user_id.bytes + code.encode(), sha256)


async def request_code(
    db: Database, identity: IdentityServices, email: str, device: Device, device_cookie: str | None
) -> None:
    """Has a code sent, if there is such an account. Nothing is looked up here, so nothing can be told.

    Raises:
        TooManyAttempts: the network asks too often. An exhausted share of an address stays silent.
    """
    wish = await ask_for_mail(identity, "code", email, device, device_cookie)
    if wish.is_granted:
        async with db.statement("identity.request_code") as tx:
            await mail_code(tx, identity.queue, email, known=wish.known)


def new_login_code() -> str:
    return f"{secrets.randbelow(10**_CODE_DIGITS):0{_CODE_DIGITS}}"


@retries_conflicts
async def issue_login_code(db: Database, keys: Keys, clock: Clock, email: str) -> str | None:
    """A code that is not sent, for an operator of the machine; None: there is no such active account."""
    code = new_login_code()
    async with db.transaction("identity.issue_login_code") as tx:
        account = await get_account_by_email(tx, canonical_email(email))
        if account is None or account.status != "active":
            return None
        await replace_one_time_token(
            tx,
            user_id=account.user_id,
            purpose="log_in",
            token_hash=hash_login_code(keys, account.user_id, code),
            payload="{}",
            now=clock.now(),
            expires_at=clock.now() + CODE_LIFETIME,
            version=account.version,
        )
    return code


async def log_in_by_code(
    db: Database, identity: IdentityServices, credentials: CodeCredentials
) -> LoggedIn | SecondFactorNeeded:
    """Opens a session, or asks for the second factor. An address that was not verified is, and every credential made
    before ends, because the account may have been made by another person than the owner of the mailbox.

    Raises:
        TooManyAttempts: whatever the code is.
        InvalidCode: it is not the newest one, or too old, used up or used, or there is no such account; all of these
            take the same time.
    """
    canonical = canonical_email(credentials.email)
    device = credentials.device
    known = identity.devices.recognise(credentials.device_cookie, canonical)
    buckets = identity.throttle.email_code_buckets(canonical, device.ip, is_known=known is not None)
    async with identity.throttle.attempt(buckets) as attempt:
        async with db.read("identity.login") as conn:
            account = await get_account_by_email(conn, canonical)
        is_known = known is not None and account is not None and known.is_of(account)
        if known is not None and not is_known:
            # What all known devices of the account share is not for a stranger to use up.
            await attempt.move(identity.throttle.email_code_buckets(canonical, device.ip, is_known=False))
        user_id = account.user_id if account else NO_ACCOUNT_ID
        code_hash = hash_login_code(identity.keys, user_id, as_shown(credentials.code))
        async with db.statement("identity.try_code") as tx:
            stored = await try_login_code(tx, user_id, identity.clock.now(), is_known=is_known)
    if account is None or not hmac.compare_digest(stored or b"", code_hash):
        await record_failed_login(db, identity, canonical, device)
        raise InvalidCode
    await identity.throttle.release(attempt.buckets)
    if account.totp_enabled and account.email_verified_at is not None:
        await _use_code(db, identity, code_hash)
        return await ask_for_second_factor(db, identity, account, device, _METHODS)
    user = await user_of(db, account)
    return await _open(db, identity, account, user, device, code_hash)


@retries_conflicts
async def _use_code(db: Database, identity: IdentityServices, code_hash: bytes) -> None:
    async with db.statement("identity.use_code") as tx:
        if await use_one_time_token(tx, code_hash, "log_in", identity.clock.now()) is None:
            raise InvalidCode


@retries_conflicts
async def _open(
    db: Database, identity: IdentityServices, account: Account, user: users.User, device: Device, code_hash: bytes
) -> LoggedIn:
    """A code is spent for the session that it opens, and for nothing else."""
    async with db.transaction("identity.log_in_by_code") as tx:
        used = await use_one_time_token(tx, code_hash, "log_in", identity.clock.now())
        if used is None:
            raise InvalidCode
        proven = account
        if used.email_verified_at is None:
            version = await prove_address(tx, identity, used, device)
            if version is None:
                raise InvalidCode
            await record_security_event(tx, identity.clock, Actor(account.user_id, None, device), "email_verified")
            proven = replace(account, version=version, totp_enabled=False)
            user = await users.get_user(tx, account.user_id) or user
        try:
            opened: Opened = await open_session(tx, identity, proven, device, action="logged_in", methods=_METHODS)
        except InvalidCredentials as error:
            raise InvalidCode from error
        if opened.is_crowded:
            await end_surplus(tx, identity, account.user_id)
    return LoggedIn.of(identity, proven, user, opened)
