"""Hands messages over to where they go."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from prometheus_client import Counter

from app.kernel.clock import Clock
from app.kernel.mail.dev_mailbox import MailboxTransport
from app.kernel.mail.message import (
    Begin,
    Mail,
    MailRefused,
    MailServerUnavailable,
    MailTransport,
    MailUnavailable,
    compose,
)
from app.kernel.mail.smtp import SmtpTransport
from app.kernel.settings import MailSettings
from app.kernel.validation.addresses import parse_sender

_emails_total = Counter("onehop_mail_messages", "E-mails handed over, by outcome.", ["outcome"])


class Mailer:
    """Composes and hands over. One per process."""

    def __init__(self, settings: MailSettings, transport: MailTransport, clock: Clock, product: str = "") -> None:
        """`product` is the sender's name where the settings have its address alone."""
        sender = parse_sender(settings.sender)
        self._sender = sender if sender.name else replace(sender, name=product)
        self._transport = transport
        self._clock = clock

    async def send(self, mail: Mail, begin: Begin | None = None) -> None:
        """Hands `mail` over. `begin` is awaited just before; what it raises is raised, and nothing is handed over then.

        Raises:
            MailRefused: it will never be taken; AddressRefused: the server knows no such mailbox;
                AddressUnsupported: the server cannot carry the address.
            MailUnavailable: it may be taken later.
        """
        try:
            await self._transport.send(compose(mail, self._sender, self._clock), begin or _nothing)
        except MailRefused:
            _emails_total.labels("refused").inc()
            raise
        except MailUnavailable:
            _emails_total.labels("unavailable").inc()
            raise
        _emails_total.labels("sent").inc()

    async def forget(self, addresses: Collection[str], references: Collection[str]) -> None:
        """Deletes what is kept of messages to these addresses, in the form of `canonical_email`, or of these
        references.
        """
        await self._transport.forget(addresses, references)

    async def close(self) -> None:
        await self._transport.close()


async def mail_problem(settings: MailSettings) -> str | None:
    """Why no message can be handed over now, or None, as in development where none leaves the machine."""
    if settings.smtp_url is None:
        return None
    try:
        await SmtpTransport(settings).check()
    except MailServerUnavailable as error:
        return str(error.__cause__ or error)
    return None


def make_transport(settings: MailSettings, mailbox: Path) -> MailTransport:
    """SMTP where an address is set; the development mailbox otherwise."""
    return SmtpTransport(settings) if settings.smtp_url is not None else MailboxTransport(mailbox)


async def _nothing() -> None:
    """Begins nothing."""
