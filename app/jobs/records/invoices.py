"""Invoices: amounts in minor units, decimal tax, currencies of ISO 4217."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal
from uuid import UUID

from typing_extensions import TypeAliasType

from app.kernel.ids import UserId

InvoiceStatus = TypeAliasType("InvoiceStatus", Literal["pending", "issued", "sent", "failed"])

MAX_MINOR = 10**15

# Active codes of ISO 4217 by the number of digits of their minor unit.
_TWO_DIGITS = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP CVE CZK
DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD
KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP
PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH
USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG
"""
_NO_DIGITS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THREE_DIGITS = "BHD IQD JOD KWD LYD OMR TND"

CURRENCY_DIGITS: dict[str, int] = {
    **dict.fromkeys(_TWO_DIGITS.split(), 2),
    **dict.fromkeys(_NO_DIGITS.split(), 0),
    **dict.fromkeys(_THREE_DIGITS.split(), 3),
}


@dataclass(frozen=True, slots=True)
class Totals:
    """Amounts in minor units."""

    subtotal: int
    tax: int
    total: int


def compute_totals(amounts: Sequence[int], tax_rate_percent: Decimal) -> Totals:
    """Tax is taken on the subtotal and rounded half up to the minor unit."""
    subtotal = sum(amounts)
    tax = int((subtotal * tax_rate_percent / 100).quantize(Decimal(1), rounding=ROUND_HALF_UP))
    return Totals(subtotal, tax, subtotal + tax)


def format_minor(amount: int, currency: str) -> str:
    """An amount in the currency's major unit, with a comma between thousands: `1,234.50`."""
    return f"{Decimal(amount).scaleb(-CURRENCY_DIGITS[currency]):,.{CURRENCY_DIGITS[currency]}f}"


@dataclass(frozen=True, slots=True)
class Seller:
    """The seller of an invoice, as it is printed."""

    name: str
    address: str | None
    tax_id: str | None


@dataclass(frozen=True, slots=True)
class NewInvoice:
    """An invoice to be stored, with its totals."""

    id: UUID
    user_id: UserId
    number: str
    order_id: str
    customer: dict[str, Any]
    currency: str
    lines: list[dict[str, Any]]
    tax_rate_percent: str
    notes: str | None
    totals: Totals
    seller: Seller
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Invoice:
    """A stored invoice; `customer`, `lines` and `seller` are JSON text. Older ones have no seller."""

    id: UUID
    user_id: UserId
    number: str
    order_id: str
    customer: str
    currency: str
    lines: str
    tax_rate_percent: str
    notes: str | None
    subtotal_minor: int
    tax_minor: int
    total_minor: int
    status: str
    job_id: UUID
    created_at: datetime
    seller: str | None = None
