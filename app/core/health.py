"""Readiness: what this process needs, and whether it has it."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Response

from app.kernel.database import Database
from app.kernel.errors import Unavailable
from app.kernel.http import json_response, problem_response
from app.kernel.redis.gateway import RedisGateway, RedisUnavailable
from app.kernel.resources import Resources

PING = "SELECT 1"


class NotReady(Unavailable):
    """The process cannot serve requests; `checks` names what fails."""

    code = "not_ready"
    title = "Not ready"


# `ok`, `degraded` or `failing`, by the name of what a process depends on.
Health = Mapping[str, str]


async def check_health(resources: Resources, *, can_sign: bool) -> Health:
    """Asks each dependency."""
    database, redis = await asyncio.gather(_database(resources.db), _redis(resources))
    return {
        "database": "ok" if database else "failing",
        "redis": "ok" if redis else "degraded",
        "signing_key": "ok" if can_sign else "failing",
    }


def health_response(checks: Health) -> Response:
    """200, or 503 naming what fails."""
    failing = [name for name, state in checks.items() if state == "failing"]
    if not failing:
        return json_response({"status": "ready", "checks": checks}, headers={"Cache-Control": "no-store"})
    response = problem_response(NotReady(f"Failing: {', '.join(failing)}."))
    content: dict[str, Any] = orjson.loads(response.body) | {"checks": checks}
    return Response(orjson.dumps(content), response.status_code, {"Retry-After": "1"}, response.media_type)


async def _database(db: Database) -> bool:
    try:
        async with asyncio.timeout(1), db.read("core.ready") as conn:
            return bool(await conn.fetchval(PING))
    except (Unavailable, TimeoutError):
        return False


async def _redis(resources: Resources) -> bool:
    gateways: set[RedisGateway] = {resources.redis, resources.cache_redis, resources.limits_redis}
    try:
        return all(await asyncio.gather(*(redis.call(lambda client: client.ping()) for redis in gateways)))
    except RedisUnavailable:
        return False
