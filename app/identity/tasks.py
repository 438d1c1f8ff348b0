"""The module's background jobs: its e-mails, and the end of deleted accounts.

Tokens are made here, by the worker that sends them, so that no job row and no queue ever holds one. A job that runs
again makes another token, which takes the place of the one before.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import msgspec

from app.identity.queries.accounts import anonymise_account, get_account, get_account_by_email
from app.identity.queries.one_time_tokens import replace_one_time_token
from app.identity.records import Account, TokenPurpose
from app.identity.service.addresses import EmailChange
from app.identity.service.email_codes import CODE_LIFETIME, hash_login_code, new_login_code
from app.identity.service.emails import (
    KIND_CHANGE,
    KIND_CODE,
    KIND_NOTICE,
    KIND_PURGE,
    KIND_REGISTERED,
    KIND_RESET,
    QUEUE,
    Notice,
)
from app.identity.service.tokens import hash_secret, new_secret
from app.identity.settings import IdentitySettings
from app.kernel.database import Tx, in_batches
from app.kernel.ids import UserId
from app.kernel.mail import Mail, MailPurpose, MailWithheld, Templates
from app.kernel.observability.telemetry import get_logger
from app.kernel.queue import JobArgs, JobContext, JobKind, job
from app.kernel.validation.addresses import canonical_email
from app.users import api as users

_logger = get_logger(__name__)

# Read as the program starts, because a handler must not wait for the disk.
_TEMPLATES = Templates(Path(__file__).parent / "templates")
_HOUR = 3600
_MINUTE = 60
_NOTICES: dict[Notice, tuple[str, str]] = {
    "password_changed": ("Your password was changed", "the password of your {product} account was changed."),
    "email_changed": (
        "Your e-mail address was changed",
        "your {product} account uses another e-mail address from now on; this one has no part in it any more.",
    ),
    "email_change_requested": (
        "A change of your e-mail address was asked for",
        "another e-mail address was asked for your {product} account; it takes effect once it is confirmed from there.",
    ),
    "recovery_codes_renewed": (
        "Your recovery codes were renewed",
        "the recovery codes of your {product} account were replaced by new ones.",
    ),
    "passkey_added": ("A passkey was added", "a passkey that logs in was added to your {product} account."),
    "passkey_removed": ("A passkey was removed", "a passkey of your {product} account was removed."),
    "passkey_copy_suspected": (
        "A passkey may have been copied",
        "a log-in to your {product} account was refused, because its passkey seems to be a copy; remove that passkey.",
    ),
    "second_factor_guessed": (
        "Wrong codes for your second factor",
        "log-ins to your {product} account had the right password and wrong codes; others may know your password.",
    ),
    "api_key_created": ("An API key was created", "an API key was created for your {product} account."),
    "role_changed": ("Your role was changed", "an administrator changed the role of your {product} account."),
    "totp_enabled": ("Two-factor log-in is on", "a second factor was added to your {product} account."),
    "totp_disabled": ("Two-factor log-in is off", "the second factor of your {product} account was removed."),
    "session_reused": (
        "A session was ended for your safety",
        "a refresh token of your {product} account was used twice, as when it was stolen; that session has ended.",
    ),
    "account_deleted": (
        "Your account was closed",
        "your {product} account was closed; its data will be deleted when the time to think it over has passed.",
    ),
}


class AddressArgs(JobArgs):
    """About an address, whether or not it has an account. `known_user_id` and `known_version`: the account that the
    device which asks is known to, and its version; None for a stranger.
    """

    email: str
    user_id: str | None = None
    known_user_id: str | None = None
    known_version: int | None = None

    def is_asked_by_owner(self, account: Account) -> bool:
        """Whether the device is still known."""
        return (self.known_user_id, self.known_version) == (str(account.user_id), account.version)


class ChangeArgs(JobArgs):
    """A new address to be confirmed."""

    user_id: str
    new_email: str
    # The account's version when it was asked for; jobs of before carried none.
    version: int = 0


class NoticeArgs(JobArgs):
    """Something that has happened to an account; told at `email` or at the account's address."""

    user_id: str
    notice: Notice
    email: str | None = None


class PurgeArgs(JobArgs):
    """A deleted account whose time is over."""

    user_id: str


@dataclass(frozen=True, slots=True)
class AccountPurge:
    """What the purge of an account does in other modules: `erase` deletes what they have of a user, whose present
    address it is given; `drop_copies` what caches have.
    """

    erase: Callable[[JobContext, UserId, str], Awaitable[None]]
    drop_copies: Callable[[UserId], Awaitable[None]]


@job(KIND_REGISTERED, args=AddressArgs, queue=QUEUE)
async def _mail_registered(ctx: JobContext, args: AddressArgs) -> None:
    account = await _by_email(ctx, args.email)
    if account is None or account.status != "active":
        return
    if account.email_verified_at is None:
        purpose: MailPurpose = "own_verification" if args.is_asked_by_owner(account) else "verification"
        await _send_link(ctx, account, account.email, "verify_email", purpose)
    elif ctx.service(IdentitySettings).registration == "verify":
        mail = _compose(ctx, account.email, "account_exists", {"link": _forgot_link(ctx)})
        await _send(ctx, replace(mail, purpose="verification", account=account.user_id))


@job(KIND_RESET, args=AddressArgs, queue=QUEUE)
async def _mail_reset(ctx: JobContext, args: AddressArgs) -> None:
    account = await _by_email(ctx, args.email)
    if account is not None and account.status == "active":
        purpose: MailPurpose = "own_reset" if args.is_asked_by_owner(account) else "reset"
        await _send_link(ctx, account, account.email, "reset_password", purpose)


@job(KIND_CODE, args=AddressArgs, queue=QUEUE)
async def _mail_code(ctx: JobContext, args: AddressArgs) -> None:
    account = await _by_email(ctx, args.email)
    if account is None or account.status != "active":
        return
    code = new_login_code()
    token_hash = hash_login_code(ctx.keys, account.user_id, code)
    minutes = int(CODE_LIFETIME.total_seconds()) // _MINUTE
    purpose: MailPurpose = "own_code" if args.is_asked_by_owner(account) else "code"
    mail = _compose(ctx, account.email, "log_in", {"code": code, "minutes": minutes})
    mail = replace(mail, purpose=purpose, account=account.user_id)
    await _send(ctx, mail, prepare=_storing(ctx, account, "log_in", token_hash, CODE_LIFETIME))


@job(KIND_CHANGE, args=ChangeArgs, queue=QUEUE)
async def _mail_change(ctx: JobContext, args: ChangeArgs) -> None:
    account = await _by_id(ctx, args.user_id)
    if account is not None and account.status == "active" and account.version == args.version:
        payload = msgspec.json.encode(EmailChange(args.new_email)).decode()
        await _send_link(ctx, account, args.new_email, "change_email", "change", payload)


@job(KIND_NOTICE, args=NoticeArgs, queue=QUEUE)
async def _mail_notice(ctx: JobContext, args: NoticeArgs) -> None:
    account = await _by_id(ctx, args.user_id)
    to = args.email or (account.email if account else None)
    if to is not None:
        subject, what = _NOTICES[args.notice]
        what = what.format(product=ctx.product)
        # The reader has no account any more whose password could be set.
        link = None if args.notice in ("email_changed", "account_deleted") else _forgot_link(ctx)
        mail = _compose(ctx, to, "notice", {"subject": subject, "what": what, "link": link})
        # The one message that still goes out when the account has been closed.
        is_last = args.notice == "account_deleted"
        account_id = None if is_last else UserId(UUID(args.user_id))
        await _send(ctx, replace(mail, topic=args.notice, account=account_id))


@job(KIND_PURGE, args=PurgeArgs, max_attempts=20)
async def _purge(ctx: JobContext, args: PurgeArgs) -> None:
    purge = ctx.service(AccountPurge)
    user_id = UserId(UUID(args.user_id))
    account = await _by_id(ctx, args.user_id)
    if account is None or account.status != "deleted":
        return
    await in_batches(
        ctx.db, "identity.purge_events", lambda tx, limit: users.delete_events(tx, user_id, limit), size=5_000
    )
    # Before the address is forgotten, by which a purge that is interrupted finds the rest.
    await purge.erase(ctx, user_id, account.email)
    async with ctx.transaction("identity.purge") as tx:
        await anonymise_account(tx, user_id)
        await users.anonymise_user(tx, user_id)
    await purge.drop_copies(user_id)


async def _send_link(
    ctx: JobContext,
    account: Account,
    to: str,
    link: TokenPurpose,
    purpose: MailPurpose,
    payload: str = "{}",
) -> None:
    """A link with a fresh token, good for as long as the settings say, and as the account stays at its version.

    The token takes the place of the one before only if the message may be sent.
    """
    is_reset = link == "reset_password"
    settings = ctx.service(IdentitySettings)
    seconds = settings.reset_password_ttl if is_reset else settings.verify_email_ttl
    token = new_secret()
    url = f"{ctx.base_url}/{link.replace('_', '-')}?{urlencode({'token': token})}"
    mail = _compose(ctx, to, link, {"link": url, "hours": seconds // _HOUR, "minutes": seconds // _MINUTE})
    mail = replace(mail, purpose=purpose, account=account.user_id, link_lifetime=timedelta(seconds=seconds))
    store = _storing(ctx, account, link, hash_secret(token), timedelta(seconds=seconds), payload)
    await _send(ctx, mail, prepare=store)


def _storing(
    ctx: JobContext,
    account: Account,
    purpose: TokenPurpose,
    token_hash: bytes,
    lifetime: timedelta,
    payload: str = "{}",
) -> Callable[[Tx], Awaitable[bool]]:
    """Stores what a message holds, where it is counted."""

    async def store(tx: Tx) -> bool:
        now = ctx.clock.now()
        return await replace_one_time_token(
            tx,
            user_id=account.user_id,
            purpose=purpose,
            token_hash=token_hash,
            payload=payload,
            now=now,
            expires_at=now + lifetime,
            version=account.version,
        )

    return store


def _compose(ctx: JobContext, to: str, template: str, data: dict[str, object]) -> Mail:
    subject, text, html = _TEMPLATES.render(template, {"product": ctx.product, **data})
    return Mail(to, subject, text, html, reference=str(ctx.job_id))


async def _send(ctx: JobContext, mail: Mail, *, prepare: Callable[[Tx], Awaitable[bool]] | None = None) -> None:
    try:
        await ctx.send_mail(mail, prepare=prepare)
    except MailWithheld as withheld:
        _logger.info("identity.mail_withheld", reason=withheld.reason, purpose=mail.purpose)


def _forgot_link(ctx: JobContext) -> str:
    return f"{ctx.base_url}/forgot-password"


async def _by_email(ctx: JobContext, email: str) -> Account | None:
    async with ctx.db.read("identity.mail_account") as conn:
        return await get_account_by_email(conn, canonical_email(email))


async def _by_id(ctx: JobContext, user_id: str) -> Account | None:
    async with ctx.db.read("identity.mail_account") as conn:
        return await get_account(conn, UUID(user_id))


_KINDS: tuple[JobKind[Any], ...] = (_mail_registered, _mail_reset, _mail_code, _mail_change, _mail_notice, _purge)
IDENTITY_KINDS = {kind.name: kind for kind in _KINDS}
