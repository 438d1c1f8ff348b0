"""The API application: modules, middleware order and life cycle. Only wiring."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import State
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app import __version__
from app.composition import CACHED_PATHS, close_resources, make_resources, open_resources, warn_of_eviction
from app.console import router as console
from app.core import router as core
from app.core.health import Health, check_health
from app.core.pages import DOCS_ASSETS
from app.dev.standalone import embedded_environment
from app.identity.api import IdentityServices, make_identity, run_identity
from app.identity.router import OAUTH_PATHS
from app.identity.router import ROUTERS as IDENTITY_ROUTERS
from app.jobs.api import (
    JOB_KINDS,
    WEBHOOK_EVENTS,
    JobsRuntime,
    Submitted,
    disable_endpoints,
    resume_user,
    submission_group_commit,
    suspend_user,
)
from app.jobs.router import ROUTERS as JOBS_ROUTERS
from app.kernel.auth import Authenticator, declared_permission
from app.kernel.background import Background
from app.kernel.batching.group_commit import GroupCommit
from app.kernel.fairness.pacing import Paced
from app.kernel.fairness.time_shares import TimeShares
from app.kernel.fairness.turns import OneAtATime
from app.kernel.headers.codings import is_compressible
from app.kernel.http import DirectRoutes, StrictRoute, install_error_handlers, make_openapi, reserve_literal_paths
from app.kernel.metric_history import REPORT_SECONDS, MetricReporter
from app.kernel.middleware.admission import Admission
from app.kernel.middleware.authentication import Authentication
from app.kernel.middleware.cors import Cors
from app.kernel.middleware.deadline import Deadline
from app.kernel.middleware.edge import Edge
from app.kernel.middleware.rate_limit import NetworkQuota, RateLimit
from app.kernel.middleware.request_context import RequestContext
from app.kernel.middleware.response_cache import CachedRead, ResponseCache
from app.kernel.middleware.security_headers import SecurityHeadersLayer
from app.kernel.middleware.upgrade import answer_without_upgrade
from app.kernel.observability.access_log import AccessLog
from app.kernel.observability.build import announce_build
from app.kernel.observability.exits import end_misconfigured
from app.kernel.observability.gc_tuning import rare_collections
from app.kernel.observability.log_writer import output
from app.kernel.observability.telemetry import RenderedMetrics, configure_logging, get_logger, render_metrics
from app.kernel.queue import NewJob
from app.kernel.rate_limits import RateLimits
from app.kernel.resources import Resources
from app.settings import Settings, SettingsError, load_settings, served_base_url
from app.users import api as users
from app.users import router as users_router

DESCRIPTION = """Accounts, activity and background jobs.

Errors are `application/problem+json` (RFC 9457). Lists are paged by cursor. Every answer carries `X-Request-ID`.

Every read supports `HEAD`, `OPTIONS` lists the methods of a resource, and any other method gets 405 with `Allow`. Text
cannot hold NUL or lone surrogates.
"""
TAGS = {
    "core": "The overview, health and metrics.",
    "identity": "Accounts, log-in, tokens, sessions and API keys.",
    "users": "Profiles, preferences and events.",
    "jobs": "Background jobs and their files.",
    "invoices": "Invoices: PDF, e-mail and webhook follow in the background.",
    "webhooks": "Events sent to your endpoints (Standard Webhooks).",
    "webhook-events": "The requests that webhook endpoints receive.",
    "admin": "Administration of accounts, jobs and queues.",
}

_SAMPLE_SECONDS = 1.0
_logger = get_logger(__name__)

ROUTERS = (
    core.router,
    core.admin_router,
    core.links_router,
    users_router.router,
    *IDENTITY_ROUTERS,
    *JOBS_ROUTERS,
    console.console_router,
)
CACHED_READS = (*core.CACHED_READS, *users_router.CACHED_READS)


class Application(State):
    """What routes and their dependencies find in `request.app.state`. The lifespan fills it in."""

    resources: Resources
    identity: IdentityServices
    # That of `identity`, for the kernel.
    authenticator: Authenticator
    jobs: JobsRuntime
    submissions: GroupCommit[NewJob, Submitted | None]
    events: GroupCommit[users.EventBatch, list[UUID]]
    event_watch: users.EventWatch
    summaries: OneAtATime
    limits: RateLimits
    # What lies behind all layers, for pages that ask other routes.
    handlers: ASGIApp
    health: Paced[Health]
    metrics: Paced[RenderedMetrics]
    # Bring gauges up to date.
    samplers: tuple[Callable[[], None], ...]
    has_docs: bool
    # The document as it is sent, made when it is first asked for.
    openapi_json: bytes | None
    mailbox: Path | None


class Onehop(FastAPI):
    """FastAPI behind our own layers: most requests are answered before the framework and its telemetry run."""

    state: Application
    # What gets the requests, as long as the application runs.
    entry: ASGIApp | None = None
    # The server asks it before it makes a task of a request; None where another layer stands in front of it.
    edge: Edge | None = None
    # The server asks for those whose errors have OAuth's form.
    oauth_paths = OAUTH_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await answer_without_upgrade(self, scope, receive, send)
        elif self.entry is None or scope["type"] != "http":
            await super().__call__(scope, receive, send)
        else:
            await self.entry(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = make_openapi(self, WEBHOOK_EVENTS)
        return self.openapi_schema

    async def framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The innermost layer."""
        await super().__call__(scope, receive, send)

    @property
    def is_observed(self) -> bool:
        """Whether OpenTelemetry is set up in this process."""
        return self._native_telemetry.enabled()


class _WholeFiles(StaticFiles):
    """Starlette refuses a `Range` that it does not understand with an answer of its own; there may be none at all.

    What can be compressed is answered whole, so that the response cache does it once.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [header for header in scope["headers"] if header[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        if isinstance(response, FileResponse) and is_compressible(response.headers["content-type"].encode()):
            content = await asyncio.to_thread(Path(response.path).read_bytes)
            return Response(content, headers=dict(response.headers))
        return response


def create_app(settings: Settings) -> Onehop:
    """The application of `settings`; nothing is opened before its lifespan begins.

    Raises:
        RuntimeError: a route does not declare who may call it.
    """
    has_docs = settings.http.docs if settings.http.docs is not None else not settings.is_production
    app = Onehop(
        title=settings.name,
        version=__version__,
        description=DESCRIPTION,
        contact={"name": "The operator of this service"},
        license_info={"name": "MIT", "identifier": "MIT"},
        openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        debug=settings.debug,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        max_body_size=settings.http.max_body_bytes,
        lifespan=lambda app: _lifespan(app, settings),
    )
    app.state = Application()
    app.state.has_docs = has_docs
    app.state.openapi_json = None
    app.state.mailbox = settings.data_dir / "mailbox" if settings.has_mailbox else None
    for router in (
        *ROUTERS,
        *([core.docs_router] if has_docs else []),
        *([core.mailbox_router] if settings.has_mailbox else []),
    ):
        # One flat list: an included router is matched three times for each request, which costs more than the handler.
        app.router.routes.extend(router.routes)
    reserve_literal_paths(app.routes)
    app.mount("/console/static", _WholeFiles(directory=console.STATIC_FILES))
    if has_docs:
        app.mount("/docs/assets", _WholeFiles(directory=DOCS_ASSETS))
    install_error_handlers(app)
    _check_routes(app)
    return app


@asynccontextmanager
async def _lifespan(app: Onehop, settings: Settings) -> AsyncIterator[None]:
    configure_logging(settings.log, production=settings.is_production)
    announce_build(__version__, settings.commit)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, output.flush)
        settings = await stack.enter_async_context(embedded_environment(settings))
        resources = make_resources(settings, application_name="onehop-api")
        identity = make_identity(
            settings.identity,
            resources,
            product=settings.name,
            # Known only once the server listens, and then for good.
            base_url=cache(partial(served_base_url, settings)),
            is_production=settings.is_production,
            end_channels=disable_endpoints,
            suspend_work=suspend_user,
            resume_work=resume_user,
        )
        app.state.resources = resources
        app.state.identity = identity
        app.state.authenticator = identity.authenticator
        stack.push_async_callback(close_resources, resources)
        app.state.events = users.event_group_commit(resources.db)
        stack.push_async_callback(app.state.events.close)
        app.state.event_watch = users.EventWatch(resources.cache, resources.bus)
        app.state.summaries = OneAtATime()
        app.state.submissions = submission_group_commit(resources.db, resources.queue, resources.cache)
        stack.push_async_callback(app.state.submissions.close)
        app.state.jobs = JobsRuntime.create(
            settings.jobs, settings.data_dir, resources.bus, resources.db, dict(JOB_KINDS), settings.name
        )
        stack.push_async_callback(app.state.jobs.rendering.close)
        await open_resources(resources)
        await resources.webhook_subscribers.start()
        await stack.enter_async_context(run_identity(identity, resources.db, resources.keys, resources.incarnation))
        app.state.limits = RateLimits(
            settings.limits,
            resources.limits_redis,
            processes=settings.workers,
            network_quota=settings.limits.network or (3_000 if settings.is_production else 10_000_000),
            longest_wait=settings.redis.operation_timeout,
        )
        app.state.limits.start()
        stack.push_async_callback(app.state.limits.close)
        app.entry = _layers(app, settings, _access_log(settings))
        app.state.health = Paced(
            lambda: check_health(resources, can_sign=identity.key_ring.can_sign), rest=9.0, shortest=0.05
        )
        stack.push_async_callback(app.state.health.close)
        app.state.metrics = Paced(partial(_render_metrics, app), rest=9.0)
        stack.push_async_callback(app.state.metrics.close)
        background = Background()
        background.repeat(partial(_sample, app), name="telemetry.samples", every=_SAMPLE_SECONDS)
        reporter = MetricReporter(resources.db, "api", __version__)
        background.repeat(reporter.report, name="telemetry.report", every=REPORT_SECONDS, rests_first=True)
        stack.push_async_callback(background.close)
        # It ends by itself within two seconds. Cancelled while it connects, it would leave a socket behind.
        stack.push_async_callback(asyncio.wait, {background.spawn(warn_of_eviction(resources))})
        try:
            with rare_collections():
                yield
        finally:
            app.entry = app.edge = None


def _layers(app: "Onehop", settings: Settings, access_log: AccessLog | None) -> ASGIApp:
    resources, limits, identity = app.state.resources, app.state.limits, app.state.identity
    cached_reads: tuple[CachedRead, ...] = CACHED_READS if settings.cache.enabled else ()
    if app.is_observed:
        # A miss goes through the framework then, as all that is not answered from memory.
        cached_reads = tuple(replace(read, handler=None) for read in cached_reads)
    networks = NetworkQuota(limits, settings.http)
    # What FastAPI records for OpenTelemetry, it records only of requests that pass through it.
    handlers = (
        app.framework
        if app.is_observed
        else DirectRoutes(app, app.framework, settings.http.max_body_bytes, resources.computing)
    )
    app.state.handlers = handlers
    stack: ASGIApp = SecurityHeadersLayer(Deadline(handlers, settings.http), settings.http)
    cached_paths = [read.path for read in cached_reads]
    stack = ResponseCache(stack, resources, cached_reads)
    stack = RateLimit(
        stack,
        limits,
        networks,
        settings.http,
        cached_paths=cached_paths,
        cached_cost=settings.limits.cached_cost,
    )
    shares = TimeShares()
    stack = Authentication(stack, identity.authenticator, identity.session_cookie, networks)
    stack = admission = Admission(
        stack,
        settings.http,
        cached_paths=cached_paths,
        shares=shares,
        hashing_routes=_hashing_routes(app),
        hashing_slots=identity.hashing.slots,
    )
    stack = context = RequestContext(stack, settings.http, access_log, _templates(app), oauth_paths=OAUTH_PATHS)
    app.state.samplers = (
        context.sample,
        admission.sample,
        limits.sample,
        resources.cache.sample,
        resources.db.observe_pool,
    )
    edge = Edge(
        stack,
        context,
        admission,
        identity.authenticator,
        identity.session_cookie,
        limits,
        resources=resources,
        reads=cached_reads,
        cost=settings.limits.cached_cost,
        oauth_paths=OAUTH_PATHS,
    )
    if settings.http.cors_origins:
        # Without this layer an answer would lack what a browser needs to read it.
        return Cors(edge, settings.http)
    app.edge = edge
    return edge


async def _render_metrics(app: Onehop) -> RenderedMetrics:
    await _sample(app)
    # It reads files: of this process, and of the others.
    return await asyncio.to_thread(render_metrics)


async def _sample(app: Onehop) -> None:
    """Gauges follow once a second instead of with each request. One that fails keeps none of the others back."""
    for sample in app.state.samplers:
        try:
            sample()
        except Exception:
            _logger.exception("telemetry.sampling_failed")


def _access_log(settings: Settings) -> AccessLog | None:
    if not settings.log.access:
        return None
    return AccessLog(json_lines=(settings.log.format or ("json" if settings.is_production else "text")) == "json")


def _templates(app: FastAPI) -> dict[Any, str]:
    routes = {
        context.endpoint: context.path_format
        for context in iter_route_contexts(app.routes)
        if isinstance(context.original_route, APIRoute) and context.path_format
    }
    return routes | {mount.app: f"{mount.path}/{{path}}" for mount in app.routes if isinstance(mount, Mount)}


def _hashing_routes(app: FastAPI) -> set[tuple[str, str]]:
    """Methods and paths of the routes that declare to hash a password."""
    return {
        (method, route.path)
        for route in app.routes
        if isinstance(route, APIRoute)
        and (permission := declared_permission(route.dependant)) is not None
        and permission.hashes_password
        for method in route.methods or ()
    }


def _check_routes(app: FastAPI) -> None:
    """Every route is of the kind that demands a permission; that it has one was checked when it was made.

    The worker knows every path whose answers are cached, so that a purge finds them.
    """
    if {read.path for read in CACHED_READS} != set(CACHED_PATHS):
        message = "CACHED_PATHS is not what the routers declare as cached"
        raise RuntimeError(message)
    for context in iter_route_contexts(app.routes):
        if isinstance(context.original_route, WebSocketRoute):
            message = f"{context.path} is a WebSocket route, which declares no permission and no server of ours reaches"
            raise RuntimeError(message)  # noqa: TRY004 - as below
        if isinstance(context.original_route, APIRoute) and not isinstance(context.original_route, StrictRoute):
            message = f"{context.path} does not come from app.kernel.http.Router"
            raise RuntimeError(message)  # noqa: TRY004 - the wiring is wrong, not an argument


def __dir__() -> list[str]:
    # `fastapi dev app/main.py` looks for an application among these names.
    return [*globals(), "app"]


def __getattr__(name: str) -> FastAPI:
    """`app` for `uvicorn app.main:app`, made when asked for, so that importing this file reads no settings."""
    if name == "app":
        try:
            settings = load_settings()
        except SettingsError as error:
            end_misconfigured(error)
        made = globals()["app"] = create_app(settings)
        return made
    raise AttributeError(name)
