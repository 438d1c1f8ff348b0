"""Text of people in e-mails: it is shown as it was given, and never becomes a header, a recipient or a body.

Messages are judged as a mail server receives them.
"""

import re
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from app.jobs.api import JOB_KINDS
from app.kernel.clock import SystemClock
from app.kernel.mail import Attachment, Mail, Mailer, MailRefused, make_transport
from app.settings import Settings, SettingsError, load_settings
from app.worker import open_worker
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.post_office import PostOffice
from tests.fixtures.servers import Connection
from tests.fixtures.shell import Shell
from tests.fixtures.waiting import eventually
from tests.jobs.test_invoices import INVOICE

HEADERS = sorted(["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"])
# Each would be a header line, a body, an address or another charset if anything decoded it.
HOSTILE = [
    "=?utf-8?q?a=0AReply-To:e@v.il?=",
    "=?utf-8?q?a=0D=0ABcc:_e@v.il?=",
    "=?utf-8?q?a=0A=0A<b>body</b>?=",
    "=?utf-8?b?YQpCY2M6IGVAdi5pbA==?=",
    "=?UTF-8*en?Q?a=0D=0ABcc:e@v.il?=",
    "=?utf-16?b?AGEACgBCAGMAYwA6AGU=?=",
    "=?utf-8?q?hello?=",
    "=?utf-8?q?a?= =?utf-8?q?=0ABcc:e@v.il?=",
    "x =?utf-8?q?unfinished",
    "=?us-ascii?q?=00?=",
    "a, b <e@v.il>; c: d;",
    '"quoted" \\ (comment) @ [1.2.3.4]',
    "Grüße, 東京 🦄 שלום",
    "ü" * 200,
    "W" * 300,
    "two  spaces, and %0d%0aBcc: e@v.il",
    "-" * 120 + " " + "x" * 120,
]


def received(post_office: PostOffice) -> list[EmailMessage]:
    return [message_from_bytes(content, policy=policy.default) for content in post_office.contents]


@pytest.fixture
async def mailer(post_office: PostOffice, tmp_path: Path) -> AsyncIterator[Mailer]:
    made = mailer_of(post_office, tmp_path)
    yield made
    await made.close()


def mailer_of(post_office: PostOffice, folder: Path, sender: str = "Onehop <no-reply@onehop.example>") -> Mailer:
    variables = {
        "APP_SECRET_KEY": "k" * 32,
        "APP_MAIL_SMTP_URL": f"smtp://127.0.0.1:{post_office.port}",
        "APP_MAIL_SENDER": sender,
    }
    settings = load_settings(variables).mail
    return Mailer(settings, make_transport(settings, folder), SystemClock())


@pytest.mark.parametrize("text", HOSTILE)
async def test_a_subject_is_what_was_given(mailer: Mailer, post_office: PostOffice, text: str) -> None:
    await mailer.send(Mail("ada@example.com", text, f"{text}\n", "<p>body</p>\n", "job-1"))
    (message,), (envelope,) = received(post_office), post_office.received
    assert (envelope.mail_from, envelope.rcpt_tos) == ("no-reply@onehop.example", ["ada@example.com"])
    assert sorted(message.keys()) == HEADERS
    assert message["Subject"] == text
    plain = message.get_body(("plain",))
    assert plain is not None
    assert plain.get_content() == f"{text}\r\n"
    head = post_office.contents[0].partition(b"\r\n\r\n")[0]
    assert head.isascii()
    assert max(map(len, head.split(b"\r\n"))) <= 78
    assert not re.search(rb"[^\r]\n|\r[^\n]", head)


@pytest.mark.parametrize("text", HOSTILE)
async def test_a_file_name_is_letters_and_digits(mailer: Mailer, post_office: PostOffice, text: str) -> None:
    file = Attachment(f"{text}/../x.pdf", "application/pdf", b"%PDF")
    await mailer.send(Mail("ada@example.com", "s", "t\n", "<p>t</p>\n", "job-1", (file,)))
    (message,) = received(post_office)
    assert sorted(message.keys()) == HEADERS
    (attachment,) = message.iter_attachments()
    assert sorted(attachment.keys()) == [
        *("Content-Disposition", "Content-Transfer-Encoding", "Content-Type", "MIME-Version")
    ]
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", attachment.get_filename() or "")
    assert (attachment.get_filename() or "").endswith("x.pdf")
    assert attachment.get_content() == b"%PDF"


@pytest.mark.parametrize("text", [name for name in HOSTILE if not set(name) & set("<>") and len(name) < 200])
async def test_a_senders_name_is_what_was_set(post_office: PostOffice, tmp_path: Path, text: str) -> None:
    mailer = mailer_of(post_office, tmp_path, f"{text} <no-reply@müller.example>")
    await mailer.send(Mail("ada@example.com", "s", "t\n", "<p>t</p>\n", "job-1"))
    await mailer.close()
    (message,), (envelope,) = received(post_office), post_office.received
    assert sorted(message.keys()) == HEADERS
    (address,) = message["From"].addresses
    # Readers take any white space between the words of a name for one space.
    assert (address.display_name, address.addr_spec) == (" ".join(text.split()), "no-reply@xn--mller-kva.example")
    assert envelope.mail_from == "no-reply@xn--mller-kva.example"


@pytest.mark.parametrize(
    "sender",
    [
        "=?utf-8?q?victim?=@example.com",
        "Onehop <=?utf-8?q?victim?=@example.com>",
        "a@example.com, b@example.com",
        "Onehop <a@example.com> <b@example.com>",
        "Onehop\n <a@example.com>",
        "Onehop",
        "zoë@example.com",
        "a@example.com\r\nBcc: b@example.com",
    ],
)
def test_a_sender_is_one_address(sender: str) -> None:
    with pytest.raises(SettingsError, match="APP_MAIL_SENDER"):
        load_settings({"APP_SECRET_KEY": "k" * 32, "APP_MAIL_SENDER": sender})


# Addresses that a mail server or a reader would take for others.
FOREIGN = [
    "=?utf-8?q?victim?=@example.com",
    "=?utf-8?b?dmljdGlt?=@example.com",
    "=?iso-8859-1?q?victim=40example.com?=@example.com",
    "x=?utf-8?q?victim?=@example.com",
    "=?utf-8?q?victim?=+tag@example.com",
    "=?x@example.com",
    "a@example.com, b@example.com",
    "a@example.com\r\nBcc: b@example.com",
    "Ada <a@example.com>",
    "<a@example.com>",
    '"a b"@example.com',
    "a(comment)@example.com",
    "a@[127.0.0.1]",
    "@relay.example:a@example.com",
    "a\u200d@example.com",
    "a@example.com\u2028b",
]


@pytest.mark.parametrize("address", FOREIGN)
async def test_such_an_address_is_not_written_to(mailer: Mailer, post_office: PostOffice, address: str) -> None:
    with pytest.raises(MailRefused):
        await mailer.send(Mail(address, "s", "t", "<p>", "job-1"))
    assert post_office.received == []


@pytest.mark.parametrize("address", FOREIGN)
async def test_such_an_address_comes_in_nowhere(client: httpx.AsyncClient, person: Person, address: str) -> None:
    customer = INVOICE["customer"] | {"email": address}  # type: ignore[operator]
    answers = [
        await client.post("/v1/auth/register", json={"email": address, "password": PASSWORD}),
        await client.post("/v1/auth/password/forgot", json={"email": address}),
        await client.post("/v1/auth/email/resend", json={"email": address}),
        await person.post("/v1/auth/email/change", json={"new_email": address, "current_password": PASSWORD}),
        await person.post("/v1/invoices", json=INVOICE | {"customer": customer}),
    ]
    assert [answer.status_code for answer in answers] == [422] * 5
    assert (await client.post("/v1/auth/login", json={"email": address, "password": PASSWORD})).status_code == 401


async def test_nor_by_the_command_line(shell: Shell) -> None:
    code, printed = await shell("users", "create-admin", FOREIGN[0], "--password-stdin", stdin=PASSWORD)
    assert (code, printed.strip()) == (1, "Not an e-mail address.")


async def test_who_has_such_an_address_already_gets_no_mail(
    make_person: MakePerson, settings: Settings, post_office: PostOffice, connection: Connection
) -> None:
    person = await make_person()
    await connection.execute("DELETE FROM jobs.jobs")
    await connection.execute(
        "UPDATE identity.accounts SET email = $2, email_canonical = $2 WHERE user_id = $1", person.id, FOREIGN[0]
    )
    async with open_worker(posting(settings, post_office), JOB_KINDS):
        await person.post(
            "/v1/auth/password/change", json={"current_password": PASSWORD, "new_password": f"{PASSWORD} 2"}
        )

        async def is_over() -> bool:
            return bool(await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state = 3") == 1)

        await eventually(is_over)
    assert post_office.received == []


def posting(settings: Settings, post_office: PostOffice) -> Settings:
    """The test's settings, with its mail server."""
    mail = settings.mail.model_copy(update={"smtp_url": SecretStr(f"smtp://127.0.0.1:{post_office.port}")})
    return settings.model_copy(update={"mail": mail})


async def test_an_invoice_carries_the_words_of_its_sender_as_words(
    person: Person, settings: Settings, post_office: PostOffice, connection: Connection
) -> None:
    await connection.execute("DELETE FROM jobs.jobs")
    await connection.execute("UPDATE identity.accounts SET email_verified_at = now() WHERE user_id = $1", person.id)
    texts = [text for text in HOSTILE if len(text) <= 56]
    for index, text in enumerate(texts):
        words: dict[str, Any] = {
            "number": f"{text} {index}",
            "order_id": text,
            "customer": {"name": text, "email": f"customer{index}@example.org", "address": text},
            "lines": [{"description": text, "quantity": 1, "unit_price_minor": 1}],
        }
        answer = await person.post("/v1/invoices", json=INVOICE | words, headers={"Idempotency-Key": str(uuid4())})
        assert answer.status_code == 202, answer.text
    async with open_worker(posting(settings, post_office), JOB_KINDS):
        await eventually(lambda: len(post_office.received) == len(texts), within=30)
    messages = received(post_office)
    assert sorted(envelope.rcpt_tos[0] for envelope in post_office.received) == sorted(
        f"customer{index}@example.org" for index in range(len(texts))
    )
    assert [sorted(message.keys()) for message in messages] == [HEADERS] * len(texts)
    assert {message["To"]: message["Subject"] for message in messages} == {
        f"customer{index}@example.org": f"Invoice {text} {index}" for index, text in enumerate(texts)
    }
    for message in messages:
        (attachment,) = message.iter_attachments()
        assert attachment.get_filename() == "invoice.pdf"
        html = message.get_body(("html",))
        assert html is not None
        assert "<b>" not in html.get_content()
        assert "<e@v.il>" not in html.get_content()
