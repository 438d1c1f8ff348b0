"""Climbs the ladder: the overview under load, and the order that sends an e-mail, a PDF and a webhook."""

import asyncio
import json
import math
import statistics
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import orjson
import redis.asyncio as redis

from benchmarks.budgets import Budget, Progress
from benchmarks.client import ask, ask_all, closed_loop, percentile
from benchmarks.ladder.stages import STAGES, Group, Outside, Stage, make_tables, outside, started
from benchmarks.load import CONNECTIONS, Result, drive, request
from benchmarks.product import Bench

_VOLATILE = ("id", "status", "created_at", "notes")
# People who are there at one moment; the data are of many more.
ACTIVE = 100
# Others, so that their orders do not change what the readers read.
CUSTOMERS = 20
_ORDER_SECONDS = 4
_LONGEST_SECONDS = 8
_POOLS_OWN = ("SELECT pg_advisory_unlock_all", "CLOSE ALL", "UNLISTEN", "RESET ALL")
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Orders:
    """Latencies of one customer alone, orders a second of eight, and what became of them."""

    milliseconds: tuple[float, ...]
    rate: float
    delivered: str

    @property
    def p50(self) -> float:
        return percentile(sorted(self.milliseconds), 0.5)


@dataclass(frozen=True, slots=True)
class Climb:
    """What was found of one stage."""

    stage: Stage
    overview: Result
    queries: float
    calls: float
    orders: Orders

    def as_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage.number,
            "fix": self.stage.fix,
            "services": self.stage.services,
            "overview": self.overview.as_json(),
            "queries": round(self.queries, 2),
            "calls": round(self.calls, 2),
            "order_ms": [round(value, 2) for value in self.orders.milliseconds],
            "order_p50": round(self.orders.p50, 2),
            "order_rate": round(self.orders.rate, 2),
            "delivered": self.orders.delivered,
        }


async def climb(bench: Bench, *, seconds: float, rounds: int, say: Progress) -> list[Climb]:
    """All stages, one after the other, `rounds` times, so that what disturbs the machine disturbs all of them."""
    tokens = {number: bench.token(number) for number in range(1, ACTIVE + CUSTOMERS + 1)}
    await make_tables(bench, tokens)
    readers, customers = list(tokens.values())[:ACTIVE], list(tokens.values())[ACTIVE:]
    turns: dict[int, list[Climb]] = {stage.number: [] for stage in STAGES}
    expected: bytes | None = None
    async with outside(bench) as world:
        for number in range(rounds):
            for stage in STAGES:
                async with started(stage, bench, world) as group:
                    answer = await canonical_overview(group, readers[0])
                    expected = expected or answer
                    if answer != expected:
                        raise AssertionError(f"stage {stage.number} answers {answer!r} instead of {expected!r}")
                    overview = await _read(group, readers, seconds)
                    queries, calls = await count_overview(group, bench, readers)
                    orders = await _order(stage, group, world, customers, seconds)
                await _clean_up(bench)
                turns[stage.number].append(Climb(stage, overview, queries, calls, orders))
                say(f"    round {number + 1}: {_line(turns[stage.number][-1])}")
    return [_middle(taken) for taken in turns.values()]


def _middle(turns: list[Climb]) -> Climb:
    """One stage out of its rounds."""
    orders = [turn.orders for turn in turns]
    return Climb(
        turns[0].stage,
        Result(tuple(sample for turn in turns for sample in turn.overview.samples)),
        statistics.median(turn.queries for turn in turns),
        statistics.median(turn.calls for turn in turns),
        Orders(
            tuple(value for each in orders for value in each.milliseconds),
            statistics.median(each.rate for each in orders),
            orders[-1].delivered,
        ),
    )


async def _read(group: Group, tokens: list[str], seconds: float) -> Result:
    reads = [request("GET", "/v1/overview", token=token) for token in tokens]
    await drive(group, reads, seconds=1)
    sample = await drive(group, reads, seconds=seconds)
    while sample.requests < 2 * CONNECTIONS and seconds < _LONGEST_SECONDS:
        # Fourteen services may take longer for a request than a short window is.
        seconds *= 2
        sample = await drive(group, reads, seconds=seconds)
    return Result((sample,))


async def count_overview(group: Group, bench: Bench, tokens: list[str]) -> tuple[float, float]:
    """Statements and calls between services of one overview, of people who were there before."""
    reads = [request("GET", "/v1/overview", token=token) for token in tokens[:50]]
    # Requests that the load has left behind are answered first.
    await ask(group.port, reads[0])
    calls = await _calls(group)
    await bench.count_statements()
    await ask_all(group.port, reads)
    # What runs by the clock has few calls; what a driver's pool does to clean its connections is no query of a request.
    counted = [
        item.calls
        for item in await bench.statements()
        if item.calls >= len(reads) / 2 and not item.sql.startswith(_POOLS_OWN)
    ]
    return sum(counted) / len(reads), (await _calls(group) - calls) / len(reads)


async def _clean_up(bench: Bench) -> None:
    """What the orders have left, so that the next stage finds the data as this one did."""
    await bench.connection.execute("DELETE FROM jobs.jobs WHERE created_at > '2026-06-01'")
    await bench.connection.execute("TRUNCATE ladder.invoices, jobs.invoices")
    # Otherwise each stage would send one webhook more for an order than the one before it.
    await bench.connection.execute("TRUNCATE jobs.webhook_endpoints, jobs.webhook_messages, jobs.webhook_deliveries")
    client = redis.Redis.from_url(bench.redis_url)
    await client.flushall()
    await client.aclose()


async def _order(stage: Stage, group: Group, world: Outside, tokens: list[str], seconds: float) -> Orders:
    """Latencies of one customer alone, then the orders of eight, and what arrived outside."""
    hooked = await _register_webhooks(group, world, tokens) if stage.is_product else True
    status, body = await ask(group.port, order_request(tokens[0]))
    if status != 202:
        return Orders((), 0.0, f"an order was answered with {status}: {body[:200]!r}")
    before = await world.arrived()
    # Enough for a few orders of a second each.
    window = min(seconds, _ORDER_SECONDS)
    alone = await closed_loop(group.port, _orders_of(tokens, 1000), window, 1)
    crowd = await closed_loop(group.port, _orders_of(tokens, 3000), window, 8)
    sent = len(alone.good()) + len(crowd.good())
    waited = 0
    while (after := await world.arrived())["mails"] - before["mails"] < sent and waited < 2 * window:
        await asyncio.sleep(1)
        waited += 1
    mails, webhooks = after["mails"] - before["mails"], after["webhooks"] - before["webhooks"]
    delivered = f"of {sent} orders {mails} mails and {webhooks} webhooks within {waited} s"
    if not hooked:
        delivered += "; the product did not take the address of the receiver"
    return Orders(tuple(alone.good()), len(crowd.good()) / crowd.seconds, delivered)


async def _register_webhooks(group: Group, world: Outside, tokens: list[str]) -> bool:
    body = orjson.dumps({"url": world.webhook_url, "event_types": ["invoice.issued"]})
    answers = [
        await ask(group.port, request("POST", "/v1/webhooks/endpoints", token=token, body=body)) for token in tokens
    ]
    return all(status == 201 for status, _ in answers)


def _orders_of(tokens: list[str], wanted: int) -> list[bytes]:
    return [order_request(tokens[index % len(tokens)]) for index in range(wanted)]


def order_request(token: str, number: str | None = None) -> bytes:
    """An order that does not exist yet, unless it is given a `number`."""
    document = {
        "number": number or f"L-{next(_numbers)}",
        "order_id": "order-1",
        "customer": {"name": "Dana Demo", "email": "dana@example.com", "address": "1 Main Street"},
        "currency": "EUR",
        "lines": [{"description": f"Part {n}", "quantity": n, "unit_price_minor": 1250 + n} for n in range(1, 6)],
        "tax_rate_percent": "19",
    }
    return request("POST", "/v1/invoices", token=token, body=orjson.dumps(document))


async def canonical_overview(group: Group, token: str) -> bytes:
    status, body = await ask(group.port, request("GET", "/v1/overview", token=token))
    assert status == 200, body
    return canonical(json.loads(body))


async def canonical_order(group: Group, raw: bytes) -> bytes:
    """The answer to an order without what differs from one order to the next."""
    status, body = await ask(group.port, raw)
    assert status == 202, body
    return canonical({name: value for name, value in json.loads(body)["invoice"].items() if name not in _VOLATILE})


def canonical(document: object) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


async def _calls(group: Group) -> int:
    """Calls between services so far; the product has no services to call."""
    if group.name.startswith("stage0"):
        answers = [(await ask_all(member.port, [request("GET", "/bench/calls")]))[0] for member in group.members]
        return sum(int(body) for _, body in answers)
    return 0


def judge(climbs: list[Climb]) -> list[Budget]:
    """P11."""
    first, last = climbs[0], climbs[-1]
    uncached, cached = climbs[4], climbs[5]
    budgets = [
        Budget("P11", "ladder: requests per second, after ÷ before", _over(last, first, "rate"), 20),
        Budget("P11", "ladder: p95, before ÷ after", 1 / _over(last, first, "p95"), 23),
        Budget("P11", "ladder: queries of stage 0", first.queries, 14, at_least=False),
        Budget("P11", "ladder: queries without the cache", uncached.queries, 2, at_least=False),
        Budget("P11", "ladder: queries with the cache", cached.queries, 0.005, at_least=False),
    ]
    hits = 1 - cached.queries / max(uncached.queries, 1e-9)
    budgets.append(Budget("P11", "ladder: database statements saved by the cache, %", hits * 100, 99))
    after = [climb for climb in climbs if climb.orders.milliseconds][-1]
    heavy = first.orders.p50 / after.orders.p50
    note = "" if after is last else f"up to stage {after.stage.number} only: {last.orders.delivered}"
    budgets.append(Budget("P11", "ladder: heavy endpoint, before ÷ after (p50)", heavy, 20, note=note))
    return budgets


def shares(climbs: list[Climb]) -> list[float]:
    """Each step's part of the whole way, in logarithms, so that they add up to 1."""
    whole = math.log(_over(climbs[-1], climbs[0], "rate"))
    steps = [0.0] + [math.log(_over(b, a, "rate")) for a, b in pairwise(climbs)]
    return [step / whole for step in steps]


def _over(top: Climb, bottom: Climb, name: str) -> float:
    if not bottom.overview.median("rate"):
        raise RuntimeError(
            f"stage {bottom.stage.number} answered nothing: the machine is too busy for so short a window"
        )
    return top.overview.median(name) / bottom.overview.median(name)


def _line(found: Climb) -> str:
    overview = found.overview
    order = f"{found.orders.p50:.0f} ms" if found.orders.milliseconds else "none"
    return (
        f"{found.stage.number} {found.stage.fix:38} {overview.median('rate'):7.0f}/s"
        f"  p50 {overview.median('p50'):7.1f}  p95 {overview.median('p95'):7.1f} ms  {found.queries:5.2f} queries"
        f"  {found.calls:.1f} calls  order {order}, {found.orders.rate:.1f}/s ({found.orders.delivered})"
        + (f"  {overview.failed} FAILED" if overview.failed else "")
    )
