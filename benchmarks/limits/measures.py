"""The budgets P1 to P7, P10, P12 and P13, each beside its reference."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import redis.asyncio as redis

from benchmarks import data, machine, overload
from benchmarks.budgets import Budget, Progress, share
from benchmarks.client import ask, ask_all, closed_loop
from benchmarks.load import CONNECTIONS, Result, Sample, drive, in_turns, request
from benchmarks.machine import Service
from benchmarks.product import WIDE, Bench

# The best of the stacks that were measured: its who-am-I ÷ bare ASGI.
BEST_STACK = 0.016
_LOGINS_IN_FLIGHT = 32
_UVICORN = ("--host", "127.0.0.1", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error")
_EVENT = orjson.dumps({"kind": "page.viewed", "properties": {"path": "/documents/7", "ms": 12}})
_JOB = orjson.dumps({"kind": "export.events", "args": {"format": "csv"}})


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long and how much."""

    seconds: float
    rounds: int
    people: int
    memory_requests: int
    # Rounds of overload, each of which takes a quarter of a minute.
    floods: int = 3


class Limits:
    """Runs the measures on a filled bench; `results` are all samples by name, `budgets` the verdicts."""

    def __init__(self, bench: Bench, sizes: Sizes, say: Progress) -> None:
        self.bench = bench
        self.sizes = sizes
        self.say = say
        self.results: dict[str, Result] = {}
        self.budgets: list[Budget] = []
        self.statements: dict[str, dict[str, float]] = {}
        self._tokens = [bench.token(number) for number in range(1, sizes.people + 1)]
        self._crowd = self._tokens[:CONNECTIONS]

    async def run(self) -> None:
        async with self.bench.running() as product:
            async with self._references(product, "bare", "cached", "starlette", "fastapi") as references:
                await self.references(references)
                await self.hot(product, references)
                await self.cold(product, references)
                await self.writes(product, references)
            await self.count(product)
        await self.overload()
        await self.logins()
        await self.memory()

    async def run_reads(self) -> None:
        """P1, P2, P3 and P13 alone."""
        async with self.bench.running() as product, self._references(product, "bare", "fastapi") as references:
            await self.hot(product, references)
            await self.cold(product, references)

    @asynccontextmanager
    async def _references(self, product: Service, *names: str) -> AsyncIterator[dict[str, Service]]:
        """These programs, with answers as long as an overview."""
        body = (await ask(product.port, request("GET", "/v1/overview", token=self._tokens[0])))[1]
        await self._prepare_tables(len(body))
        async with AsyncExitStack() as stack:
            yield {
                name: await stack.enter_async_context(machine.running(self._reference(name, len(body))))
                for name in names
            }

    async def references(self, references: dict[str, Service]) -> None:
        """What each layer of a usual program costs; P1 to P13 have their own in turns with them."""
        fastapi = references["fastapi"]
        one = str(data.user_id(1))
        sides = {
            "bare ASGI": (references["bare"], "/"),
            "pure ASGI, cached answer": (references["cached"], "/cached"),
            "Starlette route": (references["starlette"], "/starlette"),
            "FastAPI, bytes": (fastapi, "/bytes"),
            "FastAPI, pydantic model": (fastapi, "/model"),
            "FastAPI + Redis GET": (fastapi, "/redis"),
            "FastAPI + fetch": (fastapi, f"/fetch/{one}"),
            "FastAPI + fetch, pydantic model": (fastapi, f"/fetch-model/{one}"),
        }
        token = "token-7"  # noqa: S105 - the references know a hundred of them.
        await self._compare(
            {name: (service, [request("GET", path, token=token)]) for name, (service, path) in sides.items()}
        )
        for what in ("asyncpg", "redis"):
            self.results[f"raw {what}"] = Result((await self._raw(what),))
            self._show(f"raw {what}")

    async def hot(self, product: Service, references: dict[str, Service]) -> None:
        """P1, P2, P13."""
        etags = [
            etag_of(head) for head in await self._heads(product, [("/v1/overview", token) for token in self._crowd])
        ]
        overview = [request("GET", "/v1/overview", token=token) for token in self._crowd]
        unchanged = [
            request("GET", "/v1/overview", token=token, if_none_match=etag)
            for token, etag in zip(self._crowd, etags, strict=True)
        ]
        me = [request("GET", "/v1/users/me", token=token) for token in self._crowd]
        bare = (references["bare"], [request("GET", "/", token=self._crowd[0])])
        sides = {"P1 hot overview": overview, "P2 hot overview, 304": unchanged, "P13 hot me": me}
        for requests in sides.values():
            await drive(product, requests, seconds=1)
        await self._compare({"bare": bare, **{name: (product, requests) for name, requests in sides.items()}})
        results, base = self.results, self.results["bare"]
        self._judge(share("P1", "hot overview ÷ bare ASGI", results["P1 hot overview"], base, 0.60))
        self._judge(share("P2", "hot overview as 304 ÷ bare ASGI", results["P2 hot overview, 304"], base, 0.65))
        me_share = share("P13", "", results["P13 hot me"], base, 25)
        self._judge(
            Budget(
                "P13",
                f"hot me ÷ the best of the measured stacks ({BEST_STACK} of bare ASGI)",
                me_share.value / BEST_STACK,
                25,
                by_cpu=(me_share.by_cpu or 0) / BEST_STACK,
                spread=me_share.spread,
                note=f"{me_share.value:.2f} of bare ASGI",
            )
        )

    async def cold(self, product: Service, references: dict[str, Service]) -> None:
        """P3: every request is another person's and finds nothing in any cache but the verified token."""
        requests = [request("GET", "/v1/overview", token=token) for token in self._tokens]
        paths = [str(data.user_id(number)) for number in range(1, self.sizes.people + 1)]
        model = [request("GET", f"/fetch-model/{path}") for path in paths]
        plain = [request("GET", f"/fetch/{path}") for path in paths]
        seconds = self.sizes.seconds
        first = await drive(product, requests, seconds=seconds * 2)
        self.results["cold overview, token not seen before"] = Result((first,))
        self._show("cold overview, token not seen before")

        async def overview() -> Sample:
            await self._forget_everything()
            await self.bench.count_statements()
            sample = await drive(product, requests, seconds=seconds)
            # Many requests share a statement; what runs by the clock runs a few times.
            calls = sum(item.calls for item in await self.bench.statements() if item.calls > sample.requests / 200)
            if sample.requests > len(requests):
                self.say(f"    more requests ({sample.requests}) than people: not all of them were cold")
            self.statements.setdefault("cold overview under load", {})["statements"] = calls / sample.requests
            return sample

        name = "P3 cold overview"
        found = await in_turns(
            {
                "FastAPI + fetch (model)": partial(drive, references["fastapi"], model, seconds=seconds),
                name: overview,
                "FastAPI + fetch (bytes)": partial(drive, references["fastapi"], plain, seconds=seconds),
            },
            self.sizes.rounds,
        )
        self._keep(found)
        per_request = self.statements["cold overview under load"]["statements"]
        note = f"{per_request:.2f} statements each"
        self._judge(share("P3", "cold overview ÷ FastAPI with one fetch and a model", found[name],
                          found["FastAPI + fetch (model)"], 0.85, note=note))  # fmt: skip
        self._judge(share("P3b", "cold overview ÷ FastAPI with one fetch, bytes out", found[name],
                          found["FastAPI + fetch (bytes)"], 0.85, is_extra=True))  # fmt: skip

    async def writes(self, product: Service, references: dict[str, Service]) -> None:
        """P5 and P6."""
        insert = (references["fastapi"], [request("POST", "/insert", body=_EVENT)])
        events = (product, [request("POST", "/v1/events", token=token, body=_EVENT) for token in self._crowd])
        jobs = (product, [request("POST", "/v1/jobs", token=token, body=_JOB) for token in self._crowd])
        await drive(product, events[1], seconds=1)
        await self._compare({"FastAPI + INSERT": insert, "P5 events": events, "P6 jobs": jobs})
        base = self.results["FastAPI + INSERT"]
        self._judge(share("P5", "POST one event ÷ FastAPI with one INSERT", self.results["P5 events"], base, 1.5))
        self._judge(share("P6", "POST a job ÷ FastAPI with one INSERT", self.results["P6 jobs"], base, 0.6))
        await self.bench.connection.execute("DELETE FROM jobs.jobs WHERE state = 0")

    async def count(self, product: Service) -> None:
        """P4, by what Postgres itself counted."""
        repeat = 50
        logins = [
            request(
                "POST",
                "/v1/auth/login",
                body=orjson.dumps({"email": data.email(number), "password": data.PASSWORD}),
            )
            for number in range(1, repeat + 1)
        ]
        one = self._tokens[0]
        cases: list[tuple[str, float, Sequence[bytes], bool]] = [
            ("hot overview", 0, [request("GET", "/v1/overview", token=one)] * repeat, False),
            ("cold overview", 2, [request("GET", "/v1/overview", token=t) for t in self._tokens[:repeat]], True),
            ("login", 3, logins, False),
            ("enqueue", 2, [request("POST", "/v1/jobs", token=t, body=_JOB) for t in self._tokens[:repeat]], False),
        ]
        for name, limit, requests, is_cold in cases:
            await ask_all(product.port, requests[:1])
            if is_cold:
                await self._forget_everything()
            await self.bench.count_statements()
            answers = await ask_all(product.port, requests)
            # What runs by the clock, such as looking for revocations, is no part of a request.
            counted = [item for item in await self.bench.statements() if item.calls >= repeat / 2]
            self.statements[name] = {item.sql: item.calls / repeat for item in counted}
            wrong = sum(status >= 400 for status, _ in answers)
            each = sum(item.calls for item in counted) / repeat
            note = f"{wrong} requests failed" if wrong else ""
            self._judge(Budget("P4", f"statements of {name}", each, limit, at_least=False, note=note))

    async def logins(self) -> None:
        """P7: what those who only read feel of people logging in, with a watch on the event loop."""
        command = ("-m", "uvicorn", "benchmarks.limits.watched:app", "--port", "{port}", *_UVICORN, "--ws", "none")
        log_in = overload.workloads(self.bench)["log-ins"]
        reads = [request("GET", "/v1/overview", token=token) for token in self._crowd]
        stall = request("GET", "/bench/stall")
        stalls: list[float] = []
        rates: list[float] = []
        service = self.bench.serve("watched", command=command, settings=WIDE)
        async with machine.running(service, "/livez"):
            await drive(service, reads, seconds=1)

            async def alone() -> Sample:
                return await drive(service, reads, seconds=self.sizes.seconds)

            async def beside_logins() -> Sample:
                await ask(service.port, stall)
                crowd = asyncio.create_task(
                    closed_loop(service.port, log_in, self.sizes.seconds + 1, _LOGINS_IN_FLIGHT)
                )
                await asyncio.sleep(0.5)
                sample = await drive(service, reads, seconds=self.sizes.seconds)
                stalls.append(float((await ask(service.port, stall))[1]))
                outcome = await crowd
                rates.append(outcome.statuses[200] / outcome.seconds)
                return sample

            found = await in_turns({"P7 reads": alone, "P7 reads beside 32 log-ins": beside_logins}, self.sizes.rounds)
        self._keep(found)
        beside, idle = found["P7 reads beside 32 log-ins"].median("p99"), found["P7 reads"].median("p99")
        note = f"{idle:.1f} → {beside:.1f} ms, {sorted(rates)[len(rates) // 2]:.0f} log-ins/s"
        self._judge(
            Budget("P7", "p99 of hot reads beside 32 log-ins ÷ alone", beside / idle, 3, at_least=False, note=note)
        )
        longest = sorted(stalls)[len(stalls) // 2]
        self._judge(Budget("P7", "longest stall of the event loop meanwhile, ms", longest, 20, at_least=False))

    async def overload(self) -> None:
        """P12: work that no cache saves, asked for ten times as often as it can be done."""
        seconds = 30.0 if self.sizes.floods > 1 else 10.0
        for what, requests in overload.workloads(self.bench).items():
            async with self.bench.running(**overload.SETTINGS) as product:
                await drive(product, requests, seconds=1)
                rounds = [
                    await overload.measure(product, what, requests, 10, seconds) for _ in range(self.sizes.floods)
                ]
            found = overload.middle(rounds)
            note = f"{found.answered:.1f} times capacity were answered at all"
            text = f"{what}: goodput at ten times capacity ÷ capacity"
            self._judge(Budget("P12", text, found.goodput, 0.9, by_cpu=found.efficiency, note=note))
            self._judge(Budget("P12", f"{what}: p99 of the admitted ÷ normal", found.p99_ratio, 2, at_least=False))

    async def memory(self) -> None:
        """P10: a fresh process and a mix of reads and writes."""
        async with self.bench.running() as product:
            reads = [request("GET", "/v1/overview", token=token) for token in self._tokens[:2000]]
            writes = [request("POST", "/v1/events", token=token, body=_EVENT) for token in self._tokens[:20]]
            mix = [*reads, *writes]
            done, half = 0, 0
            while done < self.sizes.memory_requests:
                done += (await drive(product, mix, seconds=self.sizes.seconds * 2)).requests
                if not half and done >= self.sizes.memory_requests / 2:
                    half = product.resident_bytes()
            end = product.resident_bytes()
        text = f"resident memory after {done:,} requests, MB"
        self._judge(Budget("P10", text, end / 1e6, 160, at_least=False))
        self._judge(Budget("P10", "its growth in the second half, %", (end - half) / half * 100, 2, at_least=False))

    async def _compare(self, sides: dict[str, tuple[Service, Sequence[bytes]]]) -> None:
        seconds = self.sizes.seconds
        turns = {
            name: partial(drive, service, requests, seconds=seconds) for name, (service, requests) in sides.items()
        }
        self._keep(await in_turns(turns, self.sizes.rounds))

    def _keep(self, found: dict[str, Result]) -> None:
        for name, result in found.items():
            self.results[name] = result
            self._show(name)

    def _show(self, name: str) -> None:
        result = self.results[name]
        rate, cpu = result.median("rate"), result.median("cpu_us")
        self.say(
            f"    {name:40} {rate:8.0f}/s ±{result.spread / 2:4.0%}  {cpu:6.1f} µs CPU"
            f"  p50 {result.median('p50'):6.2f}  p99 {result.median('p99'):6.2f} ms"
            + (f"  {result.failed} FAILED" if result.failed else "")
        )

    def _judge(self, budget: Budget) -> None:
        self.budgets.append(budget)
        self.say(f"  {budget}")

    async def _heads(self, service: Service, reads: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        heads = []
        for path, token in reads:
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(request("GET", path, token=token))
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            writer.close()
            heads.append(dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line))
        return heads

    async def _raw(self, what: str) -> Sample:
        process = machine.launch(
            f"raw-{what}",
            [sys.executable, "-m", "benchmarks.limits.raw", what, str(self.sizes.seconds)],
            self.bench.directory,
            environment=self.bench.environment,
        )
        process.log.write_bytes(b"")
        cpu = 0.0
        while process.is_running():
            cpu = process.cpu_seconds() or cpu
            await asyncio.sleep(0.05)
        found: dict[str, Any] = orjson.loads(process.log.read_bytes().splitlines()[-1])
        return Sample(found["requests"], found["seconds"], 0, 0, 0, 0, 0, cpu)

    async def _forget_everything(self) -> None:
        """Empties both levels: Redis by hand, the process by the gap in its messages."""
        client = redis.Redis.from_url(self.bench.redis_url)
        await client.flushall()
        await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await client.aclose()
        await asyncio.sleep(1.5)

    def _reference(self, name: str, size: int) -> Service:
        port = machine.free_port()
        command = [sys.executable, "-m", "uvicorn", f"benchmarks.limits.references:{name}", "--port", str(port)]
        environment = {**self.bench.environment, "BENCH_BODY": str(size)}
        return machine.launch(name, [*command, *_UVICORN], self.bench.directory, environment=environment, port=port)

    async def _prepare_tables(self, size: int) -> None:
        connection = self.bench.connection
        await connection.execute("DROP SCHEMA IF EXISTS bench CASCADE")
        await connection.execute("CREATE SCHEMA bench")
        await connection.execute("CREATE TABLE bench.people (id uuid PRIMARY KEY, email text, text text)")
        await connection.execute(
            "INSERT INTO bench.people SELECT id, email, repeat('x', $1) FROM users.users", max(1, size - 100)
        )
        await connection.execute("CREATE TABLE bench.events (id uuid PRIMARY KEY, kind text, text text)")
        await connection.execute("VACUUM (ANALYZE) bench.people")


def etag_of(head: dict[str, str]) -> str:
    return head["etag"]
