"""Forgotten, reset and changed passwords."""

from dataclasses import replace

from app.identity.errors import InvalidCurrentPassword, InvalidOneTimeToken
from app.identity.queries.accounts import set_email_verified, set_password
from app.identity.queries.one_time_tokens import delete_one_time_tokens, has_one_time_token, use_one_time_token
from app.identity.records import Account, Actor, Device, OneTimeToken
from app.identity.records.tokens import Tokens
from app.identity.service.audit_log import record_security_event
from app.identity.service.callers import lock_caller
from app.identity.service.container import IdentityServices
from app.identity.service.credentials import end_credentials
from app.identity.service.emails import mail_notice, mail_reset
from app.identity.service.mail_requests import ask_for_mail
from app.identity.service.password_policy import check_password, normalise_password
from app.identity.service.reauthentication import check_current_password
from app.identity.service.sessions import end_sessions, open_session
from app.identity.service.tokens import hash_secret
from app.kernel.database import Database, ReadConn, retries_conflicts
from app.kernel.ids import UserId
from app.kernel.validation.addresses import canonical_email
from app.users import api as users


async def forget(
    db: Database, identity: IdentityServices, email: str, device: Device, device_cookie: str | None
) -> None:
    """Has a reset link sent, if there is such an account. Nothing is looked up here, so nothing can be told.

    Raises:
        TooManyAttempts: the network asks too often. An exhausted share of an address stays silent.
    """
    wish = await ask_for_mail(identity, "reset", email, device, device_cookie)
    if wish.is_granted:
        async with db.statement("identity.forgot_password") as tx:
            await mail_reset(tx, identity.queue, email, known=wish.known)


async def reset(db: Database, identity: IdentityServices, token: str, new_password: str, device: Device) -> str:
    """Sets the password of the account whose mailbox received the token. Every credential made before ends: sessions,
    API keys, the second factor and other links. The answer is a device cookie, so that strangers cannot
    lock out the owner of the mailbox.

    Raises:
        InvalidOneTimeToken: it is not ours, too old, or was used, or the account has changed since.
        WeakPassword
    """
    password = normalise_password(new_password)
    check_password(password, pointer="#/new_password")
    # A hash is the dearest thing that a client without any proof could ask for.
    async with db.read("identity.reset_token") as conn:
        if not await has_one_time_token(conn, hash_secret(token), "reset_password", identity.clock.now()):
            raise InvalidOneTimeToken
    password_hash = await identity.hashing.hash(password)
    used, version = await _reset(db, identity, token, password, password_hash, device)
    canonical = canonical_email(used.email)
    await _open_brakes(identity, used.user_id, canonical)
    return identity.devices.issue(canonical, used.user_id, version, factor_epoch=0)


async def _open_brakes(identity: IdentityServices, user_id: UserId, email_canonical: str) -> None:
    """What was guessed is worth nothing against a new password."""
    throttle = identity.throttle
    await throttle.release(
        [
            *throttle.account_bucket(email_canonical),
            *throttle.month_buckets(user_id),
            *throttle.month_buckets_of_email_codes(email_canonical),
        ]
    )


@retries_conflicts
async def _reset(
    db: Database, identity: IdentityServices, token: str, password: str, password_hash: str, device: Device
) -> tuple[OneTimeToken, int]:
    """The token and the account's new version."""
    now = identity.clock.now()
    async with db.transaction("identity.reset_password") as tx:
        used = await use_one_time_token(tx, hash_secret(token), "reset_password", now)
        if used is None:
            raise InvalidOneTimeToken
        # Refused in here, so that the token stays good for a better password.
        await _check_against_owner(tx, used.user_id, used.email, password)
        version = await set_password(tx, used.user_id, password_hash, now, used.version)
        if version is not None and used.email_verified_at is None:
            # The token came by the mailbox, so it proves the address as well.
            version = await set_email_verified(tx, used.user_id, now, version)
            await users.set_email(tx, used.user_id, used.email, verified=True)
        if version is None:
            raise InvalidOneTimeToken
        await end_credentials(tx, identity, used.user_id, version, device, reason="password_reset")
        await record_security_event(tx, identity.clock, Actor(used.user_id, None, device), "password_reset")
        await mail_notice(tx, identity.queue, used.user_id, "password_changed")
    return used, version


async def _check_against_owner(conn: ReadConn, user_id: UserId, email: str, password: str) -> None:
    """Raises WeakPassword."""
    user = await users.get_user(conn, user_id)
    about = (email, user.display_name if user else None)
    check_password(password, about=about, pointer="#/new_password")


async def change(
    db: Database, identity: IdentityServices, actor: Actor, current_password: str, new_password: str
) -> Tokens:
    """A new password for a caller who knows the present one; every session ends, and the caller gets a new one.

    Raises:
        InvalidCurrentPassword, TooManyAttempts
        WeakPassword
    """
    account = await check_current_password(db, identity, actor, current_password)
    password = normalise_password(new_password)
    async with db.read("identity.password_owner") as conn:
        await _check_against_owner(conn, account.user_id, account.email, password)
    password_hash = await identity.hashing.hash(password)
    tokens = await _change(db, identity, actor, account, password_hash)
    await _open_brakes(identity, actor.user_id, canonical_email(account.email))
    return tokens


@retries_conflicts
async def _change(
    db: Database, identity: IdentityServices, actor: Actor, account: Account, password_hash: str
) -> Tokens:
    async with db.transaction("identity.change_password") as tx:
        locked = await lock_caller(tx, identity.clock, actor, version=account.version)
        version = await set_password(tx, actor.user_id, password_hash, identity.clock.now(), locked.version)
        if version is None:
            raise InvalidCurrentPassword
        await delete_one_time_tokens(tx, actor.user_id)
        await end_sessions(
            tx, identity, actor.user_id, actor.device, reason="password_changed", actor_id=actor.user_id, is_noted=False
        )
        opened = await open_session(
            tx, identity, replace(locked, version=version), actor.device, action="password_changed", methods=("pwd",)
        )
        await mail_notice(tx, identity.queue, actor.user_id, "password_changed")
    return opened.tokens
