"""TOTP (RFC 6238) as a second factor, with recovery codes for users who lost it."""

import hmac
import re
import secrets
import unicodedata
from base64 import b32encode
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from io import BytesIO
from typing import Literal

import pyotp
import segno

from app.identity.errors import InvalidCode, SecondFactorActive, SecondFactorMissing
from app.identity.queries.second_factor import (
    confirm_totp,
    delete_totp,
    get_totp_factor,
    replace_recovery_codes,
    replace_totp_factor,
    use_recovery_code,
    use_totp_step,
)
from app.identity.records import Account, Actor
from app.identity.records.credentials import TotpFactor
from app.identity.service.audit_log import record_security_event
from app.identity.service.callers import lock_caller, lock_maker
from app.identity.service.container import IdentityServices
from app.identity.service.emails import mail_notice
from app.identity.service.reauthentication import check_current_password
from app.kernel.database import Database, Tx, retries_conflicts
from app.kernel.fairness.threads import FairThreads
from app.kernel.ids import UserId
from app.kernel.observability.telemetry import get_logger
from app.kernel.sealing import SealBroken

_logger = get_logger(__name__)
_STEP_SECONDS = 30
_DIGITS = 6
# A clock may be one step ahead or behind (RFC 6238, section 5.2).
_DRIFT_STEPS = 1
_RECOVERY_CODES = 10
_RECOVERY_CODE_BYTES = 15
_PURPOSE = "totp"
# Spaces, and the many signs that look like a hyphen.
_SEPARATORS = re.compile(r"[\s\u00ad\u200b-\u200d\u2060\ufeff\u2010-\u2015\u2212-]+")


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What an authenticator app needs; shown once."""

    secret: str
    otpauth_uri: str
    qr_svg: str


@dataclass(frozen=True, slots=True)
class SecondFactorStatus:
    """Get the state of your second factor and the number of recovery codes left."""

    is_enabled: bool
    recovery_codes_left: int


async def enrol(db: Database, threads: FairThreads, identity: IdentityServices, actor: Actor) -> Enrolment:
    """A fresh seed, which counts from its first right code on.

    Raises:
        TokenRevoked: the caller's session has ended meanwhile.
        SecondFactorActive: the account has one.
    """
    secret = pyotp.random_base32()
    account = await _store_seed(db, identity, actor, secret)
    uri = pyotp.TOTP(secret).provisioning_uri(name=account.email, issuer_name=identity.product)
    return Enrolment(secret, uri, await threads.run(partial(_draw, uri)))


def _draw(uri: str) -> str:
    """The QR code as SVG; takes milliseconds."""
    drawing = BytesIO()
    segno.make(uri, error="m").save(drawing, kind="svg", scale=4, xmldecl=False)
    return drawing.getvalue().decode().strip()


@retries_conflicts
async def _store_seed(db: Database, identity: IdentityServices, actor: Actor, secret: str) -> Account:
    sealed = identity.keys.encrypt(_PURPOSE, secret.encode(), context=actor.user_id.bytes)
    async with db.transaction("identity.enrol_totp") as tx:
        account = await lock_maker(tx, identity.clock, actor)
        if not await replace_totp_factor(tx, actor.user_id, sealed, identity.keys.key_id, identity.clock.now()):
            raise SecondFactorActive
        await record_security_event(tx, identity.clock, actor, "totp_enrolled")
    return account


async def activate(db: Database, identity: IdentityServices, actor: Actor, code: str) -> list[str]:
    """Turns the second factor on; the answer is the recovery codes, shown once.

    Raises:
        InvalidCode: the code does not come from the seed.
        SecondFactorMissing: there is no seed, or it is active already.
        TokenRevoked: the caller's session has ended meanwhile.
        TooManyAttempts
    """
    code = as_shown(code)
    buckets = identity.throttle.session_buckets("enrol", actor.session_id)
    async with identity.throttle.attempt(buckets):
        factor = await _factor(db, actor.user_id)
    if factor is None or factor.confirmed_at is not None:
        raise SecondFactorMissing
    step = _matching_step(identity, actor.user_id, factor, code)
    if step is None:
        async with db.statement("identity.wrong_code") as tx:
            await record_security_event(tx, identity.clock, actor, "second_factor_failed")
        raise InvalidCode
    codes = _new_recovery_codes()
    await _confirm(db, identity, actor, factor, step, codes)
    await identity.throttle.release(buckets)
    return codes


@retries_conflicts
async def _confirm(
    db: Database, identity: IdentityServices, actor: Actor, factor: TotpFactor, step: int, codes: list[str]
) -> None:
    hashes = [_hash(code) for code in codes]
    async with db.transaction("identity.confirm_totp") as tx:
        await lock_caller(tx, identity.clock, actor)
        if not await confirm_totp(tx, actor.user_id, identity.clock.now(), step, hashes, factor.secret_sealed):
            raise SecondFactorMissing
        await record_security_event(tx, identity.clock, actor, "totp_enabled")
        await mail_notice(tx, identity.queue, actor.user_id, "totp_enabled")


async def disable(db: Database, identity: IdentityServices, actor: Actor, password: str) -> None:
    """Turns the second factor off for a caller who proves the password once more.

    Raises:
        InvalidCurrentPassword, TooManyAttempts
        SecondFactorMissing: there is none.
    """
    account = await check_current_password(db, identity, actor, password)
    await _remove(db, identity, actor, account)


@retries_conflicts
async def _remove(db: Database, identity: IdentityServices, actor: Actor, account: Account) -> None:
    async with db.transaction("identity.disable_totp") as tx:
        await lock_caller(tx, identity.clock, actor, version=account.version)
        if not await delete_totp(tx, actor.user_id):
            raise SecondFactorMissing
        await record_security_event(tx, identity.clock, actor, "totp_disabled")
        await mail_notice(tx, identity.queue, actor.user_id, "totp_disabled")


async def renew_recovery_codes(db: Database, identity: IdentityServices, actor: Actor, password: str) -> list[str]:
    """New recovery codes in place of the old ones, shown once.

    Raises:
        InvalidCurrentPassword, TooManyAttempts
        SecondFactorMissing: there is no second factor.
    """
    account = await check_current_password(db, identity, actor, password)
    codes = _new_recovery_codes()
    await _replace_codes(db, identity, actor, account, codes)
    return codes


@retries_conflicts
async def _replace_codes(
    db: Database, identity: IdentityServices, actor: Actor, account: Account, codes: list[str]
) -> None:
    async with db.transaction("identity.recovery_codes") as tx:
        await lock_caller(tx, identity.clock, actor, version=account.version)
        if not await replace_recovery_codes(tx, actor.user_id, [_hash(code) for code in codes]):
            raise SecondFactorMissing
        await record_security_event(tx, identity.clock, actor, "recovery_codes_renewed")
        await mail_notice(tx, identity.queue, actor.user_id, "recovery_codes_renewed")


async def read_status(db: Database, actor: Actor) -> SecondFactorStatus:
    factor = await _factor(db, actor.user_id)
    if factor is None or factor.confirmed_at is None:
        return SecondFactorStatus(is_enabled=False, recovery_codes_left=0)
    return SecondFactorStatus(is_enabled=True, recovery_codes_left=factor.recovery_codes_left)


def as_shown(typed: str) -> str:
    """A code without what people type with it: apps show `123 456`, and some keyboards have digits of their own."""
    return _SEPARATORS.sub("", unicodedata.normalize("NFKC", typed)).lower()


def is_totp(code: str) -> bool:
    """Whether `code` has the form of one from an authenticator app."""
    return len(code) == _DIGITS and code.isascii() and code.isdigit()


@dataclass(frozen=True, slots=True)
class Proof:
    """A code that fits, not yet spent. `method`: its RFC 8176 name."""

    method: Literal["otp", "recovery"]
    step: int = 0
    secret_sealed: bytes = b""
    code_hash: bytes = b""


async def check_code(db: Database, identity: IdentityServices, user_id: UserId, code: str) -> Proof:
    """What a TOTP or recovery code proves, once it is spent.

    Raises:
        InvalidCode: it is no code of the account's seed at this time.
    """
    if not is_totp(code):
        return Proof("recovery", code_hash=_hash(code))
    factor = await _factor(db, user_id)
    step = _matching_step(identity, user_id, factor, code) if factor and factor.confirmed_at else None
    if factor is None or step is None:
        raise InvalidCode
    return Proof("otp", step=step, secret_sealed=factor.secret_sealed)


async def spend(tx: Tx, identity: IdentityServices, user_id: UserId, proof: Proof) -> None:
    """Uses a code up.

    Raises:
        InvalidCode: it was used before, or has been replaced.
    """
    if proof.method == "otp":
        is_good = await use_totp_step(tx, user_id, proof.step, proof.secret_sealed)
    else:
        is_good = await use_recovery_code(tx, user_id, proof.code_hash, identity.clock.now())
    if not is_good:
        raise InvalidCode


async def _factor(db: Database, user_id: UserId) -> TotpFactor | None:
    async with db.read("identity.totp") as conn:
        return await get_totp_factor(conn, user_id)


def _matching_step(identity: IdentityServices, user_id: UserId, factor: TotpFactor, code: str) -> int | None:
    """The time step that `code` belongs to, if it is near and newer than the last one used."""
    try:
        secret = identity.keys.decrypt(_PURPOSE, factor.secret_sealed, context=user_id.bytes).decode()
    except SealBroken:
        # Sealed before APP_SECRET_KEY changed. No code fits any more; a recovery code, which is not sealed, does.
        _logger.error("identity.second_factor_unreadable", user_id=str(user_id))  # noqa: TRY400 - the event says all; a traceback adds nothing
        return None
    totp = pyotp.TOTP(secret)
    present = int(identity.clock.timestamp()) // _STEP_SECONDS
    for step in range(present - _DRIFT_STEPS, present + _DRIFT_STEPS + 1):
        if step > factor.last_step and hmac.compare_digest(totp.generate_otp(step), code):
            return step
    return None


def _new_recovery_codes() -> list[str]:
    """Of 120 bits each, so that a plain hash of them tells nothing (ASVS 6.5.2)."""
    texts = [b32encode(secrets.token_bytes(_RECOVERY_CODE_BYTES)).decode().lower() for _ in range(_RECOVERY_CODES)]
    return ["-".join(text[start : start + 6] for start in range(0, len(text), 6)) for text in texts]


def _hash(code: str) -> bytes:
    return sha256(as_shown(code).encode()).digest()
