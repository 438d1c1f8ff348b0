"""Invoices of the caller."""

from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from pydantic import AfterValidator, Field, model_validator

from app.jobs.records.invoices import CURRENCY_DIGITS, MAX_MINOR, InvoiceStatus
from app.jobs.schemas.jobs import EXAMPLE_JOB, InvoicePdfJob
from app.kernel.http import BodyLimits, Email, NextCursor, Schema, example
from app.kernel.validation.text import VisibleLine, VisibleText

_EXAMPLE: dict[str, Any] = {
    "number": "2026-0001",
    "order_id": "A-17",
    "customer": {"name": "Ada Lovelace", "email": "ada@example.com", "address": "12 St James's Square, London"},
    "currency": "EUR",
    "lines": [{"description": "Analytical engine, one hour", "quantity": 3, "unit_price_minor": 12000}],
    "tax_rate_percent": "19",
}
_EXAMPLE_INVOICE = {
    "id": "0198f000-0000-7000-8000-000000000001",
    **_EXAMPLE,
    "notes": None,
    "subtotal_minor": 36_000,
    "tax_minor": 6_840,
    "total_minor": 42_840,
    "status": "pending",
    "created_at": "2026-01-31T12:00:00.000000Z",
}
_EXAMPLE_PDF_JOB = EXAMPLE_JOB | {
    "kind": "invoice.pdf",
    "state": "queued",
    "attempt": 0,
    "max_attempts": 8,
    "progress": None,
    "result": None,
    "artifacts": [],
    "started_at": None,
    "finished_at": None,
}
_TAX = "Tax rate in per cent, a decimal with at most four digits behind the point, from 0 to 100."


def _known_currency(code: str) -> str:
    if code not in CURRENCY_DIGITS:
        raise ValueError("This is no active currency code of ISO 4217")
    return code


class Customer(Schema):
    """The recipient of an invoice."""

    name: Annotated[str, VisibleLine(200)] = Field(description="Name, one line of at most 200 characters.")
    email: Email = Field(description="Address that the invoice is sent to.")
    address: Annotated[str, VisibleText(1000)] = Field(description="Postal address, at most 1,000 characters.")


class InvoiceLine(Schema):
    """A line of an invoice."""

    description: Annotated[str, VisibleText(500)] = Field(description="What is billed, at most 500 characters.")
    quantity: int = Field(ge=1, le=1_000_000, description="How many units, at most 1,000,000.")
    unit_price_minor: int = Field(
        ge=0,
        le=1_000_000_000,
        description="Price of one unit without tax, in the currency's minor unit (as cents), at most 1,000,000,000.",
    )


class IssueInvoiceRequest(Schema, json_schema_extra=example(_EXAMPLE)):
    """An invoice to be made. Tax is taken on the subtotal and rounded half up to the minor unit."""

    body_limits: ClassVar = BodyLimits(max_bytes=512 * 1024, max_values=2_000)

    number: Annotated[str, VisibleLine(64)] = Field(
        description="Number of the invoice, unique among yours, one line of at most 64 characters."
    )
    order_id: Annotated[str, VisibleLine(64)] = Field(description="The order that it is for, at most 64 characters.")
    customer: Customer
    currency: Annotated[str, AfterValidator(_known_currency)] = Field(
        pattern=r"^[A-Z]{3}$", examples=["EUR"], description="Active currency code of ISO 4217."
    )
    lines: list[InvoiceLine] = Field(min_length=1, max_length=200, description="1 to 200 lines.")
    tax_rate_percent: str = Field(
        "0", pattern=r"^(100(\.0{1,4})?|[0-9]{1,2}(\.[0-9]{1,4})?)$", examples=["19", "7.7"], description=_TAX
    )
    notes: str | None = Field(None, max_length=2000, description="Text below the lines, at most 2,000 characters.")

    @model_validator(mode="after")
    def _bounded(self) -> "IssueInvoiceRequest":
        if sum(line.quantity * line.unit_price_minor for line in self.lines) > MAX_MINOR:
            raise ValueError("The total is too large")
        return self


class InvoiceResponse(Schema, json_schema_extra=example(_EXAMPLE_INVOICE)):
    """A stored invoice."""

    id: UUID = Field(description="Id of the invoice.")
    number: str = Field(description="Number of the invoice.")
    order_id: str = Field(description="The order that it is for.")
    customer: Customer
    currency: str = Field(description="Currency of all amounts (ISO 4217).")
    lines: list[InvoiceLine] = Field(description="Lines, in the order of the request.")
    tax_rate_percent: str = Field(description=_TAX)
    notes: str | None = Field(description="Text below the lines; null: none.")
    subtotal_minor: int = Field(description="Sum of the lines, in the currency's minor unit.")
    tax_minor: int = Field(description="Tax on the subtotal, in the currency's minor unit.")
    total_minor: int = Field(description="Subtotal and tax, in the currency's minor unit.")
    status: InvoiceStatus = Field(
        description="`pending`: the PDF is being made; `issued`: it exists; `sent`: the e-mail was sent; `failed`: the "
        "mail server refused it, or the job that makes it was cancelled or failed."
    )
    created_at: datetime = Field(description="When the invoice was stored.")


class InvoiceAccepted(Schema, json_schema_extra=example({"invoice": _EXAMPLE_INVOICE, "job": _EXAMPLE_PDF_JOB})):
    """The invoice, and the job that makes it."""

    invoice: InvoiceResponse
    job: InvoicePdfJob


class InvoicePage(Schema, json_schema_extra=example({"items": [_EXAMPLE_INVOICE], "next_cursor": None})):
    """A page of invoices, newest first."""

    items: list[InvoiceResponse] = Field(description="Invoices, newest first.")
    next_cursor: NextCursor
