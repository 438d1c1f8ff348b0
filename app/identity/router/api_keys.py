"""API keys."""

from fastapi import Response

from app.identity.router.dependencies import DeviceDep, IdentityDep, actor_of
from app.identity.schemas import ApiKeyBody, ApiKeyList, NewApiKeyView
from app.identity.service import api_keys
from app.kernel.auth import SessionPrincipal
from app.kernel.http import Id, Router, json_response, problem_responses
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/auth/api-keys", tags=["identity"])


@router.post(
    "",
    status_code=201,
    response_model=NewApiKeyView,
    responses=problem_responses(409),
)
async def create_api_key(
    body: ApiKeyBody, principal: SessionPrincipal, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """Make a key with some of the caller's scopes. It is shown in this answer and never again."""
    row, key = await api_keys.create(
        resources.db,
        identity,
        actor_of(principal, device),
        name=body.name,
        scopes=body.scopes,
        own_scopes=principal.scopes,
        expires_at=body.expires_at,
    )
    return json_response({**row.view(), "key": key}, status=201)


@router.get("", response_model=ApiKeyList)
async def list_api_keys(principal: SessionPrincipal, resources: ResourcesDep) -> Response:
    """The caller's living keys, the newest first."""
    rows = await api_keys.list_own(resources.db, principal.user_id)
    return json_response({"items": [row.view() for row in rows], "next_cursor": None})


@router.delete("/{key_id}", status_code=204)
async def delete_api_key(
    key_id: Id, principal: SessionPrincipal, resources: ResourcesDep, identity: IdentityDep, device: DeviceDep
) -> Response:
    """End a key at once."""
    await api_keys.revoke(resources.db, identity, actor_of(principal, device), key_id)
    return Response(status_code=204)
