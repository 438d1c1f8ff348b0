"""Running a use case again when its transaction collided with another one, or was cut off."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from app.kernel.database.failures import SessionLost, TransactionConflict

P = ParamSpec("P")
R = TypeVar("R")

MAX_CONFLICT_RETRIES = 2


def retries_conflicts(
    function: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Runs a service function again, at most twice, when its transaction collided with another one.

    For functions with exactly one transaction: what they do before it must be harmless to repeat.
    """

    @wraps(function)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        for _ in range(MAX_CONFLICT_RETRIES):
            try:
                return await function(*args, **kwargs)
            except TransactionConflict:
                await asyncio.sleep(random.uniform(0.005, 0.05))  # noqa: S311 - jitter, not a secret
        return await function(*args, **kwargs)

    return run


def retries_lost_sessions(
    function: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Runs a service function once more when its connection broke.

    For functions that find out by themselves whether they have been carried out already.
    """

    @wraps(function)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await function(*args, **kwargs)
        except SessionLost:
            return await function(*args, **kwargs)

    return run
