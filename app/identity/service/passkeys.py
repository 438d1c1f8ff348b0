"""Passkeys: adding, listing and removing them."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from app.identity.errors import (
    PasskeyNotFound,
    PasskeyRejected,
    ReauthenticationRequired,
    TooManyPasskeys,
)
from app.identity.queries import passkeys as queries
from app.identity.queries.accounts import get_account
from app.identity.queries.sessions import get_session_status
from app.identity.records import Actor
from app.identity.records.credentials import NewPasskey, Passkey
from app.identity.service.audit_log import record_security_event
from app.identity.service.authentication import TokenRevoked
from app.identity.service.callers import lock_caller, lock_maker
from app.identity.service.container import IdentityServices
from app.identity.service.emails import mail_notice
from app.identity.service.passkey_challenges import (
    load_ceremonies,
    passkey_data,
    relying_party,
    seal_challenge,
    unseal_challenge,
)
from app.kernel.database import Database, ReadConn, Tx, retries_conflicts
from app.kernel.fairness.threads import FairThreads
from app.kernel.ids import UserId, new_id
from app.kernel.pagination import Cursors, Page

if TYPE_CHECKING:
    from app.identity.service.passkey_ceremonies import VerifiedCredential

FRESH_FOR = timedelta(minutes=15)
_MOST = 20
_LIST = "passkeys"


async def begin_registration(db: Database, identity: IdentityServices, actor: Actor) -> dict[str, Any]:
    """The options to make a passkey with.

    Raises:
        TokenRevoked: the caller's session has ended.
        ReauthenticationRequired: the caller logged in too long ago.
    """
    async with db.read("identity.passkey_options") as conn:
        await check_freshness(conn, identity, actor)
        account = await get_account(conn, actor.user_id)
        known = await queries.list_credentials(conn, actor.user_id)
    if account is None or actor.session_id is None:
        raise TokenRevoked
    challenge = seal_challenge(identity, "add", actor.user_id, actor.session_id)
    ceremonies = await load_ceremonies()
    options: dict[str, Any] = ceremonies.registration_options(
        await relying_party(identity), actor.user_id.bytes, account.email, challenge, known
    )
    return options


async def verify_new(
    threads: FairThreads, identity: IdentityServices, actor: Actor, credential: Mapping[str, Any]
) -> "VerifiedCredential":
    """What the browser has made, for the caller's own options.

    Raises:
        PasskeyRejected
    """
    ceremonies = await load_ceremonies()
    party = await relying_party(identity)
    try:
        challenge = ceremonies.challenge_of(credential)
        state = unseal_challenge(identity, "add", challenge)
        if state is None or (state.user_id, state.session_id) != (actor.user_id, actor.session_id):
            raise PasskeyRejected("The options are too old, or were not for you. Get new ones.")
        verified: VerifiedCredential = await threads.run(
            partial(ceremonies.verify_registration, party, credential, challenge)
        )
    except ceremonies.CeremonyFailed as error:
        raise PasskeyRejected from error
    return verified


async def add_passkey(
    tx: Tx, identity: IdentityServices, actor: Actor, verified: "VerifiedCredential", name: str | None
) -> Passkey:
    """Stores a passkey that was verified. `tx` is a transaction.

    Raises:
        TokenRevoked, ReauthenticationRequired, TooManyAttempts
        PasskeyTaken: the credential is known.
        TooManyPasskeys
    """
    await lock_maker(tx, identity.clock, actor)
    await check_freshness(tx, identity, actor)
    passkey = NewPasskey(
        user_id=actor.user_id,
        id=new_id(),
        credential_id=verified.credential_id,
        public_key=verified.public_key,
        sign_count=verified.sign_count,
        name=name or verified.name,
        transports=verified.transports,
        backed_up=verified.backed_up,
    )
    stored = await queries.insert_passkey(tx, passkey, identity.clock.now(), _MOST)
    if stored is None:
        raise TooManyPasskeys
    await record_security_event(tx, identity.clock, actor, "passkey_added", data=passkey_data(stored.id, stored.name))
    await mail_notice(tx, identity.queue, actor.user_id, "passkey_added")
    return stored


async def list_own_passkeys(
    db: Database, cursors: Cursors, user_id: UserId, *, limit: int, cursor: str | None
) -> Page[Passkey]:
    """One page, the newest first.

    Raises:
        InvalidCursor
    """
    async with db.read("identity.passkeys") as conn:
        found = await queries.list_passkeys(conn, user_id)
    return cursors.paginate_in_memory(
        _LIST,
        user_id,
        found,
        lambda passkey: (passkey.created_at, passkey.id),
        tuple[datetime, UUID],
        limit=limit,
        cursor=cursor,
        descending=True,
    )


@retries_conflicts
async def rename_passkey(
    db: Database, identity: IdentityServices, actor: Actor, passkey_id: UUID, name: str
) -> Passkey:
    """Raises TokenRevoked or PasskeyNotFound."""
    async with db.transaction("identity.rename_passkey") as tx:
        await lock_maker(tx, identity.clock, actor)
        passkey = await queries.rename_passkey(tx, actor.user_id, passkey_id, name)
        if passkey is None:
            raise PasskeyNotFound
        await record_security_event(tx, identity.clock, actor, "passkey_renamed", data=passkey_data(passkey_id, name))
    return passkey


@retries_conflicts
async def remove_passkey(db: Database, identity: IdentityServices, actor: Actor, passkey_id: UUID) -> None:
    """Raises TokenRevoked, ReauthenticationRequired or PasskeyNotFound."""
    async with db.transaction("identity.remove_passkey") as tx:
        await lock_caller(tx, identity.clock, actor)
        await check_freshness(tx, identity, actor)
        if not await queries.delete_passkey(tx, actor.user_id, passkey_id):
            raise PasskeyNotFound
        await record_security_event(tx, identity.clock, actor, "passkey_removed", data=passkey_data(passkey_id))
        await mail_notice(tx, identity.queue, actor.user_id, "passkey_removed")


async def check_freshness(conn: ReadConn, identity: IdentityServices, actor: Actor) -> None:
    """Returns if the user has logged in to the actor's session within the last 15 minutes.

    Raises:
        TokenRevoked: the session has ended.
        ReauthenticationRequired
    """
    status = await get_session_status(conn, actor.user_id, actor.session_id) if actor.session_id else None
    if status is None:
        raise TokenRevoked
    if identity.clock.now() - status.authenticated_at > FRESH_FOR:
        raise ReauthenticationRequired
