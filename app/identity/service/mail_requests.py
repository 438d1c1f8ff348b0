"""Requests for e-mail from clients that prove nothing, and whose device may be known."""

from dataclasses import dataclass
from typing import Literal

from app.identity.records import Device
from app.identity.service.container import IdentityServices
from app.identity.service.devices import KnownDevice
from app.kernel.request.client_address import network_of
from app.kernel.validation.addresses import canonical_email


@dataclass(frozen=True, slots=True)
class MailWish:
    """Whether the request is passed on, and its device, if that has shown a genuine cookie."""

    is_granted: bool
    known: KnownDevice | None


async def ask_for_mail(
    identity: IdentityServices,
    purpose: Literal["verification", "reset", "code"],
    email: str,
    device: Device,
    device_cookie: str | None,
) -> MailWish:
    """Counts a request for mail to `email`. A known device has a share of its own, here and where the mail is sent.

    Raises:
        TooManyAttempts: too many come from the network of a device that is not known.
    """
    throttle = identity.throttle
    canonical = canonical_email(email)
    known = identity.devices.recognise(device_cookie, canonical)
    if known is None:
        await throttle.reserve(throttle.registration_buckets(device.ip, identity.registrations_per_network))
    source = known.id if known else network_of(device.ip)
    is_granted = await throttle.may_ask_for_mail(purpose, canonical, source)
    return MailWish(is_granted, known)
