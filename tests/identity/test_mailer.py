"""The mailer against a real SMTP server: what is tried again, what is not, and what a message looks like."""

import asyncio
from collections.abc import AsyncIterator, Callable
from email import message_from_bytes, policy
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.kernel.clock import SystemClock
from app.kernel.mail import (
    AddressRefused,
    AddressUnsupported,
    Attachment,
    Mail,
    Mailer,
    MailRefused,
    MailUnavailable,
    Templates,
    mail_problem,
    make_transport,
)
from app.kernel.settings import MailSettings
from app.settings import load_settings
from tests.fixtures.post_office import PostOffice

TEMPLATES = Path(__file__).resolve().parents[2] / "app" / "identity" / "templates"
LETTER = Mail("ada@example.com", "Grüße", "plain & simple\n", "<p>plain &amp; simple</p>\n", "job-1")


MakeMailer = Callable[..., Mailer]


@pytest.fixture
async def make_mailer(post_office: PostOffice, tmp_path: Path) -> AsyncIterator[MakeMailer]:
    made: list[Mailer] = []

    def make(credentials: str = "", port: int | None = None) -> Mailer:
        variables = {
            "APP_SECRET_KEY": "k" * 32,
            "APP_MAIL_SMTP_URL": f"smtp://{credentials}127.0.0.1:{port or post_office.port}",
            "APP_MAIL_SENDER": "Onehop <no-reply@onehop.example>",
        }
        settings = load_settings(variables).mail
        made.append(Mailer(settings, make_transport(settings, tmp_path), SystemClock()))
        return made[-1]

    yield make
    for mailer in made:
        await mailer.close()


async def test_a_message(post_office: PostOffice, make_mailer: MakeMailer) -> None:
    letter = Mail(
        *(LETTER.to, LETTER.subject, LETTER.text, LETTER.html, "job-1"),
        (Attachment("a.pdf", "application/pdf", b"%PDF"),),
    )
    await make_mailer().send(letter)
    (envelope,) = post_office.received
    assert (envelope.mail_from, envelope.rcpt_tos) == ("no-reply@onehop.example", ["ada@example.com"])
    assert isinstance(envelope.content, bytes)
    message = message_from_bytes(envelope.content, policy=policy.default)
    assert message["Subject"] == "Grüße"
    assert message["Message-ID"] == "<job-1@onehop.example>"
    assert message["Auto-Submitted"] == "auto-generated"
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert plain.get_content() == "plain & simple\r\n"
    assert html.get_content() == "<p>plain &amp; simple</p>\r\n"
    (attachment,) = message.iter_attachments()
    assert (attachment.get_filename(), attachment.get_content()) == ("a.pdf", b"%PDF")


async def test_a_connection_is_used_again_and_made_anew_when_it_is_lost(
    post_office: PostOffice, make_mailer: MakeMailer
) -> None:
    mailer = make_mailer()
    for _ in range(3):
        await mailer.send(LETTER)
    assert post_office.sessions == 1
    post_office.drop_all()
    await asyncio.sleep(0.05)
    await mailer.send(LETTER)
    assert (post_office.sessions, len(post_office.received)) == (2, 4)
    await asyncio.gather(*(mailer.send(LETTER) for _ in range(12)))
    assert len(post_office.received) == 16
    assert post_office.sessions <= 5


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("451 try later", MailUnavailable),
        ("421 going down", MailUnavailable),
        ("550 no", MailRefused),
        ("552 big", MailRefused),
    ],
)
async def test_what_the_server_says_of_a_message(
    post_office: PostOffice, make_mailer: MakeMailer, answer: str, expected: type[Exception]
) -> None:
    mailer = make_mailer()
    post_office.answers = [f"{answer} for ada@example.com"]
    with pytest.raises(expected) as caught:
        await mailer.send(LETTER)
    assert str(caught.value) == f"SMTP {answer[:3]}"
    await mailer.send(LETTER)
    post_office.rcpt = f"{answer} <ada@example.com>"
    with pytest.raises(expected) as caught:
        await mailer.send(LETTER)
    assert "ada" not in str(caught.value)


async def test_what_is_wrong_with_the_way_to_the_server_is_tried_again(
    post_office: PostOffice, make_mailer: MakeMailer
) -> None:
    with pytest.raises(MailUnavailable):
        await make_mailer(credentials="user:wrong@").send(LETTER)
    with pytest.raises(MailUnavailable):
        await make_mailer(port=1).send(LETTER)
    assert post_office.received == []


@pytest.mark.parametrize(
    ("to", "subject"),
    [
        ("ada@example.com\r\nBcc: x@example.com", "s"),
        ("ada@example.com\nBcc: x@example.com", "s"),
        ("ada@example.com", "s\r\nBcc: x@example.com"),
        ("ada@example.com", "s\0"),
    ],
)
async def test_a_line_break_in_a_header_is_refused(
    post_office: PostOffice, make_mailer: MakeMailer, to: str, subject: str
) -> None:
    with pytest.raises(MailRefused):
        await make_mailer().send(Mail(to, subject, "", "", "job-1"))
    assert post_office.received == []


async def test_addresses_with_other_letters_are_carried(post_office: PostOffice, make_mailer: MakeMailer) -> None:
    await make_mailer().send(Mail("zoë@exämple.com", "s", "t", "<p>", "job-1"))
    (envelope,) = post_office.received
    assert envelope.rcpt_tos == ["zoë@xn--exmple-cua.com"]
    assert b"\r\nTo: zo\xc3\xab@xn--exmple-cua.com\r\n" in post_office.contents[0]


@pytest.mark.parametrize("to", ["info@müller.de", "info@xn--mller-kva.de", "info@MÜLLER。de"])
async def test_a_domain_with_other_letters_needs_no_smtputf8(
    post_office: PostOffice, make_mailer: MakeMailer, to: str
) -> None:
    post_office.has_smtputf8 = False
    await make_mailer().send(Mail(to, "s", "t", "<p>", "job-1"))
    (envelope,) = post_office.received
    assert envelope.rcpt_tos == ["info@xn--mller-kva.de"]
    assert b"\r\nTo: info@xn--mller-kva.de\r\n" in post_office.contents[0]
    assert post_office.contents[0].isascii()


async def test_a_server_without_smtputf8_is_told_from_a_refusal(
    post_office: PostOffice, make_mailer: MakeMailer
) -> None:
    post_office.has_smtputf8 = False
    with pytest.raises(AddressUnsupported):
        await make_mailer().send(Mail("zoë@example.com", "s", "t", "<p>", "job-1"))
    assert post_office.received == []
    await make_mailer().send(LETTER)
    assert [envelope.rcpt_tos for envelope in post_office.received] == [["ada@example.com"]]


@pytest.mark.parametrize(
    ("answer", "expected", "text"),
    [
        ("550 5.1.1 no such user", AddressRefused, "SMTP 550 5.1.1"),
        ("550-5.1.1 no such user\r\n550 5.1.1 ada@example.com", AddressRefused, "SMTP 550 5.1.1"),
        ("556 5.1.10 null MX", AddressRefused, "SMTP 556 5.1.10"),
        ("550 no such user", MailRefused, "SMTP 550"),
        ("550 5.7.1 blocked", MailRefused, "SMTP 550 5.7.1"),
        ("550 5.1.8 your domain does not exist", MailRefused, "SMTP 550 5.1.8"),
        ("550 5.1.11 something new", MailRefused, "SMTP 550 5.1.11"),
        ("552 5.2.2 full", MailRefused, "SMTP 552 5.2.2"),
        ("450 4.1.1 try later", MailUnavailable, "SMTP 450 4.1.1"),
    ],
)
async def test_only_some_refusals_are_about_the_address(
    post_office: PostOffice, make_mailer: MakeMailer, answer: str, expected: type[Exception], text: str
) -> None:
    mailer = make_mailer()
    post_office.rcpt = answer
    with pytest.raises(expected) as at_recipient:
        await mailer.send(LETTER)
    post_office.rcpt = ""
    post_office.answers = [answer]
    with pytest.raises(expected) as at_data:
        await mailer.send(LETTER)
    assert [type(at_recipient.value), type(at_data.value)] == [expected, expected]
    assert [str(at_recipient.value), str(at_data.value)] == [text, text]


def test_every_template_renders_and_escapes() -> None:
    templates = Templates(TEMPLATES)
    hostile = '<script>alert("1")</script>&'
    data = {"link": hostile, "hours": 24, "minutes": 30, "subject": hostile, "what": hostile, "code": hostile}
    names = {file.stem for file in TEMPLATES.glob("*.txt")}
    assert names == {file.stem for file in TEMPLATES.glob("*.html")}
    assert names == {"account_exists", "change_email", "log_in", "notice", "reset_password", "verify_email"}
    for name in names:
        subject, text, html = templates.render(name, data)
        assert subject
        assert "\n" not in subject
        assert hostile in text
        assert "<script" not in html
        assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;" in html


async def test_what_is_wrong_with_the_mail_server_is_told_before_a_message_waits_for_it(
    post_office: PostOffice,
) -> None:
    def mail(url: str) -> MailSettings:
        return MailSettings(smtp_url=SecretStr(url))

    assert await mail_problem(MailSettings()) is None
    assert await mail_problem(mail(f"smtp://127.0.0.1:{post_office.port}")) is None
    refused = await mail_problem(mail(f"smtp://user:wrong@127.0.0.1:{post_office.port}"))
    assert refused is not None
    assert "535" in refused
    assert "wrong" not in refused
    assert await mail_problem(mail("smtp://127.0.0.1:1")) is not None
    assert post_office.received == []
