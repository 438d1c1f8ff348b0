"""Routes that belong to no module."""

from benchmarks.cases.making import Case, by_stranger, one

CASES: dict[str, Case] = {
    "GET /v1/overview": one("GET", "/v1/overview", units=0.05),
    "GET /livez": by_stranger("GET", "/livez"),
    "GET /readyz": by_stranger("GET", "/readyz"),
    "GET /metrics": by_stranger("GET", "/metrics"),
    "GET /": by_stranger("GET", "/"),
    "GET /problems": by_stranger("GET", "/problems"),
    "GET /problems/{code}": by_stranger("GET", "/problems/not_found"),
}
