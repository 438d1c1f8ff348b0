"""Verifying an e-mail address, and changing it."""

import msgspec

from app.identity.errors import InvalidOneTimeToken
from app.identity.queries.accounts import set_email, set_email_verified
from app.identity.queries.one_time_tokens import delete_one_time_tokens, use_one_time_token
from app.identity.records import Actor, Device
from app.identity.service.auditing import note
from app.identity.service.emails import mail_change, mail_notice, mail_registered
from app.identity.service.reauthentication import check_current_password
from app.identity.service.runtime import Identity
from app.identity.service.tokens import hash_one_time_token
from app.kernel.addresses import canonical_email
from app.kernel.database import Database, Tx, retries_conflicts
from app.kernel.ids import UserId
from app.users import api as users


class EmailChange(msgspec.Struct, frozen=True):
    """What a `change_email` token carries."""

    new_email: str


@retries_conflicts
async def verify(db: Database, identity: Identity, token: str, device: Device) -> UserId:
    """Marks the address that the token was sent to as verified.

    Raises:
        InvalidOneTimeToken: it is not ours, too old, or was used.
    """
    now = identity.clock.now()
    async with db.transaction("identity.verify_email") as tx:
        used = await use_one_time_token(tx, hash_one_time_token(token), "verify_email", now)
        email = await set_email_verified(tx, used.user_id, now) if used else None
        if used is None or email is None:
            raise InvalidOneTimeToken
        await users.set_email(tx, used.user_id, email, verified=True)
        await _publish_change(tx, identity, used.user_id, "email_verified")
        await note(tx, identity, Actor(used.user_id, None, device), "email_verified")
    return used.user_id


async def resend(db: Database, identity: Identity, email: str, device: Device) -> None:
    """Has another verification link sent, if there is something to verify. Nothing is looked up here.

    Raises:
        TooManyAttempts: the network's quota is used up. Of the address's quota nobody is told anything.
    """
    limit = identity.registrations_per_network
    await identity.throttle.reserve(identity.throttle.registration_buckets(device.ip, limit))
    if not await identity.throttle.may_mail(canonical_email(email)):
        return
    async with db.statement("identity.resend_verification") as tx:
        await mail_registered(tx, identity.queue, email)


async def request_change(db: Database, identity: Identity, actor: Actor, new_email: str, current_password: str) -> None:
    """Has a confirmation link sent to the new address; the old one stays until that is opened.

    Raises:
        InvalidCurrentPassword, TooManyAttempts
    """
    await check_current_password(db, identity, actor.user_id, current_password)
    if not await identity.throttle.may_mail(canonical_email(new_email)):
        return
    async with db.statement("identity.change_email") as tx:
        await mail_change(tx, identity.queue, actor.user_id, new_email)


@retries_conflicts
async def confirm_change(db: Database, identity: Identity, token: str, device: Device) -> None:
    """Makes the new address the account's; the old one is told.

    Raises:
        InvalidOneTimeToken: it is not ours, too old, or was used.
        EmailTaken: somebody else has got the address meanwhile.
    """
    now = identity.clock.now()
    async with db.transaction("identity.confirm_email") as tx:
        used = await use_one_time_token(tx, hash_one_time_token(token), "change_email", now)
        if used is None:
            raise InvalidOneTimeToken
        new_email = msgspec.json.decode(used.payload, type=EmailChange).new_email
        old_email = await set_email(tx, used.user_id, new_email, canonical_email(new_email), now)
        if old_email is None:
            raise InvalidOneTimeToken
        # Links sent to the old address must not work for who can still read it.
        await delete_one_time_tokens(tx, used.user_id)
        await users.set_email(tx, used.user_id, new_email, verified=True)
        await _publish_change(tx, identity, used.user_id, "email")
        await note(tx, identity, Actor(used.user_id, None, device), "email_changed")
        await mail_notice(tx, identity.queue, used.user_id, "email_changed", email=old_email)


async def _publish_change(tx: Tx, identity: Identity, user_id: UserId, field: str) -> None:
    await identity.listeners.publish(tx, user_id, "user.updated", [{"user_id": str(user_id), "fields": [field]}])
