"""`/v1/invoices`."""

from decimal import Decimal
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse

from app.jobs.records.invoices import Invoice, NewInvoice, compute_totals
from app.jobs.router.access import FileReader, JobReader, JobStarter, Runtime, fragment
from app.jobs.router.files import file_response, file_responses
from app.jobs.router.jobs import job_view
from app.jobs.schemas.invoices import InvoiceAccepted, InvoicePage, InvoiceResponse, IssueInvoiceRequest
from app.jobs.schemas.jobs import InvoiceEmailJob
from app.jobs.service import invoicing
from app.kernel.database import Tx
from app.kernel.http import Id, PageQuery, Router, json_response, located, problem_responses, reads_headers
from app.kernel.http.idempotency import idempotent
from app.kernel.ids import new_id
from app.kernel.request.state import RequestStateDep
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/invoices", tags=["invoices"])


@router.post(
    "",
    status_code=202,
    response_model=InvoiceAccepted,
    responses=problem_responses(409) | located(202),
    openapi_extra=reads_headers("IdempotencyKey"),
)
async def issue_invoice(
    request: Request, principal: JobStarter, resources: ResourcesDep, runtime: Runtime, body: IssueInvoiceRequest
) -> Response:
    """Issue an invoice. Its PDF, e-mail and webhook follow in the background."""

    async def issue(tx: Tx) -> Response:
        new = NewInvoice(
            id=new_id(),
            user_id=principal.user_id,
            number=body.number,
            order_id=body.order_id,
            customer=body.customer.model_dump(),
            currency=body.currency,
            lines=[line.model_dump() for line in body.lines],
            tax_rate_percent=body.tax_rate_percent,
            notes=body.notes,
            totals=compute_totals(
                [line.quantity * line.unit_price_minor for line in body.lines], Decimal(body.tax_rate_percent)
            ),
            seller=runtime.seller,
            created_at=resources.clock.now(),
        )
        invoice, submitted = await invoicing.issue_invoice(
            tx, resources.queue, resources.cache, runtime.backlogs, runtime.kinds["invoice.pdf"], new
        )
        content = {"invoice": _view(invoice), "job": job_view(submitted.job)}
        return json_response(content, status=202, headers={"Location": f"/v1/invoices/{invoice.id}"})

    return await idempotent(request, resources, principal.user_id, operation="invoices.issue", effect=issue)


@router.get("", response_model=InvoicePage)
async def list_invoices(
    principal: JobReader, resources: ResourcesDep, query: Annotated[PageQuery, Query()]
) -> Response:
    """List your invoices, newest first."""
    page = await invoicing.list_invoices(
        resources.db, resources.cursors, principal.user_id, limit=query.limit, cursor=query.cursor
    )
    return json_response({"items": [_view(invoice) for invoice in page.items], "next_cursor": page.next_cursor})


@router.get("/{invoice_id}", response_model=InvoiceResponse)
async def get_invoice(principal: JobReader, resources: ResourcesDep, invoice_id: Id) -> Response:
    """Get one of your invoices."""
    return json_response(_view(await invoicing.read_invoice(resources.db, principal.user_id, invoice_id)))


@router.get(
    "/{invoice_id}/pdf",
    response_class=StreamingResponse,
    responses=problem_responses(409, 410, 416) | file_responses("application/pdf"),
    openapi_extra=reads_headers("IfNoneMatch", "Range", "IfRange"),
)
async def download_invoice(
    state: RequestStateDep, principal: FileReader, resources: ResourcesDep, runtime: Runtime, invoice_id: Id
) -> Response:
    """Download an invoice as a PDF."""
    invoice, artifact, content = await invoicing.read_pdf(
        resources.db, runtime.rendering.run, principal.user_id, invoice_id
    )
    name = f"invoice-{invoice.number}.pdf"
    return await file_response(state, runtime, principal.user_id, artifact, name, content=content)


@router.post(
    "/{invoice_id}/email",
    status_code=202,
    response_model=InvoiceEmailJob,
    responses=problem_responses(409) | located(202),
    openapi_extra=reads_headers("IdempotencyKey"),
)
async def email_invoice(
    request: Request, principal: JobStarter, resources: ResourcesDep, runtime: Runtime, invoice_id: Id
) -> Response:
    """Send the e-mail of an invoice, for instance after your address has been verified."""

    async def send(tx: Tx) -> Response:
        submitted = await invoicing.email_invoice(
            tx, resources.queue, resources.cache, runtime.backlogs, principal.user_id, invoice_id
        )
        content = job_view(submitted.job)
        return json_response(content, status=202, headers={"Location": f"/v1/jobs/{submitted.job.id}"})

    return await idempotent(request, resources, principal.user_id, operation="invoices.email", effect=send)


def _view(invoice: Invoice) -> dict[str, Any]:
    return {
        "id": invoice.id,
        "number": invoice.number,
        "order_id": invoice.order_id,
        "customer": fragment(invoice.customer),
        "currency": invoice.currency,
        "lines": fragment(invoice.lines),
        "tax_rate_percent": invoice.tax_rate_percent,
        "notes": invoice.notes,
        "subtotal_minor": invoice.subtotal_minor,
        "tax_minor": invoice.tax_minor,
        "total_minor": invoice.total_minor,
        "status": invoice.status,
        "created_at": invoice.created_at,
    }
