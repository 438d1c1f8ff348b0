"""E-mail of jobs: whether a message may be sent, when, and what becomes of an address that its server does not know.

All mail goes through `MailOutbox.send`, which looks at the account and counts the message in one transaction, just
before it is handed over. So a ban or a deletion stops what was queued before it, and nothing is sent uncounted.
"""

import hmac
import random
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from datetime import timedelta
from hashlib import sha256
from uuid import UUID

import orjson

from app.identity.api import Actor, get_mail_account, lock_admin, record_security_event
from app.jobs.queries import mail_outbox as queries
from app.jobs.records import POSTPONED_AT_MOST, retry_delay
from app.kernel.background import complete_once_begun
from app.kernel.clock import Clock
from app.kernel.database import Database, Tx, in_batches, retries_conflicts
from app.kernel.errors import Unavailable
from app.kernel.mail import (
    AddressRefused,
    Mail,
    Mailer,
    MailPurpose,
    MailServerUnavailable,
    MailUnavailable,
    MailWithheld,
)
from app.kernel.observability.telemetry import get_logger
from app.kernel.queue import JobContext, RetryJob, SnoozeJob
from app.kernel.sealing import Keys
from app.kernel.settings import MailSettings
from app.kernel.validation.addresses import canonical_email, mailbox_of

_logger = get_logger(__name__)

_HASH_PURPOSE = "email-suppressions"
_WINDOW = timedelta(hours=1)
# Three days of an outage, and one for the limits.
_LONGEST_WAIT = timedelta(days=4)
_SPREAD_SECONDS = 60.0
# A job that is older than this when the limits allow its message does not send it. A message that a person waits for is
# sent at once or not at all.
_HORIZONS: dict[MailPurpose, timedelta] = {
    "verification": timedelta(0),
    "own_verification": timedelta(0),
    "reset": timedelta(0),
    "own_reset": timedelta(0),
    "code": timedelta(0),
    "own_code": timedelta(0),
    "change": timedelta(0),
    "notice": _LONGEST_WAIT,
    "invoice": _LONGEST_WAIT,
    "report": _LONGEST_WAIT,
}
# What a person waits for is tried also where an address is suppressed.
_AWAITED = frozenset(purpose for purpose, horizon in _HORIZONS.items() if not horizon)
# Only what a user has sent to an address of their choice counts for them: invoices must not use up a reset.
_OF_SENDERS: frozenset[MailPurpose] = frozenset({"change", "invoice", "report"})
# A server that lists unknown senders takes a message after some minutes, a full mailbox after days (RFC 5321, 4.5.4.1).
_RETRY_BASE = 30.0
_RETRY_CAP = 3600.0


class MailServerAway(Unavailable):
    """Our mail server cannot be reached, or refuses us whatever the message."""

    in_api = False
    code = "mail_unavailable"


class MailOutbox:
    """Hands messages of jobs over, within the limits."""

    def __init__(self, mailer: Mailer, keys: Keys, settings: MailSettings) -> None:
        self._mailer = mailer
        self._keys = keys
        self._settings = settings

    async def send(
        self, ctx: JobContext, mail: Mail, *, prepare: Callable[[Tx], Awaitable[bool]] | None = None
    ) -> None:
        """Hands `mail` over. `prepare` stores what the message announces, in the transaction that counts it and
        only if it may be sent now; if it answers False, nothing is sent. Once that has begun, a cancel has no effect.

        Raises:
            MailWithheld: it must not be sent.
            MailRefused: it will never be taken.
            SnoozeJob: the limits allow it later.
            RetryJob: the server may take it later.
            MailServerAway: there is no server that could.
        """
        address = canonical_email(mail.to)
        address_hash = hash_address(self._keys, address)
        has_begun = is_suppressed = False

        async def begin() -> None:
            nonlocal has_begun, is_suppressed
            has_begun = True
            async with ctx.transaction("jobs.reserve_mail") as tx:
                is_suppressed = await self._check(tx, mail, address_hash)
                seconds = await self._reserve(tx, ctx, mail, address)
                if seconds is None and prepare is not None and not await prepare(tx):
                    raise MailWithheld("account_changed")
            if seconds is not None:
                raise SnoozeJob(seconds)

        try:
            await complete_once_begun(self._mailer.send(mail, begin), lambda: has_begun)
        except AddressRefused as error:
            async with ctx.db.statement("jobs.suppress_email") as tx:
                await queries.insert_suppression(tx, address_hash, str(error))
            raise
        except MailUnavailable as error:
            if error.took_nothing:
                async with ctx.db.statement("jobs.reopen_mail") as tx:
                    await queries.reopen_mail(tx, ctx.job_id)
            if isinstance(error, MailServerUnavailable):
                raise MailServerAway from error
            delay = retry_delay(ctx.attempt, _RETRY_BASE, _RETRY_CAP)
            message = "The mail server did not take the message."
            raise RetryJob(delay, "mail_unavailable", message, least_age=POSTPONED_AT_MOST) from error
        if is_suppressed:
            # The message is out: were this to fail the job, it would go out once more. The next one lifts it too.
            with suppress(Unavailable):
                async with ctx.db.statement("jobs.allow_email") as tx:
                    await queries.delete_suppression(tx, address_hash)

    async def forget(self, addresses: Collection[str], jobs: Collection[UUID]) -> None:
        """Deletes what is kept of messages to these addresses, in the form of `canonical_email`, or of these jobs."""
        await self._mailer.forget(addresses, [str(job_id) for job_id in jobs])

    def hashes_of(self, addresses: Iterable[str]) -> list[bytes]:
        """Everything that stands for these addresses in tables."""
        return [
            hash_address(self._keys, text)
            for address in addresses
            for text in (
                address,
                *(f"{purpose}|{counted}" for purpose in _HORIZONS for counted in (address, mailbox_of(address))),
            )
        ]

    async def prune_sends(self, db: Database) -> int:
        """Deletes entries that no limit counts any more; answers how many."""
        return await in_batches(db, "jobs.prune_mail_sends", queries.delete_old_mail_sends)

    async def prune_suppressions(self, db: Database) -> int:
        """Deletes suppressions that are over; answers how many."""
        async with db.statement("jobs.prune_suppressions") as tx:
            return await queries.delete_old_suppressions(tx, self._settings.suppression_days)

    async def _check(self, tx: Tx, mail: Mail, address_hash: bytes) -> bool:
        """Whether the address is suppressed and is written to all the same.

        Raises:
            MailWithheld
        """
        if mail.account is not None:
            account = await get_mail_account(tx, mail.account)
            if account is None or not account.is_active:
                raise MailWithheld("account_inactive")
            # Not even to its own address, which may be that of a person who knows nothing of the account.
            if mail.purpose == "invoice" and not account.is_verified:
                raise MailWithheld("email_not_verified")
        is_suppressed = await queries.get_suppression(tx, address_hash, self._settings.suppression_days) is not None
        if is_suppressed and mail.purpose not in _AWAITED:
            raise MailWithheld("address_suppressed")
        return is_suppressed

    async def _reserve(self, tx: Tx, ctx: JobContext, mail: Mail, address: str) -> float | None:
        """Counts this message. None, or in how many seconds to look again, because the limits do not allow it.

        Raises:
            MailWithheld: it has waited for too long, or must not wait.
        """
        # A message counts no longer than its link is good: strangers who use up the limit have sent one that works.
        window = min(_WINDOW, mail.link_lifetime or _WINDOW)
        per_recipient = max(1, int(self._settings.recipient_hourly * (window / _WINDOW)))
        # For one user's words to another person every tag of a mailbox counts; a person may use tags for accounts.
        counted = mailbox_of(address) if mail.purpose == "invoice" else address
        recipient_hash = hash_address(self._keys, f"{mail.purpose}|{counted}")
        sender_id = mail.account if mail.purpose in _OF_SENDERS else None
        await queries.lock_mail(tx, _lock_key(recipient_hash))
        if sender_id is not None:
            await queries.lock_mail(tx, _lock_key(sha256(sender_id.bytes).digest()))
        seconds = await queries.reserve_mail(
            tx,
            ctx.job_id,
            recipient_hash=recipient_hash,
            purpose=f"{mail.purpose}:{mail.topic}" if mail.topic else mail.purpose,
            sender_id=sender_id,
            per_recipient=per_recipient,
            per_sender=self._settings.sender_hourly,
            window=window,
            is_continued=ctx.is_continued,
        )
        if seconds is None:
            return None
        # Those that wait for the same moment do not all come back at it.
        seconds += random.uniform(0, _SPREAD_SECONDS + seconds / 8)  # noqa: S311 - jitter, not a secret
        if ctx.clock.now() - ctx.created_at + timedelta(seconds=seconds) > _HORIZONS[mail.purpose]:
            _logger.info("mail.withheld_by_limit", purpose=mail.purpose)
            raise MailWithheld("too_many_messages")
        return seconds


@retries_conflicts
async def lift_suppression(db: Database, keys: Keys, clock: Clock, actor: Actor, email: str) -> bool:
    """Has an address written to again; whether it was suppressed. The actor's trail tells.

    Raises:
        TokenRevoked, RoleRequired: the actor is no administrator any more.
    """
    async with db.transaction("jobs.allow_email") as tx:
        await lock_admin(tx, clock, actor)
        is_lifted = await queries.delete_suppression(tx, hash_address(keys, canonical_email(email)))
        # Without the address, which may be that of a person who has no account.
        data = orjson.dumps({"was_suppressed": is_lifted}).decode()
        await record_security_event(tx, clock, actor, "mail_suppression_lifted", data=data)
    return is_lifted


def hash_address(keys: Keys, address: str) -> bytes:
    """What stands for an address of the form of `canonical_email` in tables."""
    return hmac.digest(keys.derive(_HASH_PURPOSE), address.encode(), sha256)


def _lock_key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], signed=True)
