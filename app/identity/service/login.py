"""Log-in with e-mail address and password."""

from app.identity.errors import AccountBanned, EmailNotVerified, InvalidCredentials
from app.identity.queries.accounts import get_account_by_email
from app.identity.records import Account, Device, SignedIn, canonical_email
from app.identity.service.password_policy import MAX_PASSWORD_LENGTH, normalise_password
from app.identity.service.runtime import Identity
from app.identity.service.sessions import open_session
from app.kernel.clock import Clock
from app.kernel.database import Database
from app.users import api as users


async def log_in(
    db: Database, identity: Identity, clock: Clock, *, email: str, password: str, device: Device
) -> SignedIn:
    """Opens a session: three statements and no transaction.

    Raises:
        InvalidCredentials: there is no such account, or the password is another; both take the same time.
        AccountBanned, EmailNotVerified: said only to who knows the password.
    """
    account = await _authenticate(db, identity, email, password)
    new_hash = await _outgrown(identity, account, password)
    async with db.read("identity.login_user") as conn:
        user = await users.get_user(conn, account.user_id)
    if user is None:
        raise InvalidCredentials
    async with db.statement("identity.open_session") as tx:
        tokens = await open_session(
            tx, identity, clock, account, device, action="logged_in", methods=("pwd",), new_password_hash=new_hash
        )
    return SignedIn(user, tokens)


async def _authenticate(db: Database, identity: Identity, email: str, password: str) -> Account:
    async with db.read("identity.login") as conn:
        account = await get_account_by_email(conn, canonical_email(email))
    # No stored password is longer; hashing a megabyte for nothing would be a favour to an attacker.
    candidate = normalise_password(password)[: MAX_PASSWORD_LENGTH + 1]
    is_right = await identity.hashing.verify(account.password_hash if account else None, candidate)
    if account is None or not is_right:
        raise InvalidCredentials
    if account.status == "banned":
        raise AccountBanned
    if identity.settings.registration == "verify" and account.email_verified_at is None:
        raise EmailNotVerified
    return account


async def _outgrown(identity: Identity, account: Account, password: str) -> str | None:
    """A hash with the parameters of today, if the stored one has others."""
    if account.password_hash is None or not identity.hashing.is_outdated(account.password_hash):
        return None
    return await identity.hashing.hash(normalise_password(password))
