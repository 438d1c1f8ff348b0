"""Pages."""

from benchmarks.cases.making import Case, by_admin, by_stranger, one

CASES: dict[str, Case] = {
    "GET /console": one("GET", "/console", units=2),
    "GET /console/login": by_stranger("GET", "/console/login"),
    "GET /console/activity": one("GET", "/console/activity", units=2_000),
    "GET /console/jobs": one("GET", "/console/jobs", units=2),
    "GET /console/jobs/{job_id}": one("GET", "/console/jobs/{job}", units=2),
    "GET /console/invoices": one("GET", "/console/invoices", units=2),
    "GET /console/webhooks": one("GET", "/console/webhooks", units=3),
    "GET /console/profile": one("GET", "/console/profile", units=3),
    "GET /console/security": one("GET", "/console/security", units=5),
    "GET /console/api-keys": one("GET", "/console/api-keys", units=2),
    "GET /console/admin": by_admin("GET", "/console/admin?window=24h"),
    "GET /console/admin/queues": by_admin("GET", "/console/admin/queues"),
    "GET /console/admin/jobs": by_admin("GET", "/console/admin/jobs"),
    "GET /console/admin/jobs/{job_id}": by_admin("GET", "/console/admin/jobs/{job}"),
    "GET /console/admin/people": by_admin("GET", "/console/admin/people"),
    "GET /console/admin/people/{user_id}": by_admin("GET", "/console/admin/people/{user}"),
    "GET /console/admin/deliveries": by_admin("GET", "/console/admin/deliveries"),
    "GET /console/admin/security-events": by_admin("GET", "/console/admin/security-events"),
}
