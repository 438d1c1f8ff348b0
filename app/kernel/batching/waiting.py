"""What coalesced reads and group commits have in common: callers that wait for what becomes of their items."""

import asyncio
from typing import Any, Generic, NamedTuple, TypeVar

from app.kernel.fairness.callers import Caller

T = TypeVar("T")
R = TypeVar("R")


class Waiting(NamedTuple, Generic[T, R]):
    """One caller in a batch. `weight` is the size of its item."""

    item: T
    done: asyncio.Future[R]
    caller: Caller | None
    weight: int = 1

    def resolve(self, result: R) -> None:
        # Its caller may have gone away.
        if not self.done.done():
            self.done.set_result(result)


def fail_all(batch: list[Waiting[T, Any]], error: Exception) -> None:
    """Has all callers of the batch get `error`."""
    for waiting in batch:
        if not waiting.done.done():
            waiting.done.set_exception(error)
    release_all(batch)


def release_all(batch: list[Waiting[T, Any]]) -> None:
    """Cancels what was cut off at the end of the process, and empties the batch.

    The traceback of an error refers to the batch, and the futures of the batch to the error: a reference cycle.
    """
    for waiting in batch:
        if not waiting.done.done():
            waiting.done.cancel()
    batch.clear()
