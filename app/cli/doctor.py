"""What `doctor` looks at. Each finding says what to do when it is bad."""

import asyncio
import os
import resource
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from app.cli.identity import check_installation_secret
from app.cli.probe import is_served_by_onehop, port_problem
from app.composition import close_resources, make_resources, memory_findings
from app.dev.embedded import EmbeddedServerError, servers
from app.jobs.api import FONT_PACKAGES, SCRIPTS, find_missing_scripts, store_problem, use_fonts
from app.kernel.database import Database, DatabaseUnavailable
from app.kernel.database.failures import outside_cause
from app.kernel.mail import mail_problem
from app.kernel.redis.gateway import RedisGateway, RedisUnavailable
from app.kernel.schema.migrations import status
from app.kernel.schema.revision import revisions
from app.settings import Settings, SettingsError, load_settings, process_environ

_OLDEST_POSTGRES = 150_000
_OPEN_FILES = 1024
_FREE_BYTES = 1024**3

SERVER_VERSION = (
    "SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS name"
)


Verdict = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`warn`: it works, but not as it should; `FAIL`: Onehop does not work until it is mended."""

    subject: str
    verdict: Verdict
    text: str


def examine() -> Iterator[Finding]:
    """Look at everything; servers that are not named in the settings are started for the moment."""
    # An older one cannot read this file at all.
    yield Finding("Python", "ok", sys.version.split()[0])
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY or files >= _OPEN_FILES:
        yield Finding("Open files", "ok", "unlimited" if files == resource.RLIM_INFINITY else f"{files} allowed")
    else:
        yield Finding("Open files", "warn", f"only {files} allowed, {_OPEN_FILES} are better: ulimit -n {_OPEN_FILES}")
    try:
        environ = process_environ()
        settings = load_settings(environ)
    except SettingsError as error:
        yield Finding("Settings", "FAIL", "; ".join(error.problems))
        return
    yield Finding("Settings", "ok", f"for {settings.env}")
    yield from _disk(settings.data_dir.absolute())
    yield from _documents(settings)
    yield _port(settings)
    own_database, own_redis = settings.database.url is None, settings.redis.url is None
    try:
        with servers(settings.data_dir, postgres=own_database, valkey=own_redis) as started:
            environ = {
                **environ,
                **({"DATABASE_URL": started.database_url} if started.database_url else {}),
                **({"REDIS_URL": started.redis_url} if started.redis_url else {}),
            }
            yield from asyncio.run(_servers(load_settings(environ)))
            if started.database_url is not None:
                folder = parse_qs(urlsplit(started.database_url).query)["host"][0]
                yield Finding(
                    "psql", "ok", f"psql -h {shlex.quote(folder)} -p 5432 -U postgres onehop (while Onehop runs)"
                )
    except EmbeddedServerError as error:
        yield Finding("Embedded servers", "FAIL", str(error))


def _disk(data_dir: Path) -> Iterator[Finding]:
    existing = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        yield Finding("Data folder", "ok", f"{data_dir} is writable")
    else:
        yield Finding("Data folder", "FAIL", f"{existing} is not a writable folder; APP_DATA_DIR names another one")
    free = shutil.disk_usage(existing).free
    is_little = free < _FREE_BYTES
    text = f"{free / 1024**3:.1f} GiB free" + (", at least 1 is wanted" if is_little else "")
    yield Finding("Disk", "warn" if is_little else "ok", text)


def _documents(settings: Settings) -> Iterator[Finding]:
    use_fonts(settings.jobs.font_paths)
    packages = [name for name in FONT_PACKAGES if find_spec(name) is None]
    missing = find_missing_scripts()
    text = f"for {len(SCRIPTS) - len(missing)} scripts"
    if missing:
        text += f", none for {', '.join(missing)}, whose letters documents name by number: see APP_JOBS_FONT_PATHS"
    if packages:
        text += f"; not installed: {', '.join(packages)}"
    yield Finding("Fonts", "warn" if packages else "ok", text)
    if settings.is_production and settings.jobs.seller_name is None:
        yield Finding("Invoices", "warn", f"{settings.name} is their seller; APP_JOBS_SELLER_NAME names the real one")


def _port(settings: Settings) -> Finding:
    problem = port_problem(settings.host, settings.port)
    if problem is None:
        return Finding("Port", "ok", f"{settings.port} is free")
    if is_served_by_onehop(settings.host, settings.port):
        return Finding("Port", "ok", f"{settings.port} is in use by a running Onehop")
    return Finding("Port", "FAIL", problem)


async def _servers(settings: Settings) -> list[Finding]:
    parts = (_postgres(settings), _redis(settings), _outside(settings))
    return [finding for part in parts async for finding in part]


async def _outside(settings: Settings) -> AsyncIterator[Finding]:
    """What jobs need besides the servers: they wait for it for days, as for an outage."""
    problem = await store_problem(settings.jobs, settings.data_dir)
    yield Finding("Files", "ok" if problem is None else "FAIL", problem or "can be written and deleted")
    if settings.mail.smtp_url is None:
        yield Finding("Mail", "ok", "is kept in the development mailbox")
    else:
        problem = await mail_problem(settings.mail)
        yield Finding("Mail", "ok" if problem is None else "FAIL", problem or "the server takes us")


async def _postgres(settings: Settings) -> AsyncIterator[Finding]:
    database = Database(settings.database, application_name="onehop-doctor")
    try:
        await database.open()
        async with database.connect("core.doctor") as conn:
            row = await conn.fetchrow(SERVER_VERSION)
    except (OSError, DatabaseUnavailable) as error:
        yield Finding("PostgreSQL", "FAIL", f"not reachable: {outside_cause(error) or error}")
        return
    finally:
        await database.close()
    if row is None:
        return
    if row["number"] >= _OLDEST_POSTGRES:
        yield Finding("PostgreSQL", "ok", row["name"])
    else:
        yield Finding("PostgreSQL", "FAIL", f"{row['name']}; Onehop needs 15 or newer")
    current, newest = await status(settings.database.direct_dsn)
    if current == newest:
        yield Finding("Schema", "ok", f"{current} is the newest")
        yield await _secret(settings)
    elif current is not None and current not in revisions():
        yield Finding("Schema", "warn", f"{current} is of a newer release than this one, which knows {newest}")
        yield await _secret(settings)
    else:
        hint = f"{current or 'empty'}, but {newest} is the newest: python -m app migrate up"
        yield Finding("Schema", "FAIL", hint)


async def _secret(settings: Settings) -> Finding:
    try:
        await check_installation_secret(settings)
    except SettingsError as error:
        return Finding("Secret", "FAIL", "; ".join(error.problems))
    return Finding("Secret", "ok", "APP_SECRET_KEY is the one that this database is used with")


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
        yield Finding("Redis", "ok", await _redis_version(resources.redis))
        for place, memory, problem in await memory_findings(resources):
            text = f"maxmemory-policy of {place} is {memory.policy}" + (f": {problem}" if problem else "")
            yield Finding("Redis memory", "ok" if problem is None else "warn", text)
    except RedisUnavailable as error:
        yield Finding("Redis", "warn", f"not reachable: {error}; everything works without it, only slower")
    finally:
        await close_resources(resources)
