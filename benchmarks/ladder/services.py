"""The fourteen services of the story, written once. The stage decides how they reach each other and the database.

An operation is named `service.operation`, takes keyword arguments and answers JSON.
"""

import base64
import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Protocol

JSON = dict[str, Any]

NAMES = (
    *("core-api", "auth", "token", "session", "user", "profile", "prefs"),
    *("events", "report", "export", "invoice", "pdf", "email", "webhook"),
)


class Unauthorised(Exception):
    """No such token."""


class Context(Protocol):
    """How a stage does what is slow."""

    is_order_in_background: bool

    async def call(self, operation: str, **arguments: Any) -> Any: ...
    async def rows(self, sql: str, *arguments: Any) -> list[JSON]: ...
    async def send_mail(self, to: str, subject: str, pdf: bytes) -> None: ...
    async def post(self, document: JSON) -> None: ...
    async def render(self, source: bytes) -> bytes: ...
    def later(self, work: Awaitable[None]) -> None: ...


async def overview(context: Context, *, token: str) -> JSON:
    """core-api: the composed read."""
    caller = await context.call("auth.verify", token=token)
    user_id = caller["user_id"]
    # Defect: one call after the other, although none needs the other's answer.
    user = await context.call("user.get", user_id=user_id)
    preferences = await context.call("prefs.get", user_id=user_id)
    events = await context.call("events.recent", user_id=user_id)
    counts = await context.call("report.counts", user_id=user_id)
    recent = await context.call("export.recent", user_id=user_id)
    return {"user": user, "preferences": preferences, "recent_events": events, "jobs": {**counts, "recent": recent}}


async def order(context: Context, *, token: str, document: JSON) -> JSON:
    """core-api: the invoice with its PDF, e-mail and webhook."""
    caller = await context.call("auth.verify", token=token)
    invoice: JSON = await context.call("invoice.issue", user_id=caller["user_id"], document=document)
    return {"invoice": invoice}


async def verify(context: Context, *, token: str) -> JSON:
    """auth: asks token, which asks session, and reads the user that user is asked for again a moment later."""
    session = await context.call("token.introspect", token=token)
    # Defect: SELECT * here and everywhere below, and the same user is read twice in one request.
    users = await context.rows("SELECT * FROM ladder.users WHERE id = $1", session["user_id"])
    if not users or not users[0]["is_active"]:
        raise Unauthorised
    return {"user_id": users[0]["id"]}


async def introspect(context: Context, *, token: str) -> JSON:
    digest = hashlib.md5(token.encode(), usedforsecurity=False).hexdigest()
    found = await context.rows("SELECT * FROM ladder.tokens WHERE hash = $1", digest)
    if not found:
        raise Unauthorised
    session: JSON = await context.call("session.get", session_id=found[0]["session_id"])
    return session


async def get_session(context: Context, *, session_id: str) -> JSON:
    (row,) = await context.rows("SELECT * FROM ladder.sessions WHERE id = $1", session_id)
    return {"user_id": row["user_id"]}


async def get_user(context: Context, *, user_id: str) -> JSON:
    (row,) = await context.rows("SELECT * FROM ladder.users WHERE id = $1", user_id)
    profile = await context.call("profile.get", user_id=user_id)
    names = ("id", "email", "email_verified", "locale", "timezone")
    times = {name: _moment(row[name]) for name in ("created_at", "updated_at")}
    return {**{name: row[name] for name in names}, **profile, **times}


async def get_profile(context: Context, *, user_id: str) -> JSON:
    (row,) = await context.rows("SELECT * FROM ladder.profiles WHERE user_id = $1", user_id)
    return {name: row[name] for name in ("display_name", "bio", "avatar_url")}


async def get_preferences(context: Context, *, user_id: str) -> JSON:
    (row,) = await context.rows("SELECT * FROM ladder.preferences WHERE user_id = $1", user_id)
    return {name: row[name] for name in ("theme", "language", "email_notifications", "weekly_report", "extra")}


async def recent_events(context: Context, *, user_id: str) -> list[JSON]:
    rows = await context.rows(
        "SELECT * FROM ladder.events WHERE user_id = $1 ORDER BY created_at DESC, id DESC LIMIT 10", user_id
    )
    return [
        {
            "id": row["id"],
            "kind": row["kind"],
            "occurred_at": _moment(row["occurred_at"]),
            "properties": row["properties"],
            "created_at": _moment(row["created_at"]),
        }
        for row in rows
    ]


async def count_jobs(context: Context, *, user_id: str) -> JSON:
    counts = {}
    for state, name in enumerate(("queued", "running", "succeeded", "failed")):
        # Defect: a query a state.
        sql = "SELECT count(*) AS count FROM ladder.jobs WHERE user_id = $1 AND state = $2"
        counts[name] = (await context.rows(sql, user_id, state))[0]["count"]
    return counts


async def recent_jobs(context: Context, *, user_id: str) -> list[JSON]:
    jobs = []
    for found in await context.rows("SELECT id FROM ladder.jobs WHERE user_id = $1 ORDER BY id DESC LIMIT 5", user_id):
        # Defect: one query for the list, and then one for each of its rows.
        (row,) = await context.rows("SELECT * FROM ladder.jobs WHERE id = $1", found["id"])
        jobs.append(
            {
                "id": row["id"],
                "kind": row["kind"],
                "state": ("queued", "running", "succeeded", "failed", "cancelled")[row["state"]],
                "created_at": _moment(row["created_at"], always_fraction=True),
                "finished_at": _moment(row["finished_at"], always_fraction=True),
            }
        )
    return jobs


async def issue_invoice(context: Context, *, user_id: str, document: JSON) -> JSON:
    subtotal = sum(line["quantity"] * line["unit_price_minor"] for line in document["lines"])
    tax = (subtotal * int(document["tax_rate_percent"]) * 2 + 100) // 200
    invoice = {**document, "subtotal_minor": subtotal, "tax_minor": tax, "total_minor": subtotal + tax}
    (row,) = await context.rows(
        "INSERT INTO ladder.invoices (user_id, number, document, status) VALUES ($1, $2, $3, 'queued') RETURNING *",
        *(user_id, document["number"], invoice),
    )
    if context.is_order_in_background:
        context.later(_deliver(context, row["id"], invoice))
    else:
        # Defect: the caller waits for the PDF, the mail server and another company's web server.
        await _deliver(context, row["id"], invoice)
    return invoice


async def _deliver(context: Context, invoice_id: int, invoice: JSON) -> None:
    pdf = await context.call("pdf.render", invoice=invoice)
    await context.call("email.send", to=invoice["customer"]["email"], number=invoice["number"], pdf=pdf)
    await context.call("webhook.send", invoice=invoice)
    await context.rows("UPDATE ladder.invoices SET status = 'issued' WHERE id = $1 RETURNING *", invoice_id)


async def render_pdf(context: Context, *, invoice: JSON) -> str:
    lines = "\n".join(
        f"[{line['description']}], [{line['quantity']}], [{line['unit_price_minor']}]," for line in invoice["lines"]
    )
    source = f"= Invoice {invoice['number']}\n#table(columns: 3,\n{lines}\n)\nTotal: {invoice['total_minor']}\n"
    return base64.b64encode(await context.render(source.encode())).decode()


async def send_email(context: Context, *, to: str, number: str, pdf: str) -> JSON:
    await context.send_mail(to, f"Invoice {number}", base64.b64decode(pdf))
    return {}


async def send_webhook(context: Context, *, invoice: JSON) -> JSON:
    await context.post({"type": "invoice.issued", "data": invoice})
    return {}


def _moment(value: datetime, *, always_fraction: bool = False) -> str:
    """As the product writes it."""
    text = value.isoformat(timespec="microseconds" if always_fraction else "auto")
    return text.replace("+00:00", "Z")


OPERATIONS: dict[str, Callable[..., Awaitable[Any]]] = {
    "core-api.overview": overview,
    "core-api.order": order,
    "auth.verify": verify,
    "token.introspect": introspect,
    "session.get": get_session,
    "user.get": get_user,
    "profile.get": get_profile,
    "prefs.get": get_preferences,
    "events.recent": recent_events,
    "report.counts": count_jobs,
    "export.recent": recent_jobs,
    "invoice.issue": issue_invoice,
    "pdf.render": render_pdf,
    "email.send": send_email,
    "webhook.send": send_webhook,
}
