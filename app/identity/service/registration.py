"""Making an account."""

from dataclasses import dataclass

from app.identity.errors import RegistrationClosed
from app.identity.queries.accounts import insert_account, insert_account_if_new
from app.identity.records import Account, Actor, Device
from app.identity.records.tokens import SignedIn
from app.identity.service.audit_log import record_security_event
from app.identity.service.container import IdentityServices
from app.identity.service.emails import mail_registered
from app.identity.service.password_policy import check_password, normalise_password
from app.identity.service.sessions import open_session
from app.kernel.database import Database, Tx, retries_conflicts
from app.kernel.ids import UserId, new_id
from app.kernel.request.client_address import network_of
from app.kernel.validation.addresses import canonical_email
from app.users import api as users


@dataclass(frozen=True, slots=True)
class Registration:
    """The form of a registration. `password` is as typed."""

    email: str
    password: str
    display_name: str | None
    locale: str
    timezone: str


async def register(
    db: Database, identity: IdentityServices, registration: Registration, device: Device
) -> SignedIn | None:
    """Makes account and user; in `open` mode with a first session, in `verify` mode with an e-mail and nothing else.

    None, in `verify` mode, for a new address and a known one alike.

    Raises:
        RegistrationClosed: new accounts are not wanted here.
        WeakPassword: the password is refused.
        EmailTaken: in `open` mode, another account has the address.
        TooManyAttempts: the network's quota is used up.
    """
    if identity.settings.registration == "closed":
        raise RegistrationClosed
    password = normalise_password(registration.password)
    check_password(password, about=(registration.email, registration.display_name))
    limit = identity.registrations_per_network
    await identity.throttle.reserve(identity.throttle.registration_buckets(device.ip, limit))
    # Hashed before a connection is taken: it needs longer than everything else together.
    password_hash = await identity.hashing.hash(password)
    if identity.settings.registration == "verify":
        may_mail = await identity.throttle.may_ask_for_mail(
            "verification", canonical_email(registration.email), network_of(device.ip)
        )
        await _store_unverified(db, identity, registration, password_hash, device, may_mail=may_mail)
        return None
    return await _store_open(db, identity, registration, password_hash, device)


@retries_conflicts
async def _store_open(
    db: Database,
    identity: IdentityServices,
    registration: Registration,
    password_hash: str,
    device: Device,
) -> SignedIn:
    user_id = UserId(new_id())
    async with db.transaction("identity.register") as tx:
        await insert_account(
            tx,
            user_id=user_id,
            email=registration.email,
            email_canonical=canonical_email(registration.email),
            password_hash=password_hash,
            role="user",
            created_at=identity.clock.now(),
            email_verified_at=None,
        )
        user = await _create_user(tx, user_id, registration)
        account = Account(
            user_id=user_id,
            email=registration.email,
            email_verified_at=None,
            password_hash=password_hash,
            status="active",
            role="user",
            version=1,
            totp_enabled=False,
            factor_epoch=1,
        )
        await _publish(tx, identity, user_id)
        opened = await open_session(tx, identity, account, device, action="registered", methods=("pwd",))
        await mail_registered(tx, identity.queue, registration.email)
    return SignedIn(user, opened.tokens)


@retries_conflicts
async def _store_unverified(
    db: Database,
    identity: IdentityServices,
    registration: Registration,
    password_hash: str,
    device: Device,
    *,
    may_mail: bool,
) -> None:
    user_id = UserId(new_id())
    async with db.transaction("identity.register") as tx:
        is_new = await insert_account_if_new(
            tx,
            user_id=user_id,
            email=registration.email,
            email_canonical=canonical_email(registration.email),
            password_hash=password_hash,
            created_at=identity.clock.now(),
        )
        if is_new:
            await _create_user(tx, user_id, registration)
            await _publish(tx, identity, user_id)
            await record_security_event(tx, identity.clock, Actor(user_id, None, device), "registered")
        # One job in both cases; the worker finds out which e-mail it is.
        if may_mail:
            await mail_registered(tx, identity.queue, registration.email)


async def _publish(tx: Tx, identity: IdentityServices, user_id: UserId) -> None:
    await identity.webhook_subscribers.publish(tx, None, "user.registered", [{"user_id": str(user_id)}])


async def _create_user(tx: Tx, user_id: UserId, registration: Registration) -> users.User:
    return await users.create_user(
        tx,
        user_id=user_id,
        email=registration.email,
        display_name=registration.display_name,
        locale=registration.locale,
        timezone=registration.timezone,
        email_verified=False,
    )
