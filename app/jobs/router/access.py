"""What the routers of the module share: who may call, and what the module owns in this process."""

from typing import Annotated, Any

from fastapi import Depends, Request

from app.jobs.service.runtime import JobsRuntime
from app.kernel.auth import Principal, Require, RequireRole
from app.kernel.http import json_fragment

JobReader = Annotated[Principal, Require("jobs:read")]
JobWriter = Annotated[Principal, Require("jobs:write")]
# Each of these makes work for others than this process: a job and what it does, a file, somebody else's server.
JobStarter = Annotated[Principal, Require("jobs:write", cost=5)]
FileReader = Annotated[Principal, Require("jobs:read", cost=2)]
WebhookSender = Annotated[Principal, Require("webhooks:manage", cost=5)]
WebhookManager = Annotated[Principal, Require("webhooks:manage")]
Admin = Annotated[Principal, RequireRole("admin")]


async def _runtime(request: Request) -> JobsRuntime:
    runtime: JobsRuntime = request.app.state.jobs
    return runtime


Runtime = Annotated[JobsRuntime, Depends(_runtime)]


def fragment(text: str | None) -> Any:
    """JSON text from Postgres, as it is."""
    return None if text is None else json_fragment(text)
