"""Invoices: stored with their chain in one transaction; made, sent and announced by jobs, one after the other."""

from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import sha256
from typing import Any, TypeAlias
from uuid import UUID

import orjson

from app.identity.api import EmailNotVerified, get_mail_account
from app.jobs.errors import ArtifactExpired, ArtifactNotFound, InvoiceNotFound, InvoiceNotReady
from app.jobs.queries import invoices as queries
from app.jobs.records import Artifact
from app.jobs.records.invoices import Invoice, NewInvoice, format_minor
from app.jobs.service.artifacts import get_artifact
from app.jobs.service.backlogs import QueueBacklogs
from app.jobs.service.documents import Document, typeset
from app.jobs.service.submitting import Submitted, parse_args, submit_row
from app.kernel.cache import Cache
from app.kernel.database import Database, ReadConn, Tx
from app.kernel.ids import UserId
from app.kernel.pagination import MAX_PAGE_BYTES, Cursors, Page
from app.kernel.queue import JobKind, Queue
from app.kernel.validation.text import within_lines

PDF_NAME = "invoice.pdf"
KIND_EMAIL = "invoice.email"
_KIND_PDF = "invoice.pdf"
_QUEUE_OF_EMAIL = "default"
# In the document, of a description or an address, and of the notes. With one letter on each of its lines an invoice
# of 150 KiB would have 2,000 pages, and take 7 s and half a gigabyte to make.
_MOST_LINES = 20
_MOST_LINES_OF_NOTES = 100

# Runs a computation beside the event loop.
RunInThread: TypeAlias = Callable[[Callable[[], bytes]], Awaitable[bytes]]


async def issue_invoice(
    tx: Tx, queue: Queue, cache: Cache, backlogs: QueueBacklogs, kind: JobKind[Any], invoice: NewInvoice
) -> tuple[Invoice, Submitted]:
    """Stores the invoice together with the job that begins its chain.

    Raises:
        InvoiceNumberTaken: the caller has used this number before.
        BacklogFull: too many jobs of the caller are unfinished.
    """
    row = queue.new_job(
        kind.name,
        parse_args(kind, {"invoice_id": str(invoice.id)}),
        user_id=invoice.user_id,
        queue=kind.queue,
        priority=kind.priority,
        max_attempts=kind.max_attempts,
        timeout_s=kind.timeout,
        allowance=backlogs.allow(kind.queue),
    )
    stored = await queries.insert_invoice(tx, invoice, row.id)
    return stored, await submit_row(tx, queue, cache, backlogs, row)


async def email_invoice(
    tx: Tx, queue: Queue, cache: Cache, backlogs: QueueBacklogs, user_id: UserId, invoice_id: UUID
) -> Submitted:
    """Has the e-mail with the invoice sent, or sent again; the job under way, if there is one.

    Raises:
        InvoiceNotFound
        InvoiceNotReady: the PDF has not been made yet.
        EmailNotVerified: an account whose address is not verified sends no invoices.
        BacklogFull: too many jobs of the caller are unfinished.
    """
    invoice = await get_invoice(tx, user_id, invoice_id)
    if invoice.status == "pending":
        raise InvoiceNotReady
    account = await get_mail_account(tx, user_id)
    if account is None or not account.is_verified:
        raise EmailNotVerified
    row = queue.new_job(
        KIND_EMAIL,
        {"invoice_id": str(invoice.id)},
        user_id=user_id,
        unique_key=str(invoice.id),
        queue=_QUEUE_OF_EMAIL,
        allowance=backlogs.allow(_QUEUE_OF_EMAIL),
    )
    return await submit_row(tx, queue, cache, backlogs, row)


async def read_invoice(db: Database, user_id: UserId, invoice_id: UUID) -> Invoice:
    """Raises InvoiceNotFound."""
    async with db.read("jobs.invoice") as conn:
        return await get_invoice(conn, user_id, invoice_id)


async def get_invoice(conn: ReadConn, user_id: UserId, invoice_id: UUID) -> Invoice:
    """Raises InvoiceNotFound."""
    invoice = await queries.get_invoice(conn, user_id, invoice_id)
    if invoice is None:
        raise InvoiceNotFound
    return invoice


async def list_invoices(
    db: Database, cursors: Cursors, user_id: UserId, *, limit: int, cursor: str | None
) -> Page[Invoice]:
    """A page of a user's invoices, newest first; it may be short (`kernel.pagination`). Raises InvalidCursor."""
    before = cursors.decode("invoices", user_id, cursor, tuple[UUID])[0] if cursor is not None else None
    async with db.read("jobs.invoices") as conn:
        found, is_cut = await queries.list_invoices(
            conn, user_id, before=before, limit=limit + 1, max_bytes=MAX_PAGE_BYTES
        )
    return cursors.paginate(
        "invoices",
        user_id,
        found,
        lambda invoice: (invoice.id,),
        limit=limit,
        scan_end=(found[-1].id,) if is_cut else None,
    )


async def _get_pdf(db: Database, user_id: UserId, invoice_id: UUID) -> tuple[Invoice, Artifact]:
    """The invoice and its file.

    Raises:
        InvoiceNotFound, ArtifactExpired: there is none, or none any more.
        InvoiceNotReady: it has not been made yet.
    """
    invoice = await read_invoice(db, user_id, invoice_id)
    try:
        return invoice, await get_artifact(db, invoice.job_id, user_id, PDF_NAME)
    except ArtifactNotFound as error:
        raise InvoiceNotReady from error


async def read_pdf(
    db: Database, run: RunInThread, user_id: UserId, invoice_id: UUID
) -> tuple[Invoice, Artifact, bytes | None]:
    """The invoice and its file; where there is none any more, or its job ended without one, its bytes too, which `run`
    makes anew: the same invoice gives the same ones.

    Raises:
        InvoiceNotFound
        InvoiceNotReady: it has not been made yet. And what `run` raises.
    """
    try:
        return *await _get_pdf(db, user_id, invoice_id), None
    except (ArtifactExpired, InvoiceNotReady):
        invoice = await read_invoice(db, user_id, invoice_id)
        if invoice.status == "pending":
            raise
    pdf = await run(partial(render_invoice, invoice))
    digest = sha256(pdf).digest()
    return invoice, Artifact(_KIND_PDF, PDF_NAME, "application/pdf", len(pdf), digest, "", is_expired=False), pdf


def render_invoice(invoice: Invoice) -> bytes:
    """The invoice as a PDF. Keeps a core busy for some milliseconds, so it belongs into a thread."""
    return typeset_invoice(invoice).pdf


def typeset_invoice(invoice: Invoice) -> Document:
    """The same, with what has no glyph."""
    return typeset("invoice", _template_data(invoice), invoice.created_at)


def _template_data(invoice: Invoice) -> dict[str, Any]:
    currency = invoice.currency
    customer = orjson.loads(invoice.customer)
    return {
        "number": invoice.number,
        "order_id": invoice.order_id,
        "issued": [invoice.created_at.year, invoice.created_at.month, invoice.created_at.day],
        "seller": orjson.loads(invoice.seller) if invoice.seller else None,
        "customer": customer | {"address": within_lines(customer["address"], _MOST_LINES)},
        "currency": currency,
        "lines": [
            {
                "description": within_lines(line["description"], _MOST_LINES),
                "quantity": str(line["quantity"]),
                "unit_price": format_minor(line["unit_price_minor"], currency),
                "amount": format_minor(line["quantity"] * line["unit_price_minor"], currency),
            }
            for line in orjson.loads(invoice.lines)
        ],
        "tax_rate": invoice.tax_rate_percent,
        "subtotal": format_minor(invoice.subtotal_minor, currency),
        "tax": format_minor(invoice.tax_minor, currency),
        "total": format_minor(invoice.total_minor, currency),
        "notes": within_lines(invoice.notes, _MOST_LINES_OF_NOTES) if invoice.notes is not None else None,
    }
