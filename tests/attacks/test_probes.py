"""Health and metrics cost others nothing, however often a stranger asks, and tell a stranger nothing."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from time import monotonic

import httpx
import pytest
from fastapi import FastAPI

from app.composition import make_resources
from app.core import health
from app.kernel.fairness.pacing import Paced
from app.kernel.observability.telemetry import RenderedMetrics
from app.settings import Settings
from tests.fixtures.answers import problem_of
from tests.fixtures.application import Lifespan
from tests.fixtures.waiting import eventually


async def test_many_questions_for_health_are_few_to_the_database(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    ask = health._database

    async def count(db: object) -> bool:
        asked.append(monotonic())
        return await ask(db)  # type: ignore[arg-type]  # the application's

    monkeypatch.setattr(health, "_database", count)
    started = monotonic()
    for _ in range(3):
        answers = await asyncio.gather(*(client.get("/readyz") for _ in range(100)))
        assert {answer.status_code for answer in answers} == {200}
    # One call for each hundred, and what the rests allow beside them.
    assert len(asked) <= 3 + (monotonic() - started) / 0.05
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(asked))


async def test_metrics_are_rendered_once_for_all_who_ask(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []
    metrics: Paced[RenderedMetrics] = app.state.metrics
    render = metrics._ask

    async def count() -> RenderedMetrics:
        made = await render()
        rendered.append(made.text)
        return made

    monkeypatch.setattr(metrics, "_ask", count)
    first = asyncio.gather(*(client.get("/metrics") for _ in range(64)))
    answers = [await first, await asyncio.gather(*(client.get("/metrics") for _ in range(64)))]
    # One may begin between two questions of a burst.
    assert len(rendered) <= 4
    assert {answer.content for batch in answers for answer in batch} == set(rendered)


async def test_no_answer_is_older_than_its_question() -> None:
    calls = 0
    go = asyncio.Event()

    async def ask() -> int:
        nonlocal calls
        calls += 1
        number = calls
        await go.wait()
        return number

    paced = Paced(ask, rest=0.0, shortest=0.0)
    early = asyncio.create_task(paced.get())
    await eventually(lambda: calls == 1)
    late = [asyncio.create_task(paced.get()) for _ in range(10)]
    await asyncio.sleep(0)
    go.set()
    assert await early == 1
    assert await asyncio.gather(*late) == [2] * 10


async def test_a_failure_is_told_to_all_and_who_leaves_ends_nothing() -> None:
    async def fail() -> int:
        await asyncio.sleep(0.01)
        raise ValueError("as expected")

    paced = Paced(fail, rest=0.0)
    leaving = asyncio.create_task(paced.get())
    staying = asyncio.create_task(paced.get())
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(ValueError, match="as expected"):
        await staying
    with pytest.raises(ValueError, match="as expected"):
        await paced.get()


async def test_it_rests_in_proportion_to_its_cost() -> None:
    spans: list[tuple[float, float]] = []

    async def work() -> None:
        started = monotonic()
        await asyncio.sleep(0.01)
        spans.append((started, monotonic()))

    paced = Paced(work, rest=9.0)
    for _ in range(4):
        await paced.get()
    for (started, ended), (following, _) in pairwise(spans):
        assert following - ended >= 9 * (ended - started) - 0.001


@pytest.fixture
async def stranger(running_app: Lifespan) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(running_app, client=("203.0.113.7", 5000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@pytest.mark.settings(APP_HTTP_OPERATOR_NETWORKS="127.0.0.0/8,10.0.0.0/8", APP_HTTP_TRUSTED_PROXIES="127.0.0.1")
async def test_they_are_for_the_networks_of_the_operator(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    for path in ("/metrics", "/readyz"):
        problem_of(await stranger.get(path), 404, "not_found")
        problem_of(await stranger.get(path, headers={"X-Forwarded-For": "10.0.0.1"}), 404, "not_found")
        assert (await stranger.head(path)).status_code == 404
        assert (await client.get(path)).status_code == 200
        assert (await client.get(path, headers={"X-Forwarded-For": "10.0.0.9"})).status_code == 200
        problem_of(await client.get(path, headers={"X-Forwarded-For": "198.51.100.1"}), 404, "not_found")
    assert (await stranger.get("/livez")).status_code == 200


@pytest.mark.settings(APP_HTTP_OPERATOR_NETWORKS="127.0.0.0/8")
async def test_a_proxy_that_is_not_trusted_is_no_operator(client: httpx.AsyncClient) -> None:
    for path in ("/metrics", "/readyz"):
        assert (await client.get(path)).status_code == 200
        for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Proto", "Via"):
            problem_of(await client.get(path, headers={name: "127.0.0.1"}), 404, "not_found")
    assert (await client.get("/livez", headers={"Via": "1.1 proxy"})).status_code == 200


@pytest.mark.settings(APP_HTTP_OPERATOR_NETWORKS="127.0.0.0/8", APP_HTTP_TRUSTED_PROXIES="127.0.0.1")
async def test_a_proxy_that_names_no_client_is_no_operator(client: httpx.AsyncClient) -> None:
    for hidden in ({"Forwarded": "for=127.0.0.1"}, {"X-Forwarded-For": "unknown"}, {"Via": "1.1 proxy"}):
        problem_of(await client.get("/metrics", headers=hidden), 404, "not_found")
    headers = {"Via": "1.1 proxy", "X-Forwarded-For": "127.0.0.9"}
    assert (await client.get("/metrics", headers=headers)).status_code == 200


async def test_in_development_they_are_for_all(stranger: httpx.AsyncClient) -> None:
    assert (await stranger.get("/readyz")).status_code == 200


async def test_in_production_they_are_for_private_networks(settings: Settings) -> None:
    production = settings.model_copy(update={"env": "production"})
    assert production.is_production
    networks = make_resources(production, application_name="test").http.operator_networks
    assert networks is not None
    assert {"127.0.0.0/8", "10.0.0.0/8", "::1/128", "fc00::/7"} <= set(networks)
    own = settings.http.model_copy(update={"operator_networks": ("192.0.2.0/24",)})
    changed = production.model_copy(update={"http": own})
    assert make_resources(changed, application_name="test").http.operator_networks == ("192.0.2.0/24",)
