"""Forgotten, reset and changed passwords."""

from dataclasses import replace

from app.identity.errors import InvalidCurrentPassword, InvalidOneTimeToken
from app.identity.queries.accounts import get_account, set_email_verified, set_password
from app.identity.queries.one_time_tokens import delete_one_time_tokens, use_one_time_token
from app.identity.queries.second_factor import delete_totp
from app.identity.records import Account, Actor, Device, Tokens
from app.identity.service.api_keys import end_api_keys
from app.identity.service.auditing import note
from app.identity.service.emails import mail_notice, mail_reset
from app.identity.service.password_policy import check_password, normalise_password
from app.identity.service.reauthentication import check_current_password
from app.identity.service.runtime import Identity
from app.identity.service.sessions import end_sessions, open_session
from app.identity.service.tokens import hash_one_time_token
from app.kernel.addresses import canonical_email
from app.kernel.database import Database, ReadConn, Tx, retries_conflicts
from app.users import api as users


async def forget(db: Database, identity: Identity, email: str, device: Device) -> None:
    """Has a reset link sent, if there is such an account. Nothing is looked up here, so nothing can be told.

    Raises:
        TooManyAttempts: the network's quota is used up. Of the address's quota nobody is told anything.
    """
    limit = identity.registrations_per_network
    await identity.throttle.reserve(identity.throttle.registration_buckets(device.ip, limit))
    if not await identity.throttle.may_mail(canonical_email(email)):
        return
    async with db.statement("identity.forgot_password") as tx:
        await mail_reset(tx, identity.queue, email)


async def reset(db: Database, identity: Identity, token: str, new_password: str, device: Device) -> None:
    """Sets the password of who received the token; all sessions and other links end.

    Raises:
        InvalidOneTimeToken: it is not ours, too old, or was used.
        WeakPassword
    """
    password = normalise_password(new_password)
    check_password(password, pointer="#/new_password")
    password_hash = await identity.hashing.hash(password)
    account = await _reset(db, identity, token, password, password_hash, device)
    await identity.throttle.release(identity.throttle.account_bucket(canonical_email(account.email)))


@retries_conflicts
async def _reset(
    db: Database, identity: Identity, token: str, password: str, password_hash: str, device: Device
) -> Account:
    now = identity.clock.now()
    async with db.transaction("identity.reset_password") as tx:
        used = await use_one_time_token(tx, hash_one_time_token(token), "reset_password", now)
        account = await get_account(tx, used.user_id) if used else None
        if used is None or account is None or account.status == "deleted":
            raise InvalidOneTimeToken
        # Refused in here, so that the token stays good for a better password.
        await _check_against_owner(tx, account, password)
        if await set_password(tx, used.user_id, password_hash, now, account.version) is None:
            raise InvalidOneTimeToken
        if account.email_verified_at is None:
            await _take_over(tx, identity, account, device)
        await delete_one_time_tokens(tx, used.user_id)
        await end_sessions(
            tx, identity, used.user_id, device, reason="password_reset", actor_id=used.user_id, is_noted=False
        )
        await note(tx, identity, Actor(used.user_id, None, device), "password_reset")
        await mail_notice(tx, identity.queue, used.user_id, "password_changed")
    return account


async def _take_over(tx: Tx, identity: Identity, account: Account, device: Device) -> None:
    """The token is the first proof that the account belongs to the address. Whoever made the account may be somebody
    else, so nothing that they have set up beside the password stays.
    """
    await end_api_keys(tx, identity, Actor(account.user_id, None, device), account.user_id)
    await delete_totp(tx, account.user_id)
    if await set_email_verified(tx, account.user_id, identity.clock.now()):
        await users.set_email(tx, account.user_id, account.email, verified=True)


async def _check_against_owner(conn: ReadConn, account: Account, password: str) -> None:
    """Raises WeakPassword."""
    user = await users.get_user(conn, account.user_id)
    about = (account.email, user.display_name if user else None)
    check_password(password, about=about, pointer="#/new_password")


async def change(db: Database, identity: Identity, actor: Actor, current_password: str, new_password: str) -> Tokens:
    """A new password for who knows the present one; every session ends, and the caller gets a new one.

    Raises:
        InvalidCurrentPassword, TooManyAttempts
        WeakPassword
    """
    account = await check_current_password(db, identity, actor.user_id, current_password)
    password = normalise_password(new_password)
    async with db.read("identity.password_owner") as conn:
        await _check_against_owner(conn, account, password)
    password_hash = await identity.hashing.hash(password)
    return await _change(db, identity, actor, account, password_hash)


@retries_conflicts
async def _change(db: Database, identity: Identity, actor: Actor, account: Account, password_hash: str) -> Tokens:
    async with db.transaction("identity.change_password") as tx:
        version = await set_password(tx, actor.user_id, password_hash, identity.clock.now(), account.version)
        if version is None:
            raise InvalidCurrentPassword
        account = replace(account, version=version)
        await delete_one_time_tokens(tx, actor.user_id)
        await end_sessions(
            tx, identity, actor.user_id, actor.device, reason="password_changed", actor_id=actor.user_id, is_noted=False
        )
        tokens = await open_session(tx, identity, account, actor.device, action="password_changed", methods=("pwd",))
        await mail_notice(tx, identity.queue, actor.user_id, "password_changed")
    return tokens
