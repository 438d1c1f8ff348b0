"""E-mail: composed from templates, sent over SMTP by background jobs; in development kept in a mailbox folder instead.

Sending is at least once. A message carries a Message-ID that follows from its job, so that a mailbox can drop the
second copy of a message whose acknowledgement got lost.
"""

from app.kernel.mail.dev_mailbox import MailboxTransport
from app.kernel.mail.mailer import Mailer, mail_problem, make_transport
from app.kernel.mail.message import (
    AddressRefused,
    AddressUnsupported,
    Attachment,
    Mail,
    MailPurpose,
    MailRefused,
    MailServerUnavailable,
    MailTransport,
    MailUnavailable,
    MailWithheld,
)
from app.kernel.mail.templates import Templates

__all__ = [
    "AddressRefused",
    "AddressUnsupported",
    "Attachment",
    "Mail",
    "MailPurpose",
    "MailRefused",
    "MailServerUnavailable",
    "MailTransport",
    "MailUnavailable",
    "MailWithheld",
    "MailboxTransport",
    "Mailer",
    "Templates",
    "mail_problem",
    "make_transport",
]
