"""How latency and cost of a request grow with the data: events, users, connections, the jobs that wait."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson

from benchmarks import data, machine
from benchmarks.budgets import Budget, Progress
from benchmarks.client import ask
from benchmarks.load import Result, Sample, drive, in_turns, request
from benchmarks.machine import Service
from benchmarks.product import Bench

_CALLERS = 4
_PEOPLE = 1000
# Of the person whose thousandth page is asked for; ten events a page.
_DEEP_EVENTS = 10_100
_FIRST_DEEP_EVENT = 30_000
_UNCACHED = {
    "APP_CACHE_ENABLED": "false",
    "APP_JOBS_BACKLOG_LIMIT": "100000000",
    "APP_JOBS_BACKLOG_AGE": "100000000",
    "APP_LIMITS_CALLER": "100000000",
}
_EVENT = orjson.dumps({"kind": "page.viewed", "properties": {"path": "/documents/7", "ms": 12}})
_JOB = orjson.dumps({"kind": "export.events", "args": {"format": "csv"}})
_WAITING_JOBS = """
    INSERT INTO jobs.jobs (id, user_id, kind, lane, args, created_at, run_at)
    SELECT gen_random_uuid(), (ARRAY(SELECT id FROM users.users ORDER BY id LIMIT 1000))[n % 999 + 1],
           'export.events', 'default', '{"format": "csv"}', now(), now()
    FROM generate_series($1::bigint, $2) AS n
"""

_POSTER = _PEOPLE
_FORGET_POSTED = "DELETE FROM jobs.jobs WHERE user_id = $1 AND state = 0"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How far each curve goes, and how long each point is measured."""

    seconds: float
    rounds: int
    events: Sequence[int]
    users: Sequence[int]
    connections: Sequence[int]
    backlog: Sequence[int]


@dataclass(frozen=True, slots=True)
class Point:
    """One reading of a curve."""

    curve: str
    what: str
    size: int
    result: Result

    def as_json(self) -> dict[str, object]:
        return {"curve": self.curve, "what": self.what, "size": self.size, **self.result.as_json()}


class Growth:
    """Takes the points in `points`; P8 in `budgets`."""

    def __init__(self, sizes: Sizes, say: Progress) -> None:
        self.sizes = sizes
        self.say = say
        self.points: list[Point] = []
        self.budgets: list[Budget] = []

    async def run(self, directory: Path) -> None:
        """On a database of its own below `directory`."""
        async with Bench(directory) as bench:
            async with machine.running(bench.serve(settings=_UNCACHED), "/livez") as service:
                await self._events(bench, service)
                await self._backlog(bench, service)
                await self._users(bench, service)
            async with machine.running(bench.serve("cached"), "/livez") as service:
                await self._connections(bench, service)

    async def _events(self, bench: Bench, service: Service) -> None:
        await data.add_people(bench.connection, 1, _PEOPLE, "no password")
        await data.add_events(bench.connection, 1, 1, _FIRST_DEEP_EVENT, _FIRST_DEEP_EVENT + _DEEP_EVENTS)
        tokens = [bench.token(number) for number in range(1, 101)]
        page = "/v1/users/me/events?limit=10"
        each = 0
        for size in self.sizes.events:
            await data.add_events(bench.connection, 1, _PEOPLE, each + 1, size // _PEOPLE)
            each = size // _PEOPLE
            await data.settle(bench.connection)
            deep = await _cursor_behind(service, tokens[0], 10_000)
            sides = {
                "page 1": [request("GET", page, token=token) for token in tokens[1:]],
                "page 1 of a user with many": [request("GET", page, token=tokens[0])],
                "page 1000": [request("GET", f"{page}&cursor={deep}", token=tokens[0])],
                "post one event": [request("POST", "/v1/events", token=tokens[1], body=_EVENT)],
            }
            await self._read("events", size, service, sides)
        low, high = self.sizes.events[0], self.sizes.events[-1]
        text = f"events page, {high:,} rows ÷ {low:,} rows (p50)"
        self._judge(text, self._p50("events", "page 1", high) / self._p50("events", "page 1", low))
        first = self._p50("events", "page 1 of a user with many", high)
        self._judge("events page 1000 ÷ page 1 (p50)", self._p50("events", "page 1000", high) / first)

    async def _users(self, bench: Bench, service: Service) -> None:
        there = _PEOPLE
        for size in self.sizes.users:
            if size > there:
                await data.add_people(bench.connection, there + 1, size, "no password")
                there = size
            await data.settle(bench.connection)
            tokens = [bench.token(1 + number * (size // 100)) for number in range(100)]
            sides = {
                "me": [request("GET", "/v1/users/me", token=token) for token in tokens],
                "overview": [request("GET", "/v1/overview", token=token) for token in tokens],
            }
            await self._read("users", size, service, sides)

    async def _backlog(self, bench: Bench, service: Service) -> None:
        there = 0
        token = bench.token(_POSTER)
        for size in self.sizes.backlog:
            await bench.connection.execute(_WAITING_JOBS, there + 1, size)
            there = size
            await bench.connection.execute("ANALYZE jobs.jobs")
            sides = {
                "post a job": [request("POST", "/v1/jobs", token=token, body=_JOB)],
                "list jobs": [request("GET", "/v1/jobs", token=token)],
            }
            await self._read("waiting jobs", size, service, sides)
            await bench.connection.execute(_FORGET_POSTED, data.user_id(_POSTER))
        await bench.connection.execute("DELETE FROM jobs.jobs WHERE state = 0")

    async def _connections(self, bench: Bench, service: Service) -> None:
        reads = [request("GET", "/v1/overview", token=bench.token(number)) for number in range(1, 101)]
        await drive(service, reads, seconds=1)
        for size in self.sizes.connections:
            side = {"hot overview": partial(drive, service, reads, seconds=self.sizes.seconds, connections=size)}
            self._keep("connections", size, await in_turns(side, self.sizes.rounds))

    async def _read(self, curve: str, size: int, service: Service, sides: dict[str, list[bytes]]) -> None:
        async def side(requests: list[bytes]) -> Sample:
            return await drive(service, requests, seconds=self.sizes.seconds, connections=_CALLERS)

        for requests in sides.values():
            await ask(service.port, requests[0])
        turns = {what: partial(side, requests) for what, requests in sides.items()}
        self._keep(curve, size, await in_turns(turns, self.sizes.rounds))

    def _keep(self, curve: str, size: int, found: dict[str, Result]) -> None:
        for what, result in found.items():
            self.points.append(Point(curve, what, size, result))
            p50, p99 = result.median("p50"), result.median("p99")
            self.say(
                f"    {size:>10,} {curve:14} {what:30} p50 {p50:6.2f}  p99 {p99:6.2f} ms"
                f"  {result.median('cpu_us'):6.0f} µs CPU" + (f"  {result.failed} FAILED" if result.failed else "")
            )

    def _p50(self, curve: str, what: str, size: int) -> float:
        return next(
            point.result.median("p50")
            for point in self.points
            if (point.curve, point.what, point.size) == (curve, what, size)
        )

    def _judge(self, text: str, value: float) -> None:
        self.budgets.append(Budget("P8", text, value, 1.3, at_least=False))
        self.say(f"  {self.budgets[-1]}")


async def _cursor_behind(service: Service, token: str, rows: int) -> str:
    """Where the page begins that `rows` events stand before."""
    cursor = ""
    for _ in range(rows // 100):
        path = f"/v1/users/me/events?limit=100{cursor}"
        page = orjson.loads((await ask(service.port, request("GET", path, token=token)))[1])
        cursor = f"&cursor={page['next_cursor']}"
    return cursor.removeprefix("&cursor=")
