"""Webhooks by Standard Webhooks (standardwebhooks.com): events, signatures, the schedule of retries."""

import base64
import hmac
import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Literal
from uuid import UUID

from typing_extensions import TypeAliasType

from app.kernel.ids import UserId

WebhookEventType = TypeAliasType(
    "WebhookEventType",
    Literal[
        "user.registered",
        "user.updated",
        "user.deleted",
        "session.revoked",
        "job.succeeded",
        "job.failed",
        "invoice.issued",
    ],
)
DeliveryState = TypeAliasType("DeliveryState", Literal["pending", "delivered", "failed"])
FinishedDeliveryState = TypeAliasType("FinishedDeliveryState", Literal["delivered", "failed"])

EVENT_TYPES: dict[WebhookEventType, str] = {
    "user.registered": "An account was registered. Sent to administrators whose endpoint names the type.",
    "user.updated": "A profile was changed.",
    "user.deleted": "An account was closed.",
    "session.revoked": "A session has ended.",
    "job.succeeded": "A job that you submitted has succeeded.",
    "job.failed": "A job that you submitted has failed, and is not tried again.",
    "invoice.issued": "An invoice was issued.",
}
ALL_EVENTS = "*"
# Events of the installation, of which `*` says nothing.
ADMIN_EVENTS = frozenset({"user.registered"})

MAX_ENDPOINTS = 20
# Tests and enabling of one endpoint, together: so many at once, and one more after each interval. Nothing proves that
# the receiver belongs to the owner of the endpoint, and each of these may send it a request outside any schedule.
CALLS_BURST = 10
CALLS_EVERY = timedelta(seconds=6)
# Deliveries of one user, to all endpoints together. What goes beyond is stored as failed with this error, and can be
# sent again on demand.
MAX_PENDING = 5_000
BACKLOG_FULL = "backlog_full"
# Attempts of one delivery that are on file.
KEPT_ATTEMPTS = 50
SECRET_BYTES = 32
SECRET_PREFIX = "whsec_"  # noqa: S105 - what every secret begins with
OLD_SECRET_TTL = timedelta(hours=24)

# Svix's schedule, in seconds, spread by a fifth.
RETRY_DELAYS = (5, 300, 1800, 7200, 18_000, 36_000, 36_000)
MAX_ATTEMPTS = len(RETRY_DELAYS) + 1
_SPREAD = 0.2
MAX_RETRY_AFTER = 3600

BREAKER_FAILURES = 10
BREAKER_SHORTEST = timedelta(seconds=30)
BREAKER_LONGEST = timedelta(minutes=15)
DISABLED_AFTER = timedelta(days=5)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a user's events go. The secrets are sealed. All times are the database's; it was read at `read_at`."""

    id: UUID
    user_id: UserId
    url: str
    event_types: list[str]
    description: str | None
    secret: bytes
    old_secret: bytes | None
    old_secret_until: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None
    failing_since: datetime | None
    failures: int
    open_until: datetime | None
    created_at: datetime
    read_at: datetime


@dataclass(frozen=True, slots=True)
class MatchingEndpoint:
    """An endpoint that wants an event."""

    id: UUID
    user_id: UserId
    event_types: list[str]


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """A message on its way to one endpoint. `trace_parent` None: it belongs to its publisher's trace."""

    id: UUID
    user_id: UserId
    endpoint_id: UUID
    message_id: UUID
    trace_parent: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """An event as it is sent; `payload` is the very text that is signed."""

    id: UUID
    user_id: UserId
    event_type: str
    payload: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far one message is on its way to one endpoint."""

    id: UUID
    user_id: UserId
    endpoint_id: UUID
    message_id: UUID
    event_type: str
    state: str
    attempts: int
    last_status: int | None
    last_error: str | None
    last_response: str | None
    last_ms: int | None
    next_at: datetime | None
    created_at: datetime
    delivered_at: datetime | None


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """One request to an endpoint, or why none was made. `status` None: there was no answer."""

    at: datetime
    status: int | None
    ms: int
    error: str | None


@dataclass(frozen=True, slots=True)
class DeliveryDetail:
    """A delivery with its message, and its attempts, oldest first."""

    delivery: Delivery
    message: Message
    attempts: list[DeliveryAttempt]


def format_secret(secret: bytes) -> str:
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def sign(secrets: list[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` header: one `v1` signature for each valid secret."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(f"v1,{base64.b64encode(hmac.digest(secret, content, sha256)).decode()}" for secret in secrets)


def retry_after(attempt: int, asked: float | None) -> float:
    """Seconds until the next attempt; what the receiver asked for counts up to an hour."""
    delay = RETRY_DELAYS[min(attempt, len(RETRY_DELAYS)) - 1] * random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311 - jitter
    return max(delay, min(asked or 0.0, MAX_RETRY_AFTER))


def breaker_pause(failures: int) -> timedelta | None:
    """For how long an endpoint is left alone after so many failures in a row; None while it is not."""
    if failures < BREAKER_FAILURES:
        return None
    doublings = min(failures - BREAKER_FAILURES, 10)
    return min(BREAKER_SHORTEST * (1 << doublings), BREAKER_LONGEST)
