"""Accounts made by operators instead of by their owners."""

from collections.abc import Awaitable, Callable

import orjson

from app.identity.errors import EmailTaken, InvalidEmail
from app.identity.queries.accounts import insert_account
from app.identity.records import Actor
from app.identity.service.audit_log import record_security_event
from app.identity.service.password_hashing import PasswordHashing
from app.identity.service.password_policy import check_password, normalise_password
from app.kernel.auth import Role
from app.kernel.clock import Clock
from app.kernel.database import Database, Tx, retries_conflicts
from app.kernel.errors import FieldError
from app.kernel.ids import UserId, new_id
from app.kernel.validation.addresses import canonical_email, parse_email
from app.users import api as users


@retries_conflicts
async def provision_account(
    db: Database,
    hashing: PasswordHashing,
    clock: Clock,
    actor: Actor,
    *,
    email: str,
    password: str,
    display_name: str | None,
    role: Role,
    furnish: Callable[[Tx, UserId], Awaitable[None]] | None = None,
) -> UserId | None:
    """Makes a verified account of `role`; None if the address has one already, which stays as it is.

    The trail of the account tells of it, and that of the actor. `furnish` adds data of the new user in the same
    transaction, so that there is no account without it.

    Raises:
        InvalidEmail, WeakPassword
    """
    try:
        email = parse_email(email).text
    except ValueError as error:
        raise InvalidEmail(errors=[FieldError("#/email", "Not an e-mail address.", "invalid_email")]) from error
    password = normalise_password(password)
    check_password(password)
    password_hash = await hashing.hash(password)
    user_id = UserId(new_id())
    now = clock.now()
    try:
        async with db.transaction("identity.provision") as tx:
            await insert_account(
                tx,
                user_id=user_id,
                email=email,
                email_canonical=canonical_email(email),
                password_hash=password_hash,
                role=role,
                created_at=now,
                email_verified_at=now,
            )
            await users.create_user(
                tx,
                user_id=user_id,
                email=email,
                display_name=display_name,
                locale="en",
                timezone="UTC",
                email_verified=True,
            )
            data = orjson.dumps({"role": role, "user_id": str(user_id)}).decode()
            for owner in (user_id, actor.user_id):
                await record_security_event(tx, clock, actor, "account_provisioned", user_id=owner, data=data)
            if furnish is not None:
                await furnish(tx, user_id)
    except EmailTaken:
        return None
    return user_id
