"""What administrators ask for."""

from benchmarks.cases.making import Case, by_admin

CASES: dict[str, Case] = {
    "GET /v1/admin/users": by_admin("GET", "/v1/admin/users?limit=100&q=example"),
    "GET /v1/admin/users/{user_id}": by_admin("GET", "/v1/admin/users/{user}"),
    "PATCH /v1/admin/users/{user_id}": by_admin("PATCH", "/v1/admin/users/{unknown}", {"role": "user"}, answers={404}),
    "POST /v1/admin/users/{user_id}/ban": by_admin(
        "POST", "/v1/admin/users/{unknown}/ban", {"reason": "x"}, answers={404}
    ),
    "POST /v1/admin/users/{user_id}/unban": by_admin("POST", "/v1/admin/users/{unknown}/unban", answers={404}),
    "GET /v1/admin/users/{user_id}/sessions": by_admin("GET", "/v1/admin/users/{user}/sessions?limit=100"),
    "DELETE /v1/admin/users/{user_id}/sessions": by_admin(
        "DELETE", "/v1/admin/users/{unknown}/sessions", answers={404}
    ),
    "GET /v1/admin/users/{user_id}/security-events": by_admin(
        "GET", "/v1/admin/users/{user}/security-events?limit=100"
    ),
    "GET /v1/admin/queues": by_admin("GET", "/v1/admin/queues?limit=100"),
    "POST /v1/admin/queues/{queue}/pause": by_admin("POST", "/v1/admin/queues/bulk/pause", answers={204}),
    "POST /v1/admin/queues/{queue}/resume": by_admin("POST", "/v1/admin/queues/bulk/resume", answers={204}),
    "GET /v1/admin/jobs": by_admin("GET", "/v1/admin/jobs?limit=100"),
    "POST /v1/admin/jobs/{job_id}/retry": by_admin("POST", "/v1/admin/jobs/{unknown}/retry", answers={404}),
    "POST /v1/admin/mail/suppressions/lift": by_admin(
        "POST", "/v1/admin/mail/suppressions/lift", {"email": "unknown@example.com"}
    ),
    "GET /v1/admin/jobs/{job_id}": by_admin("GET", "/v1/admin/jobs/{job}"),
    "POST /v1/admin/jobs/{job_id}/cancel": by_admin("POST", "/v1/admin/jobs/{unknown}/cancel", answers={404}),
    "POST /v1/admin/jobs/bulk": by_admin(
        "POST", "/v1/admin/jobs/bulk", {"action": "delete", "filter": {"error": "x"}, "dry_run": True}
    ),
    "GET /v1/admin/schedules": by_admin("GET", "/v1/admin/schedules"),
    "POST /v1/admin/schedules/{name}/pause": by_admin("POST", "/v1/admin/schedules/unknown/pause", answers={404}),
    "POST /v1/admin/schedules/{name}/resume": by_admin("POST", "/v1/admin/schedules/unknown/resume", answers={404}),
    "POST /v1/admin/schedules/{name}/run": by_admin("POST", "/v1/admin/schedules/unknown/run", answers={404}),
    "GET /v1/admin/workers": by_admin("GET", "/v1/admin/workers"),
    "GET /v1/admin/stats": by_admin("GET", "/v1/admin/stats?window=24h"),
    "GET /v1/admin/security-events": by_admin("GET", "/v1/admin/security-events?limit=100"),
    "GET /v1/admin/webhooks/deliveries": by_admin("GET", "/v1/admin/webhooks/deliveries?limit=100"),
    "POST /v1/admin/webhooks/deliveries/{delivery_id}/redeliver": by_admin(
        "POST", "/v1/admin/webhooks/deliveries/{unknown}/redeliver", answers={404}
    ),
    "GET /v1/admin/service-accounts": by_admin("GET", "/v1/admin/service-accounts?limit=100"),
    "POST /v1/admin/service-accounts": by_admin(
        "POST", "/v1/admin/service-accounts", {"name": "", "scopes": []}, answers={422}
    ),
    "DELETE /v1/admin/service-accounts/{service_account_id}": by_admin(
        "DELETE", "/v1/admin/service-accounts/{unknown}", answers={404}
    ),
    "POST /v1/admin/service-accounts/{service_account_id}/rotate-secret": by_admin(
        "POST", "/v1/admin/service-accounts/{unknown}/rotate-secret", answers={404}
    ),
    "POST /v1/admin/users/{user_id}/impersonate": by_admin(
        "POST", "/v1/admin/users/{unknown}/impersonate", {"reason": "x"}, answers={404}
    ),
}
