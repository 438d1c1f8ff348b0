"""API keys."""

from fastapi import Request, Response

from app.identity.router.dependencies import DeviceDep, IdentityDep, actor_of
from app.identity.schemas.api_keys import ApiKeyCreated, ApiKeyList, ApiKeyRequest
from app.identity.service import api_keys
from app.kernel.auth import SessionPrincipal
from app.kernel.database import Tx
from app.kernel.http import Id, PageQueryDep, Router, json_response, problem_responses, reads_headers
from app.kernel.http.idempotency import idempotent
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/auth/api-keys", tags=["identity"])


@router.post(
    "",
    status_code=201,
    response_model=ApiKeyCreated,
    responses=problem_responses(409),
    openapi_extra=reads_headers("IdempotencyKey"),
)
async def create_api_key(
    request: Request,
    body: ApiKeyRequest,
    principal: SessionPrincipal,
    resources: ResourcesDep,
    identity: IdentityDep,
    device: DeviceDep,
) -> Response:
    """Create an API key with some of your scopes. The key is shown only in this response."""

    async def create(tx: Tx) -> Response:
        row, key = await api_keys.create(
            tx,
            identity,
            actor_of(principal, device),
            name=body.name,
            scopes=body.scopes,
            own_scopes=principal.scopes,
            expires_at=body.expires_at,
        )
        return json_response({**row.view(), "key": key}, status=201)

    return await idempotent(
        request,
        resources,
        principal.user_id,
        operation="identity.create_api_key",
        effect=create,
    )


@router.get("", response_model=ApiKeyList)
async def list_api_keys(principal: SessionPrincipal, resources: ResourcesDep, page: PageQueryDep) -> Response:
    """List your active API keys, newest first."""
    found = await api_keys.list_own(
        resources.db, resources.cursors, principal.user_id, limit=page.limit, cursor=page.cursor
    )
    return json_response({"items": [row.view() for row in found.items], "next_cursor": found.next_cursor})


@router.delete("/{key_id}", status_code=204)
async def delete_api_key(
    key_id: Id, principal: SessionPrincipal, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Revoke an API key at once."""
    await api_keys.revoke(resources.db, identity, actor_of(principal, device), key_id)
    return Response(status_code=204)
