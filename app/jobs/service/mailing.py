"""E-mail of jobs: what a server refuses for good is not tried again, and neither is the address."""

import hmac
from hashlib import sha256

from app.jobs.queries.mailing import get_suppression, insert_suppression
from app.jobs.records import retry_delay
from app.kernel.keys import Keys
from app.kernel.mail import AddressRefused, Mail, Mailer, MailRefused, MailUnavailable
from app.kernel.queue import JobContext, RetryJob

_HASH_PURPOSE = "email-suppressions"
# A server that lists unknown senders takes a message after some minutes.
_RETRY_BASE = 30.0
_RETRY_CAP = 3600.0


class AddressSuppressed(MailRefused):
    """A server refused this address before, so the message was not even tried."""


class Postman:
    """Hands messages of jobs over, with respect to the list of refused addresses."""

    def __init__(self, mailer: Mailer, keys: Keys) -> None:
        self._mailer = mailer
        self._keys = keys

    async def send(self, ctx: JobContext, mail: Mail) -> None:
        """Hands `mail` over.

        Raises:
            AddressSuppressed
            MailRefused: it will never be taken.
            RetryJob: the server may take it later.
        """
        address_hash = self.hash(mail.to)
        async with ctx.db.read("jobs.email_suppression") as conn:
            reason = await get_suppression(conn, address_hash)
        if reason is not None:
            raise AddressSuppressed(reason)
        try:
            await self._mailer.send(mail)
        except AddressRefused as error:
            async with ctx.db.statement("jobs.suppress_email") as tx:
                await insert_suppression(tx, address_hash, str(error), ctx.clock.now())
            raise
        except MailUnavailable as error:
            delay = retry_delay(ctx.attempt, _RETRY_BASE, _RETRY_CAP)
            raise RetryJob(delay, "mail_unavailable", "The mail server did not take the message.") from error

    def hash(self, address: str) -> bytes:
        """What stands for an address in the list; letters' case makes no difference."""
        return hmac.digest(self._keys.derive(_HASH_PURPOSE), address.strip().lower().encode(), sha256)
