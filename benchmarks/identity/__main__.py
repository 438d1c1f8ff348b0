"""`python -m benchmarks.identity [name …]`: the promises of the identity module at full size, against real processes.

Servers of its own with fsync on. Prints one line a measure; figures belong to the machine, counts do not.
"""

import asyncio
import itertools
import os
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import redis.asyncio

from app.dev.embedded import servers
from app.kernel.schema import migrations

PASSWORD = "correct horse battery staple"  # noqa: S105
WRONG = "not it at all"
_numbers = itertools.count(1)


class Bench:
    """Servers, and API processes on them."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    @asynccontextmanager
    async def api(self, workers: int, **variables: str) -> AsyncIterator[httpx.AsyncClient]:
        port = 18_600 + next(_numbers)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", "serve"),
            env=self.environment | {"PORT": str(port), "APP_WORKERS": str(workers)} | variables,
            stdout=asyncio.subprocess.DEVNULL,
        )
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        try:
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
                while not await _is_ready(client):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()

    async def forget_attempts(self) -> None:
        async with redis.asyncio.Redis.from_url(self.environment["REDIS_URL"]) as client:
            if keys := await client.keys("identity:attempts:*"):
                await client.delete(*keys)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        connection = await asyncpg.connect(self.environment["DATABASE_URL"])
        try:
            yield connection
        finally:
            await connection.close()


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).is_success
    except httpx.TransportError:
        return False


async def _register(client: httpx.AsyncClient) -> tuple[str, dict[str, str]]:
    email = f"person{next(_numbers)}@example.com"
    answer = await client.post("/v1/auth/register", json={"email": email, "password": PASSWORD})
    tokens: dict[str, str] = answer.json()["tokens"]
    return email, tokens


async def _refresh(client: httpx.AsyncClient, token: str, key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await client.post("/v1/auth/refresh", json={"refresh_token": token}, headers=headers)


async def measure_parallel(bench: Bench, rounds: int = 200, parallel: int = 30) -> None:
    """Thirty refreshes of one token at once, over four processes: one rotation, one answer."""
    equal = refused = 0
    async with bench.api(4) as client, bench.connection() as connection:
        _, tokens = await _register(client)
        # Connections are opened before, so that requests leave together.
        await asyncio.gather(*(client.get("/livez") for _ in range(parallel)))
        token, generation = tokens["refresh_token"], 0
        for _ in range(rounds):
            answers = await asyncio.gather(*(_refresh(client, token) for _ in range(parallel)))
            good = {answer.content for answer in answers if answer.is_success}
            stored = await connection.fetchval("SELECT max(generation) FROM identity.sessions WHERE revoked_at IS NULL")
            if len(good) == 1 and stored == generation + 1 and all(answer.is_success for answer in answers):
                equal += 1
                token, generation = answers[0].json()["refresh_token"], generation + 1
                continue
            refused += 1
            await connection.execute("DELETE FROM identity.sessions")
            _, tokens = await _register(client)
            token, generation = tokens["refresh_token"], 0
    print(f"{rounds} rounds of {parallel} refreshes   {equal} with one rotation and equal answers, {refused} not")


async def measure_replays(bench: Bench, count: int = 500) -> None:
    """A token used again right after its answer: detected, and the session is dead on every process."""
    found = dead = 0
    async with bench.api(4) as client:
        for _ in range(count):
            _, tokens = await _register(client)
            first = await _refresh(client, tokens["refresh_token"])
            again = await _refresh(client, tokens["refresh_token"])
            found += first.status_code == 200 and again.status_code == 401
            headers = {"Authorization": f"Bearer {first.json()['access_token']}"}
            after = await _refresh(client, first.json()["refresh_token"])
            use = await client.get("/v1/users/me", headers=headers)
            dead += after.status_code == 401 and use.status_code == 401
    print(f"{count} replays               {found} detected, {dead} sessions dead")


async def measure_retries(bench: Bench, count: int = 100) -> None:
    """A lost answer asked for again with its Idempotency-Key, and with another one."""
    same = refused = 0
    async with bench.api(4) as client:
        for _ in range(count):
            _, tokens = await _register(client)
            answers = [await _refresh(client, tokens["refresh_token"], "key") for _ in range(3)]
            same += len({answer.content for answer in answers}) == 1 and answers[0].is_success
            refused += (await _refresh(client, tokens["refresh_token"], "other")).status_code == 401
    print(f"{count} lost answers          {same} repeated, {refused} refused with another key")


async def measure_times(bench: Bench, count: int = 150) -> None:
    """Known and unknown address in turn: does the time tell which is which?"""

    async def compare(
        name: str, known: Callable[[], Awaitable[object]], unknown: Callable[[], Awaitable[object]]
    ) -> None:
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(count + 20):
            if number % 3 == 0:
                await bench.forget_attempts()
            for ask, list_of in zip((known, unknown), times, strict=True):
                began = time.perf_counter()
                await ask()
                list_of.append((time.perf_counter() - began) * 1000)
        first, second = (statistics.median(times_of[20:]) for times_of in times)
        print(f"{name:25s} known {first:.2f} ms   unknown {second:.2f} ms   {(second / first - 1) * 100:+.1f} %")

    async with bench.api(1, APP_IDENTITY_REGISTRATION="verify") as client:

        async def post(path: str, **body: str) -> None:
            answer = await client.post(f"/v1/auth/{path}", json=body)
            assert answer.status_code in (202, 401), answer.text

        known = f"known{secrets.token_hex(4)}@example.com"
        await post("register", email=known, password=PASSWORD)

        def new() -> str:
            return f"unknown{next(_numbers)}@example.com"

        await compare(
            "login",
            lambda: post("login", email=known, password=WRONG),
            lambda: post("login", email=new(), password=WRONG),
        )
        await compare(
            "register (verify)",
            lambda: post("register", email=known, password=PASSWORD),
            lambda: post("register", email=new(), password=PASSWORD),
        )
        await compare(
            "forgot", lambda: post("password/forgot", email=known), lambda: post("password/forgot", email=new())
        )


async def measure_logins(bench: Bench, in_flight: int = 32, seconds: float = 15.0) -> None:
    """Reads of one person while as many log in all the time as have places."""
    async with bench.api(1) as client:
        people = [(await _register(client))[0] for _ in range(in_flight)]
        _, tokens = await _register(client)
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        end = time.perf_counter() + seconds
        done: Counter[int] = Counter()

        async def keep_logging_in(email: str) -> None:
            while time.perf_counter() < end:
                answer = await client.post("/v1/auth/login", json={"email": email, "password": PASSWORD})
                done[answer.status_code] += 1

        times: list[float] = []

        async def keep_reading() -> None:
            while time.perf_counter() < end:
                began = time.perf_counter()
                assert (await client.get("/v1/users/me", headers=headers)).status_code == 200
                times.append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(0.005)

        await asyncio.gather(keep_reading(), *(keep_logging_in(email) for email in people))
    times.sort()
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    print(
        f"{in_flight} log-ins in flight     GET p50 {p50:.1f} ms   p99 {p99:.1f} ms   "
        f"{sum(done.values()) / seconds:.0f} log-ins/s"
    )


async def measure_logout(bench: Bench, count: int = 200) -> None:
    """How long a log-out takes that four processes have acknowledged."""
    async with bench.api(4) as client:
        times = []
        for _ in range(count):
            _, tokens = await _register(client)
            began = time.perf_counter()
            headers = {"Authorization": f"Bearer {tokens['access_token']}"}
            assert (await client.post("/v1/auth/logout", headers=headers)).status_code == 204
            times.append((time.perf_counter() - began) * 1000)
    times.sort()
    print(f"log-out, 4 processes      p50 {times[count // 2]:.1f} ms   p99 {times[int(count * 0.99)]:.1f} ms")


async def main() -> None:
    wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory, servers(Path(directory)) as running:
        database_url, redis_url = str(running.database_url), str(running.redis_url)
        await migrations.upgrade(database_url)
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("APP_", "DATABASE_", "REDIS_"))
        }
        environment = kept | {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "APP_DATA_DIR": directory,
            "APP_SECRET_KEY": secrets.token_urlsafe(48),
            "APP_LOG_LEVEL": "error",
            "APP_LOG_ACCESS": "false",
        }
        bench = Bench(environment)
        for measure in (
            measure_parallel,
            measure_replays,
            measure_retries,
            measure_times,
            measure_logins,
            measure_logout,
        ):
            if not wanted or measure.__name__.removeprefix("measure_") in wanted:
                await measure(bench)


if __name__ == "__main__":
    asyncio.run(main())
