"""The kind `invoice.email`: the second link of an invoice's chain, and the announcement that ends it."""

import asyncio
from typing import Any

import orjson

from app.jobs.errors import InvoiceNotReady
from app.jobs.handlers.email_send import MAIL_TEMPLATES
from app.jobs.handlers.invoice_pdf import InvoiceArgs
from app.jobs.queries.invoices import set_invoice_status
from app.jobs.records.invoices import Invoice, format_minor
from app.jobs.service.invoicing import KIND_EMAIL, read_pdf
from app.jobs.service.publishing import publish_event
from app.jobs.service.storage import ArtifactStore
from app.kernel.mail import Attachment, Mail, MailWithheld
from app.kernel.queue import JobContext, SnoozeJob, job

_NOT_READY_SECONDS = 60.0


@job(KIND_EMAIL, args=InvoiceArgs)
async def invoice_email(ctx: JobContext, args: InvoiceArgs) -> dict[str, Any] | None:
    try:
        invoice, artifact, made = await read_pdf(ctx.db, asyncio.to_thread, ctx.owner, args.invoice_id)
    except InvoiceNotReady:
        # The job that makes it was started over; it asks for this e-mail at its end.
        raise SnoozeJob(_NOT_READY_SECONDS) from None
    customer = orjson.loads(invoice.customer)
    subject, text, html = MAIL_TEMPLATES.render(
        "invoice_mail",
        {
            "number": invoice.number,
            "name": customer["name"],
            "total": format_minor(invoice.total_minor, invoice.currency),
            "currency": invoice.currency,
        },
    )
    content = made if made is not None else await ctx.service(ArtifactStore).read_all(artifact.storage_key)
    pdf = Attachment("invoice.pdf", artifact.content_type, content)
    mail = Mail(
        *(customer["email"], subject, text, html, str(ctx.job_id)),
        attachments=(pdf,),
        purpose="invoice",
        account=ctx.owner,
    )
    outcome: dict[str, str] = {"state": "sent"}
    try:
        await ctx.send_mail(mail)
    except MailWithheld as withheld:
        # The invoice is issued all the same, and its PDF can be sent by other means.
        outcome = {"state": "withheld", "reason": withheld.reason}
        if withheld.reason == "account_inactive":
            return {"invoice_id": str(invoice.id), "email": outcome}
    async with ctx.transaction("jobs.invoice_sent") as tx:
        if outcome["state"] == "sent":
            await set_invoice_status(tx, ctx.owner, invoice.id, "sent")
        await publish_event(
            tx, ctx.queue, ctx.owner, "invoice.issued", _event(invoice), event_id=invoice.id, now=ctx.clock.now()
        )
        await ctx.complete(tx, {"invoice_id": str(invoice.id), "email": outcome})
    return None


def _event(invoice: Invoice) -> dict[str, Any]:
    return {
        "invoice_id": str(invoice.id),
        "number": invoice.number,
        "order_id": invoice.order_id,
        "currency": invoice.currency,
        "total_minor": invoice.total_minor,
    }
