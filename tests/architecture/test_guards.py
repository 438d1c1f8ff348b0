"""The guards of the test suite catch what they are there for."""

import asyncio
from pathlib import Path
from time import thread_time
from typing import Any, cast

import pytest
import redis.asyncio
from blockbuster import BlockingError
from fastapi import FastAPI

from app.settings import _development_secret
from tests.fixtures.application import Lifespan, Message
from tests.fixtures.guards import (
    LONGEST_STEP,
    no_blocking_calls,
    no_long_steps,
    no_redis_connections_left,
    reference_seconds,
)


async def test_a_blocking_call_is_caught(tmp_path: Path) -> None:
    with no_blocking_calls():
        with pytest.raises(BlockingError):
            _development_secret(tmp_path)
        await asyncio.to_thread(_development_secret, tmp_path)


def compute(references: float) -> None:
    until = thread_time() + references * reference_seconds()
    while thread_time() < until:
        pass


async def test_a_long_computation_is_caught() -> None:
    with pytest.raises(AssertionError, match="reference computations"), no_long_steps():
        asyncio.get_running_loop().call_soon(compute, LONGEST_STEP * 3)
        await asyncio.sleep(0.01)


async def test_what_is_no_step_of_the_loop_is_not_judged() -> None:
    with no_long_steps():
        await asyncio.to_thread(compute, LONGEST_STEP * 3)
        await asyncio.sleep(LONGEST_STEP * reference_seconds() * 1.5)
        for _ in range(4):
            compute(LONGEST_STEP / 4)
            await asyncio.sleep(0)


async def test_a_redis_connection_that_is_left_open_is_caught(redis_url: str) -> None:
    client = redis.asyncio.Redis.from_url(redis_url)
    try:
        with pytest.raises(AssertionError, match="UnixDomainSocketConnection"), no_redis_connections_left():
            assert await client.ping()
    finally:
        await client.aclose()
    with no_redis_connections_left():
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            assert await client.ping()


async def test_a_request_is_a_step_of_its_own() -> None:
    async def application(scope: Message, receive: Any, send: Any) -> None:
        compute(LONGEST_STEP / scope["parts"])

    requests = Lifespan(FastAPI())
    requests._application = cast("FastAPI", application)
    with no_long_steps():
        for _ in range(4):
            await requests({"parts": 4}, None, None)
    with pytest.raises(AssertionError, match="reference computations"), no_long_steps():
        await requests({"parts": 1 / 3}, None, None)
