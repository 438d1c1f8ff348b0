"""What a bare `uvicorn app.main:app` or `fastapi dev` needs and was not given: servers, schema, demo data, a worker."""

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from pydantic import SecretStr

from app.dev.demo import seed
from app.dev.embedded import servers
from app.dev.embedded.privileges import become
from app.dev.welcome import welcome
from app.kernel.background import Background
from app.kernel.listening import listening_address
from app.kernel.observability.exits import end_misconfigured
from app.kernel.observability.gc_tuning import collect_rarely_until_exit
from app.kernel.observability.log_writer import output
from app.kernel.observability.telemetry import get_logger
from app.kernel.schema.revision import SchemaState, schema_of
from app.kernel.settings import Section, SettingsError
from app.settings import Settings, served_base_url

_logger = get_logger(__name__)
_WORKER_STOP_SECONDS = 10
_LISTENING_SECONDS = 30.0
_LOOK_SECONDS = 0.05


@asynccontextmanager
async def embedded_environment(settings: Settings) -> AsyncIterator[Settings]:
    """`settings` with the addresses of embedded servers in place of missing ones.

    With an embedded database the schema is brought up to date, and a worker runs beside this process. The first start
    adds the demo data.
    """
    needs_database, needs_redis = settings.database.url is None, settings.redis.url is None
    if not needs_database and not needs_redis:
        yield settings
        return
    collect_rarely_until_exit()
    reloader = multiprocessing.parent_process()
    async with AsyncExitStack() as stack:
        running = servers(
            settings.data_dir,
            postgres=needs_database,
            valkey=needs_redis,
            reloader=None if reloader is None else reloader.pid,
        )
        addresses = await asyncio.to_thread(running.__enter__)
        stack.push_async_callback(asyncio.to_thread, running.__exit__, None, None, None)
        environment = {}
        if addresses.database_url is not None:
            environment["DATABASE_URL"] = addresses.database_url
        if addresses.redis_url is not None:
            environment["REDIS_URL"] = addresses.redis_url
        settings = _with_addresses(settings, addresses.database_url, addresses.redis_url)
        if addresses.database_url is not None:
            if await schema_of(addresses.database_url) is SchemaState.OLD:
                # Alembic and SQLAlchemy take half a second and 30 MB, of which a reload is spared.
                from app.kernel.schema.migrations import upgrade  # noqa: PLC0415 - a reload needs no migration

                await upgrade(addresses.database_url)
            # With each reload it would stand between the lines of the log.
            shows_welcome = reloader is None or not addresses.were_running
            company = _company(settings, environment, shows_welcome=shows_welcome)
            await stack.enter_async_context(company)
        yield settings


@asynccontextmanager
async def _company(settings: Settings, environment: dict[str, str], *, shows_welcome: bool) -> AsyncIterator[None]:
    """A worker beside this process, and the welcome once it listens."""

    async def begin() -> None:
        try:
            base = await _own_base_url(settings)
            await stack.enter_async_context(_worker(environment | {"APP_PUBLIC_URL": base}))
            if shows_welcome:
                log_ins = await seed(settings)
                output.write(welcome(settings.name, base, log_ins, has_mailbox=settings.has_mailbox).encode())
        except SettingsError as error:
            # The application may find the same a moment later.
            end_misconfigured(error)
        except Exception:
            _logger.exception("development.start_failed")

    async with AsyncExitStack() as stack:
        background = Background()
        background.spawn(begin())
        try:
            yield
        finally:
            await background.close()


async def _own_base_url(settings: Settings) -> str:
    """See `served_base_url`. uvicorn binds its sockets after the application has started."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LISTENING_SECONDS):
            while settings.public_url is None and listening_address() is None:  # noqa: ASYNC110 - nothing tells it
                await asyncio.sleep(_LOOK_SECONDS)
    return served_base_url(settings)


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
