"""What the core routes answer."""

from typing import Any, Literal

from app.kernel.http import Schema


class JobCounts(Schema):
    queued: int
    running: int
    succeeded: int
    failed: int
    recent: list[dict[str, Any]]


class OverviewView(Schema):
    user: dict[str, Any]
    preferences: dict[str, Any]
    recent_events: list[dict[str, Any]]
    jobs: JobCounts


class AliveView(Schema):
    status: Literal["alive"]


class ReadyView(Schema):
    status: Literal["ready"]
    checks: dict[str, Literal["ok", "degraded", "failing"]]
