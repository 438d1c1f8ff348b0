"""Invoices."""

from collections.abc import AsyncIterator
from uuid import UUID

import orjson

from app.jobs.errors import InvoiceNumberTaken
from app.jobs.records.invoices import Invoice, InvoiceStatus, NewInvoice
from app.kernel.database import ConstraintViolated, CopyConn, ReadConn, Tx
from app.kernel.ids import UserId

_NUMBER_CONSTRAINT = "invoices_number_key"

INSERT_INVOICE = """
INSERT INTO jobs.invoices (id, user_id, number, order_id, customer, currency, lines, tax_rate_percent, notes,
                           subtotal_minor, tax_minor, total_minor, status, job_id, created_at, seller)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 'pending', $13, $14, $15)
RETURNING id, user_id, number, order_id, customer, currency, lines, tax_rate_percent, notes, subtotal_minor, tax_minor,
          total_minor, status, job_id, created_at, seller
"""


async def insert_invoice(tx: Tx, invoice: NewInvoice, job_id: UUID) -> Invoice:
    """Raises InvoiceNumberTaken."""
    try:
        row = await tx.fetchrow(
            INSERT_INVOICE,
            invoice.id,
            invoice.user_id,
            invoice.number,
            invoice.order_id,
            orjson.dumps(invoice.customer).decode(),
            invoice.currency,
            orjson.dumps(invoice.lines).decode(),
            invoice.tax_rate_percent,
            invoice.notes,
            invoice.totals.subtotal,
            invoice.totals.tax,
            invoice.totals.total,
            job_id,
            invoice.created_at,
            orjson.dumps(invoice.seller).decode(),
        )
    except ConstraintViolated as violation:
        if violation.constraint == _NUMBER_CONSTRAINT:
            raise InvoiceNumberTaken from violation
        raise
    if row is None:
        raise LookupError("an insert returns its row")
    return Invoice(**row)


GET_INVOICE = """
SELECT i.id, i.user_id, i.number, i.order_id, i.customer, i.currency, i.lines, i.tax_rate_percent, i.notes,
       i.subtotal_minor, i.tax_minor, i.total_minor, i.status, i.job_id, i.created_at, i.seller
FROM jobs.invoices AS i
WHERE i.user_id = $1 AND i.id = $2
"""


async def get_invoice(conn: ReadConn, user_id: UserId, invoice_id: UUID) -> Invoice | None:
    row = await conn.fetchrow(GET_INVOICE, user_id, invoice_id)
    return None if row is None else Invoice(**row)


LIST_INVOICES = """
SELECT i.id, i.user_id, i.number, i.order_id, i.customer, i.currency, i.lines, i.tax_rate_percent, i.notes,
       i.subtotal_minor, i.tax_minor, i.total_minor, i.status, i.job_id, i.created_at, i.seller
FROM jobs.invoices AS i
WHERE i.user_id = $1 AND i.id < coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
ORDER BY i.id DESC
LIMIT $3
"""


# The first one is always in it, whatever its size.
PAGE_OF_INVOICES = """
SELECT p.id, p.user_id, p.number, p.order_id, p.customer, p.currency, p.lines, p.tax_rate_percent, p.notes,
       p.subtotal_minor, p.tax_minor, p.total_minor, p.status, p.job_id, p.created_at, p.seller, p.found
FROM (
    SELECT i.id, i.user_id, i.number, i.order_id, i.customer, i.currency, i.lines, i.tax_rate_percent, i.notes,
           i.subtotal_minor, i.tax_minor, i.total_minor, i.status, i.job_id, i.created_at, i.seller,
           count(*) OVER () AS found, row_number() OVER newest AS place,
           sum(octet_length(i.lines::text) + octet_length(i.customer::text) + coalesce(octet_length(i.notes), 0))
           OVER newest AS bytes
    FROM (
        SELECT id, user_id, number, order_id, customer, currency, lines, tax_rate_percent, notes, subtotal_minor,
               tax_minor, total_minor, status, job_id, created_at, seller
        FROM jobs.invoices
        WHERE user_id = $1 AND id < coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
        ORDER BY id DESC
        LIMIT $3
    ) AS i
    WINDOW newest AS (ORDER BY i.id DESC)
) AS p
WHERE p.place = 1 OR p.bytes <= $4
ORDER BY p.id DESC
"""


async def list_invoices(
    conn: ReadConn, user_id: UserId, *, before: UUID | None, limit: int, max_bytes: int
) -> tuple[list[Invoice], bool]:
    """A user's invoices, newest first, up to about `max_bytes` in all; and whether these have kept some out."""
    rows = await conn.fetch(PAGE_OF_INVOICES, user_id, before, limit, max_bytes)
    return [Invoice(*row[:-1]) for row in rows], bool(rows) and rows[0]["found"] > len(rows)


# One has up to hundreds of KiB.
_PREFETCH = 32
_ALL = 2**62


async def iterate_invoices(conn: CopyConn, user_id: UserId) -> AsyncIterator[Invoice]:
    """All invoices of a user, newest first, a few in memory at a time."""
    async for row in conn.cursor(LIST_INVOICES, user_id, None, _ALL, prefetch=_PREFETCH):
        yield Invoice(**row)


SET_INVOICE_STATUS = """
UPDATE jobs.invoices SET status = $3 WHERE user_id = $1 AND id = $2
"""


async def set_invoice_status(tx: Tx, user_id: UserId, invoice_id: UUID, status: InvoiceStatus) -> None:
    await tx.execute(SET_INVOICE_STATUS, user_id, invoice_id, status)
