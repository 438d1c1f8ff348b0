"""Jobs, invoices and webhooks."""

from benchmarks.cases.making import Case, by_form, by_stranger, many, numbered, one
from benchmarks.cases.scene import UNKNOWN, dearest_invoice

CASES: dict[str, Case] = {
    "POST /v1/jobs": one("POST", "/v1/jobs", {"kind": "export.events", "args": {"format": "csv"}}, 5, answers={202}),
    "GET /v1/jobs": many("/v1/jobs?limit=100"),
    "GET /v1/jobs/{job_id}": one("GET", "/v1/jobs/{job}"),
    "GET /v1/jobs/{job_id}/events": one("GET", "/v1/jobs/{unknown}/events", answers={404}),
    "POST /v1/jobs/{job_id}/cancel": one("POST", "/v1/jobs/{job}/cancel", answers={200, 409}),
    "POST /v1/jobs/{job_id}/retry": one("POST", "/v1/jobs/{job}/retry", units=5, answers={202, 409}),
    "GET /v1/jobs/{job_id}/artifacts/{name}": one("GET", "/v1/jobs/{job}/artifacts/events.csv", units=2),
    "POST /v1/invoices": numbered("POST", "/v1/invoices", lambda _: dearest_invoice(), 5, answers={202, 409}),
    "GET /v1/invoices": many("/v1/invoices?limit=100"),
    "GET /v1/invoices/{invoice_id}": one("GET", "/v1/invoices/{invoice}"),
    "GET /v1/invoices/{invoice_id}/pdf": one("GET", "/v1/invoices/{invoice}/pdf", units=2),
    "POST /v1/invoices/{invoice_id}/email": one(
        "POST", "/v1/invoices/{invoice}/email", units=5, answers={202, 409, 429}
    ),
    "GET /v1/webhooks/event-types": one("GET", "/v1/webhooks/event-types?limit=100"),
    "POST /v1/webhooks/endpoints": one(
        "POST", "/v1/webhooks/endpoints", {"url": "https://93.184.216.34/x", "event_types": ["*"]}, answers={201, 409}
    ),
    "GET /v1/webhooks/endpoints": many("/v1/webhooks/endpoints?limit=100"),
    "GET /v1/webhooks/endpoints/{endpoint_id}": one("GET", "/v1/webhooks/endpoints/{endpoint}"),
    "PATCH /v1/webhooks/endpoints/{endpoint_id}": numbered(
        "PATCH", "/v1/webhooks/endpoints/{endpoint}", lambda n: {"description": str(n)}
    ),
    "DELETE /v1/webhooks/endpoints/{endpoint_id}": one("DELETE", "/v1/webhooks/endpoints/{unknown}", answers={404}),
    "POST /v1/webhooks/endpoints/{endpoint_id}/rotate-secret": one(
        "POST", "/v1/webhooks/endpoints/{endpoint}/rotate-secret", answers={200, 429}
    ),
    "POST /v1/webhooks/endpoints/{endpoint_id}/test": one(
        "POST", "/v1/webhooks/endpoints/{endpoint}/test", units=5, answers={202}
    ),
    "POST /v1/webhooks/endpoints/{endpoint_id}/enable": one("POST", "/v1/webhooks/endpoints/{endpoint}/enable"),
    "GET /v1/webhooks/deliveries": many("/v1/webhooks/deliveries?limit=100"),
    "POST /v1/webhooks/deliveries/{delivery_id}/redeliver": one(
        "POST", "/v1/webhooks/deliveries/{unknown}/redeliver", units=5, answers={404}
    ),
    "GET /v1/jobs/{job_id}/events/stream": by_stranger(
        "GET", f"/v1/jobs/{UNKNOWN}/events/stream?ticket={'a' * 200}", answers={401}
    ),
    "POST /v1/jobs/{job_id}/events/ticket": one("POST", "/v1/jobs/{job}/events/ticket"),
    "GET /v1/webhooks/deliveries/{delivery_id}": one("GET", "/v1/webhooks/deliveries/{unknown}", answers={404}),
    "POST /v1/webhooks/endpoints/{endpoint_id}/replay": one(
        "POST", "/v1/webhooks/endpoints/{endpoint}/replay", {"since": "2026-01-01T00:00:00Z"}, 5, answers={202, 409}
    ),
    "GET /unsubscribe": by_stranger("GET", f"/unsubscribe?token={'a' * 100}"),
    "POST /unsubscribe": by_form(f"/unsubscribe?token={'a' * 100}", "List-Unsubscribe=One-Click&n={n}", answers={400}),
}
