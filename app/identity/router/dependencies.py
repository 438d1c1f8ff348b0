"""What the routes of this module share."""

from typing import Annotated

from fastapi import Depends, Request

from app.identity.records import Actor, Device
from app.identity.service.runtime import Identity
from app.kernel.auth import Principal
from app.kernel.client import client_address, user_agent
from app.kernel.resources import ResourcesDep


async def _identity(request: Request) -> Identity:
    identity: Identity = request.app.state.identity
    return identity


async def _device(request: Request, resources: ResourcesDep) -> Device:
    return Device(client_address(request.scope, resources.http), user_agent(request))


IdentityDep = Annotated[Identity, Depends(_identity)]
DeviceDep = Annotated[Device, Depends(_device)]


def actor_of(principal: Principal, device: Device) -> Actor:
    """The caller as somebody who does something."""
    return Actor(principal.user_id, principal.session_id, device)
