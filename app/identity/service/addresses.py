"""Verifying an e-mail address, and changing it."""

import msgspec

from app.identity.errors import InvalidOneTimeToken
from app.identity.queries.accounts import set_email, set_email_verified
from app.identity.queries.one_time_tokens import delete_one_time_tokens, use_one_time_token
from app.identity.records import Account, Actor, Device, OneTimeToken
from app.identity.service.audit_log import record_security_event
from app.identity.service.callers import lock_caller
from app.identity.service.container import IdentityServices
from app.identity.service.credentials import end_credentials
from app.identity.service.emails import mail_change, mail_notice, mail_registered
from app.identity.service.mail_requests import ask_for_mail
from app.identity.service.reauthentication import check_current_password
from app.identity.service.tokens import hash_secret
from app.kernel.database import Database, Tx, retries_conflicts
from app.kernel.ids import UserId
from app.kernel.validation.addresses import canonical_email
from app.users import api as users


class EmailChange(msgspec.Struct, frozen=True):
    """What a `change_email` token carries."""

    new_email: str


@retries_conflicts
async def verify(db: Database, identity: IdentityServices, token: str, device: Device) -> UserId:
    """Marks the address that the token was sent to as verified. The first proof of the address ends every credential
    made before it, because the account may have been made by another person than the owner of the mailbox.

    Raises:
        InvalidOneTimeToken: it is not ours, too old, or was used, or the account has changed since.
    """
    now = identity.clock.now()
    async with db.transaction("identity.verify_email") as tx:
        used = await use_one_time_token(tx, hash_secret(token), "verify_email", now)
        if used is None:
            raise InvalidOneTimeToken
        if used.email_verified_at is None and await prove_address(tx, identity, used, device) is None:
            raise InvalidOneTimeToken
        await record_security_event(tx, identity.clock, Actor(used.user_id, None, device), "email_verified")
    return used.user_id


async def prove_address(tx: Tx, identity: IdentityServices, used: OneTimeToken, device: Device) -> int | None:
    """Marks an address as verified for the first time, and ends every credential made before. The answer is the
    account's new version; None: it has left that of the token.
    """
    version = await set_email_verified(tx, used.user_id, identity.clock.now(), used.version)
    if version is not None:
        await users.set_email(tx, used.user_id, used.email, verified=True)
        await _publish_change(tx, identity, used.user_id, "email_verified")
        await end_credentials(tx, identity, used.user_id, version, device, reason="email_verified")
    return version


async def resend(
    db: Database, identity: IdentityServices, email: str, device: Device, device_cookie: str | None
) -> None:
    """Has another verification link sent, if there is something to verify. Nothing is looked up here.

    Raises:
        TooManyAttempts: the network asks too often. An exhausted share of an address stays silent.
    """
    wish = await ask_for_mail(identity, "verification", email, device, device_cookie)
    if wish.is_granted:
        async with db.statement("identity.resend_verification") as tx:
            await mail_registered(tx, identity.queue, email, known=wish.known)


async def request_change(
    db: Database, identity: IdentityServices, actor: Actor, new_email: str, current_password: str
) -> None:
    """Has a confirmation link sent to the new address; the old one is told of it, and stays until the link is used.

    Raises:
        InvalidCurrentPassword, TooManyAttempts
    """
    account = await check_current_password(db, identity, actor, current_password)
    if await identity.throttle.may_ask_for_mail("change", canonical_email(new_email), str(actor.user_id)):
        await _request_change(db, identity, actor, account, new_email)


@retries_conflicts
async def _request_change(
    db: Database, identity: IdentityServices, actor: Actor, account: Account, new_email: str
) -> None:
    async with db.transaction("identity.change_email") as tx:
        await lock_caller(tx, identity.clock, actor, version=account.version)
        await mail_change(tx, identity.queue, actor.user_id, new_email, account.version)
        await record_security_event(tx, identity.clock, actor, "email_change_requested")
        await mail_notice(tx, identity.queue, actor.user_id, "email_change_requested", email=account.email)


@retries_conflicts
async def confirm_change(db: Database, identity: IdentityServices, token: str, device: Device) -> None:
    """Makes the new address the account's; the old one is told. If it is the first address that the account has proven,
    every credential made before ends; else links and log-ins under way do.

    Raises:
        InvalidOneTimeToken: it is not ours, too old, or was used, or the account has changed since it was asked for.
        EmailTaken: another account has got the address meanwhile.
    """
    now = identity.clock.now()
    async with db.transaction("identity.confirm_email") as tx:
        used = await use_one_time_token(tx, hash_secret(token), "change_email", now)
        if used is None:
            raise InvalidOneTimeToken
        new_email = msgspec.json.decode(used.payload, type=EmailChange).new_email
        version = await set_email(tx, used.user_id, new_email, canonical_email(new_email), now, used.version)
        if version is None:
            raise InvalidOneTimeToken
        await users.set_email(tx, used.user_id, new_email, verified=True)
        await _publish_change(tx, identity, used.user_id, "email")
        if used.email_verified_at is None:
            await end_credentials(tx, identity, used.user_id, version, device, reason="email_verified")
        else:
            # Links sent to the old address must not work for a reader of that mailbox.
            await delete_one_time_tokens(tx, used.user_id)
        await record_security_event(tx, identity.clock, Actor(used.user_id, None, device), "email_changed")
        await mail_notice(tx, identity.queue, used.user_id, "email_changed", email=used.email)


async def _publish_change(tx: Tx, identity: IdentityServices, user_id: UserId, field: str) -> None:
    await identity.webhook_subscribers.publish(
        tx, user_id, "user.updated", [{"user_id": str(user_id), "fields": [field]}]
    )
