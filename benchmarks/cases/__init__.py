"""For every route the dearest request that one caller can make of it. A route without a case fails a test.

A caller is a user with everything that makes a request dear: many events of many kinds, wide preferences, many sessions
and webhook endpoints. Routes for administrators are asked by one, public ones by a stranger, whose network pays.
"""

from collections.abc import Collection

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from benchmarks.cases import administration, console, core, identity, jobs, users
from benchmarks.cases.making import Case

CASES: dict[str, Case] = {
    **core.CASES,
    **users.CASES,
    **identity.CASES,
    **jobs.CASES,
    **administration.CASES,
    **console.CASES,
}
# The quota, the backlog, and the caller's share of the process.
REFUSALS = frozenset({429, 503})


def are_valid(route: str, statuses: Collection[int]) -> bool:
    """Whether the requests of a route were worked on: all are answered as they should be, or refused for their number,
    and not all of them are refused.
    """
    expected = set(CASES[route].answers)
    return bool(expected & set(statuses)) and set(statuses) <= expected | REFUSALS


def routes_of(app: FastAPI) -> set[str]:
    """Method and path of every route but the documentation and the mailbox of development."""
    return {
        f"{method} {context.path_format}"
        for context in iter_route_contexts(app.routes)
        if isinstance(context.original_route, APIRoute)
        and not str(context.path_format).startswith(("/docs", "/dev/", "/openapi", "/redoc"))
        for method in (context.methods or set()) - {"HEAD"}
    }
