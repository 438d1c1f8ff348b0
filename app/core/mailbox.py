"""The development mailbox: e-mails that were not sent but kept, for a look in the browser."""

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from html import escape
from pathlib import Path

from app.core.pages import page
from app.kernel.errors import NotFound

_NAME = re.compile(r"[A-Za-z0-9-]{1,80}")
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class KeptMail:
    """One message. `content` is RFC 5322."""

    name: str
    content: bytes

    def parsed(self) -> EmailMessage:
        return message_from_bytes(self.content, policy=policy.default)


async def list_mail(folder: Path) -> list[KeptMail]:
    """The newest first, at most a hundred."""
    return await asyncio.to_thread(_list, folder)


async def read_mail(folder: Path, name: str) -> KeptMail:
    """Raises `NotFound`."""
    if not _NAME.fullmatch(name):
        raise NotFound
    try:
        return KeptMail(name, await asyncio.to_thread((folder / f"{name}.eml").read_bytes))
    except OSError as error:
        raise NotFound from error


def list_page(mails: list[KeptMail]) -> str:
    rows = []
    for mail in mails:
        message = mail.parsed()
        rows.append(
            f'<li><a href="/dev/mailbox/{mail.name}">{escape(str(message["Subject"]))}</a> '
            f"to <code>{escape(str(message['To']))}</code>, {escape(str(message['Date']))}</li>"
        )
    listing = f"<ul>{''.join(rows)}</ul>" if rows else "<p>No e-mail has been sent yet.</p>"
    return page("Development mailbox", listing)


def mail_page(mail: KeptMail) -> str:
    message = mail.parsed()
    part = message.get_body(("plain",))
    text = escape(part.get_content()) if part else ""
    text = re.sub(r"(https?://[^\s<]+)", r'<a href="\1">\1</a>', text)
    files = [escape(attachment.get_filename() or "unnamed") for attachment in message.iter_attachments()]
    attached = f"<p>Attached: {', '.join(files)}</p>" if files else ""
    return page(
        str(message["Subject"]),
        f"<p>To <code>{escape(str(message['To']))}</code>, {escape(str(message['Date']))}</p>"
        f"<pre>{text}</pre>{attached}"
        f'<p><a href="/dev/mailbox/{mail.name}/raw">the whole message</a>, <a href="/dev/mailbox">all messages</a></p>',
    )


def _list(folder: Path) -> list[KeptMail]:
    found: list[tuple[float, KeptMail]] = []
    for path in folder.glob("*.eml"):
        # A new message may push this one out meanwhile.
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, KeptMail(path.stem, path.read_bytes())))
    found.sort(key=lambda item: item[0], reverse=True)
    return [mail for _, mail in found[:_SHOWN]]
