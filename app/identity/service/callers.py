"""Binding a unit of work to the caller that asked for it.

A request is authenticated when it comes, and does its work later: behind a password hash, a queue for a connection, or
a lock. Meanwhile the owner may have reset the password, and what the request would make then must not outlive that.
"""

from datetime import timedelta

from app.identity.errors import InvalidCurrentPassword, TooManyAttempts
from app.identity.queries.accounts import lock_caller as lock_caller_row
from app.identity.queries.security_events import has_entries_since
from app.identity.records import Account, Actor
from app.identity.service.authentication import TokenRevoked
from app.kernel.auth import RoleRequired
from app.kernel.clock import Clock
from app.kernel.database import Tx
from app.kernel.ids import first_id_of

MOST_ENTRIES_AN_HOUR = 500
_HOUR = timedelta(hours=1)
_RETRY_SECONDS = 600


async def lock_caller(tx: Tx, clock: Clock, actor: Actor, *, version: int | None = None) -> Account:
    """The actor's account, locked until the end of `tx`, which is a transaction and begins with this.

    `version`: that of the account when the actor proved the password.

    Raises:
        TokenRevoked: the session or the API key of the actor has ended, or the account.
        InvalidCurrentPassword: the account has left `version`.
    """
    account = await lock_caller_row(tx, actor.user_id, actor.session_id, actor.api_key_id, clock.now())
    if account is None:
        raise TokenRevoked
    if version is not None and account.version != version:
        raise InvalidCurrentPassword
    return account


async def lock_maker(tx: Tx, clock: Clock, actor: Actor) -> Account:
    """As `lock_caller`, for what can be made again and again: keys, factors, endpoints, copies of the account.

    Each leaves an entry in the trail, which is kept, so that an hour has room for so many. What ends credentials, or
    takes an account back, is never refused for that.

    Raises:
        TokenRevoked
        TooManyAttempts: the trail is full for now.
    """
    account = await lock_caller(tx, clock, actor)
    if await has_entries_since(tx, actor.user_id, first_id_of(clock.now() - _HOUR), MOST_ENTRIES_AN_HOUR):
        raise TooManyAttempts("Too many changes of this account within an hour.", retry_after=_RETRY_SECONDS)
    return account


async def lock_admin(tx: Tx, clock: Clock, actor: Actor) -> int:
    """Locks the actor, who must be an administrator still, and answers the version of the account. An operator at the
    command line needs no account, and has version 0.

    Raises:
        TokenRevoked, RoleRequired
    """
    if actor.is_operator:
        return 0
    account = await lock_caller(tx, clock, actor)
    if account.role != "admin":
        raise RoleRequired("This needs the role admin.")
    return account.version
