"""Entries of the audit trail."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import orjson

from app.identity.records import Device
from app.kernel.ids import UserId


@dataclass(frozen=True, slots=True)
class NewSecurityEvent:
    """An audit entry about to be stored. `data` is JSON text without secrets."""

    user_id: UserId
    id: UUID
    action: str
    actor_id: UUID | None
    session_id: UUID | None
    device: Device
    created_at: datetime
    data: str = "{}"


@dataclass(frozen=True, slots=True)
class SecurityEvent:
    """One entry of an account's audit trail. `data` is JSON text."""

    id: UUID
    action: str
    actor_id: UUID | None
    session_id: UUID | None
    ip: str | None
    user_agent: str | None
    data: str
    created_at: datetime

    def view(self) -> dict[str, object]:
        return {
            "id": self.id,
            "action": self.action,
            "actor_id": self.actor_id,
            "session_id": self.session_id,
            "ip": self.ip,
            "user_agent": self.user_agent,
            "data": orjson.Fragment(self.data),
            "created_at": self.created_at,
        }


@dataclass(frozen=True, slots=True)
class TrailEntry(SecurityEvent):
    """One entry of the audit trail of any account."""

    user_id: UserId

    def view(self) -> dict[str, object]:
        # Not by `super()`, which does not know the class that `slots` makes.
        return {"user_id": self.user_id, **SecurityEvent.view(self)}
