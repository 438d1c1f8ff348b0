"""`/v1/admin/webhooks`."""

from typing import Annotated, Any

from fastapi import Query, Response

from app.identity.api import record_admin_read
from app.jobs.records.webhooks import Delivery
from app.jobs.router.access import Admin, AdminStarter, DeviceDep, actor_of
from app.jobs.router.webhooks import delivery_view
from app.jobs.schemas.webhooks import AdminDeliveryPage, AdminDeliveryQuery, AdminDeliveryResponse
from app.jobs.service import deliveries
from app.kernel.http import Id, Router, json_response, problem_responses
from app.kernel.ids import UserId
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/admin/webhooks", tags=["admin"])


@router.get("/deliveries", response_model=AdminDeliveryPage)
async def list_all_deliveries(
    principal: Admin, resources: ResourcesDep, device: DeviceDep, query: Annotated[AdminDeliveryQuery, Query()]
) -> Response:
    """List the webhook deliveries of all users, newest first."""
    page = await deliveries.list_all_deliveries(
        resources.db,
        resources.cursors,
        user_id=UserId(query.user_id) if query.user_id else None,
        endpoint_id=query.endpoint_id,
        state=query.state,
        limit=query.limit,
        cursor=query.cursor,
    )
    actor = actor_of(principal, device)
    await record_admin_read(resources.db, resources.clock, actor, "webhook_deliveries", query.user_id)
    return json_response({"items": [_view(delivery) for delivery in page.items], "next_cursor": page.next_cursor})


@router.post(
    "/deliveries/{delivery_id}/redeliver",
    status_code=202,
    response_model=AdminDeliveryResponse,
    responses=problem_responses(409),
)
async def redeliver_any(
    principal: AdminStarter, resources: ResourcesDep, device: DeviceDep, delivery_id: Id
) -> Response:
    """Send a webhook delivery of any user again."""
    delivery = await deliveries.redeliver_any(
        resources.db, resources.queue, resources.clock, actor_of(principal, device), delivery_id
    )
    return json_response(_view(delivery), status=202)


def _view(delivery: Delivery) -> dict[str, Any]:
    return delivery_view(delivery) | {"user_id": delivery.user_id}
