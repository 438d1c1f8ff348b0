"""What a bare `uvicorn app.main:app` or `fastapi dev` needs and nobody gave: servers, schema and a worker."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from pydantic import SecretStr

from app.kernel.embedded import servers
from app.kernel.embedded.privileges import become
from app.kernel.settings import Section
from app.settings import Settings

_WORKER_STOP_SECONDS = 10


@asynccontextmanager
async def embedded_environment(settings: Settings) -> AsyncIterator[Settings]:
    """`settings` with the addresses of embedded servers in place of missing ones.

    With an embedded database the schema is brought up to date and a worker runs beside this process.
    """
    needs_database, needs_redis = settings.database.url is None, settings.redis.url is None
    if not needs_database and not needs_redis:
        yield settings
        return
    async with AsyncExitStack() as stack:
        running = servers(settings.data_dir, postgres=needs_database, valkey=needs_redis)
        addresses = await asyncio.to_thread(running.__enter__)
        stack.push_async_callback(asyncio.to_thread, running.__exit__, None, None, None)
        environment = {}
        if addresses.database_url is not None:
            environment["DATABASE_URL"] = addresses.database_url
        if addresses.redis_url is not None:
            environment["REDIS_URL"] = addresses.redis_url
        settings = _with_addresses(settings, addresses.database_url, addresses.redis_url)
        if addresses.database_url is not None:
            # Alembic and SQLAlchemy take half a second and 30 MB, which a process with addresses of its own is spared.
            from app.kernel.migrations import upgrade  # noqa: PLC0415 - seldom needed, and dear

            await upgrade(addresses.database_url)
            await stack.enter_async_context(_worker(environment))
        yield settings


def welcome(base: str, accounts: Sequence[Mapping[str, str]], *, mailbox: bool, seconds: float | None = None) -> str:
    """What a developer wants to know first. `accounts`: e-mail, password and role of the demo people."""
    lines = [
        "",
        "Onehop is ready" + (f" ({seconds:.1f} s)." if seconds is not None else "."),
        f"  API    {base}",
        f"  Docs   {base}/docs",
        *([f"  Mail   {base}/dev/mailbox"] if mailbox else []),
        *(
            f"  Log in {account['email']} / {account['password']}" + (" (admin)" if account["role"] == "admin" else "")
            for account in accounts
        ),
        "Ctrl-C stops everything.",
        "",
    ]
    return "\n".join(lines)


def _with_addresses(settings: Settings, database_url: str | None, redis_url: str | None) -> Settings:
    sections: dict[str, Section] = {}
    if database_url is not None:
        sections["database"] = settings.database.model_copy(update={"url": SecretStr(database_url)})
    if redis_url is not None:
        sections["redis"] = settings.redis.model_copy(update={"url": SecretStr(redis_url)})
    return settings.model_copy(update=sections)


@asynccontextmanager
async def _worker(environment: dict[str, str]) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "worker"),
        env=os.environ | environment,
        start_new_session=True,
        # The worker must not outlive an API that is killed.
        preexec_fn=become(None, death_signal=signal.SIGTERM),
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(_WORKER_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
