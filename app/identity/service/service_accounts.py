"""Accounts of programs: made by administrators, with scopes and a secret of their own.

Each is an account of its own, without address and password, so that what a program records, submits and owns belongs
to it and ends with it. It gets access tokens by the client credentials grant (RFC 6749, section 4.4), whose client id
is the account's.
"""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import orjson

from app.identity.errors import AccountNotFound, InvalidClient, ScopeExceeded, ServiceAccountNotFound
from app.identity.queries import service_accounts as queries
from app.identity.queries.accounts import bump_version, delete_account, insert_account
from app.identity.records import NO_ACCOUNT_ID, Actor
from app.identity.records.credentials import ServiceAccount, ServiceClient
from app.identity.records.tokens import AccessToken
from app.identity.service.audit_log import record_security_event
from app.identity.service.callers import lock_admin
from app.identity.service.container import IdentityServices
from app.identity.service.credentials import make_stale
from app.identity.service.purging import new_purge
from app.identity.service.tokens import hash_secret, new_secret
from app.kernel.auth import SCOPES_OF_SERVICES
from app.kernel.database import Database, Tx, retries_conflicts
from app.kernel.database.versions import ANY_VERSION
from app.kernel.ids import UserId, new_id
from app.kernel.pagination import Cursors, Page
from app.users import api as users

OLD_SECRET_TTL = timedelta(days=1)
_PREFIX = "cs_"
_LIST = "service_accounts"


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """What a client names itself by at the token endpoint, and the scopes that it asks for; None: all of its own."""

    client_id: str
    client_secret: str
    scopes: frozenset[str] | None


async def create_service_account(
    tx: Tx, identity: IdentityServices, admin: Actor, *, name: str, scopes: Sequence[str]
) -> tuple[ServiceAccount, str]:
    """The account and its secret, which cannot be read again. `tx` is a transaction.

    Raises:
        TokenRevoked, RoleRequired
    """
    await lock_admin(tx, identity.clock, admin)
    user_id = UserId(new_id())
    secret = new_secret(_PREFIX)
    now = identity.clock.now()
    # No mail goes to this domain (RFC 2606), and no one can register or name an address of it.
    email = f"{user_id}@service.invalid"
    await insert_account(
        tx,
        user_id=user_id,
        email=email,
        email_canonical=email,
        password_hash=None,
        role="user",
        created_at=now,
        email_verified_at=None,
    )
    await users.create_user(
        tx, user_id=user_id, email=email, display_name=name, locale="en", timezone="UTC", email_verified=False
    )
    account = await queries.insert_service_account(
        tx,
        user_id=user_id,
        name=name,
        scopes=sorted(set(scopes)),
        secret_hash=hash_secret(secret),
        created_by=admin.user_id,
        now=now,
    )
    await _record(tx, identity, admin, "service_account_created", account)
    return account, secret


async def list_service_accounts(
    db: Database, cursors: Cursors, *, limit: int, cursor: str | None
) -> Page[ServiceAccount]:
    """One page, the newest first.

    Raises:
        InvalidCursor
    """
    before: UUID | None = cursors.decode(_LIST, None, cursor, tuple[UUID])[0] if cursor else None
    async with db.read("identity.service_accounts") as conn:
        found = await queries.list_service_accounts(conn, before, limit + 1)
    return cursors.paginate(_LIST, None, found, lambda account: (account.user_id,), limit=limit)


@retries_conflicts
async def rotate_client_secret(
    db: Database, identity: IdentityServices, admin: Actor, user_id: UserId, *, expire_old_now: bool
) -> tuple[ServiceAccount, str]:
    """A new secret. The old one is good for a day more; with `expire_old_now` it ends, and its tokens with it.

    Raises:
        TokenRevoked, RoleRequired, ServiceAccountNotFound
    """
    secret = new_secret(_PREFIX)
    now = identity.clock.now()
    async with db.transaction("identity.rotate_client_secret") as tx:
        await lock_admin(tx, identity.clock, admin)
        ends_at = now if expire_old_now else now + OLD_SECRET_TTL
        account = await queries.rotate_secret(tx, user_id, hash_secret(secret), ends_at)
        if account is None:
            raise ServiceAccountNotFound
        if expire_old_now:
            await make_stale(tx, identity, user_id, await bump_version(tx, user_id))
        await _record(tx, identity, admin, "client_secret_rotated", account)
    return account, secret


@retries_conflicts
async def delete_service_account(db: Database, identity: IdentityServices, admin: Actor, user_id: UserId) -> None:
    """Ends the account, its tokens and its work at once; its data go as those of any closed account.

    Raises:
        TokenRevoked, RoleRequired, ServiceAccountNotFound
    """
    now = identity.clock.now()
    purge_at = now + timedelta(seconds=identity.settings.deletion_grace)
    async with db.transaction("identity.delete_service_account") as tx:
        await lock_admin(tx, identity.clock, admin)
        account = await queries.get_service_account(tx, user_id)
        if account is None or not await queries.delete_service_account(tx, user_id):
            raise ServiceAccountNotFound
        version = await delete_account(tx, user_id, now, purge_at)
        if version is None:
            raise AccountNotFound
        await make_stale(tx, identity, user_id, version)
        await identity.suspend_work(tx, identity.queue, user_id, "account_deleted")
        await users.hide_user(tx, user_id, ANY_VERSION)
        await _record(tx, identity, admin, "service_account_deleted", account)
        await identity.queue.enqueue_rows(tx, [new_purge(identity.queue, user_id, purge_at)])


async def issue_to_client(db: Database, identity: IdentityServices, credentials: ClientCredentials) -> AccessToken:
    """An access token for a program.

    Raises:
        InvalidClient: there is no such client, or the secret is another one; both cost the same.
        ScopeExceeded: the client does not have one of the scopes.
    """
    async with db.read("identity.client") as conn:
        client = await queries.get_service_client(conn, _id_of(credentials.client_id))
    if not _is_secret_of(client, hash_secret(credentials.client_secret), identity) or client is None:
        raise InvalidClient
    scopes = frozenset(client.scopes) & SCOPES_OF_SERVICES
    if credentials.scopes is not None:
        if not credentials.scopes <= scopes:
            raise ScopeExceeded
        scopes = credentials.scopes
    return identity.issuer.issue_to_client(client, scopes, issued_at=identity.clock.now())


def _is_secret_of(client: ServiceClient | None, secret_hash: bytes, identity: IdentityServices) -> bool:
    if client is None:
        return False
    if hmac.compare_digest(client.secret_hash, secret_hash):
        return True
    is_old_good = client.old_secret_expires_at is not None and identity.clock.now() < client.old_secret_expires_at
    return is_old_good and hmac.compare_digest(client.old_secret_hash or b"", secret_hash)


def _id_of(client_id: str) -> UUID:
    try:
        return UUID(client_id)
    except ValueError:
        return NO_ACCOUNT_ID


async def _record(tx: Tx, identity: IdentityServices, admin: Actor, action: str, account: ServiceAccount) -> None:
    """In the trail of the administrator and in that of the account."""
    data = orjson.dumps({"client_id": str(account.user_id), "name": account.name, "scopes": account.scopes}).decode()
    for owner in (admin.user_id, account.user_id):
        await record_security_event(tx, identity.clock, admin, action, user_id=owner, data=data)
