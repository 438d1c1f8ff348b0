"""`python -m benchmarks.limits.raw asyncpg|redis SECONDS`: the drivers alone, 32 callers in one process.

Prints requests and seconds as JSON.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from time import perf_counter

import asyncpg
import redis.asyncio as redis
import uvloop

from benchmarks.data import user_id

_CALLERS = 32
_POOL_SIZE = 10


async def main(what: str, seconds: float) -> None:
    if what == "asyncpg":
        pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=_POOL_SIZE, max_size=_POOL_SIZE)

        async def call() -> object:
            return await pool.fetchrow("SELECT id, email, text FROM bench.people WHERE id = $1", user_id(1))
    else:
        client = redis.Redis.from_url(os.environ["REDIS_URL"])
        await client.set("bench:raw", b"x" * 1024)

        async def call() -> object:
            return await client.get("bench:raw")

    began = perf_counter()
    counts = await asyncio.gather(*(_repeat(call, began + seconds) for _ in range(_CALLERS)))
    spent = perf_counter() - began
    print(json.dumps({"requests": sum(counts), "seconds": spent}))


async def _repeat(call: Callable[[], Awaitable[object]], until: float) -> int:
    count = 0
    while perf_counter() < until:
        await call()
        count += 1
    return count


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], float(sys.argv[2])))
