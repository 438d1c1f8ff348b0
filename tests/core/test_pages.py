"""Health, metrics, and the pages for people."""

import platform
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from hashlib import sha256
from html import escape
from html.parser import HTMLParser

import httpx
import pytest

from app import __version__
from app.core.schemas import ProblemCatalogue, ReadyResponse
from app.dev.embedded import EmbeddedValkey
from app.main import create_app
from app.settings import Settings
from tests.fixtures.answers import body_of, problem_of
from tests.fixtures.application import Budget
from tests.kernel.conftest import client_of


@pytest.fixture
async def unguarded_client(settings: Settings, frozen_garbage: None) -> AsyncIterator[httpx.AsyncClient]:
    """For what blocks on purpose: the files of the documentation, and a test that stops a server."""
    async with client_of(create_app(settings)) as client:
        yield client


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, _: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attributes if name in {"href", "src"} and value]


async def test_front_page_leads_to_what_is_there(unguarded_client: httpx.AsyncClient) -> None:
    client = unguarded_client
    answer = await client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "Onehop" in answer.text
    links = Links(answer.text).found
    assert {"/docs", "/readyz", "/metrics", "/.well-known/jwks.json"} <= set(links)
    for link in links:
        # The console asks a stranger to log in.
        assert (await client.get(link)).status_code == (303 if link == "/console" else 200), link


async def test_documentation_loads_nothing_from_elsewhere(unguarded_client: httpx.AsyncClient) -> None:
    client = unguarded_client
    for path in ("/docs", "/redoc"):
        answer = await client.get(path)
        assert answer.status_code == 200
        addresses = Links(answer.text).found
        assert addresses
        for address in addresses:
            assert address.startswith("/"), address
            asset = await client.get(address)
            assert asset.status_code == 200, address
            answer = await client.post(address)
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert "/v1/overview" in document["paths"]
    identifiers = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(identifiers) == len(set(identifiers))
    headers = {"Range": "bytes=5-2", "Accept-Encoding": "identity"}
    part = await client.get("/docs/assets/swagger-ui.css", headers=headers)
    assert (part.status_code, len(part.content)) == (200, int(part.headers["content-length"]))


@pytest.mark.settings(APP_HTTP_DOCS="false")
async def test_documentation_can_be_switched_off(client: httpx.AsyncClient) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/docs/assets/swagger-ui.css"):
        problem_of(await client.get(path), 404, "not_found")
    assert "/docs" not in Links((await client.get("/")).text).found


@pytest.mark.parametrize("path", ["/verify-email", "/change-email", "/reset-password", "/forgot-password"])
async def test_links_of_mails_lead_to_a_page_that_calls_the_api(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(f"{path}?token=ot_x" if path != "/forgot-password" else path)
    assert (answer.status_code, answer.headers["referrer-policy"]) == (200, "no-referrer")
    assert "ot_x" not in answer.text
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    allowed = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'; connect-src 'self'" in answer.headers["content-security-policy"]
    (call,) = re.findall(r'data-call="([^"]+)"', answer.text)
    problem_of(await client.post(call, json={}), 422, "validation_failed")


async def test_problem_types_lead_to_an_explanation(client: httpx.AsyncClient) -> None:
    problem = (await client.get("/nowhere")).json()
    page = await client.get(problem["type"])
    assert page.status_code == 200
    assert problem["title"] in page.text
    problem_of(await client.get("/problems/<script>"), 404, "not_found")


async def test_problems_are_listed_for_people_and_for_programs(client: httpx.AsyncClient) -> None:
    page = await client.get("/problems", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "Accept" in page.headers["vary"].split(", ")
    catalogue = body_of(await client.get("/problems", headers={"Accept": "application/json"}), ProblemCatalogue)
    listed = {(item["code"], item["status"]) for item in catalogue["items"]}
    assert {("not_found", 404), ("invalid_token", 400), ("invalid_token", 401), ("overloaded", 503)} <= listed
    assert {"unavailable", "too_many_connections", "invalid_message", "internal_error"} <= {code for code, _ in listed}
    assert "missing" in {item["code"] for item in catalogue["fields"]}
    links = [link for link in Links(page.text).found if link.startswith("/problems/")]
    assert links == [f"/problems/{item['code']}" for item in catalogue["items"]]
    for item in catalogue["items"]:
        explained = (await client.get(f"/problems/{item['code']}")).text
        assert escape(item["title"]) in explained
        assert f"<code>{item['status']}</code>" in explained


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        (None, False),
        ("*/*", False),
        ("text/html", False),
        ("application/json", True),
        ("application/*", True),
        ("application/json;q=0.9, text/html;q=0.8", True),
        ("application/json;q=0.8, text/html", False),
        ("text/html;q=0, */*", True),
        ("APPLICATION/JSON ; q=1.000", True),
        (",;q=,nonsense", False),
    ],
)
async def test_accept_decides_the_form_of_the_list(
    client: httpx.AsyncClient, accept: str | None, is_json: bool
) -> None:
    answer = await client.get("/problems", headers={"Accept": accept or ""})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/json" if is_json else "text/html")


async def test_alive_without_any_statement(client: httpx.AsyncClient, budget: Budget) -> None:
    with budget(0):
        answer = await client.get("/livez")
    assert (answer.status_code, answer.json(), answer.headers["cache-control"]) == (
        200,
        {"status": "alive"},
        "no-store",
    )


async def test_ready(client: httpx.AsyncClient) -> None:
    answer = await client.get("/readyz")
    checks = {"database": "ok", "redis": "ok", "signing_key": "ok"}
    assert body_of(answer, ReadyResponse) == {"status": "ready", "checks": checks}
    assert answer.headers["cache-control"] == "no-store"


async def test_a_lost_redis_only_degrades(unguarded_client: httpx.AsyncClient, valkey: EmbeddedValkey) -> None:
    valkey.stop()
    try:
        answer = await unguarded_client.get("/readyz")
        assert (answer.status_code, answer.json()["checks"]["redis"]) == (200, "degraded")
    finally:
        valkey.start()


async def test_metrics_name_routes_and_not_addresses(client: httpx.AsyncClient) -> None:
    await client.get("/v1/users/0198f000-0000-7000-8000-000000000000")
    await client.get("/nowhere/at-all")
    answer = await client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    routes = set(re.findall(r'http_route="([^"]*)"', answer.text))
    assert {"/v1/users/{user_id}", "unmatched"} <= routes
    assert not any("0198f000" in route or "nowhere" in route for route in routes)
    for name in (
        "onehop_database_statements_total",
        "onehop_database_pool_connections",
        "onehop_cache_requests_total",
        "onehop_redis_calls_total",
    ):
        assert f"# TYPE {name.removesuffix('_total') if name not in answer.text else name}" in answer.text, name


async def test_metrics_are_the_products_or_of_python_and_the_process(client: httpx.AsyncClient) -> None:
    samples = re.findall(r"^(\w+)(?:\{| )", (await client.get("/metrics")).text, re.MULTILINE)
    assert {name.split("_")[0] for name in samples} == {"onehop", "python", "process"}
    # One for each series would double what is stored of each counter.
    assert [name for name in samples if name.endswith("_created")] == []


async def test_times_are_told_from_a_tenth_of_a_millisecond(client: httpx.AsyncClient) -> None:
    await client.get("/livez")
    pattern = r'^onehop_http_server_request_duration_seconds_bucket\{[^}]*http_route="/livez"[^}]*le="([^"]+)"'
    bounds = re.findall(pattern, (await client.get("/metrics")).text, re.MULTILINE)
    assert bounds[:5] == ["0.0001", "0.00025", "0.0005", "0.001", "0.0025"]


@pytest.mark.settings(APP_COMMIT="4f1d2c3")
async def test_the_build_is_told(client: httpx.AsyncClient) -> None:
    text = (await client.get("/metrics")).text
    labels = f'commit="4f1d2c3",python="{platform.python_version()}",version="{__version__}"'
    assert f"onehop_build_info{{{labels}}} 1.0" in text
