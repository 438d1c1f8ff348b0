"""Proving the password once more, before something that a stolen access token must not be able to do."""

from app.identity.errors import InvalidCurrentPassword
from app.identity.queries.accounts import get_account
from app.identity.records import Account, Actor
from app.identity.service.audit_log import record_security_event
from app.identity.service.container import IdentityServices
from app.identity.service.password_policy import MAX_PASSWORD_LENGTH, normalise_password
from app.kernel.database import Database


async def check_current_password(db: Database, identity: IdentityServices, actor: Actor, password: str) -> Account:
    """The actor's account, if the password is its. What follows has to be bound to the account's version.

    Raises:
        InvalidCurrentPassword: it is another one.
        TooManyAttempts: whatever it is.
    """
    buckets = identity.throttle.session_buckets("password", actor.session_id)
    candidate = normalise_password(password)[: MAX_PASSWORD_LENGTH + 1]
    async with identity.throttle.attempt(buckets):
        async with db.read("identity.reauthenticate") as conn:
            account = await get_account(conn, actor.user_id)
        is_right = await identity.hashing.verify(account.password_hash if account else None, candidate)
    if account is None or account.status != "active" or not is_right:
        async with db.statement("identity.wrong_password") as tx:
            await record_security_event(tx, identity.clock, actor, "reauthentication_failed")
        raise InvalidCurrentPassword
    await identity.throttle.release(buckets)
    return account
