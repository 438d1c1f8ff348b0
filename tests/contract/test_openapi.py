"""The OpenAPI document: as committed, valid, and complete for every route."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import TypeAdapter

from app.identity.router import OAUTH_PATHS
from app.kernel.auth import declared_permission
from app.main import TAGS, Onehop, create_app
from app.settings import load_settings

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def made_app() -> Onehop:
    return create_app(load_settings({"APP_SECRET_KEY": "k" * 32}))


def operations_of(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method.upper(), path, operation


def test_the_committed_document_is_the_present_one(document: dict[str, Any]) -> None:
    assert json.loads(COMMITTED.read_text()) == document, "docs/openapi.json is old: run `make openapi`"


def test_it_is_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()


def test_every_operation_says_what_it_is(document: dict[str, Any]) -> None:
    names = []
    for method, path, operation in operations_of(document):
        names.append(operation["operationId"])
        assert operation["summary"], path
        assert operation["description"], path
        # A generator makes the types of an operation once for each of its tags, and they collide.
        assert len(operation["tags"]) == 1, path
        assert set(operation["tags"]) <= TAGS.keys(), path
        for status, response in operation["responses"].items():
            assert "$ref" in response or response["description"], f"{method} {path} {status}"
    assert len(names) == len(set(names)) > 70


def test_every_operation_names_what_its_layers_answer(made_app: Onehop, document: dict[str, Any]) -> None:
    for route in made_app.routes:
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        method = next(iter(route.methods or ()))
        operation = document["paths"][route.path][method.lower()]
        named = set(operation["responses"])
        expected = {"400", "408", "413", "414", "422", "431"}
        if route.path not in {"/livez", "/readyz", "/metrics"}:
            expected |= {"429", "503", "504"}
        permission = declared_permission(route.dependant)
        assert permission is not None
        if not permission.is_public:
            expected.add("401")
        # None, or the empty one beside others: the call may be made without a token.
        is_public = operation["security"] == [] or {} in operation["security"]
        assert is_public is permission.is_public, route.path
        if permission.scopes or permission.role:
            expected.add("403")
        if "{" in route.path:
            expected.add("404")
        if "requestBody" in operation:
            expected.add("415")
        if route.path in OAUTH_PATHS:
            # OAuth has one status for whatever is wrong with a request.
            faults = {"413", "414", "415", "422", "431"}
            expected -= faults
            assert not faults & named
        assert expected <= named, f"{method} {route.path}"


def test_every_error_is_a_problem_or_of_oauth(document: dict[str, Any]) -> None:
    others = []
    for method, path, operation in operations_of(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400 and not response.get("$ref", "").startswith("#/components/responses/"):
                others.append((method, path, status))
    oauth = [
        ("POST", path, status) for path in sorted(OAUTH_PATHS) for status in ("400", "403", "408", "429", "503", "504")
    ]
    oauth += [("POST", path, "401") for path in ("/v1/auth/introspect", "/v1/auth/token")]
    assert sorted(others) == sorted([("GET", "/readyz", "503"), *oauth])
    for name, response in document["components"]["responses"].items():
        (content,) = response["content"].values()
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, name
        assert content["example"]["title"] == response["description"]


def test_every_body_has_examples_that_are_taken(made_app: Onehop, document: dict[str, Any]) -> None:
    bodies = 0
    for route in made_app.routes:
        if not isinstance(route, APIRoute) or route.body_field is None:
            continue
        bodies += 1
        annotation: Any = route.body_field.field_info.annotation
        body = TypeAdapter[Any](annotation)
        schema = body.json_schema()
        examples = [
            example
            for model in [schema, *schema.get("$defs", {}).values()]
            if str(model.get("title")) in str(annotation)
            for example in model.get("examples", ())
        ]
        assert examples, route.path
        for example in examples:
            body.validate_json(json.dumps(example))
    assert bodies > 30


def test_headers_are_named_where_they_are_read(document: dict[str, Any]) -> None:
    def readers(name: str) -> set[str]:
        reference = {"$ref": f"#/components/parameters/{name}"}
        return {
            f"{method} {path}"
            for method, path, operation in operations_of(document)
            if reference in operation.get("parameters", ())
        }

    assert readers("IfMatch") == {
        "PATCH /v1/users/me",
        "PUT /v1/users/me/preferences",
        "PATCH /v1/users/me/preferences",
        "DELETE /v1/users/me",
        "PATCH /v1/admin/users/{user_id}",
        "PATCH /v1/webhooks/endpoints/{endpoint_id}",
        "DELETE /v1/webhooks/endpoints/{endpoint_id}",
    }
    assert readers("IdempotencyKey") == {
        "POST /v1/admin/jobs/bulk",
        "POST /v1/admin/service-accounts",
        "POST /v1/auth/api-keys",
        "POST /v1/auth/passkeys",
        "POST /v1/auth/refresh",
        "POST /v1/events",
        "POST /v1/invoices",
        "POST /v1/invoices/{invoice_id}/email",
        "POST /v1/jobs",
        "POST /v1/webhooks/endpoints",
    }
    assert (
        readers("Range")
        == readers("IfRange")
        == {"GET /v1/jobs/{job_id}/artifacts/{name}", "GET /v1/invoices/{invoice_id}/pdf"}
    )
    assert {"GET /v1/overview", "GET /v1/users/me", "GET /v1/jobs"} < readers("IfNoneMatch")
    assert "GET /v1/auth/sessions" not in readers("IfNoneMatch")


def test_every_list_has_pages(document: dict[str, Any]) -> None:
    lists = set()
    for method, path, operation in operations_of(document):
        content = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        properties = document["components"]["schemas"].get(name, {}).get("properties", {})
        # Counts and look-ups hold all that was asked for.
        if method == "GET" and "items" in properties and name not in {"SummaryResponse", "ProblemCatalogue"}:
            lists.add(path)
            assert "next_cursor" in properties, path
            assert {"limit", "cursor"} <= {parameter.get("name") for parameter in operation["parameters"]}, path
    assert {"/v1/auth/sessions", "/v1/jobs", "/v1/webhooks/endpoints", "/v1/admin/queues"} < lists
