"""The routes that belong to no module."""

import asyncio
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse

from app.core import links, mailbox, pages, service, stats
from app.core.health import Health, NotReady, health_response
from app.core.schemas import AliveResponse, OverviewResponse, ProblemCatalogue, ReadyResponse, StatsQuery, StatsResponse
from app.identity.api import Device
from app.jobs import api as jobs
from app.kernel.auth import Public, Require, RequireRole
from app.kernel.errors import NotFound
from app.kernel.fairness.pacing import Paced
from app.kernel.headers.codings import accepts_gzip
from app.kernel.http import (
    PROBLEM_MEDIA_TYPE,
    Router,
    dump_json,
    json_fragment,
    json_response,
    path_name,
    prefers_json,
    problem_responses,
)
from app.kernel.http.event_streams import draining_of
from app.kernel.middleware.response_cache import CachedRead
from app.kernel.observability.telemetry import CONTENT_TYPE_METRICS, RenderedMetrics
from app.kernel.request.client_address import client_address, hides_client, is_within, user_agent
from app.kernel.request.principal import Principal
from app.kernel.request.state import RequestState, RequestStateDep
from app.kernel.resources import Resources, ResourcesDep
from app.users import api as users

router = Router(tags=["core"])
admin_router = Router(tags=["admin"])
links_router = Router(include_in_schema=False)
docs_router = Router(include_in_schema=False)
mailbox_router = Router(prefix="/dev/mailbox", include_in_schema=False)

_OVERVIEW_SCOPES = ("profile:read", "events:read", "jobs:read")
_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {
        "description": "Requests should not be sent here",
        "content": {
            PROBLEM_MEDIA_TYPE: {
                "schema": {
                    "allOf": [
                        {"$ref": "#/components/schemas/Problem"},
                        {
                            "type": "object",
                            "properties": {
                                "checks": {
                                    "$ref": "#/components/schemas/HealthChecks",
                                    "description": "What fails; absent while the process is about to end.",
                                }
                            },
                        },
                    ]
                }
            }
        },
    }
}


@admin_router.get("/v1/admin/stats", response_model=StatsResponse)
async def get_stats(
    _: Annotated[Principal, RequireRole("admin")], resources: ResourcesDep, query: Annotated[StatsQuery, Query()]
) -> Response:
    """Get the numbers of the last minutes or hours: requests, latencies, admission, cache, database and jobs."""
    return json_response(await stats.read_stats(resources.db, query.window))


@router.get("/v1/overview", response_model=OverviewResponse, responses=problem_responses(404))
async def get_overview(
    principal: Annotated[Principal, Require(*_OVERVIEW_SCOPES)], resources: ResourcesDep
) -> Response:
    """Get your user, preferences, newest events and jobs in one response."""
    overview = await service.read_overview(resources.reads, principal.user_id)
    person, work = overview.person, overview.work
    return json_response(
        {
            "user": json_fragment(person.user),
            "preferences": json_fragment(person.preferences),
            "recent_events": json_fragment(person.recent_events),
            "jobs": {
                "queued": work.queued,
                "running": work.running,
                "succeeded": work.succeeded,
                "failed": work.failed,
                "recent": json_fragment(work.recent),
            },
        }
    )


CACHED_READS = (
    CachedRead(
        "/v1/overview",
        frozenset(_OVERVIEW_SCOPES),
        lambda user_id: (users.profile_tag(user_id), users.events_tag(user_id), f"jobs:{user_id}"),
        get_overview,
    ),
)


@router.get("/livez", response_model=AliveResponse, dependencies=[Public])
async def get_livez() -> Response:
    """Check that the process is alive. No other system is asked."""
    return json_response({"status": "alive"}, headers={"Cache-Control": "no-store"})


@router.get("/readyz", response_model=ReadyResponse, dependencies=[Public], responses=_NOT_READY)
async def get_readyz(request: Request, state: RequestStateDep, resources: ResourcesDep) -> Response:
    """Check that the process can serve requests. Without Redis it is ready but degraded."""
    _check_operator(state, resources)
    draining = draining_of(request)
    if draining is not None and draining.is_set():
        raise NotReady("The process is about to end.")
    health: Paced[Health] = request.app.state.health
    return health_response(await health.get())


@router.get(
    "/metrics",
    dependencies=[Public],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics(request: Request, state: RequestStateDep, resources: ResourcesDep) -> Response:
    """Get the metrics of all API processes in the Prometheus text format."""
    _check_operator(state, resources)
    metrics: Paced[RenderedMetrics] = request.app.state.metrics
    rendered = await metrics.get()
    headers = {"Content-Type": CONTENT_TYPE_METRICS, "Cache-Control": "no-store", "Vary": "Accept-Encoding"}
    if rendered.compressed is None or not accepts_gzip(state.headers.get(b"accept-encoding")):
        return Response(rendered.text, headers=headers)
    return Response(rendered.compressed, headers=headers | {"Content-Encoding": "gzip"})


def _check_operator(state: RequestState, resources: Resources) -> None:
    """Raises NotFound for a client outside of the operator's networks, and where an unknown proxy hides which client
    asks. A local socket has no address.
    """
    networks = resources.http.operator_networks
    if networks is None:
        return
    address = client_address(state, resources.http)
    is_outside = address is not None and not is_within(address, networks)
    if is_outside or hides_client(state, resources.http):
        raise NotFound


@router.get("/", dependencies=[Public], response_class=HTMLResponse)
async def get_front_page(request: Request) -> Response:
    """Get the front page."""
    state = request.app.state
    text = pages.front_page(request.app.title, docs=state.has_docs, mailbox=state.mailbox is not None)
    return _html(text, pages.PAGE_POLICY)


@router.get(
    "/problems",
    dependencies=[Public],
    response_model=ProblemCatalogue,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
async def list_problems(request: Request) -> Response:
    """List every code of problems with its status, title and meaning: a page, or JSON if `Accept` prefers it."""
    headers = {"Cache-Control": "no-cache", "Vary": "Accept"}
    if prefers_json(request.headers.get("accept", "")):
        return json_response(pages.problem_catalogue(), headers=headers)
    return HTMLResponse(pages.problems_page(), headers=headers | {"Content-Security-Policy": pages.PAGE_POLICY})


@router.get("/problems/{code}", dependencies=[Public], response_class=HTMLResponse)
async def get_problem_page(code: Annotated[str, path_name("Code of a problem.")]) -> Response:
    """Get the page that explains a problem code."""
    text = pages.problem_page(code)
    if text is None:
        raise NotFound
    return _html(text, pages.PAGE_POLICY)


@links_router.get("/verify-email", dependencies=[Public], response_class=HTMLResponse)
async def open_verify_link() -> Response:
    return _html(links.link_page("verify-email"), links.LINK_POLICY)


@links_router.get("/change-email", dependencies=[Public], response_class=HTMLResponse)
async def open_change_link() -> Response:
    return _html(links.link_page("change-email"), links.LINK_POLICY)


@links_router.get("/reset-password", dependencies=[Public], response_class=HTMLResponse)
async def open_reset_link() -> Response:
    return _html(links.link_page("reset-password"), links.LINK_POLICY)


@links_router.get("/unsubscribe", dependencies=[Public], response_class=HTMLResponse)
async def open_unsubscribe_link() -> Response:
    return _html(links.unsubscribe_page(), links.UNSUBSCRIBE_POLICY)


@links_router.post("/unsubscribe", dependencies=[Public], response_class=HTMLResponse)
async def unsubscribe(request: Request, state: RequestStateDep, resources: ResourcesDep) -> Response:
    """Whatever the body says: that of a mail provider is `List-Unsubscribe=One-Click` (RFC 8058)."""
    device = Device(client_address(state, resources.http), user_agent(state))
    token = request.query_params.get("token", "")
    try:
        await jobs.unsubscribe(resources.db, resources.clock, resources.keys, token, device)
    except (jobs.UnsubscribeLinkInvalid, jobs.UnsubscribeLinkExpired) as error:
        text = pages.page(error.title, "<p>Turn the weekly report off in your preferences.</p>")
        return _html(text, pages.PAGE_POLICY, error.status)
    return _html(links.unsubscribed_page(), pages.PAGE_POLICY)


@links_router.get("/forgot-password", dependencies=[Public], response_class=HTMLResponse)
async def open_forgot_link() -> Response:
    return _html(links.link_page("forgot-password"), links.LINK_POLICY)


@docs_router.get("/docs", dependencies=[Public], response_class=HTMLResponse)
async def get_docs(request: Request) -> Response:
    return _html(pages.swagger_page(request.app.title), pages.DOCS_POLICY)


@docs_router.get("/docs/oauth2-redirect", dependencies=[Public], response_class=HTMLResponse)
async def get_docs_redirect() -> Response:
    return _html(pages.swagger_redirect_page(), pages.DOCS_POLICY)


@docs_router.get("/redoc", dependencies=[Public], response_class=HTMLResponse)
async def get_redoc(request: Request) -> Response:
    return _html(pages.redoc_page(request.app.title), pages.DOCS_POLICY)


@docs_router.get("/openapi.json", dependencies=[Public])
async def get_openapi(request: Request) -> Response:
    state = request.app.state
    if state.openapi_json is None:
        # Made once, which takes too long for the event loop.
        state.openapi_json = await asyncio.to_thread(lambda: dump_json(request.app.openapi()))
    return Response(state.openapi_json, headers={"Cache-Control": "no-cache"}, media_type="application/json")


@mailbox_router.get("", dependencies=[Public], response_class=HTMLResponse)
async def list_mailbox(request: Request) -> Response:
    return _mail_html(mailbox.list_page(await mailbox.list_mail(request.app.state.mailbox)))


@mailbox_router.get("/{name}", dependencies=[Public], response_class=HTMLResponse)
async def get_mail(name: str, request: Request) -> Response:
    return _mail_html(mailbox.mail_page(await mailbox.read_mail(request.app.state.mailbox, name)))


@mailbox_router.get("/{name}/raw", dependencies=[Public], response_class=PlainTextResponse)
async def get_raw_mail(name: str, request: Request) -> Response:
    mail = await mailbox.read_mail(request.app.state.mailbox, name)
    return Response(mail.content, headers={"Cache-Control": "no-store"}, media_type="text/plain; charset=utf-8")


def _mail_html(text: str) -> Response:
    """A page with links that log in."""
    return HTMLResponse(text, headers={"Content-Security-Policy": pages.PAGE_POLICY, "Cache-Control": "no-store"})


def _html(text: str, policy: str, status: int = 200) -> Response:
    return HTMLResponse(text, status, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})
