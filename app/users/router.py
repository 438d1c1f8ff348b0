"""`/v1/users` and `/v1/events`."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import UUID7, UUID8

from app.kernel.auth import Require, authenticate_again, principal_of
from app.kernel.background import until
from app.kernel.database import StatementTimeout, Tx
from app.kernel.database.versions import Versions
from app.kernel.http import (
    Id,
    Preconditions,
    Router,
    dump_json,
    json_fragment,
    json_response,
    problem_responses,
    reads_headers,
    version_etag,
)
from app.kernel.http.event_streams import RECONNECT_MILLISECONDS, draining_of, while_welcome
from app.kernel.http.idempotency import idempotent
from app.kernel.ids import UserId
from app.kernel.middleware.response_cache import CachedRead
from app.kernel.request.principal import Principal
from app.kernel.request.state import RequestState, RequestStateDep
from app.kernel.resources import Resources, ResourcesDep
from app.users import service
from app.users.errors import TooManyEvents, TooManyEventStreams
from app.users.records import MAX_SUMMARY_EVENTS, EventFilter, StreamedEvent, StreamPosition
from app.users.schemas import (
    EventPage,
    EventQuery,
    EventsAccepted,
    EventsRequest,
    Kind,
    LookupRequest,
    LookupResponse,
    PatchPreferencesRequest,
    PatchUserRequest,
    PreferencesResponse,
    PublicUserResponse,
    PutPreferencesRequest,
    SummaryQuery,
    SummaryResponse,
    UserResponse,
)
from app.users.service import streaming

router = Router(prefix="/v1", tags=["users"])

# Units of the caller's quota for one of many in a request.
_COST_OF_ITEM = 0.05
# For each event that a summary reads. A unit is half a millisecond of a process, in which the database reads 300, but
# alone; beside others it has a third of that time.
_COST_OF_READ_EVENT = 0.01
_COST_OF_COUNTED_EVENT = 0.001
# For a change of which webhooks tell: an event is a job, and another job for each endpoint that wants it.
_COST_OF_EVENT = 5.0

ProfileReader = Annotated[Principal, Require("profile:read")]
ProfileWriter = Annotated[Principal, Require("profile:write")]
EventReader = Annotated[Principal, Require("events:read")]
EventWriter = Annotated[Principal, Require("events:write")]
_LastEventId = Annotated[UUID7 | UUID8 | None, Header(include_in_schema=False)]


@router.get("/users/me", response_model=UserResponse, responses=problem_responses(404))
async def get_me(principal: ProfileReader, resources: ResourcesDep) -> Response:
    """Get your account."""
    user = await service.read_profile(resources.reads, principal.user_id)
    return json_response(user.view(), etag=_etag(resources, user.id, user.version))


@router.patch(
    "/users/me",
    response_model=UserResponse,
    responses=problem_responses(404, 412),
    openapi_extra=reads_headers("IfMatch"),
)
async def update_me(
    state: RequestStateDep, principal: ProfileWriter, resources: ResourcesDep, patch: PatchUserRequest
) -> Response:
    """Change your account with a JSON merge patch."""
    if resources.webhook_subscribers.has(principal.user_id):
        state.charge(_COST_OF_EVENT)
    changes = patch.model_dump(exclude_unset=True)
    versions = _versions(state, resources, principal.user_id)
    user = await service.change_profile(
        resources.db, resources.webhook_subscribers, principal.user_id, changes, versions
    )
    return json_response(user.view(), etag=_etag(resources, user.id, user.version))


@router.get("/users/me/preferences", response_model=PreferencesResponse, responses=problem_responses(404))
async def get_preferences(principal: ProfileReader, resources: ResourcesDep) -> Response:
    """Get your preferences."""
    preferences = await service.read_preferences(resources.reads, principal.user_id)
    return json_response(preferences.view(), etag=_etag(resources, principal.user_id, preferences.version))


@router.put(
    "/users/me/preferences",
    response_model=PreferencesResponse,
    responses=problem_responses(404, 412),
    openapi_extra=reads_headers("IfMatch"),
)
async def replace_preferences(
    state: RequestStateDep, principal: ProfileWriter, resources: ResourcesDep, body: PutPreferencesRequest
) -> Response:
    """Replace all of your preferences."""
    values = body.model_dump(exclude={"extra"}) | {"extra": json_fragment(body.extra)}
    versions = _versions(state, resources, principal.user_id)
    preferences = await service.replace_preferences(resources.db, principal.user_id, values, versions)
    return json_response(preferences.view(), etag=_etag(resources, principal.user_id, preferences.version))


@router.patch(
    "/users/me/preferences",
    response_model=PreferencesResponse,
    responses=problem_responses(404, 412),
    openapi_extra=reads_headers("IfMatch"),
)
async def update_preferences(
    state: RequestStateDep, principal: ProfileWriter, resources: ResourcesDep, patch: PatchPreferencesRequest
) -> Response:
    """Change your preferences with a JSON merge patch."""
    changes = patch.model_dump(exclude_unset=True)
    versions = _versions(state, resources, principal.user_id)
    preferences = await service.change_preferences(resources.db, principal.user_id, changes, versions)
    return json_response(preferences.view(), etag=_etag(resources, principal.user_id, preferences.version))


@router.get("/users/me/events", response_model=EventPage)
async def list_events(
    principal: EventReader, resources: ResourcesDep, query: Annotated[EventQuery, Query()]
) -> Response:
    """List your events, newest first. `property.<name>=<value>` names a property that they have and its value, as text;
    up to ten may be named.
    """
    page = await service.list_events(
        resources.db,
        resources.cursors,
        principal.user_id,
        EventFilter(query.kind, query.since, query.until, query.properties()),
        limit=query.limit,
        cursor=query.cursor,
    )
    return json_response(page)


@router.get("/users/me/events/summary", response_model=SummaryResponse)
async def summarise_events(
    request: Request,
    state: RequestStateDep,
    principal: EventReader,
    resources: ResourcesDep,
    query: Annotated[SummaryQuery, Query()],
) -> Response:
    """Count your events by kind and time bucket. Costs one unit of your quota for each hundred events that it reads."""
    async with request.app.state.summaries.turn(principal.user_id):
        try:
            summary = await service.summarise_events(
                resources.db,
                resources.clock,
                principal.user_id,
                bucket=query.bucket,
                since=query.since,
                until=query.until,
                max_events=MAX_SUMMARY_EVENTS,
            )
        except StatementTimeout:
            state.charge_done(MAX_SUMMARY_EVENTS * _COST_OF_READ_EVENT)
            raise
        except TooManyEvents:
            state.charge_done(MAX_SUMMARY_EVENTS * _COST_OF_COUNTED_EVENT)
            raise
        state.charge_done(summary.events_read * _COST_OF_READ_EVENT)
    content: dict[str, Any] = {
        "bucket": summary.bucket,
        "since": summary.since,
        "until": summary.until,
        "items": json_fragment(summary.items),
    }
    if summary.others != "[]":
        content["others"] = json_fragment(summary.others)
    return json_response(content)


async def _countable(
    request: Request, principal: EventReader, resources: ResourcesDep, last_event_id: _LastEventId = None
) -> AsyncIterator[StreamPosition]:
    """Answers 429 before a stream begins, because afterwards it is too late for a status; counts the stream until it
    has ended.
    """
    open_streams = request.app.state.event_watch.open_streams
    if not open_streams.take(principal.user_id):
        raise TooManyEventStreams
    try:
        yield await streaming.find_start(
            resources.db, principal.user_id, last_event_id, resources.incarnation.restored_at
        )
    finally:
        open_streams.give_back(principal.user_id)


@router.get("/users/me/events/stream", response_class=EventSourceResponse, openapi_extra=reads_headers("LastEventId"))
async def stream_events(
    request: Request,
    state: RequestStateDep,
    resources: ResourcesDep,
    position: Annotated[StreamPosition, Depends(_countable)],
    kind: Annotated[Kind | None, Query(description="Only events of this kind.")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Stream your events as they are stored: `event` with the event as in lists, or finally `shutdown`.

    The `id` tells how far the stream has come. It also comes without data: at once, and behind events of other kinds.
    Reconnect with the last one, also after `shutdown`: the new stream goes on behind it, without a gap. It also ends
    when your token does.
    """
    draining = draining_of(request)
    following = streaming.follow_events(
        *(resources.db, request.app.state.event_watch, principal_of(state).user_id, position),
        kind=kind,
        before_each=partial(authenticate_again, request),
    )
    last_id = str(position.mark())
    # An event without data is dispatched to no handler, but the client keeps its id and reconnects with it.
    yield ServerSentEvent(id=last_id, retry=RECONNECT_MILLISECONDS)
    async for item in while_welcome(until(draining, following)):
        last_id = str(item.id)
        if isinstance(item, StreamedEvent):
            yield ServerSentEvent(event="event", raw_data=_text_of(item), id=last_id)
        else:
            yield ServerSentEvent(id=last_id)
    if draining is not None and draining.is_set():
        yield ServerSentEvent(event="shutdown", data={}, id=last_id, retry=RECONNECT_MILLISECONDS)


def _text_of(event: StreamedEvent) -> str:
    view = {
        "id": event.id,
        "kind": event.kind,
        "occurred_at": event.occurred_at,
        "properties": json_fragment(event.properties),
        "created_at": event.created_at,
    }
    return dump_json(view).decode()


@router.post("/users/lookup", response_model=LookupResponse)
async def look_up_users(
    state: RequestStateDep, _: ProfileReader, resources: ResourcesDep, body: LookupRequest
) -> Response:
    """Get the public profiles of up to 100 users."""
    state.charge(1 + len(body.ids) * _COST_OF_ITEM)
    items, missing = await service.look_up_users(resources.db, body.ids)
    return json_response({"items": json_fragment(items), "missing": json_fragment(missing)})


@router.get("/users/{user_id}", response_model=PublicUserResponse)
async def get_user(_: ProfileReader, resources: ResourcesDep, user_id: Id) -> Response:
    """Get the public profile of a user."""
    return json_response(await service.read_public_user(resources.db, user_id))


@router.post(
    "/events",
    status_code=201,
    response_model=EventsAccepted,
    responses=problem_responses(409),
    openapi_extra=reads_headers("IdempotencyKey"),
)
async def record_events(
    request: Request, state: RequestStateDep, principal: EventWriter, resources: ResourcesDep, body: EventsRequest
) -> Response:
    """Record one event or many. They are durable when the response arrives."""
    events = body.new_events()
    state.charge(1 + (len(events) - 1) * _COST_OF_ITEM)
    if b"idempotency-key" not in state.headers:
        ids = await service.ingest_events(request.app.state.events, resources.clock, principal.user_id, events)
        return json_response({"accepted": len(ids), "ids": ids}, status=201)

    async def store(tx: Tx) -> Response:
        ids = await service.record_events(tx, resources.clock, principal.user_id, events)
        return json_response({"accepted": len(ids), "ids": ids}, status=201)

    return await idempotent(
        request,
        resources,
        principal.user_id,
        operation="users.record_events",
        effect=store,
        single_statement=True,
    )


def _etag(resources: Resources, user_id: UserId, version: int) -> str:
    return version_etag(user_id.hex, version, resources.incarnation.mark)


def _versions(state: RequestState, resources: Resources, user_id: UserId) -> Versions:
    return Preconditions.of(state).versions(user_id.hex, resources.incarnation.mark)


_PROFILE = frozenset({"profile:read"})
_EVENTS = frozenset({"events:read"})

CACHED_READS = (
    CachedRead("/v1/users/me", _PROFILE, lambda user_id: (service.profile_tag(user_id),), get_me),
    CachedRead("/v1/users/me/preferences", _PROFILE, lambda user_id: (service.profile_tag(user_id),), get_preferences),
    CachedRead("/v1/users/me/events", _EVENTS, lambda user_id: (service.events_tag(user_id),)),
    CachedRead("/v1/users/me/events/summary", _EVENTS, lambda user_id: (service.events_tag(user_id),)),
)
