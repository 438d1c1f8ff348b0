"""`email.send`: what is sent, what is tried again, and addresses that are not written to any more."""

from dataclasses import replace
from email import message_from_bytes, policy
from typing import Any, TypeAlias

import asyncpg
import pytest
from pydantic import SecretStr, ValidationError

from app.jobs.api import JOB_KINDS
from app.jobs.handlers.email_send import SendEmailArgs
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.post_office import PostOffice
from tests.fixtures.shell import Shell
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
        SendEmailArgs.model_validate(args)


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
    assert "Hello <bdi>&lt;Ada&gt;</bdi>," in html.get_content()


async def test_an_address_that_does_not_exist_is_not_written_to_again(
    producer: Producer,
    proven: Person,
    mailing: Settings,
    post_office: PostOffice,
    connection: Connection,
) -> None:
    person = proven
    post_office.rcpt = "550 5.1.1 no such user"
    async with open_worker(mailing, JOB_KINDS):
        await enqueue(producer, LETTER)
        await until(connection, [(3, "mail_refused")])
        row = await connection.fetchrow("SELECT address_hash, reason FROM jobs.email_suppressions")
        assert row is not None
        assert (len(row["address_hash"]), row["reason"]) == (32, "SMTP 550 5.1.1")
        post_office.rcpt = ""
        await enqueue(producer, LETTER | {"to": "ada@EXAMPLE.org"})
        await until(connection, [(3, "mail_refused"), (2, None)])
        accepted = (await person.post("/v1/invoices", json=INVOICE)).json()

        async def is_withheld() -> bool:
            (email,) = (await person.get("/v1/jobs?kind=invoice.email")).json()["items"] or [{"result": None}]
            outcome = {"state": "withheld", "reason": "address_suppressed"}
            return bool(email["result"] == {"invoice_id": accepted["invoice"]["id"], "email": outcome})

        await eventually(is_withheld)
        await enqueue(producer, LETTER | {"to": "bob@example.org"})
        await until(connection, [(3, "mail_refused"), (2, None), (2, None)])
    assert [item.rcpt_tos for item in post_office.received] == [["bob@example.org"]]
    reasons = await connection.fetch("SELECT result ->> 'reason' AS reason FROM jobs.jobs WHERE kind = 'email.send'")
    assert [row["reason"] for row in reasons].count("address_suppressed") == 1


@pytest.mark.parametrize("answer", ["550 no such user", "554 5.7.1 blocked", "552 5.2.2 full", "550 5.1.8 sender"])
async def test_another_refusal_says_nothing_of_the_address(
    producer: Producer, mailing: Settings, post_office: PostOffice, connection: Connection, answer: str
) -> None:
    post_office.rcpt = answer
    async with open_worker(mailing, JOB_KINDS):
        await enqueue(producer, LETTER)
        await until(connection, [(3, "mail_refused")])
        assert await connection.fetchval("SELECT count(*) FROM jobs.email_suppressions") == 0
        post_office.rcpt = ""
        await enqueue(producer, LETTER)
        await until(connection, [(3, "mail_refused"), (2, None)])
    assert [item.rcpt_tos for item in post_office.received] == [["Ada@example.org"]]


async def test_a_suppression_ends_after_two_weeks(
    producer: Producer, mailing: Settings, post_office: PostOffice, connection: Connection
) -> None:
    post_office.rcpt = "550 5.1.1 no such user"
    async with open_worker(mailing, JOB_KINDS):
        await enqueue(producer, LETTER)
        await until(connection, [(3, "mail_refused")])
        post_office.rcpt = ""
        await connection.execute(
            "UPDATE jobs.email_suppressions SET created_at = now() - interval '14 days' + interval '1 minute'"
        )
        await enqueue(producer, LETTER)
        await until(connection, [(3, "mail_refused"), (2, None)])
        assert post_office.received == []
        await connection.execute("UPDATE jobs.email_suppressions SET created_at = now() - interval '14 days'")
        await enqueue(producer, LETTER)
        await until(connection, [(3, "mail_refused"), (2, None), (2, None)])
    assert len(post_office.received) == 1


async def test_an_administrator_lifts_a_suppression(
    producer: Producer, person: Person, mailing: Settings, post_office: PostOffice, connection: Connection, shell: Shell
) -> None:
    await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id = $1", person.id)
    login = await person.client.post("/v1/auth/login", json={"email": person.email, "password": person.password})
    admin = replace(person, tokens=login.json()["tokens"])
    route = "/v1/admin/mail/suppressions/lift"
    async with open_worker(mailing, JOB_KINDS):
        for count in (1, 2):
            refused: list[tuple[int, str | None]] = [(3, "mail_refused")] * count
            post_office.rcpt = "550 5.1.1 no such user"
            await enqueue(producer, LETTER)
            await until(connection, refused)
            post_office.rcpt = ""
            if count == 1:
                assert (await person.post(route, json={"email": "ada@example.org"})).status_code == 403
                assert (await admin.post(route, json={"email": "ADA@example.org"})).json() == {"lifted": True}
                assert (await admin.post(route, json={"email": "ada@example.org"})).json() == {"lifted": False}
        assert await shell("mail", "lift-suppression", "ada@example.org") == (
            0,
            "ada@example.org is written to again.\n",
        )
        assert (await shell("mail", "lift-suppression", "ada@example.org"))[1] == (
            "ada@example.org was not suppressed; nothing changed.\n"
        )
        await enqueue(producer, LETTER)
        await until(connection, [(3, "mail_refused"), (3, "mail_refused"), (2, None)])
    assert len(post_office.received) == 1


async def test_mail_that_a_person_asked_for_is_tried_all_the_same(
    make_person: MakePerson, mailing: Settings, post_office: PostOffice, connection: Connection
) -> None:
    person = await make_person(email="gone@example.org")
    post_office.rcpt = "550 5.1.1 no such user"
    async with open_worker(mailing, JOB_KINDS):
        await until(connection, [(3, "mail_refused")])
        post_office.rcpt = ""
        assert await connection.fetchval("SELECT count(*) FROM jobs.email_suppressions") == 1
        assert (await person.post("/v1/auth/password/forgot", json={"email": person.email})).status_code == 202
        await until(connection, [(3, "mail_refused"), (2, None)])
        assert [item.rcpt_tos for item in post_office.received] == [["gone@example.org"]]

        # A mailbox that has taken a message exists.
        async def is_lifted() -> bool:
            return bool(await connection.fetchval("SELECT count(*) FROM jobs.email_suppressions") == 0)

        await eventually(is_lifted)


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
