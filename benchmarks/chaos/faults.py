"""What goes wrong, one after the other. Each function is a fault that lasts as long as its block."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import psutil
import redis.asyncio as redis

from app.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from benchmarks.machine import Service
from tests.faults.proxy import Proxy
from tests.faults.signals import frozen


@dataclass
class Stage:
    """Everything there is to break."""

    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey
    database_proxy: Proxy
    redis_proxy: Proxy
    api: Service
    worker: Service
    start_worker: Callable[[], Service]


Fault = Callable[[Stage], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def redis_stopped(stage: Stage) -> AsyncIterator[None]:
    await asyncio.to_thread(stage.valkey.stop)
    yield
    await asyncio.to_thread(stage.valkey.start)


@asynccontextmanager
async def redis_frozen(stage: Stage) -> AsyncIterator[None]:
    pid = stage.valkey.pid()
    assert pid is not None
    with frozen(pid):
        yield


@asynccontextmanager
async def redis_flushed(stage: Stage) -> AsyncIterator[None]:
    async with redis.Redis.from_url(stage.valkey.url()) as client:
        await client.flushall()
    yield


@asynccontextmanager
async def redis_full(stage: Stage) -> AsyncIterator[None]:
    async with redis.Redis.from_url(stage.valkey.url()) as client:
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", "1")
        yield
        await client.config_set("maxmemory", "0")


@asynccontextmanager
async def redis_cut_off(stage: Stage) -> AsyncIterator[None]:
    async with stage.redis_proxy.refusing():
        yield


@asynccontextmanager
async def postgres_restarted(stage: Stage) -> AsyncIterator[None]:
    await asyncio.to_thread(stage.postgres.stop, "fast")
    await asyncio.to_thread(stage.postgres.start)
    yield


@asynccontextmanager
async def postgres_crashed(stage: Stage) -> AsyncIterator[None]:
    await asyncio.to_thread(stage.postgres.stop, "immediate")
    await asyncio.to_thread(stage.postgres.start)
    yield


@asynccontextmanager
async def postgres_frozen(stage: Stage) -> AsyncIterator[None]:
    async with stage.database_proxy.frozen():
        yield


@asynccontextmanager
async def connections_reset(stage: Stage) -> AsyncIterator[None]:
    stage.database_proxy.reset()
    stage.redis_proxy.reset()
    yield


@asynccontextmanager
async def network_slow(stage: Stage) -> AsyncIterator[None]:
    for proxy in (stage.database_proxy, stage.redis_proxy):
        proxy.slow_down(latency=0.02, jitter=0.02)
    yield
    for proxy in (stage.database_proxy, stage.redis_proxy):
        await proxy.restore()


@asynccontextmanager
async def worker_killed(stage: Stage) -> AsyncIterator[None]:
    for process in stage.worker.processes:
        process.kill()
    await asyncio.to_thread(stage.worker.stop)
    # As an orchestrator would.
    await asyncio.sleep(1)
    stage.worker = stage.start_worker()
    yield


@asynccontextmanager
async def worker_frozen(stage: Stage) -> AsyncIterator[None]:
    with frozen(stage.worker.processes[0].pid):
        yield


@asynccontextmanager
async def api_process_killed(stage: Stage) -> AsyncIterator[None]:
    os.kill(random.choice(_api_processes(stage)).pid, signal.SIGKILL)
    yield


@asynccontextmanager
async def api_replaced(stage: Stage) -> AsyncIterator[None]:
    """A deploy: each process makes way for a new one."""
    os.kill(stage.api.processes[0].pid, signal.SIGHUP)
    yield


def _api_processes(stage: Stage) -> list[psutil.Process]:
    return [process for process in stage.api.processes[1:] if "resource_tracker" not in " ".join(process.cmdline())]


FAULTS: tuple[Fault, ...] = (
    redis_stopped,
    api_process_killed,
    redis_flushed,
    postgres_restarted,
    worker_killed,
    redis_frozen,
    network_slow,
    postgres_frozen,
    redis_full,
    worker_frozen,
    connections_reset,
    api_replaced,
    postgres_crashed,
    redis_cut_off,
)
