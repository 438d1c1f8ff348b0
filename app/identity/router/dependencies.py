"""What the routes of this module share."""

from typing import Annotated

from fastapi import Depends, Request, Response

from app.identity.records import Actor, Device
from app.identity.service.container import IdentityServices
from app.identity.service.devices import COOKIE_NAME, COOKIE_SECONDS
from app.kernel.auth import Principal
from app.kernel.headers.client_address import client_address, user_agent
from app.kernel.resources import ResourcesDep


async def _identity(request: Request) -> IdentityServices:
    identity: IdentityServices = request.app.state.identity
    return identity


async def _device(request: Request, resources: ResourcesDep) -> Device:
    return Device(client_address(request.scope, resources.http), user_agent(request))


IdentityDep = Annotated[IdentityServices, Depends(_identity)]
DeviceDep = Annotated[Device, Depends(_device)]


def actor_of(principal: Principal, device: Device) -> Actor:
    """The caller as the actor of what the request does."""
    return Actor(principal.user_id, principal.session_id, device, principal.api_key_id)


def set_device_cookie(response: Response, cookie: str, identity: IdentityServices) -> None:
    """Makes the client's device a known one."""
    response.set_cookie(
        COOKIE_NAME,
        cookie,
        max_age=COOKIE_SECONDS,
        path="/v1/auth",
        secure=identity.issuer.issuer.startswith("https:"),
        httponly=True,
        samesite="lax",
    )
