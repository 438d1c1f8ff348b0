"""`email.send`: what is sent, what is tried again, and addresses that are not written to any more."""

from email import message_from_bytes, policy
from typing import Any, TypeAlias

import asyncpg
import pytest
from pydantic import SecretStr, ValidationError

from app.jobs.api import JOB_KINDS
from app.jobs.handlers.email_send import EmailArgs
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.post_office import PostOffice
from tests.fixtures.waiting import eventually
from tests.jobs.kinds import Producer
from tests.jobs.test_invoices import INVOICE

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

LETTER = {"to": "Ada@example.org", "subject": "Hello", "text": "plain\n", "html": "<p>plain</p>\n"}


@pytest.fixture
def mailing(settings: Settings, post_office: PostOffice) -> Settings:
    """The test's settings, with a mail server."""
    mail = settings.mail.model_copy(update={"smtp_url": SecretStr(f"smtp://127.0.0.1:{post_office.port}")})
    return settings.model_copy(update={"mail": mail})


async def enqueue(producer: Producer, args: dict[str, Any]) -> None:
    async with producer.db.transaction("test.email") as tx:
        await producer.queue.enqueue(tx, "email.send", args, user_id=None)


async def ends(connection: Connection) -> list[tuple[int, str | None]]:
    rows = await connection.fetch(
        "SELECT state, error ->> 'code' AS code FROM jobs.jobs WHERE kind ~ '^(email|identity)' ORDER BY id"
    )
    return [(row["state"], row["code"]) for row in rows]


async def until(connection: Connection, expected: list[tuple[int, str | None]]) -> None:
    async def is_there() -> bool:
        return await ends(connection) == expected

    await eventually(is_there)


@pytest.mark.parametrize(
    "args",
    [
        {"to": "a@b.example"},
        {"to": "a@b.example", "subject": "s", "text": "t"},
        LETTER | {"template": "invoice_mail"},
        {"to": "a@b.example", "template": "../x"},
    ],
)
def test_a_message_has_one_form(args: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EmailArgs.model_validate(args)


async def test_nobody_sends_mail_by_the_api(person: Person, connection: Connection) -> None:
    answer = await person.post("/v1/jobs", json={"kind": "email.send", "args": LETTER})
    assert answer.status_code == 422
    assert await ends(connection) == []


async def test_words_and_templates_are_sent(
    producer: Producer, mailing: Settings, post_office: PostOffice, connection: Connection
) -> None:
    data = {"number": "7", "name": "<Ada>", "total": "1.00", "currency": "EUR"}
    async with open_worker(mailing, JOB_KINDS):
        await enqueue(producer, LETTER)
        await until(connection, [(2, None)])
        await enqueue(producer, {"to": "bob@example.org", "template": "invoice_mail", "data": data})
        await until(connection, [(2, None), (2, None)])
    first, second = (
        message_from_bytes(bytes(item.content), policy=policy.default)
        for item in post_office.received
        if isinstance(item.content, bytes)
    )
    assert (first["To"], first["Subject"]) == ("Ada@example.org", "Hello")
    assert (second["To"], second["Subject"]) == ("bob@example.org", "Invoice 7")
    html = second.get_body(("html",))
    assert html is not None
    assert "Hello &lt;Ada&gt;," in html.get_content()


async def test_a_refused_address_is_not_written_to_again(
    producer: Producer, person: Person, mailing: Settings, post_office: PostOffice, connection: Connection
) -> None:
    post_office.rcpt = "550 5.1.1 no such user"
    async with open_worker(mailing, JOB_KINDS):
        await enqueue(producer, LETTER)
        await until(connection, [(3, "mail_refused")])
        row = await connection.fetchrow("SELECT address_hash, reason FROM jobs.email_suppressions")
        assert row is not None
        assert (len(row["address_hash"]), row["reason"]) == (32, "SMTP 550 5.1.1")
        post_office.rcpt = ""
        await enqueue(producer, LETTER | {"to": "ada@EXAMPLE.org"})
        await until(connection, [(3, "mail_refused"), (3, "address_suppressed")])
        accepted = (await person.post("/v1/invoices", json=INVOICE)).json()

        async def is_refused() -> bool:
            stored = (await person.get(f"/v1/invoices/{accepted['invoice']['id']}")).json()
            return bool(stored["status"] == "failed")

        await eventually(is_refused)
        await enqueue(producer, LETTER | {"to": "bob@example.org"})
        await until(connection, [(3, "mail_refused"), (3, "address_suppressed"), (2, None)])
    assert [item.rcpt_tos for item in post_office.received] == [["bob@example.org"]]


async def test_security_mail_is_not_sent_to_a_refused_address_either(
    make_person: MakePerson, mailing: Settings, post_office: PostOffice, connection: Connection
) -> None:
    person = await make_person(email="gone@example.org")
    post_office.rcpt = "550 5.1.1 no such user"
    async with open_worker(mailing, JOB_KINDS):
        await until(connection, [(3, "mail_refused")])
        post_office.rcpt = ""
        assert (await person.post("/v1/auth/password/forgot", json={"email": person.email})).status_code == 202
        await until(connection, [(3, "mail_refused"), (3, "mail_refused")])
    assert post_office.received == []


async def test_refused_words_say_nothing_about_the_address(
    producer: Producer, mailing: Settings, post_office: PostOffice, connection: Connection
) -> None:
    post_office.answers = ["554 looks like spam"]
    async with open_worker(mailing, JOB_KINDS):
        await enqueue(producer, LETTER)
        await until(connection, [(3, "mail_refused")])
    assert await connection.fetchval("SELECT count(*) FROM jobs.email_suppressions") == 0


async def test_what_is_not_taken_now_is_tried_again(
    producer: Producer, mailing: Settings, post_office: PostOffice, connection: Connection
) -> None:
    post_office.rcpt = "450 greylisted"
    async with open_worker(mailing, JOB_KINDS):
        await enqueue(producer, LETTER)
        await until(connection, [(0, "mail_unavailable")])
        assert await connection.fetchval("SELECT count(*) FROM jobs.email_suppressions") == 0
        post_office.rcpt = ""
        await connection.execute("UPDATE jobs.jobs SET run_at = now() WHERE kind = 'email.send'")

        async def is_sent() -> bool:
            return [state for state, _ in await ends(connection)] == [2]

        await eventually(is_sent)
    assert [item.rcpt_tos for item in post_office.received] == [["Ada@example.org"]]
