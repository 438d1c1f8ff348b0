"""What the routers of the module share: the permissions, and what the module owns in this process."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request

from app.identity.api import Actor, Device
from app.jobs.service.runtime import JobsRuntime
from app.kernel.auth import Permission, Require, RequireRole
from app.kernel.http import json_fragment
from app.kernel.queue import JobKind
from app.kernel.request.client_address import client_address, user_agent
from app.kernel.request.principal import Principal
from app.kernel.request.state import RequestStateDep
from app.kernel.resources import ResourcesDep

JobReader = Annotated[Principal, Require("jobs:read")]
JobWriter = Annotated[Principal, Require("jobs:write")]
# Each of these makes work for others than this process: a job and what it does, a file, a foreign server.
JobStarter = Annotated[Principal, Require("jobs:write", cost=5)]
FileReader = Annotated[Principal, Require("jobs:read", cost=2)]
WebhookCaller = Annotated[Principal, Require("webhooks:manage", cost=5)]
WebhookManager = Annotated[Principal, Require("webhooks:manage")]
Admin = Annotated[Principal, RequireRole("admin")]
AdminStarter = Annotated[Principal, RequireRole("admin", cost=5)]


async def _runtime(request: Request) -> JobsRuntime:
    runtime: JobsRuntime = request.app.state.jobs
    return runtime


Runtime = Annotated[JobsRuntime, Depends(_runtime)]


async def _device(state: RequestStateDep, resources: ResourcesDep) -> Device:
    return Device(client_address(state, resources.http), user_agent(state))


DeviceDep = Annotated[Device, Depends(_device)]


def actor_of(principal: Principal, device: Device) -> Actor:
    """The caller as the actor of what the request does."""
    return Actor(
        principal.user_id,
        principal.session_id,
        device,
        principal.api_key_id,
        impersonator_id=principal.actor_id,
    )


def check_kind(principal: Principal, kinds: Mapping[str, JobKind[Any]], name: str) -> None:
    """Lets a caller start or cancel a job of this kind, or have its files. An unknown kind is not judged here.

    Raises:
        InsufficientScope, SessionRequired: the job reads or does what this caller may not by other routes.
    """
    kind = kinds.get(name)
    if kind is not None:
        Permission(scopes=kind.access.scopes, needs_session=kind.access.needs_session).check_principal(principal)


def fragment(text: str | None) -> Any:
    """JSON text from Postgres, as it is."""
    return None if text is None else json_fragment(text)
