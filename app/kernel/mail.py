"""E-mail: composed from templates, sent over SMTP by background jobs; in development kept in a mailbox folder instead.

Sending is at least once. A message carries a Message-ID that follows from its job, so that a mailbox can drop the
second copy of a message whose acknowledgement got lost.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from time import monotonic
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiosmtplib
from jinja2 import DictLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from prometheus_client import Counter

from app.kernel.clock import Clock
from app.kernel.settings import MailSettings

_emails_total = Counter("app_mail_messages", "E-mails handed over.", ["outcome"])
_CONTROL = re.compile(r"[\r\n\0]")
_IDLE_SECONDS = 30.0
_PERMANENT = 500
_MAX_CONNECTIONS = 4
_MAX_MAILBOX = 500


class MailRefused(Exception):
    """The server will never take this message: the address is bad, or the content is refused (SMTP 5xx)."""


class AddressRefused(MailRefused):
    """The server will take no message for this address."""


class MailUnavailable(Exception):
    """The message could not be handed over now; it may be tried again (SMTP 4xx, connection lost)."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a message."""

    name: str
    content_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Mail:
    """One message to one address. `reference` makes its Message-ID; a retry must give the same one."""

    to: str
    subject: str
    text: str
    html: str
    reference: str
    attachments: Sequence[Attachment] = ()


class MailTransport(Protocol):
    """Where messages go."""

    async def send(self, message: EmailMessage) -> None: ...

    async def close(self) -> None: ...


class Mailer:
    """Composes and hands over. One per process."""

    def __init__(self, settings: MailSettings, transport: MailTransport, clock: Clock) -> None:
        self._sender = settings.sender
        self._domain = settings.sender.rpartition("@")[2].rstrip(">")
        self._transport = transport
        self._clock = clock

    async def send(self, mail: Mail) -> None:
        """Hands `mail` over.

        Raises:
            MailRefused: it will never be taken; AddressRefused: and nothing else for this address either.
            MailUnavailable: it may be taken later.
        """
        message = self._compose(mail)
        try:
            await self._transport.send(message)
        except MailRefused:
            _emails_total.labels("refused").inc()
            raise
        except MailUnavailable:
            _emails_total.labels("unavailable").inc()
            raise
        _emails_total.labels("sent").inc()

    async def close(self) -> None:
        await self._transport.close()

    def _compose(self, mail: Mail) -> EmailMessage:
        if _CONTROL.search(mail.to) or _CONTROL.search(mail.subject):
            raise MailRefused("a header would hold a line break")
        message = EmailMessage(policy=policy.SMTP)
        message["From"] = self._sender
        message["To"] = mail.to
        message["Subject"] = mail.subject
        message["Date"] = format_datetime(self._clock.now())
        message["Message-ID"] = f"<{mail.reference}@{self._domain}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(mail.text)
        message.add_alternative(mail.html, subtype="html")
        for attachment in mail.attachments:
            maintype, _, subtype = attachment.content_type.partition("/")
            message.add_attachment(attachment.content, maintype=maintype, subtype=subtype, filename=attachment.name)
        return message


class Templates:
    """Templates of one module: `name.txt`, whose first line is the subject, and `name.html`, which escapes its data.

    All are read when this is made, so make it while the program starts.
    """

    def __init__(self, folder: Path) -> None:
        self._environment = ImmutableSandboxedEnvironment(
            loader=DictLoader({file.name: file.read_text("utf-8") for file in folder.iterdir()}),
            autoescape=lambda name: bool(name) and str(name).endswith(".html"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, name: str, data: Mapping[str, object]) -> tuple[str, str, str]:
        """Subject, text and HTML."""
        subject, _, text = self._environment.get_template(f"{name}.txt").render(data).partition("\n")
        return subject.strip(), text.strip() + "\n", self._environment.get_template(f"{name}.html").render(data)


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

    async def send(self, message: EmailMessage) -> None:
        try:
            async with self._connection() as client:
                await client.send_message(message)
        except (aiosmtplib.SMTPNotSupported, UnicodeError) as error:
            # A letter of the address that this server cannot carry.
            raise MailRefused(type(error).__name__) from error
        except aiosmtplib.SMTPSenderRefused as error:
            # The sender is a setting; this message is as good as any other.
            raise MailUnavailable(f"SMTP {error.code}") from error
        except aiosmtplib.SMTPRecipientsRefused as error:
            code = max(refusal.code for refusal in error.recipients)
            raise (AddressRefused(f"SMTP {code}") if code >= _PERMANENT else _classify(code, error)) from error
        except aiosmtplib.SMTPResponseException as error:
            raise _classify(error.code, error) from error
        except (aiosmtplib.SMTPException, OSError, TimeoutError, ssl.SSLError) as error:
            raise MailUnavailable(type(error).__name__) from error

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
                # After a refusal the dialogue is in step; after anything else nobody knows where it stands.
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
        except aiosmtplib.SMTPException as error:
            # Whatever the code: who is refused here is this program, by its password or network, not the message.
            client.close()
            raise MailUnavailable(type(error).__name__) from error
        return client


class MailboxTransport:
    """Writes messages into a folder, where `/dev/mailbox` shows them. For development only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def send(self, message: EmailMessage) -> None:
        await asyncio.to_thread(self._write, str(message["Message-ID"]), message.as_bytes())

    async def close(self) -> None:
        return

    def _write(self, message_id: str, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = re.sub(r"[^A-Za-z0-9-]", "", message_id.partition("@")[0])
        # A second copy of a message replaces the first, as a mailbox that knows its Message-ID would.
        partial = self._folder / f".{name}"
        partial.write_bytes(content)
        partial.rename(self._folder / f"{name}.eml")
        for old in sorted(self._folder.glob("*.eml"), key=lambda path: path.stat().st_mtime)[:-_MAX_MAILBOX]:
            old.unlink(missing_ok=True)


def make_transport(settings: MailSettings, mailbox: Path) -> MailTransport:
    """SMTP where an address is set; the development mailbox otherwise."""
    return SmtpTransport(settings) if settings.smtp_url is not None else MailboxTransport(mailbox)


def _classify(code: int, error: Exception) -> Exception:
    # The server's words may repeat the address, so only the code goes into logs and job rows.
    del error
    return MailRefused(f"SMTP {code}") if code >= _PERMANENT else MailUnavailable(f"SMTP {code}")
