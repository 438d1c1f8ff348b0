"""The guards of the test suite catch what they are there for."""

import asyncio
from pathlib import Path
from time import thread_time

import pytest
from blockbuster import BlockingError

from app.settings import _development_secret
from tests.fixtures.guards import LONGEST_STEP, no_blocking_calls, no_long_steps


async def test_a_blocking_call_is_caught(tmp_path: Path) -> None:
    with no_blocking_calls():
        with pytest.raises(BlockingError):
            _development_secret(tmp_path)
        await asyncio.to_thread(_development_secret, tmp_path)


async def test_a_long_computation_is_caught() -> None:
    def compute() -> None:
        started = thread_time()
        while thread_time() - started < LONGEST_STEP * 1.1:
            pass

    with pytest.raises(AssertionError), no_long_steps():
        asyncio.get_running_loop().call_soon(compute)
        await asyncio.sleep(0.01)
    with no_long_steps():
        await asyncio.to_thread(compute)
        await asyncio.sleep(LONGEST_STEP * 1.1)
