"""Which e-mails are sent for what, as jobs. A job's arguments never hold a token; the worker makes it."""

from collections.abc import Mapping
from typing import Any, Literal

from app.identity.service.devices import KnownDevice
from app.kernel.database import Tx
from app.kernel.ids import UserId
from app.kernel.queue import Queue

QUEUE = "critical"
KIND_REGISTERED = "identity.mail_registered"
KIND_RESET = "identity.mail_reset"
KIND_CODE = "identity.mail_code"
KIND_CHANGE = "identity.mail_change"
KIND_NOTICE = "identity.mail_notice"
KIND_PURGE = "users.purge"

Notice = Literal[
    "password_changed",
    "email_change_requested",
    "email_changed",
    "totp_enabled",
    "totp_disabled",
    "recovery_codes_renewed",
    "passkey_added",
    "passkey_removed",
    "passkey_copy_suspected",
    "second_factor_guessed",
    "api_key_created",
    "role_changed",
    "session_reused",
    "account_deleted",
]


async def mail_registered(tx: Tx, queue: Queue, email: str, *, known: KnownDevice | None = None) -> None:
    """To the address that was registered: how to verify it, or that there is an account already.

    `known`: the device that asks; None for a stranger.
    """
    await _enqueue(tx, queue, KIND_REGISTERED, _asked(email, known), None)


async def mail_reset(tx: Tx, queue: Queue, email: str, *, known: KnownDevice | None = None) -> None:
    """How to set a new password, if `email` has an account. `known` as above."""
    await _enqueue(tx, queue, KIND_RESET, _asked(email, known), None)


async def mail_code(tx: Tx, queue: Queue, email: str, *, known: KnownDevice | None = None) -> None:
    """A code to log in with, if `email` has an account. `known` as above."""
    await _enqueue(tx, queue, KIND_CODE, _asked(email, known), None)


def _asked(email: str, known: KnownDevice | None) -> dict[str, Any]:
    if known is None:
        return {"email": email}
    return {"email": email, "known_user_id": str(known.user_id), "known_version": known.version}


async def mail_change(tx: Tx, queue: Queue, user_id: UserId, new_email: str, version: int) -> None:
    """To the new address: how to confirm it. Nothing is sent if the account has left `version` by then."""
    await _enqueue(tx, queue, KIND_CHANGE, {"new_email": new_email, "version": version}, user_id)


async def mail_notice(tx: Tx, queue: Queue, user_id: UserId, notice: Notice, *, email: str | None = None) -> None:
    """Tells an account's owner what has happened to it, at `email` or at the present address.

    One that waits with the same words is enough: many would keep back what comes after them.
    """
    unique_key = f"{user_id}:{notice}:{email or ''}"
    await _enqueue(tx, queue, KIND_NOTICE, {"notice": notice, "email": email}, user_id, unique_key)


async def _enqueue(
    tx: Tx, queue: Queue, kind: str, args: Mapping[str, Any], user_id: UserId | None, unique_key: str | None = None
) -> None:
    args = {**args, "user_id": str(user_id) if user_id else None}
    # Without an owner in the row: such jobs appear in no user's job list.
    await queue.enqueue(tx, kind, args, user_id=None, queue=QUEUE, priority=1, unique_key=unique_key)
