"""Messages over SMTP."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from urllib.parse import unquote, urlsplit

import aiosmtplib

from app.kernel.fairness.slots import FairSlots
from app.kernel.mail.message import (
    AddressRefused,
    AddressUnsupported,
    Begin,
    ComposedMail,
    MailRefused,
    MailServerUnavailable,
    MailUnavailable,
)
from app.kernel.settings import MailSettings

_IDLE_SECONDS = 30.0
_PERMANENT = 500
_MAX_CONNECTIONS = 4
# A job that waits for one holds a slot of its worker.
_WAIT_SECONDS = 60.0
_ENHANCED_CODE = re.compile(r"[45]\.(\d{1,3})\.\d{1,3}\b", re.ASCII)
# RFC 3463: the mail system itself (a full disk), and its network and routing. RFC 5321: it goes down; no storage left.
_OWN_SUBJECTS = frozenset({"3", "4"})
_CLOSING = 421
_OWN_CODES = frozenset({452})
# RFC 3463 and RFC 7505: no such mailbox, no such domain, no valid address, moved without a new address, no mail for
# this domain. A 550 alone also says that a network is on a block list, a mailbox is full or a relay is misconfigured.
_NO_SUCH_MAILBOX = frozenset({"5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10"})


@dataclass(slots=True)
class _IdleConnection:
    client: aiosmtplib.SMTP
    since: float


class SmtpTransport:
    """A few connections, kept for half a minute; one carries one message at a time."""

    def __init__(self, settings: MailSettings) -> None:
        if settings.smtp_url is None:
            message = "the SMTP URL is not set"
            raise ValueError(message)
        parts = urlsplit(settings.smtp_url.get_secret_value())
        self._host = parts.hostname or "localhost"
        self._port = parts.port
        self._implicit_tls = parts.scheme == "smtps"
        self._start_tls = True if parts.scheme == "smtp+starttls" else None
        self._username = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self._timeout = settings.timeout
        self._idle: list[_IdleConnection] = []
        # What a user has made many of leaves one to what a person waits for.
        self._connections = FairSlots(_MAX_CONNECTIONS, max_writes=_MAX_CONNECTIONS - 1)

    async def send(self, mail: ComposedMail, begin: Begin) -> None:
        async with self._slot(mail):
            client = await self._take() or await self._connect()
            try:
                await begin()
            except BaseException:
                self._keep(client)
                raise
            try:
                refusal = await _hand_over(client, mail)
            except BaseException:
                # The state of the dialogue is unknown.
                client.close()
                raise
            self._keep(client)
        if refusal is not None:
            raise refusal

    async def check(self) -> None:
        """Connects and logs in, and sends nothing.

        Raises:
            MailServerUnavailable
        """
        client = await self._connect()
        client.close()

    async def forget(self, addresses: Collection[str], references: Collection[str]) -> None:
        """Keeps no messages."""

    async def close(self) -> None:
        while self._idle:
            self._idle.pop().client.close()

    @asynccontextmanager
    async def _slot(self, mail: ComposedMail) -> AsyncIterator[None]:
        """Accounts take turns; what the program tells an account does not wait for that account's invoices."""
        caller = (mail.account, mail.is_bulk)
        if not self._connections.try_acquire(caller, writes=mail.is_bulk):
            slot = self._connections.wait(caller, writes=mail.is_bulk)
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    await slot
            except BaseException as error:
                self._connections.withdraw(caller, slot, writes=mail.is_bulk)
                if isinstance(error, TimeoutError):
                    raise MailServerUnavailable("all connections are in use") from None
                raise
        try:
            yield
        finally:
            self._connections.release(caller, writes=mail.is_bulk)

    def _keep(self, client: aiosmtplib.SMTP) -> None:
        self._idle.append(_IdleConnection(client, monotonic()))

    async def _take(self) -> aiosmtplib.SMTP | None:
        while self._idle:
            idle = self._idle.pop()
            if idle.client.is_connected and monotonic() - idle.since < _IDLE_SECONDS:
                try:
                    await idle.client.rset()
                except (aiosmtplib.SMTPException, OSError, TimeoutError):
                    idle.client.close()
                    continue
                return idle.client
            idle.client.close()
        return None

    async def _connect(self) -> aiosmtplib.SMTP:
        client = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            username=self._username,
            password=self._password,
            use_tls=self._implicit_tls,
            start_tls=self._start_tls,
            timeout=self._timeout,
        )
        try:
            await client.connect()
        except (aiosmtplib.SMTPException, OSError) as error:
            # Whatever it is: this program is refused here, by its password, certificates or network, not the message.
            client.close()
            raise MailServerUnavailable(type(error).__name__) from error
        return client


async def _hand_over(client: aiosmtplib.SMTP, mail: ComposedMail) -> Exception | None:
    """Answers what to make of a refusal, after which the dialogue is in step.

    Raises:
        MailServerUnavailable: the dialogue broke off, so that the server may have taken the message or not.
    """
    # A server with SMTPUTF8 has 8BITMIME too (RFC 6531, section 3.1); without it the message is ASCII.
    options = ("SMTPUTF8", "BODY=8BITMIME") if mail.needs_smtputf8 else ()
    try:
        await client.sendmail(mail.sender, [mail.recipient], mail.content, mail_options=options)
    except aiosmtplib.SMTPNotSupported:
        return AddressUnsupported("the mail server has no SMTPUTF8")
    except aiosmtplib.SMTPSenderRefused as error:
        # The sender is a setting; this message is as good as any other.
        return MailServerUnavailable(f"SMTP {error.code}", took_nothing=True)
    except aiosmtplib.SMTPRecipientsRefused as error:
        # There is one recipient.
        return _classify(error.recipients[0])
    except aiosmtplib.SMTPResponseException as error:
        return _classify(error)
    except (aiosmtplib.SMTPException, OSError, TimeoutError, ssl.SSLError) as error:
        raise MailServerUnavailable(type(error).__name__) from error
    return None


def _classify(response: aiosmtplib.SMTPResponseException) -> Exception:
    """What a reply means. The server's words may repeat the address, so only codes go into logs and job rows."""
    enhanced = _ENHANCED_CODE.match(response.message)
    code = f"SMTP {response.code}" + (f" {enhanced[0]}" if enhanced else "")
    if response.code < _PERMANENT:
        is_own_trouble = enhanced[1] in _OWN_SUBJECTS if enhanced else response.code in _OWN_CODES
        is_closing = response.code == _CLOSING
        return (MailServerUnavailable if is_own_trouble or is_closing else MailUnavailable)(code, took_nothing=True)
    if enhanced is not None and enhanced[0] in _NO_SUCH_MAILBOX:
        return AddressRefused(code)
    return MailRefused(code)
