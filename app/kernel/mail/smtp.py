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

from app.kernel.mail.message import (
    AddressRefused,
    AddressUnsupported,
    ComposedMail,
    MailRefused,
    MailServerUnavailable,
    MailUnavailable,
)
from app.kernel.settings import MailSettings

_IDLE_SECONDS = 30.0
_PERMANENT = 500
_MAX_CONNECTIONS = 4
_ENHANCED_CODE = re.compile(r"5\.\d{1,3}\.\d{1,3}\b", re.ASCII)
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
        self._places = asyncio.Semaphore(_MAX_CONNECTIONS)

    async def send(self, mail: ComposedMail) -> None:
        # A server with SMTPUTF8 has 8BITMIME too (RFC 6531, section 3.1); without it the message is ASCII.
        options = ("SMTPUTF8", "BODY=8BITMIME") if mail.needs_smtputf8 else ()
        try:
            async with self._connection() as client:
                await client.sendmail(mail.sender, [mail.recipient], mail.content, mail_options=options)
        except aiosmtplib.SMTPNotSupported as error:
            raise AddressUnsupported("the mail server has no SMTPUTF8") from error
        except aiosmtplib.SMTPSenderRefused as error:
            # The sender is a setting; this message is as good as any other.
            raise MailServerUnavailable(f"SMTP {error.code}") from error
        except aiosmtplib.SMTPRecipientsRefused as error:
            # There is one recipient.
            raise _classify(error.recipients[0]) from error
        except aiosmtplib.SMTPResponseException as error:
            raise _classify(error) from error
        except (aiosmtplib.SMTPException, OSError, TimeoutError, ssl.SSLError) as error:
            raise MailUnavailable(type(error).__name__) from error

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
    async def _connection(self) -> AsyncIterator[aiosmtplib.SMTP]:
        async with self._places:
            client = await self._take() or await self._connect()
            try:
                yield client
            except BaseException as error:
                # After a refusal the dialogue is in step; after anything else its state is unknown.
                if isinstance(error, aiosmtplib.SMTPResponseException | aiosmtplib.SMTPRecipientsRefused):
                    self._idle.append(_IdleConnection(client, monotonic()))
                else:
                    client.close()
                raise
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


def _classify(response: aiosmtplib.SMTPResponseException) -> Exception:
    """What a reply means. The server's words may repeat the address, so only codes go into logs and job rows."""
    enhanced = _ENHANCED_CODE.match(response.message)
    code = f"SMTP {response.code}" + (f" {enhanced[0]}" if enhanced else "")
    if response.code < _PERMANENT:
        return MailUnavailable(code)
    if enhanced is not None and enhanced[0] in _NO_SUCH_MAILBOX:
        return AddressRefused(code)
    return MailRefused(code)
