"""Proving the password once more, before something that a stolen access token must not be able to do."""

from app.identity.errors import InvalidCurrentPassword
from app.identity.queries.accounts import get_account
from app.identity.records import Account
from app.identity.service.password_policy import MAX_PASSWORD_LENGTH, normalise_password
from app.identity.service.runtime import Identity
from app.kernel.database import Database
from app.kernel.ids import UserId


async def check_current_password(db: Database, identity: Identity, user_id: UserId, password: str) -> Account:
    """The account, for who knows its password.

    Raises:
        InvalidCurrentPassword: it is another one.
        TooManyAttempts: whatever it is.
    """
    buckets = identity.throttle.proof_buckets("password", user_id)
    candidate = normalise_password(password)[: MAX_PASSWORD_LENGTH + 1]
    async with identity.throttle.attempt(buckets):
        async with db.read("identity.reauthenticate") as conn:
            account = await get_account(conn, user_id)
        is_right = await identity.hashing.verify(account.password_hash if account else None, candidate)
    if account is None or account.status != "active" or not is_right:
        raise InvalidCurrentPassword
    await identity.throttle.release(buckets)
    return account
