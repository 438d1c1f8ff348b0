"""Invoices: money to the cent, a deterministic PDF, and the chain PDF → e-mail → webhook."""

import io
from datetime import UTC, datetime
from decimal import Decimal
from email import message_from_bytes, policy
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
from pypdf import PdfReader

from app.jobs.api import JOB_KINDS
from app.jobs.records.invoices import CURRENCY_DIGITS, Invoice, compute_totals, format_minor
from app.jobs.service.invoicing import render_invoice
from app.kernel.ids import UserId
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.answers import problem_of
from tests.fixtures.people import MakePerson, Person

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

INVOICE = {
    "number": "2026-0001",
    "order_id": "A-17",
    "customer": {"name": "Ada Lovelace", "email": "ada@example.org", "address": "12 St James's Square\nLondon"},
    "currency": "EUR",
    "lines": [
        {"description": "Analytical engine", "quantity": 3, "unit_price_minor": 3335},
        {"description": "Punched cards", "quantity": 1000, "unit_price_minor": 1},
    ],
    "tax_rate_percent": "19",
}
HOSTILE = '#import "x" #[b] \\ $x$ *bold* _it_ <script>alert(1)</script> &amp; @ref `code` שלום 🦄 "q"'


@pytest.mark.parametrize(
    ("amounts", "rate", "tax"),
    [
        ([10005, 1000], "19", 2091),
        ([50], "1", 1),
        ([49], "1", 0),
        ([150], "1", 2),
        ([333], "7.7", 26),
        ([0], "19", 0),
        ([10**15], "100", 10**15),
        ([1], "99.9999", 1),
    ],
)
def test_tax_is_rounded_half_up_on_the_subtotal(amounts: list[int], rate: str, tax: int) -> None:
    totals = compute_totals(amounts, Decimal(rate))
    assert (totals.subtotal, totals.tax, totals.total) == (sum(amounts), tax, sum(amounts) + tax)


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (123450, "EUR", "1,234.50"),
        (5, "USD", "0.05"),
        (1234, "JPY", "1,234"),
        (1234, "KWD", "1.234"),
        (0, "CHF", "0.00"),
    ],
)
def test_amounts_have_the_digits_of_their_currency(amount: int, currency: str, text: str) -> None:
    assert format_minor(amount, currency) == text


def test_currencies_are_those_of_iso_4217() -> None:
    assert {"EUR", "USD", "JPY", "XOF", "TND"} <= CURRENCY_DIGITS.keys()
    assert CURRENCY_DIGITS.keys().isdisjoint({"XXX", "XAU", "EEK", "eur", ""})
    assert all(len(code) == 3 and code.isupper() for code in CURRENCY_DIGITS)


def invoice(**changes: Any) -> Invoice:
    values: dict[str, Any] = {
        "id": UUID(int=1),
        "user_id": UserId(UUID(int=2)),
        "number": "N-1",
        "order_id": "O-1",
        "customer": orjson.dumps(INVOICE["customer"]).decode(),
        "currency": "EUR",
        "lines": orjson.dumps(INVOICE["lines"]).decode(),
        "tax_rate_percent": "19",
        "notes": None,
        "subtotal_minor": 11005,
        "tax_minor": 2091,
        "total_minor": 13096,
        "status": "pending",
        "job_id": UUID(int=3),
        "created_at": datetime(2026, 3, 4, tzinfo=UTC),
    }
    return Invoice(**values | changes)


@pytest.mark.parametrize(
    "notes", ["\u738b\u5c0f\u660e", "\u0e02\u0e2d\u0e1a\u0e04\u0e38\u0e13", "bell \a", "\ufffe", "\u16a0"]
)
def test_characters_without_a_glyph_do_not_keep_an_invoice_from_being_made(notes: str) -> None:
    first, again = (render_invoice(invoice(notes=notes)) for _ in range(2))
    assert first == again
    assert "130.96" in text_of(first)


def text_of(pdf: bytes) -> str:
    return "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(pdf)).pages)


def test_the_same_invoice_gives_the_same_bytes() -> None:
    first, again, other = render_invoice(invoice()), render_invoice(invoice()), render_invoice(invoice(number="N-2"))
    assert first.startswith(b"%PDF-")
    assert sha256(first).digest() == sha256(again).digest() != sha256(other).digest()
    text = text_of(first)
    for part in ("N-1", "O-1", "2026-03-04", "Ada Lovelace", "London", "33.35", "100.05", "110.05", "20.91", "130.96"):
        assert part in text


def test_hostile_text_is_printed_as_it_is() -> None:
    line = {"description": HOSTILE, "quantity": 1, "unit_price_minor": 1}
    customer = {"name": HOSTILE, "email": "a@example.org", "address": HOSTILE}
    pdf = render_invoice(
        invoice(
            number=HOSTILE,
            notes=HOSTILE,
            customer=orjson.dumps(customer).decode(),
            lines=orjson.dumps([line] * 60).decode(),
        )
    )
    text = text_of(pdf).replace("\n", " ")
    for part in (
        '#import "x"',
        "#[b]",
        "\\",
        "$x$",
        "*bold*",
        "_it_",
        "<script>alert(1)</script>",
        "&amp;",
        "@ref",
        "`code`",
    ):
        assert part in text, part
    assert "🦄" in text
    assert len(PdfReader(io.BytesIO(pdf)).pages) > 1


def test_many_short_lines_make_no_long_document() -> None:
    line = {"description": "a\n" * 250, "quantity": 1, "unit_price_minor": 1}
    customer = {"name": "b", "email": "a@example.org", "address": "b\n" * 500}
    pdf = render_invoice(
        invoice(
            number="1",
            order_id="1",
            notes="c\n" * 1000,
            customer=orjson.dumps(customer).decode(),
            lines=orjson.dumps([line] * 20).decode(),
        )
    )
    # It would have more than a hundred.
    assert len(PdfReader(io.BytesIO(pdf)).pages) < 15
    words = text_of(pdf).split()
    assert [words.count(letter) for letter in "abc"] == [250 * 20, 501, 1000]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"currency": "EURO"}, "#/currency"),
        ({"tax_rate_percent": "-1"}, "#/tax_rate_percent"),
        ({"tax_rate_percent": "100.1"}, "#/tax_rate_percent"),
        ({"tax_rate_percent": 19}, "#/tax_rate_percent"),
        ({"lines": []}, "#/lines"),
        ({"lines": [{"description": "x", "quantity": 0, "unit_price_minor": 1}]}, "#/lines/0/quantity"),
        ({"lines": [{"description": "x", "quantity": 1, "unit_price_minor": 1.5}]}, "#/lines/0/unit_price_minor"),
        ({"customer": {"name": "x", "email": "no\r\nBcc: y@example.org", "address": "z"}}, "#/customer/email"),
        ({"number": "1\r\nBcc: y@example.org"}, "#/number"),
        ({"number": "1\x85"}, "#/number"),
        ({"number": "\u200b"}, "#/number"),
        ({"order_id": "   "}, "#/order_id"),
        ({"customer": {"name": "\u3164", "email": "y@example.org", "address": "z"}}, "#/customer/name"),
        ({"customer": {"name": "x", "email": "y@example.org", "address": "\u2800\n"}}, "#/customer/address"),
        ({"lines": [{"description": "\u2060", "quantity": 1, "unit_price_minor": 1}]}, "#/lines/0/description"),
        ({"order_id": "\u2028"}, "#/order_id"),
        ({"customer": {"name": "a\x01b", "email": "y@example.org", "address": "z"}}, "#/customer/name"),
        ({"lines": [{"description": "x", "quantity": 10**6, "unit_price_minor": 10**9}] * 2}, "#"),
    ],
)
async def test_what_is_not_valid_is_refused(
    person: Person, connection: Connection, change: dict[str, Any], pointer: str
) -> None:
    answer = await person.post("/v1/invoices", json=INVOICE | change)
    assert answer.status_code == 422, answer.text
    assert pointer in {error["pointer"] for error in answer.json()["errors"]}
    assert await connection.fetchval("SELECT count(*) FROM jobs.invoices") == 0
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs") == 0


async def test_the_whole_chain(
    proven: Person, make_person: MakePerson, settings: Settings, connection: Connection
) -> None:
    person = proven
    accepted = await person.post("/v1/invoices", json=INVOICE)
    assert accepted.status_code == 202, accepted.text
    body = accepted.json()
    stored = body["invoice"]
    assert {name: stored[name] for name in INVOICE} == INVOICE
    assert (stored["subtotal_minor"], stored["tax_minor"], stored["total_minor"]) == (11005, 2091, 13096)
    assert (stored["status"], stored["notes"]) == ("pending", None)
    assert (body["job"]["kind"], body["job"]["state"]) == ("invoice.pdf", "queued")
    url = f"/v1/invoices/{stored['id']}"
    assert accepted.headers["location"] == url
    early = await person.get(f"{url}/pdf")
    assert (early.status_code, early.json()["code"]) == (409, "not_ready")

    async with open_worker(settings, JOB_KINDS):
        job = (await person.get(f"/v1/jobs/{body['job']['id']}", headers={"Prefer": "wait=25"})).json()
        assert job["state"] == "succeeded", job
        email = (await person.get("/v1/jobs?kind=invoice.email")).json()["items"][0]
        email = (await person.get(f"/v1/jobs/{email['id']}", headers={"Prefer": "wait=25"})).json()
        assert email["state"] == "succeeded", email
        assert email["result"] == {"invoice_id": stored["id"], "email": {"state": "sent"}}

    assert (await person.get(url)).json() == stored | {"status": "sent"}
    pdf = await person.get(f"{url}/pdf")
    assert (pdf.status_code, pdf.headers["content-type"]) == (200, "application/pdf")
    assert "130.96" in text_of(pdf.content)
    (kept,) = (settings.data_dir / "mailbox").glob("*.eml")
    mail = message_from_bytes(_read(kept), policy=policy.default)
    assert (mail["To"], mail["Subject"]) == ("ada@example.org", "Invoice 2026-0001")
    (attachment,) = mail.iter_attachments()
    assert attachment.get_content() == pdf.content
    assert (await (await make_person()).get(url)).status_code == 404
    assert (await person.get("/v1/invoices")).json() == {"items": [stored | {"status": "sent"}], "next_cursor": None}
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind LIKE 'invoice.%'") == 2

    await connection.execute("DELETE FROM jobs.jobs")
    anew = await person.get(f"{url}/pdf")
    assert (anew.status_code, anew.content, anew.headers["etag"]) == (200, pdf.content, pdf.headers["etag"])
    part = await person.get(f"{url}/pdf", headers={"Range": "bytes=0-4"})
    assert (part.status_code, part.content) == (206, b"%PDF-")


def _read(path: Path) -> bytes:
    return path.read_bytes()


async def test_a_number_is_used_once_by_each_caller(
    person: Person, make_person: MakePerson, connection: Connection
) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    first = await person.post("/v1/invoices", json=INVOICE, headers=key)
    replayed = await person.post("/v1/invoices", json=INVOICE, headers=key)
    assert (replayed.status_code, replayed.json()) == (202, first.json())
    again = await person.post("/v1/invoices", json=INVOICE | {"notes": "another"})
    assert (again.status_code, again.json()["code"]) == (409, "invoice_number_taken")
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind = 'invoice.pdf'") == 1
    assert (await (await make_person()).post("/v1/invoices", json=INVOICE)).status_code == 202


async def test_all_invoices_share_the_keys_of_their_e_mails(proven: Person, connection: Connection) -> None:
    urls = []
    for number in ("1", "2"):
        issued = await proven.post("/v1/invoices", json=INVOICE | {"number": number})
        urls.append(f"/v1/invoices/{issued.json()['invoice']['id']}/email")
    # As if a worker had made the files.
    await connection.execute("UPDATE jobs.invoices SET status = 'issued'")
    key = {"Idempotency-Key": str(uuid4())}
    first = await proven.post(urls[0], headers=key)
    assert first.status_code == 202, first.text
    replayed = await proven.post(urls[0], headers=key)
    assert (replayed.status_code, replayed.json()) == (202, first.json())
    problem_of(await proven.post(urls[1], headers=key), 422, "idempotency_key_reused")
    assert (await proven.post(urls[1], headers={"Idempotency-Key": str(uuid4())})).status_code == 202
    rows = await connection.fetch("SELECT operation, count(*) FROM kernel.idempotency_keys GROUP BY operation")
    assert [tuple(row) for row in rows] == [("invoices.email", 2)]


@pytest.mark.settings(
    APP_JOBS_SELLER_NAME="Analytical Ltd", APP_JOBS_SELLER_ADDRESS="1 Street\\nLondon", APP_JOBS_SELLER_TAX_ID="GB 123"
)
async def test_an_invoice_keeps_the_seller_it_was_issued_by(
    proven: Person, settings: Settings, connection: Connection
) -> None:
    issued = await proven.post("/v1/invoices", json=INVOICE | {"number": "R/2026\\1 ü\u16a0", "notes": "\u16a0"})
    url = f"/v1/invoices/{issued.json()['invoice']['id']}"
    elsewhere = settings.jobs.model_copy(update={"seller_name": "Another"})
    async with open_worker(settings.model_copy(update={"jobs": elsewhere}), JOB_KINDS):
        job = (await proven.get(f"/v1/jobs/{issued.json()['job']['id']}", headers={"Prefer": "wait=25"})).json()
    assert job["result"] == {"invoice_id": issued.json()["invoice"]["id"], "missing_characters": ["U+16A0"]}
    pdf = await proven.get(f"{url}/pdf")
    assert "Analytical Ltd\n1 Street\nLondon\nGB 123" in text_of(pdf.content)
    # No name of a file has what separates folders (RFC 6266, section 4.3).
    assert pdf.headers["content-disposition"] == (
        "attachment; filename=\"invoice-R_2026_1___.pdf\"; filename*=UTF-8''invoice-R-2026-1%20%C3%BC%E1%9A%A0.pdf"
    )
    await connection.execute("UPDATE jobs.invoices SET seller = NULL")
    await connection.execute("DELETE FROM jobs.jobs")
    assert "Bill to" in text_of((await proven.get(f"{url}/pdf")).content)


async def test_the_product_is_the_seller_unless_there_is_another(person: Person, connection: Connection) -> None:
    assert (await person.post("/v1/invoices", json=INVOICE)).status_code == 202
    assert await connection.fetchval("SELECT seller ->> 'name' FROM jobs.invoices") == "Onehop"
