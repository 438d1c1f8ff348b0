"""Changing very many rows, a bounded number at a time."""

from collections.abc import Awaitable, Callable

from app.kernel.database.gateway import Database
from app.kernel.database.units import Tx

BATCH = 1_000


async def in_batches(db: Database, unit: str, change: Callable[[Tx, int], Awaitable[int]], *, size: int = BATCH) -> int:
    """Calls `change` with a unit of one statement and `size`, until it has changed fewer rows; answers how many in all.

    No statement takes so long that it would be cut off, and no lock is held for long. What was done when it is broken
    off stays done.
    """
    total = 0
    while True:
        async with db.statement(unit) as tx:
            changed = await change(tx, size)
        total += changed
        if changed < size:
            return total
