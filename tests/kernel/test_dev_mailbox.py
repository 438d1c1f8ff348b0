"""The development mailbox: bounded, and never a reason for a message to fail."""

import asyncio
import os
from pathlib import Path

from app.kernel.mail import MailboxTransport
from app.kernel.mail.message import ComposedMail


def mail(number: int, to: str = "ada@example.com") -> ComposedMail:
    content = f"To: {to}\r\nSubject: {number}\r\n\r\nx\r\n".encode()
    return ComposedMail("a@example.com", to, False, f"mail-{number}", content)


async def nothing() -> None:
    """Nothing is to be done before these are handed over."""


def fill(folder: Path, count: int) -> None:
    """Puts messages of long ago there, the first one the oldest: to send one looks through all that are there."""
    for number in range(count):
        path = folder / f"mail-{number}.eml"
        path.touch()
        os.utime(path, (number, number))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_the_oldest_messages_go(tmp_path: Path) -> None:
    fill(tmp_path, 500)
    transport = MailboxTransport(tmp_path)
    for number in range(500, 505):
        await transport.send(mail(number), nothing)
    assert names(tmp_path) == {f"mail-{number}.eml" for number in range(5, 505)}


async def test_several_workers_share_a_mailbox(tmp_path: Path) -> None:
    fill(tmp_path, 500)
    transports = [MailboxTransport(tmp_path) for _ in range(8)]
    await asyncio.gather(*(transports[number % 8].send(mail(number), nothing) for number in range(500, 600)))
    # Each pruned what it saw; the last one saw everything that was there.
    await transports[0].send(mail(600), nothing)
    found = await asyncio.to_thread(names, tmp_path)
    assert len(found) == 500
    assert "mail-600.eml" in found


async def test_a_message_that_goes_while_others_are_counted_is_no_error(tmp_path: Path) -> None:
    # Its name is listed, and it cannot be looked at: as when another worker has just deleted it.
    (tmp_path / "gone.eml").symlink_to(tmp_path / "nothing")
    fill(tmp_path, 499)
    await MailboxTransport(tmp_path).send(mail(499), nothing)
    assert names(tmp_path) == {f"mail-{number}.eml" for number in range(500)}


async def test_a_message_is_sent_although_the_mailbox_cannot_be_pruned(tmp_path: Path) -> None:
    (tmp_path / "folder.eml").mkdir()
    fill(tmp_path, 500)
    await MailboxTransport(tmp_path).send(mail(500), nothing)
    assert "mail-500.eml" in names(tmp_path)


async def test_messages_to_an_address_are_forgotten(tmp_path: Path) -> None:
    transport = MailboxTransport(tmp_path)
    for number, to in enumerate(["Ada@EXAMPLE.com", "k@xn--mller-kva.de", "zoë@example.com", "bob@example.com"]):
        await transport.send(mail(number, to), nothing)
    await transport.forget({"ada@example.com", "k@müller.de", "eve@example.com"}, ())
    assert names(tmp_path) == {"mail-2.eml", "mail-3.eml"}
    await transport.forget({"zoë@example.com"}, ["mail-4"])
    assert names(tmp_path) == {"mail-3.eml"}
    await transport.forget((), ["mail-3"])
    assert names(tmp_path) == set()
