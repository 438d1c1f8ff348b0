"""What `doctor` looks at. Each finding says what to do when it is bad."""

import asyncio
import os
import resource
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.composition import close_resources, make_resources, memory_findings
from app.kernel.database import Database, DatabaseUnavailable
from app.kernel.embedded import EmbeddedServerError, servers
from app.kernel.migrations import status
from app.kernel.redis import RedisGateway, RedisUnavailable
from app.kernel.server import port_problem
from app.settings import Settings, SettingsError, load_settings, process_environ

_OLDEST_POSTGRES = 150_000
_OPEN_FILES = 1024
_FREE_BYTES = 1024**3

SERVER_VERSION = (
    "SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS name"
)


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str
    is_good: bool
    text: str


def examine() -> Iterator[Finding]:
    """Look at everything; servers that are not named in the settings are started for the moment."""
    yield Finding("Python", sys.version_info >= (3, 11), sys.version.split()[0])
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Finding("Open files", files >= _OPEN_FILES, f"{files} allowed, at least {_OPEN_FILES} wanted (ulimit -n)")
    try:
        environ = process_environ()
        settings = load_settings(environ)
    except SettingsError as error:
        yield Finding("Settings", is_good=False, text="; ".join(error.problems))
        return
    yield Finding("Settings", is_good=True, text=f"for {settings.env}")
    yield from _disk(settings.data_dir.absolute())
    taken = port_problem(settings.host, settings.port)
    # A port that is taken may be taken by Onehop; an address that is not ours never will be.
    is_good = taken is None or taken.startswith("Port")
    yield Finding("Port", is_good, taken or f"{settings.port} is free")
    own_database, own_redis = settings.database.url is None, settings.redis.url is None
    try:
        with servers(settings.data_dir, postgres=own_database, valkey=own_redis) as started:
            environ = {
                **environ,
                **({"DATABASE_URL": started.database_url} if started.database_url else {}),
                **({"REDIS_URL": started.redis_url} if started.redis_url else {}),
            }
            yield from asyncio.run(_servers(load_settings(environ)))
    except EmbeddedServerError as error:
        yield Finding("Embedded servers", is_good=False, text=str(error))


def _disk(data_dir: Path) -> Iterator[Finding]:
    existing = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    yield Finding("Data folder", os.access(existing, os.W_OK), f"{data_dir} must be writable")
    free = shutil.disk_usage(existing).free
    yield Finding("Disk", free >= _FREE_BYTES, f"{free / 1024**3:.1f} GiB free, at least 1 wanted")


async def _servers(settings: Settings) -> list[Finding]:
    return [finding async for finding in _postgres(settings)] + [finding async for finding in _redis(settings)]


async def _postgres(settings: Settings) -> AsyncIterator[Finding]:
    database = Database(settings.database, application_name="onehop-doctor")
    try:
        await database.open()
        async with database.connect("core.doctor") as conn:
            row = await conn.fetchrow(SERVER_VERSION)
    except (OSError, DatabaseUnavailable) as error:
        yield Finding("PostgreSQL", is_good=False, text=f"not reachable: {error}")
        return
    finally:
        await database.close()
    if row is None:
        return
    yield Finding("PostgreSQL", row["number"] >= _OLDEST_POSTGRES, f"{row['name']}, at least 15 wanted")
    current, newest = await status(settings.database.direct_dsn)
    hint = "is the newest" if current == newest else f"but {newest} is the newest: python -m app migrate up"
    yield Finding("Schema", current == newest, f"{current or 'empty'} {hint}")


async def _redis_version(redis: RedisGateway) -> str:
    try:
        info: dict[str, Any] = await redis.call(lambda client: client.info("server"), timeout=2.0)
    except RedisUnavailable:
        return "answers, but does not tell its version (INFO is not allowed)"
    return f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info.get('redis_version')}"


async def _redis(settings: Settings) -> AsyncIterator[Finding]:
    resources = make_resources(settings, application_name="onehop-doctor")
    try:
        await resources.redis.call(lambda client: client.ping(), timeout=2.0)
        yield Finding("Redis", is_good=True, text=await _redis_version(resources.redis))
        for place, memory, problem in await memory_findings(resources):
            text = f"maxmemory-policy of {place} is {memory.policy}" + (f": {problem}" if problem else "")
            yield Finding("Redis memory", problem is None, text)
    except RedisUnavailable as error:
        yield Finding("Redis", is_good=False, text=f"not reachable: {error}; everything works without it, only slower")
    finally:
        await close_resources(resources)
