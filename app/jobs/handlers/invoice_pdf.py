"""The kind `invoice.pdf`: the first link of an invoice's chain."""

import asyncio
from uuid import UUID

from pydantic import Field

from app.jobs.queries.invoices import set_invoice_status
from app.jobs.service.invoicing import KIND_EMAIL, PDF_NAME, get_invoice, typeset_invoice
from app.kernel.queue import JobArgs, JobContext, job


class InvoiceArgs(JobArgs):
    """Which invoice of the job's owner."""

    invoice_id: UUID = Field(strict=False)


@job("invoice.pdf", args=InvoiceArgs, queue="pdf", timeout=60)
async def invoice_pdf(ctx: JobContext, args: InvoiceArgs) -> None:
    """The file, the invoice's status and the next link become visible together.

    The result names the characters that no font has, if there are any.
    """
    async with ctx.db.read("jobs.invoice") as conn:
        invoice = await get_invoice(conn, ctx.owner, args.invoice_id)
    async with ctx.artifact(PDF_NAME, "application/pdf") as file:
        document = await asyncio.to_thread(typeset_invoice, invoice)
        await file.write(document.pdf)
    async with ctx.transaction("jobs.invoice_issued") as tx:
        await set_invoice_status(tx, ctx.owner, invoice.id, "issued")
        await ctx.queue.enqueue(
            tx, KIND_EMAIL, {"invoice_id": str(invoice.id)}, user_id=ctx.owner, unique_key=str(invoice.id)
        )
        await ctx.complete(tx, {"invoice_id": str(invoice.id), **document.remarks})
