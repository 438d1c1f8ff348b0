"""One message, from what the caller gives to the bytes that are sent.

No text of a person is ever parsed as a header. Python's `email.policy` reads what it is given for a header: it decodes
the encoded words in it (RFC 2047), so that `=?utf-8?q?a=0ABcc:x?=` becomes a line break and a header of its own. The
headers are therefore written here, each value either as harmless ASCII or encoded, and read back before they are used.
"""

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from email import policy
from email.header import Header
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.utils import format_datetime
from typing import Literal, Protocol

from app.kernel.clock import Clock
from app.kernel.ids import UserId
from app.kernel.validation.addresses import EmailAddress, Sender, parse_email

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN_TEXT = re.compile(r"[!-~]+(?: [!-~]+)*")
_PLAIN_PHRASE = re.compile(r"[A-Za-z0-9]+(?: [A-Za-z0-9]+)*")
_REFERENCE = re.compile(r"[A-Za-z0-9-]{1,80}")
_UNSAFE_IN_FILE_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_FILE_NAME = 100
# Together with the name of the header, within the 78 characters that RFC 5322 recommends for a line.
_MAX_PLAIN = 60
_URI = re.compile(r"https?://[!-;=?-~]+")


# verification, reset, code and change: a link or a code that a person waits for, whose address it need not be, and the
# same asked for on a device that the account knows (own_…); notice: of something that has happened to an account;
# invoice: words of one person to another; report: at intervals, because its reader has turned it on. Each purpose has
# limits of its own, so that what strangers ask for uses up nothing that the owner needs.
MailPurpose = Literal[
    "verification",
    "own_verification",
    "reset",
    "own_reset",
    "code",
    "own_code",
    "change",
    "notice",
    "invoice",
    "report",
]


_BULK: frozenset[MailPurpose] = frozenset({"invoice", "report"})


class MailRefused(Exception):
    """This message will never be taken: the address is bad, or the content is refused (SMTP 5xx).

    `code` and `explanation` are for the owner of the job that sends it.
    """

    code = "mail_refused"
    explanation = "The mail server of the recipient refused the message."


class AddressRefused(MailRefused):
    """The server knows no such mailbox."""


class AddressUnsupported(MailRefused):
    """The part of the address before the @ is not ASCII, and the server has no SMTPUTF8."""

    code = "address_unsupported"
    explanation = "The mail server takes no address with characters outside ASCII before the @ (SMTPUTF8)."


class MailWithheld(Exception):
    """The message must not be sent. `reason` is a code: account_inactive, account_changed, email_not_verified,
    address_suppressed or too_many_messages.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MailUnavailable(Exception):
    """The message could not be handed over now; it may be tried again (SMTP 4xx).

    `took_nothing`: the server has said so; otherwise it may have taken the message, and the answer was lost.
    """

    def __init__(self, reason: str, *, took_nothing: bool = False) -> None:
        super().__init__(reason)
        self.took_nothing = took_nothing


class MailServerUnavailable(MailUnavailable):
    """The same, whatever the message: the server cannot be reached, refuses this program or has trouble of its own."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a message. Of its name, letters and digits of ASCII, `.`, `_` and `-` are kept."""

    name: str
    content_type: str
    content: bytes

    @property
    def file_name(self) -> str:
        """The name as it is sent."""
        return _UNSAFE_IN_FILE_NAME.sub("-", self.name).strip(".-")[-_MAX_FILE_NAME:] or "file"


@dataclass(frozen=True, slots=True)
class Mail:
    """One message to one address. `reference` makes its Message-ID; a retry must give the same one.

    `account` is the one in whose name or about which it is sent; unless that is active, the message is not sent.
    Messages of a purpose to an address are counted by `topic`: those of one keep back none of another.
    `unsubscribe_url` takes a POST that ends this kind of mail (RFC 8058). `link_lifetime`: of the link that it brings.
    """

    to: str
    subject: str
    text: str
    html: str
    reference: str
    attachments: Sequence[Attachment] = ()
    unsubscribe_url: str | None = None
    purpose: MailPurpose = "notice"
    topic: str = ""
    account: UserId | None = None
    link_lifetime: timedelta | None = None


@dataclass(frozen=True, slots=True)
class ComposedMail:
    """The envelope, and the message as it goes over the wire (RFC 5322, lines end in CRLF).

    `account`: whose it is, or whom it is about. `is_bulk`: a user has had it made, and may have had many.
    """

    sender: str
    recipient: str
    needs_smtputf8: bool
    reference: str
    content: bytes = field(repr=False)
    account: UserId | None = None
    is_bulk: bool = False


# What is done just before a message is handed over.
Begin = Callable[[], Awaitable[None]]


class MailTransport(Protocol):
    """Where messages go."""

    async def send(self, mail: ComposedMail, begin: Begin) -> None:
        """Awaits `begin` as soon as nothing is waited for any more, then hands the message over. What `begin` raises is
        raised, and nothing is handed over then.
        """
        ...

    async def forget(self, addresses: Collection[str], references: Collection[str]) -> None:
        """Deletes what is kept of messages to these addresses, in the form of `canonical_email`, or of these
        references.
        """
        ...

    async def close(self) -> None: ...


def compose(mail: Mail, sender: Sender, clock: Clock) -> ComposedMail:
    """The message as bytes.

    Raises:
        MailRefused: the address is none, or a header would not say what was given.
    """
    try:
        to = parse_email(mail.to)
    except ValueError as error:
        raise MailRefused("not an e-mail address") from error
    if _CONTROL.search(mail.subject) or not _REFERENCE.fullmatch(mail.reference):
        raise MailRefused("a header would hold a control character")
    headers = {
        "From": f"{_phrase(sender.name)} <{sender.address.wire}>" if sender.name else sender.address.wire,
        "To": to.wire,
        "Subject": _unstructured("Subject", mail.subject),
        "Date": format_datetime(clock.now()),
        "Message-ID": f"<{mail.reference}@{sender.domain}>",
        "Auto-Submitted": "auto-generated",
    }
    if mail.unsubscribe_url is not None:
        if not _URI.fullmatch(mail.unsubscribe_url):
            raise MailRefused("the address to unsubscribe at is no URL")
        headers["List-Unsubscribe"] = f"<{mail.unsubscribe_url}>"
        headers["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    _check(head, headers, to, mail.subject)
    content = head + _body(mail).as_bytes()
    return ComposedMail(
        sender.address.wire,
        to.wire,
        to.needs_smtputf8,
        mail.reference,
        content,
        account=mail.account,
        is_bulk=mail.purpose in _BULK,
    )


def _body(mail: Mail) -> EmailMessage:
    """The MIME part of the message. Nothing in its headers comes from a person, and its lines are short ASCII."""
    body = EmailMessage(policy=policy.SMTP)
    body.set_content(mail.text, cte="quoted-printable")
    body.add_alternative(mail.html, subtype="html", cte="quoted-printable")
    for attachment in mail.attachments:
        maintype, _, subtype = attachment.content_type.partition("/")
        body.add_attachment(attachment.content, maintype=maintype, subtype=subtype, filename=attachment.file_name)
    return body


def _unstructured(name: str, text: str) -> str:
    if _PLAIN_TEXT.fullmatch(text) and "=?" not in text and len(text) <= _MAX_PLAIN:
        return text
    return _encoded(text, name)


def _phrase(text: str) -> str:
    return text if _PLAIN_PHRASE.fullmatch(text) and len(text) <= _MAX_PLAIN else _encoded(text, "From")


def _encoded(text: str, name: str) -> str:
    """Encoded words (RFC 2047), folded; what looks like one already is text like any other."""
    try:
        return Header(text, "utf-8", header_name=name).encode(linesep="\r\n")
    except UnicodeError as error:
        raise MailRefused("a header would hold half a character") from error


def _check(head: bytes, headers: Mapping[str, str], to: EmailAddress, subject: str) -> None:
    """Reads the headers as their receiver will.

    Raises:
        MailRefused: they say something else than what was given.
    """
    read = BytesHeaderParser(policy=policy.default).parsebytes(head + b"\r\n")
    is_same = read.keys() == list(headers) and str(read["To"]) == to.wire and read["Subject"] == subject
    if not is_same or read.get_payload() or read.defects:
        raise MailRefused("the headers do not read back as they were written")
