"""Bad input at every route there is: always refused with a problem, never a failure of ours, never echoed.

The routes come from the OpenAPI document, so that one added tomorrow is tested too.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.identity.router import OAUTH_PATHS
from app.kernel.http import PROBLEM_MEDIA_TYPE, Problem
from app.main import create_app
from app.settings import Settings
from tests.fixtures.application import LiveServer
from tests.fixtures.http import http_client
from tests.fixtures.people import Person, make_admin, register
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import scaled
from tests.kernel.conftest import client_of

CANARY = "c4n4ry"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
# What is for people, and the status of each with an address of no meaning.


@dataclass(frozen=True)
class Operation:
    """One route of the document, with a plausible address."""

    method: str
    template: str
    media_type: str | None
    path_parameters: tuple[str, ...]
    query_parameters: dict[str, Any]

    @property
    def path(self) -> str:
        return self.path_with(str(uuid4()))

    def path_with(self, value: str) -> str:
        return re.sub(r"\{\w+\}", lambda _: value, self.template)

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


def operations_of(document: dict[str, Any]) -> list[Operation]:
    # What is only referred to is a header.
    return [
        Operation(
            method.upper(),
            template,
            next(iter(operation.get("requestBody", {}).get("content", {})), None),
            tuple(item["name"] for item in operation.get("parameters", ()) if item.get("in") == "path"),
            {item["name"]: item["schema"] for item in operation.get("parameters", ()) if item.get("in") == "query"},
        )
        for template, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


@pytest.fixture
async def client(settings: Settings, frozen_garbage: None) -> AsyncIterator[httpx.AsyncClient]:
    """Without the guards over the event loop, because here the test itself computes for long."""
    async with client_of(create_app(settings)) as client:
        yield client


@pytest.fixture
def operations(document: dict[str, Any]) -> list[Operation]:
    return operations_of(document)


@pytest.fixture
async def admin(client: httpx.AsyncClient, connection: Connection) -> Person:
    """A user who may call everything."""
    return await make_admin(await register(client), connection)


class Findings:
    """Collects what is wrong, so that one run tells all of it."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def check(self, case: str, answer: httpx.Response, *expected: int) -> None:
        if answer.request.url.path in OAUTH_PATHS:
            # Of them OAuth makes one status.
            expected = tuple(400 if status in {412, 413, 415, 422} else status for status in expected)
        problems = list(self._problems(answer, set(expected)))
        if problems:
            self.wrong.append(f"{case}: {answer.status_code} {', '.join(problems)}: {answer.text[:200]}")

    def _problems(self, answer: httpx.Response, expected: set[int]) -> Iterator[str]:
        # A caller may run into a quota before anything else is looked at.
        if answer.status_code not in expected | {429}:
            yield f"instead of {sorted(expected)}"
        if CANARY in answer.text:
            yield "echoes the input"
        if answer.request.method == "HEAD":
            return
        path = answer.request.url.path
        if path in OAUTH_PATHS:
            if set(answer.json()) != {"error", "error_description"}:
                yield "is no error of OAuth"
            return
        if answer.headers["content-type"] != PROBLEM_MEDIA_TYPE:
            yield "is no problem"
            return
        problem = Problem.model_validate_json(answer.content)
        if (problem.status, problem.request_id) != (answer.status_code, answer.headers["x-request-id"]):
            yield "does not agree with its headers"


DEEP_ARRAY = b'{"a":' + b"[" * 5_000 + b"]" * 5_000 + b"}"
BODIES: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "no JSON": (b"{" + CANARY.encode(), (400,)),
    "NUL": (b'{"a": "%s\\u0000"}' % CANARY.encode(), (422,)),
    "raw NUL": (b'{"a": "%s\x00"}' % CANARY.encode(), (400,)),
    "lone surrogate": (b'{"a": "%s\\ud800"}' % CANARY.encode(), (422,)),
    "surrogate as a key": (b'{"\\udfff": 1}', (422,)),
    "invalid UTF-8": (b'{"a": "%s\xff"}' % CANARY.encode(), (400,)),
    "encoded surrogate": (b'{"a": "\xed\xa0\x80"}', (400,)),
    "NaN": (b'{"a": NaN}', (400,)),
    "Infinity": (b'{"a": -Infinity}', (400,)),
    "1e400": (b'{"a": 1e400}', (400,)),
    "5,000 digits": (b'{"a": ' + b"9" * 5_000 + b"}", (422,)),
    "5,000 levels": (DEEP_ARRAY, (400,)),
    "a million brackets": (b"[" * 1_000_000, (400, 413)),
    "300 levels": (b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", (400,)),
    "a key twice": (b'{"a": 1, "a": "%s"}' % CANARY.encode(), (400,)),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), (400,)),
    "unknown field": (b'{"a": "%s"}' % CANARY.encode(), (422,)),
    "array": (b'["%s"]' % CANARY.encode(), (422,)),
    "string": (b'"%s"' % CANARY.encode(), (422,)),
    "number": (b"1", (422,)),
    "too large": (b'{"a": "' + b"x" * 1024 * 1024 + b'"}', (413,)),
}


async def test_bodies(admin: Person, operations: list[Operation], connection: Connection) -> None:
    findings = Findings()
    before = await snapshot(connection)
    for operation in operations:
        if operation.media_type != JSON:
            continue
        for name, (body, expected) in BODIES.items():
            answer = await admin.request(operation.method, operation.path, content=body, headers={"Content-Type": JSON})
            findings.check(f"{operation} {name}", answer, *expected)
    assert findings.wrong == []
    assert await snapshot(connection) == before


STRANGE_VALUES: list[Any] = [
    CANARY * 3_000,
    2**63,
    10**400,
    -(2**63),
    1e308,
    "",
    "\t",
    "\x1b[0m" + CANARY,
    "\N{RIGHT-TO-LEFT OVERRIDE}" + CANARY,
    True,
    [CANARY],
    {CANARY: CANARY},
    [[[[]]]],
    None,
]


@pytest.mark.slow
async def test_fields(admin: Person, operations: list[Operation], document: dict[str, Any]) -> None:
    """Each field of each body gets values of every kind, while the others that are required are null."""
    schemas = document["components"]["schemas"]
    findings, asked = Findings(), 0
    for operation in operations:
        if operation.media_type != JSON:
            continue
        body = document["paths"][operation.template][operation.method.lower()]["requestBody"]
        schema = body["content"][JSON]["schema"]
        for model in _objects(schema, schemas):
            required = dict.fromkeys(model.get("required", ()))
            for field in model["properties"]:
                asked += 1
                for value in STRANGE_VALUES:
                    answer = await admin.request(operation.method, operation.path, json=required | {field: value})
                    if answer.status_code >= 400:
                        findings.check(f"{operation} {field}={str(value)[:30]}", answer, *range(400, 500))
    assert findings.wrong == []
    assert asked > 50


def _objects(schema: dict[str, Any], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """The schema's object, or those that it leaves the choice of."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if "properties" in schema:
        return [schema]
    return [model for part in schema.get("oneOf", schema.get("anyOf", ())) for model in _objects(part, schemas)]


async def test_a_body_of_null_is_no_body_that_was_left_out(
    admin: Person, operations: list[Operation], connection: Connection
) -> None:
    findings, asked = Findings(), 0
    before = await snapshot(connection)
    for operation in operations:
        if operation.media_type == JSON:
            asked += 1
            headers = {"Content-Type": JSON}
            answer = await admin.request(operation.method, operation.path, content=b"null", headers=headers)
            findings.check(f"{operation} null", answer, 422)
    assert findings.wrong == []
    assert asked > 25
    # Nor did any of them do anything.
    assert await snapshot(connection) == before
    assert (await admin.get("/v1/users/me")).status_code == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "text/html; charset=utf-8", "application/xml", "nonsense", None]
)
async def test_media_types(admin: Person, operations: list[Operation], content_type: str | None) -> None:
    findings = Findings()
    for operation in operations:
        if operation.media_type is not None:
            headers = {} if content_type is None else {"Content-Type": content_type}
            answer = await admin.request(operation.method, operation.path, content=b"{}", headers=headers)
            findings.check(f"{operation} {content_type}", answer, 415)
    assert findings.wrong == []


async def test_forms(admin: Person, operations: list[Operation]) -> None:
    findings = Findings()
    bodies = [
        b"",
        b"a=%00",
        b"a=%ff",
        b"a=%zz",
        b"a=" + CANARY.encode(),
        b"&&&=&=",
        b"a=1&a=2",
        b"\xff\xfe",
        b"grant_type=" + CANARY.encode(),
    ]
    for operation in operations:
        if operation.media_type == FORM:
            for body in bodies:
                answer = await admin.request(
                    operation.method, operation.path, content=body, headers={"Content-Type": FORM}
                )
                findings.check(f"{operation} {body!r}", answer, 400, 401, 422)
            answer = await admin.request(operation.method, operation.path, json={"grant_type": "password"})
            findings.check(f"{operation} as JSON", answer, 400, 415)
    assert findings.wrong == []


async def test_queries(admin: Person, operations: list[Operation]) -> None:
    findings = Findings()
    strange = {"%00": (422,), "%ff": (400,), "%ed%a0%80": (400,), "%zz": (400,), "%": (400,), "%C0%AF": (400,)}
    for operation in operations:
        answer = await admin.request(operation.method, f"{operation.path}?surprise={CANARY}")
        if operation.path.startswith("/v1/"):
            # A body is missing where one is needed, but the query is looked at before it.
            findings.check(f"{operation} unknown parameter", answer, 422)
        else:
            # People come with what others have appended to a link, and probes with what other servers know.
            assert answer.status_code == (404 if operation.path_parameters else 200)
        for name, schema in operation.query_parameters.items():
            for value, expected in strange.items():
                answer = await raw_request(admin, operation.method, f"{operation.path}?{name}={value}")
                findings.check(f"{operation} {name}={value}", answer, *expected)
            answer = await admin.request(operation.method, f"{operation.path}?{name}=1&{name}=2")
            findings.check(f"{operation} {name} twice", answer, 422)
            if schema.get("type") == "integer":
                for number in ("", "x", "0", "-1", "1.5", "1e2", "NaN", "9" * 400, str(2**63), "0x10", "x5", "٣"):
                    answer = await admin.request(operation.method, operation.path, params={name: number})
                    findings.check(f"{operation} {name}={number[:20]}", answer, 422)
    assert findings.wrong == []


async def test_paths(admin: Person, operations: list[Operation]) -> None:
    findings = Findings()
    for operation in operations:
        if not operation.path_parameters:
            continue
        for value in ("%00", "%ff", "%zz", "%ed%a0%80", CANARY, "x" * 5_000, str(2**63), "..%2f..%2f", "null", "%0a"):
            answer = await raw_request(admin, operation.method, operation.path_with(value))
            findings.check(f"{operation} {value[:20]}", answer, 400, 404, 415, 422)
    assert findings.wrong == []


async def raw_request(person: Person, method: str, target: str) -> httpx.Response:
    """A request whose address is not put in order by the client."""
    url = httpx.URL("http://localhost").copy_with(raw_path=target.encode())
    return await person.client.request(method, url, headers=person.headers)


async def test_methods(admin: Person, operations: list[Operation]) -> None:
    findings = Findings()
    for template in {operation.template for operation in operations}:
        path = re.sub(r"\{\w+\}", str(uuid4()), template)
        # A path written out, as /v1/users/me is, does not have the methods of a template that fits it.
        taken = {operation.method for operation in operations if operation.template == template}
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - taken:
            answer = await admin.request(method, path)
            findings.check(f"{method} {template}", answer, 405)
            allowed = taken | {"OPTIONS"} | ({"HEAD"} if "GET" in taken else set())
            if answer.headers.get("allow") != ", ".join(sorted(allowed)):
                findings.wrong.append(f"{method} {template}: Allow: {answer.headers.get('allow')}")
    assert findings.wrong == []


# A GET of it ends when the client goes, which this one never does.
ENDLESS = "/v1/users/me/events/stream"


async def test_head_is_answered_as_get(admin: Person, operations: list[Operation]) -> None:
    wrong = []
    changing = {"/metrics", "/v1/admin/queues", "/v1/admin/security-events"}
    for operation in operations:
        if operation.method != "GET" or operation.template in changing:
            continue
        path = operation.path
        if operation.template == ENDLESS:
            head = await admin.request("HEAD", path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
            continue
        read, head = await admin.get(path), await admin.request("HEAD", path)
        names = ["content-type", "etag", "cache-control", "allow", "www-authenticate"]
        if (head.status_code, head.content) != (read.status_code, b"") or any(
            read.headers.get(name) != head.headers.get(name) for name in names
        ):
            wrong.append(f"{operation}: {read.status_code} {head.status_code} {len(head.content)}")
    assert wrong == []


async def test_a_slash_too_many(admin: Person, operations: list[Operation]) -> None:
    findings = Findings()
    for operation in operations:
        if operation.path != "/":
            findings.check(f"{operation}/", await admin.request(operation.method, operation.path + "/"), 404)
    assert findings.wrong == []


async def test_nobody_gets_in_without_logging_in(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    """Every route whose document demands a security scheme says 401, before it says anything else."""
    findings, asked = Findings(), 0
    for operation in operations_of(document):
        described = document["paths"][operation.template][operation.method.lower()]
        if described.get("security") and {} not in described["security"]:
            asked += 1
            answer = await client.request(operation.method, operation.path, content=b"{")
            findings.check(str(operation), answer, 401)
            if not answer.headers.get("www-authenticate", "").startswith("Bearer"):
                findings.wrong.append(f"{operation}: no challenge")
    assert findings.wrong == []
    assert asked > 20


async def snapshot(connection: Connection) -> list[Any]:
    """How many rows there are in each table, but for the audit trail and the brakes."""
    tables = await connection.fetch(
        "SELECT schemaname || '.' || tablename AS name FROM pg_tables WHERE schemaname IN ('users', 'jobs')"
    )
    return [(row["name"], await connection.fetchval(f"SELECT count(*) FROM {row['name']}")) for row in tables]  # noqa: S608


async def test_over_the_wire(live_server: LiveServer) -> None:
    """What only a real server shows: bodies that grow while they are read, and addresses that are none."""
    base = await live_server()
    findings = Findings()
    async with http_client(base, timeout=scaled(20)) as client:
        person = await register(client)

        async def chunks() -> AsyncIterator[bytes]:
            yield b'{"kind": "'
            for _ in range(17):
                yield b"x" * 65_536

        for path in ("/v1/events", "/v1/jobs", "/v1/auth/login"):
            headers = {"Content-Type": JSON}
            answer = await person.post(path, content=b"x" * (1024 * 1024 + 1), headers=headers)
            findings.check(f"{path} too large", answer, 413)
            answer = await person.post(path, content=chunks(), headers=headers)
            findings.check(f"{path} grows too large", answer, 413)
        for target in ("/v1/users/%ff", "/v1/users/%zz", "/v1/users/%00", "/%ff", "/v1/users/me/events?kind=%ff"):
            findings.check(target, await raw_request_to(person, base, target), 400, 404, 422)
        assert (await person.get("/v1/users/me")).status_code == 200
    assert findings.wrong == []
    assert b" 400 " in await send_bytes(base, b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n")
    assert b" 200 " in await send_bytes(base, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


async def raw_request_to(person: Person, base: str, target: str) -> httpx.Response:
    return await person.client.get(httpx.URL(base).copy_with(raw_path=target.encode()), headers=person.headers)


async def send_bytes(base: str, data: bytes) -> bytes:
    url = httpx.URL(base)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(data)
    await writer.drain()
    answer = await asyncio.wait_for(reader.readline(), scaled(5))
    writer.close()
    return answer


def test_there_are_routes(operations: list[Operation]) -> None:
    assert len(operations) > 50
