"""`/v1/webhooks`."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Query, Request, Response
from pydantic import MISSING

from app.jobs.records.webhooks import EVENT_TYPES, Delivery, Endpoint
from app.jobs.router.access import DeviceDep, Runtime, WebhookCaller, WebhookManager, actor_of, fragment
from app.jobs.router.jobs import job_view
from app.jobs.schemas.jobs import JobResponse
from app.jobs.schemas.webhooks import (
    CreateEndpointRequest,
    DeliveryDetailResponse,
    DeliveryPage,
    DeliveryQuery,
    DeliveryResponse,
    EndpointCreated,
    EndpointList,
    EndpointResponse,
    EventTypeList,
    PatchEndpointRequest,
    ReplayEndpointRequest,
    RotateSecretRequest,
)
from app.jobs.service import deliveries, endpoints, replaying
from app.kernel.database import Tx
from app.kernel.http import (
    Id,
    PageQueryDep,
    Preconditions,
    Router,
    body_etag,
    dump_json,
    json_response,
    located,
    problem_responses,
    reads_headers,
)
from app.kernel.http.idempotency import idempotent
from app.kernel.request.state import RequestState, RequestStateDep
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/webhooks", tags=["webhooks"])


@router.get("/event-types", response_model=EventTypeList)
async def list_event_types(_: WebhookManager, resources: ResourcesDep, page: PageQueryDep) -> Response:
    """List the event types that endpoints can subscribe to."""
    found = resources.cursors.paginate_in_memory(
        "event_types", "", sorted(EVENT_TYPES), lambda name: (name,), tuple[str], limit=page.limit, cursor=page.cursor
    )
    items = [{"type": name, "description": EVENT_TYPES[name]} for name in found.items]
    return json_response({"items": items, "next_cursor": found.next_cursor})


@router.post(
    "/endpoints",
    status_code=201,
    response_model=EndpointCreated,
    responses=problem_responses(409) | located(201),
    openapi_extra=reads_headers("IdempotencyKey"),
)
async def create_endpoint(
    request: Request,
    principal: WebhookManager,
    resources: ResourcesDep,
    runtime: Runtime,
    device: DeviceDep,
    body: CreateEndpointRequest,
) -> Response:
    """Create a webhook endpoint. The secret is shown only in this response."""
    runtime.sender.check_url(body.url)

    async def create(tx: Tx) -> Response:
        created = await endpoints.create_endpoint(
            tx,
            resources.keys,
            resources.clock,
            resources.webhook_subscribers,
            actor_of(principal, device),
            url=body.url,
            event_types=body.event_types,
            description=body.description,
        )
        view = _view(created.endpoint) | {"secret": created.secret}
        return json_response(view, status=201, headers={"Location": f"/v1/webhooks/endpoints/{created.endpoint.id}"})

    return await idempotent(
        request,
        resources,
        principal.user_id,
        operation="jobs.create_endpoint",
        effect=create,
    )


@router.get("/endpoints", response_model=EndpointList)
async def list_endpoints(principal: WebhookManager, resources: ResourcesDep, page: PageQueryDep) -> Response:
    """List your webhook endpoints."""
    found = await endpoints.list_endpoints(
        resources.db, resources.cursors, principal.user_id, limit=page.limit, cursor=page.cursor
    )
    items = [_view(endpoint) for endpoint in found.items]
    return json_response({"items": items, "next_cursor": found.next_cursor})


@router.get("/endpoints/{endpoint_id}", response_model=EndpointResponse)
async def get_endpoint(principal: WebhookManager, resources: ResourcesDep, endpoint_id: Id) -> Response:
    """Get one of your webhook endpoints."""
    return json_response(_view(await endpoints.get_endpoint(resources.db, principal.user_id, endpoint_id)))


@router.patch(
    "/endpoints/{endpoint_id}",
    response_model=EndpointResponse,
    responses=problem_responses(412),
    openapi_extra=reads_headers("IfMatch"),
)
async def update_endpoint(
    *,
    state: RequestStateDep,
    principal: WebhookManager,
    resources: ResourcesDep,
    runtime: Runtime,
    device: DeviceDep,
    endpoint_id: Id,
    patch: PatchEndpointRequest,
) -> Response:
    """Change a webhook endpoint with a JSON merge patch."""
    endpoint = await endpoints.change_endpoint(
        resources.db,
        runtime.sender,
        resources.clock,
        resources.webhook_subscribers,
        actor_of(principal, device),
        endpoint_id,
        changes=endpoints.EndpointChanges(
            url=None if patch.url is MISSING else patch.url,
            event_types=None if patch.event_types is MISSING else patch.event_types,
            description=patch.description,
            has_description="description" in patch.model_fields_set,
        ),
        check=_check_of(state),
    )
    return json_response(_view(endpoint), etag=_etag(endpoint).decode())


@router.delete(
    "/endpoints/{endpoint_id}",
    status_code=204,
    responses=problem_responses(412),
    openapi_extra=reads_headers("IfMatch"),
)
async def delete_endpoint(
    state: RequestStateDep, principal: WebhookManager, resources: ResourcesDep, device: DeviceDep, endpoint_id: Id
) -> Response:
    """Delete a webhook endpoint."""
    await endpoints.delete_endpoint(
        resources.db, resources.clock, actor_of(principal, device), endpoint_id, check=_check_of(state)
    )
    return Response(status_code=204)


@router.post(
    "/endpoints/{endpoint_id}/rotate-secret",
    response_model=EndpointCreated,
)
async def rotate_secret(
    principal: WebhookManager,
    resources: ResourcesDep,
    device: DeviceDep,
    endpoint_id: Id,
    body: RotateSecretRequest | None = None,
) -> Response:
    """Rotate the secret of a webhook endpoint. The old secret signs too for one day, or no more."""
    created = await endpoints.rotate_secret(
        *(resources.db, resources.keys, resources.clock, actor_of(principal, device), endpoint_id),
        expire_old_now=body is not None and body.expire_old_now,
    )
    return json_response(_view(created.endpoint) | {"secret": created.secret})


@router.post(
    "/endpoints/{endpoint_id}/test",
    status_code=202,
    response_model=DeliveryResponse,
)
async def test_endpoint(principal: WebhookCaller, resources: ResourcesDep, endpoint_id: Id) -> Response:
    """Send a test event to a webhook endpoint. Ten times at once and then every 6 s, `enable` included."""
    delivery = await endpoints.test_endpoint(
        resources.db, resources.queue, resources.clock, principal.user_id, endpoint_id
    )
    return json_response(delivery_view(delivery), status=202)


@router.post(
    "/endpoints/{endpoint_id}/replay",
    status_code=202,
    response_model=JobResponse,
    responses=problem_responses(409) | located(202),
)
async def replay_endpoint(
    principal: WebhookCaller, resources: ResourcesDep, device: DeviceDep, endpoint_id: Id, body: ReplayEndpointRequest
) -> Response:
    """Send to a webhook endpoint again what it was sent before, oldest first. A job does it, one at a time."""
    job = await replaying.submit_replay(
        *(resources.db, resources.queue, actor_of(principal, device), endpoint_id),
        since=body.since,
        until=body.until,
        state=body.state,
    )
    return json_response(job_view(job), status=202, headers={"Location": f"/v1/jobs/{job.id}"})


@router.post("/endpoints/{endpoint_id}/enable", response_model=EndpointResponse)
async def enable_endpoint(
    principal: WebhookManager, resources: ResourcesDep, device: DeviceDep, endpoint_id: Id
) -> Response:
    """Enable a disabled webhook endpoint. One that is enabled stays as it is, its pause after failures too."""
    endpoint = await endpoints.enable_endpoint(
        resources.db, resources.clock, resources.webhook_subscribers, actor_of(principal, device), endpoint_id
    )
    return json_response(_view(endpoint))


@router.get("/deliveries", response_model=DeliveryPage)
async def list_deliveries(
    principal: WebhookManager, resources: ResourcesDep, query: Annotated[DeliveryQuery, Query()]
) -> Response:
    """List webhook deliveries, newest first."""
    page = await deliveries.list_deliveries(
        resources.db,
        resources.cursors,
        principal.user_id,
        endpoint_id=query.endpoint_id,
        state=query.state,
        limit=query.limit,
        cursor=query.cursor,
    )
    items = [delivery_view(delivery) for delivery in page.items]
    return json_response({"items": items, "next_cursor": page.next_cursor})


@router.get("/deliveries/{delivery_id}", response_model=DeliveryDetailResponse)
async def get_delivery(principal: WebhookManager, resources: ResourcesDep, delivery_id: Id) -> Response:
    """Get a webhook delivery with what is sent and every attempt."""
    detail = await deliveries.get_delivery_detail(resources.db, principal.user_id, delivery_id)
    view = delivery_view(detail.delivery) | {
        "payload": fragment(detail.message.payload),
        "history": [asdict(attempt) for attempt in detail.attempts],
    }
    return json_response(view)


@router.post(
    "/deliveries/{delivery_id}/redeliver",
    status_code=202,
    response_model=DeliveryResponse,
    responses=problem_responses(409),
)
async def redeliver(principal: WebhookCaller, resources: ResourcesDep, delivery_id: Id) -> Response:
    """Send a webhook delivery again."""
    delivery = await deliveries.redeliver(resources.db, resources.queue, principal.user_id, delivery_id)
    return json_response(delivery_view(delivery), status=202)


def _view(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "description": endpoint.description,
        "status": "active" if endpoint.disabled_at is None else "disabled",
        "disabled_reason": endpoint.disabled_reason,
        "disabled_at": endpoint.disabled_at,
        "created_at": endpoint.created_at,
    }


def _etag(endpoint: Endpoint) -> bytes:
    """As that of the answer which shows the endpoint."""
    return body_etag(dump_json(_view(endpoint)))


def _check_of(state: RequestState) -> endpoints.EndpointCheck | None:
    conditions = Preconditions.of(state)
    return (lambda endpoint: conditions.check(_etag(endpoint))) if conditions else None


def delivery_view(delivery: Delivery) -> dict[str, Any]:
    """The delivery as its owner sees it."""
    view = asdict(delivery)
    del view["user_id"]
    return view
