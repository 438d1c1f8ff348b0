"""Making an account."""

from dataclasses import dataclass

from app.identity.errors import RegistrationClosed
from app.identity.queries.accounts import insert_account
from app.identity.records import Account, Device, SignedIn, canonical_email
from app.identity.service.password_policy import check_password, normalise_password
from app.identity.service.runtime import Identity
from app.identity.service.sessions import open_session
from app.kernel.clock import Clock
from app.kernel.database import Database, retries_conflicts
from app.kernel.ids import UserId, new_id
from app.users import api as users


@dataclass(frozen=True, slots=True)
class Registration:
    """What somebody who registers says. `password` is as typed."""

    email: str
    password: str
    display_name: str | None
    locale: str
    timezone: str


async def register(
    db: Database, identity: Identity, clock: Clock, registration: Registration, device: Device
) -> SignedIn:
    """Makes account, user and a first session.

    Raises:
        RegistrationClosed: new accounts are not wanted here.
        WeakPassword: the password is refused.
        EmailTaken: somebody has the address.
    """
    if identity.settings.registration == "closed":
        raise RegistrationClosed
    password = normalise_password(registration.password)
    check_password(password)
    # Hashed before a connection is taken: it needs longer than everything else together.
    password_hash = await identity.hashing.hash(password)
    return await _store(db, identity, clock, registration, password_hash, device)


@retries_conflicts
async def _store(
    db: Database, identity: Identity, clock: Clock, registration: Registration, password_hash: str, device: Device
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
            created_at=clock.now(),
            email_verified_at=None,
        )
        user = await users.create_user(
            tx,
            user_id=user_id,
            email=registration.email,
            display_name=registration.display_name,
            locale=registration.locale,
            timezone=registration.timezone,
            email_verified=False,
        )
        account = Account(
            user_id=user_id,
            email=registration.email,
            email_verified_at=None,
            password_hash=password_hash,
            status="active",
            role="user",
            version=1,
            totp_enabled=False,
        )
        tokens = await open_session(tx, identity, clock, account, device, action="registered", methods=("pwd",))
    return SignedIn(user, tokens)
