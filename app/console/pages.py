"""What each page shows: which routes it asks, with which of its own query parameters."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from app.console.local_api import CallFailed, LocalApi

Query = Mapping[str, str]
Context = dict[str, Any]
_ROWS = 50
_DAYS_OF_ACTIVITY = 30


@dataclass(frozen=True, slots=True)
class ConsolePage:
    """A page at `path`, whose `load` asks for what `template` shows. One without a `label` is reached from others.

    `seconds`: how often an open page is brought up to date; None: when something is done on it.
    """

    path: str
    template: str
    title: str
    load: Callable[[LocalApi, Query], Awaitable[Context]]
    label: str | None = None
    is_for_admins: bool = False
    seconds: int | None = None


async def _overview(api: LocalApi, _: Query) -> Context:
    return {"overview": await api.get("/v1/overview")}


async def _activity(api: LocalApi, _: Query) -> Context:
    """Apart from the overview, because to count a million events costs as much as ten thousand requests."""
    until = api.now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    since = until - timedelta(days=_DAYS_OF_ACTIVITY)
    try:
        summary = await api.get(
            "/v1/users/me/events/summary", bucket="day", since=since.isoformat(), until=until.isoformat()
        )
    except CallFailed as failure:
        if failure.status == HTTPStatus.UNAUTHORIZED:
            raise
        # There are more events than a summary reads, or the quota is used up.
        return {"activity": None}
    return {"activity": _by_day([*summary["items"], *summary.get("others", ())], since, until)}


def _by_day(counts: list[Mapping[str, Any]], since: datetime, until: datetime) -> list[list[float]]:
    """Seconds of each day since 1970, and the number of events on it."""
    first = since.replace(hour=0)
    days = [first + timedelta(days=number) for number in range((until - first).days + 1)]
    totals = dict.fromkeys((day.timestamp() for day in days), 0)
    for item in counts:
        day = datetime.fromisoformat(item["starts_at"]).timestamp()
        totals[day] = totals.get(day, 0) + item["count"]
    return [list(totals), [float(count) for count in totals.values()]]


def _list(path: str, *filters: str) -> Callable[[LocalApi, Query], Awaitable[Context]]:
    """Of a page that shows a list. Its own query parameters `filters`, and the cursor, go to the route."""

    async def load(api: LocalApi, query: Query) -> Context:
        given = {name: query[name] for name in filters if query.get(name)}
        page = await api.get(path, limit=_ROWS, cursor=query.get("cursor"), **given)
        return {"filters": given, "items": page["items"], "next_cursor": page["next_cursor"]}

    return load


async def _job(api: LocalApi, query: Query) -> Context:
    return {"job": await api.get(f"/v1/jobs/{query['job_id']}"), "is_admin_view": False}


async def _any_job(api: LocalApi, query: Query) -> Context:
    return {"job": await api.get(f"/v1/admin/jobs/{query['job_id']}"), "is_admin_view": True}


async def _profile(api: LocalApi, _: Query) -> Context:
    user, preferences = await _together(api.get("/v1/users/me"), api.get("/v1/users/me/preferences"))
    return {"user": user, "preferences": preferences}


async def _security(api: LocalApi, _: Query) -> Context:
    sessions, passkeys, factors, events = await _together(
        api.get("/v1/auth/sessions", limit=_ROWS),
        api.get("/v1/auth/passkeys"),
        api.get("/v1/auth/mfa"),
        api.get("/v1/auth/security-events", limit=20),
    )
    return {
        "sessions": sessions["items"],
        "passkeys": passkeys["items"],
        "factors": factors,
        "events": events["items"],
    }


async def _webhooks(api: LocalApi, query: Query) -> Context:
    endpoints, deliveries = await _together(
        api.get("/v1/webhooks/endpoints", limit=_ROWS),
        api.get("/v1/webhooks/deliveries", limit=_ROWS, cursor=query.get("cursor")),
    )
    return {
        "endpoints": endpoints["items"],
        "items": deliveries["items"],
        "next_cursor": deliveries["next_cursor"],
    }


async def _installation(api: LocalApi, query: Query) -> Context:
    window = query.get("window") or "1h"
    stats = await api.get("/v1/admin/stats", window=window)
    return {"window": window, "windows": ("15m", "1h", "8h", "24h"), "stats": stats, "charts": _charts(stats)}


def _charts(stats: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Titles, names of the curves, and for each curve a number a step."""
    points, seconds = stats["points"], stats["step_seconds"]
    times = [datetime.fromisoformat(point["at"]).timestamp() for point in points]

    def curves(*names: str, over: float = 1.0) -> list[list[float | None]]:
        return [[None if point[name] is None else point[name] / over for point in points] for name in names]

    hits = [point["cache_hits"] / max(1, point["cache_hits"] + point["cache_misses"]) * 100 for point in points]
    found = (
        ("Requests a second", ("requests",), curves("requests", over=seconds)),
        ("Latency in milliseconds", ("p50", "p95", "p99"), curves("p50_ms", "p95_ms", "p99_ms")),
        (
            "Errors a minute",
            ("4xx", "5xx", "rejected"),
            curves("client_errors", "server_errors", "rejected", over=seconds / 60),
        ),
        ("Statements a second", ("statements",), curves("statements", over=seconds)),
        ("Answers from the cache, in percent", ("hits",), [hits]),
        ("Connections of the pool", ("used", "size"), curves("pool_used", "pool_size")),
    )
    return [{"title": title, "names": names, "data": [times, *series]} for title, names, series in found]


async def _queues(api: LocalApi, _: Query) -> Context:
    queues, schedules, workers = await _together(
        api.get("/v1/admin/queues"), api.get("/v1/admin/schedules"), api.get("/v1/admin/workers")
    )
    return {"queues": queues["items"], "schedules": schedules["items"], "workers": workers["items"]}


async def _person(api: LocalApi, query: Query) -> Context:
    path = f"/v1/admin/users/{query['user_id']}"
    account = await api.get(path)
    if account["deleted_at"] is not None:
        return {"account": account, "sessions": [], "events": [], "jobs": []}
    sessions, events, jobs = await _together(
        api.get(f"{path}/sessions", limit=20),
        api.get(f"{path}/security-events", limit=20),
        api.get("/v1/admin/jobs", user_id=query["user_id"], limit=10),
    )
    return {"account": account, "sessions": sessions["items"], "events": events["items"], "jobs": jobs["items"]}


async def _together(*calls: Awaitable[Any]) -> list[Any]:
    """The answers of calls that run side by side; the first failure once all have ended."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


PAGES = (
    ConsolePage("/console", "overview.html", "Overview", _overview, "Overview", seconds=5),
    ConsolePage("/console/activity", "activity.html", "Activity", _activity),
    ConsolePage("/console/jobs", "jobs.html", "Jobs", _list("/v1/jobs", "state", "kind"), "Jobs", seconds=5),
    ConsolePage("/console/jobs/{job_id}", "job.html", "Job", _job, seconds=2),
    ConsolePage("/console/invoices", "invoices.html", "Invoices", _list("/v1/invoices"), "Invoices"),
    ConsolePage("/console/webhooks", "webhooks.html", "Webhooks", _webhooks, "Webhooks"),
    ConsolePage("/console/profile", "profile.html", "Profile", _profile, "Profile"),
    ConsolePage("/console/security", "security.html", "Security", _security, "Security"),
    ConsolePage("/console/api-keys", "api_keys.html", "API keys", _list("/v1/auth/api-keys"), "API keys"),
    ConsolePage(
        "/console/admin",
        "installation.html",
        "Installation",
        _installation,
        "Installation",
        is_for_admins=True,
        seconds=5,
    ),
    ConsolePage("/console/admin/queues", "queues.html", "Queues", _queues, "Queues", is_for_admins=True, seconds=3),
    ConsolePage(
        "/console/admin/jobs",
        "all_jobs.html",
        "All jobs",
        _list("/v1/admin/jobs", "state", "kind", "queue", "user_id", "error", "since", "until"),
        "All jobs",
        is_for_admins=True,
        seconds=5,
    ),
    ConsolePage("/console/admin/jobs/{job_id}", "job.html", "Job", _any_job, is_for_admins=True, seconds=2),
    ConsolePage(
        "/console/admin/people",
        "people.html",
        "People",
        _list("/v1/admin/users", "q", "status", "role"),
        "People",
        is_for_admins=True,
    ),
    ConsolePage(
        "/console/admin/deliveries",
        "deliveries.html",
        "Deliveries",
        _list("/v1/admin/webhooks/deliveries", "state", "user_id"),
        "Deliveries",
        is_for_admins=True,
        seconds=5,
    ),
    ConsolePage(
        "/console/admin/security-events",
        "security_log.html",
        "Security log",
        _list("/v1/admin/security-events", "type", "user_id", "since"),
        "Security log",
        is_for_admins=True,
    ),
    ConsolePage("/console/admin/people/{user_id}", "person.html", "Person", _person, is_for_admins=True),
)
