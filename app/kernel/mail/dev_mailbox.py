"""The development mailbox: messages are written into a folder instead of being sent."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import suppress
from email import policy
from email.parser import BytesHeaderParser
from pathlib import Path

from app.kernel.mail.message import Begin, ComposedMail
from app.kernel.observability.telemetry import get_logger
from app.kernel.validation.addresses import canonical_email

_logger = get_logger(__name__)

_MAX_MAILBOX = 500
_NO_MESSAGE = 0.0


class MailboxTransport:
    """Writes messages into a folder, where `/dev/mailbox` shows them. For development only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def send(self, mail: ComposedMail, begin: Begin) -> None:
        await begin()
        await asyncio.to_thread(self._write, mail)
        # The message is there; a job that failed now would bring it a second time.
        try:
            await asyncio.to_thread(self._prune)
        except OSError as error:
            _logger.warning("mail.mailbox_not_pruned", error=type(error).__name__)

    async def forget(self, addresses: Collection[str], references: Collection[str]) -> None:
        await asyncio.to_thread(self._forget, addresses, references)

    async def close(self) -> None:
        return

    def _write(self, mail: ComposedMail) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = mail.reference
        # A second copy of a message replaces the first, as a mailbox that knows its Message-ID would.
        partial = self._folder / f".{name}"
        partial.write_bytes(mail.content)
        partial.rename(self._folder / f"{name}.eml")

    def _prune(self) -> None:
        """Keeps the newest messages. Other workers prune the same folder, so a file may go at any moment."""
        aged = [(_age_key(path), path) for path in self._folder.glob("*.eml")]
        for _, old in sorted(aged)[:-_MAX_MAILBOX]:
            old.unlink(missing_ok=True)

    def _forget(self, addresses: Collection[str], references: Collection[str]) -> None:
        for path in self._find(addresses, references):
            path.unlink(missing_ok=True)

    def _find(self, addresses: Collection[str], references: Collection[str]) -> Iterator[Path]:
        parser = BytesHeaderParser(policy=policy.default)
        for path in self._folder.glob("*.eml"):
            with suppress(FileNotFoundError):
                head = path.read_bytes().partition(b"\r\n\r\n")[0]
                if path.stem in references or canonical_email(str(parser.parsebytes(head)["To"])) in addresses:
                    yield path


def _age_key(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return _NO_MESSAGE
