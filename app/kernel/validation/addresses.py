"""E-mail addresses: one parser for every way in, one form to compare them by, one form to send them in.

The three forms of `Zoe@MÜLLER.de`: `Zoe@müller.de` is stored and shown, `zoe@müller.de` decides whether two addresses
are the same mailbox, and `Zoe@xn--mller-kva.de` is what an SMTP server gets (RFC 5891, section 5).
"""

import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass

from email_validator import validate_email

MAX_EMAIL_LENGTH = 254

# `=?utf-8?q?victim?=@example.com` is a valid atom by RFC 5322, and readers of mail take it for `victim@example.com`.
_ENCODED_WORD = "=?"
_A_LABEL = re.compile(r"xn--[a-z0-9-]+", re.IGNORECASE | re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Letters of one keyboard for the full stop of a domain (RFC 3490, section 3.1).
_DOTS = str.maketrans("\u3002\uff0e\uff61", "...")


@dataclass(frozen=True, slots=True)
class EmailAddress:
    """An address that mail can be sent to. `text` is its stored form, `wire` its form in SMTP and in headers."""

    text: str
    wire: str

    @property
    def needs_smtputf8(self) -> bool:
        """Whether the part before the @ has characters that only servers with SMTPUTF8 (RFC 6531) take."""
        return not self.wire.isascii()


@dataclass(frozen=True, slots=True)
class Sender:
    """The sender of mail: an address, and a display name that may be empty."""

    name: str
    address: EmailAddress

    @property
    def domain(self) -> str:
        return self.address.wire.rpartition("@")[2]


def parse_email(text: str, *, allows_local_domain: bool = False) -> EmailAddress:
    """Reads one bare address.

    `allows_local_domain` takes a domain without a dot as well, as senders inside a private network have.

    Raises:
        ValueError: it is no address, or one that readers of mail would take for another.
    """
    found = validate_email(
        text,
        check_deliverability=False,
        test_environment=True,
        globally_deliverable=not allows_local_domain,
        strict=True,
    )
    if _ENCODED_WORD in found.local_part:
        message = "The part before the @-sign looks like an encoded word."
        raise ValueError(message)
    return EmailAddress(found.normalized, f"{found.local_part}@{found.ascii_domain}")


def parse_sender(text: str) -> Sender:
    """Reads `no-reply@example.com` or `Name <no-reply@example.com>`.

    Raises:
        ValueError: it is neither, or the address needs SMTPUTF8, which few servers take from a sender.
    """
    found = re.fullmatch(r"\s*(?:(?P<name>[^<>]*?)\s*<(?P<named>[^<>]+)>|(?P<bare>[^<>]+?))\s*", text)
    if found is None or _CONTROL.search(text):
        raise ValueError('Give an address, or a name and an address as in "Name <no-reply@example.com>".')
    address = parse_email(found["named"] or found["bare"], allows_local_domain=True)
    if address.needs_smtputf8:
        raise ValueError("The part before the @ has to be ASCII.")
    name = found["name"] or ""
    return Sender(name.strip('"') if name.startswith('"') and name.endswith('"') else name, address)


def canonical_email(text: str) -> str:
    """The form in which addresses are compared: case, composition of letters and the spelling of the domain make no
    other mailbox. What is no address is folded all the same unless it is too long, and equals no stored one.
    """
    stripped = text.strip()
    if len(stripped) > MAX_EMAIL_LENGTH:
        # To fold n marks takes a time that grows with n².
        return stripped
    # Most addresses have one spelling only, and log-in need not pay for the others.
    if not stripped.isascii() or _A_LABEL.search(stripped):
        with suppress(ValueError):
            stripped = parse_email(stripped).text
    return _fold(stripped)


def canonical_email_part(text: str) -> str:
    """Part of an address, in the form of `canonical_email`, to search for."""
    local, at, domain = text.strip().rpartition("@")
    domain = unicodedata.normalize("NFKC", domain.translate(_DOTS))
    return _fold(local + at + _A_LABEL.sub(_to_unicode, domain))


def mailbox_of(canonical: str) -> str:
    """The mailbox behind an address of the form of `canonical_email`, for counting: a tag after `+` is no other one."""
    local, at, domain = canonical.rpartition("@")
    return (local.partition("+")[0] or local) + at + domain


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _to_unicode(label: re.Match[str]) -> str:
    try:
        return label[0].lower().encode("ascii").decode("idna")
    except UnicodeError:
        return label[0]
