"""Rules of the OpenAPI document that make the clients which others generate from it good ones."""

import ast
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from pydantic_core.core_schema import ErrorType

from app.identity.api import IDENTITY_KINDS
from app.jobs.api import JOB_KINDS, WEBHOOK_EVENTS
from app.jobs.records.webhooks import ALL_EVENTS, EVENT_TYPES
from app.jobs.schemas import jobs as job_schemas
from app.jobs.schemas.webhooks import EventTypeFilter
from app.kernel.errors import AppError, problem_classes
from app.kernel.settings import ConnectionSettings
from app.kernel.validation.field_codes import FIELD_CODES, FieldErrorCode, field_code
from tests.architecture.source import ROOT, source_files

# Keywords of JSON Schema 2020-12, and those that OpenAPI 3.1 adds.
KEYWORDS = frozenset(
    {
        *("$ref", "additionalProperties", "allOf", "anyOf", "const", "default", "description", "discriminator", "enum"),
        *("examples", "format", "items", "maxItems", "maxLength", "maximum", "minItems", "minLength", "minimum"),
        *("oneOf", "pattern", "properties", "required", "title", "type"),
    }
)
# Faults of Python objects, which JSON, addresses and forms do not hold.
OF_PYTHON = {
    *("callable_type", "default_factory_not_called", "ellipsis_error", "frozen_field", "frozen_instance"),
    *("get_attribute_error", "invalid_key", "is_instance_of", "is_subclass_of", "iteration_error"),
    *("missing_sentinel_error", "multiple_argument_values", "needs_python_object", "no_such_attribute"),
    "set_item_not_hashable",
}
# Jobs of these kinds belong to no user.
OF_THE_SERVICE = {
    "identity.mail_change",
    "identity.mail_code",
    "identity.mail_notice",
    "identity.mail_registered",
    "identity.mail_reset",
    "jobs.clean",
    "report.weekly",
    "users.expire_events",
    "users.purge",
}
MAIN_CALLS = {
    "get_overview": "200",
    "register": "201",
    "log_in": "200",
    "refresh": "200",
    "issue_token": "200",
    "list_sessions": "200",
    "create_api_key": "201",
    "get_me": "200",
    "update_me": "200",
    "get_preferences": "200",
    "record_events": "201",
    "list_events": "200",
    "summarise_events": "200",
    "submit_job": "202",
    "get_job": "200",
    "list_jobs": "200",
    "issue_invoice": "202",
    "get_invoice": "200",
    "list_invoices": "200",
    "create_endpoint": "201",
}
Document = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Document:
    """The committed one, which `test_openapi` holds to be the present one."""
    made: Document = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    return made


def operations_of(document: Document) -> Iterator[tuple[str, Document]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"{method.upper()} {path}", operation


def schemas_of(document: Document) -> Iterator[tuple[str, Document]]:
    """Every schema of the document, with its place."""
    components = document["components"]
    roots = dict(components["schemas"])
    for kind in ("parameters", "headers"):
        roots |= {f"{kind}/{name}": item["schema"] for name, item in components[kind].items()}
    operations = [*operations_of(document), *((name, part["post"]) for name, part in document["webhooks"].items())]
    for call, operation in operations:
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for index, body in enumerate(bodies):
            for media_type, content in body.get("content", {}).items():
                roots[f"{call}/{index}/{media_type}"] = content["schema"]
        for parameter in operation.get("parameters", ()):
            if "schema" in parameter:
                roots[f"{call}/{parameter['name']}"] = parameter["schema"]
    for place, schema in roots.items():
        yield from _within(schema, place)


def _within(schema: Document, place: str) -> Iterator[tuple[str, Document]]:
    yield place, schema
    parts = dict(schema.get("properties", {}))
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            parts[keyword] = schema[keyword]
    for keyword in ("anyOf", "oneOf", "allOf"):
        parts |= {f"{keyword}/{index}": form for index, form in enumerate(schema.get(keyword, ()))}
    for name, part in parts.items():
        yield from _within(part, f"{place}.{name}")


def test_every_property_and_parameter_is_described(document: Document) -> None:
    schemas = document["components"]["schemas"]

    def is_described(schema: Document) -> bool:
        name = schema.get("$ref", "").rpartition("/")[2]
        return bool(schema.get("description") or (name and schemas[name].get("description")))

    wordless = [
        f"{place}/{name}"
        for place, schema in schemas_of(document)
        for name, part in schema.get("properties", {}).items()
        if not is_described(part)
    ]
    wordless += [name for name, schema in schemas.items() if "properties" in schema and not is_described(schema)]
    wordless += [
        f"{call} {parameter['name']}"
        for call, operation in operations_of(document)
        for parameter in operation.get("parameters", ())
        if "$ref" not in parameter and not parameter.get("description")
    ]
    assert wordless == []


def test_a_query_that_the_schemas_allow_fits_the_target(document: Document) -> None:
    """Of ASCII, with the default of APP_CONNECTIONS_MAX_TARGET_BYTES: a longer target is refused with 414."""
    longest = {
        call: sum(parameter.get("schema", {}).get("maxLength", 0) for parameter in operation.get("parameters", ()))
        for call, operation in operations_of(document)
    }
    assert max(longest.values()) > 1000
    assert [call for call, length in longest.items() if length > ConnectionSettings().max_target_bytes - 512] == []


def test_every_enum_is_a_component_and_appears_once(document: Document) -> None:
    enums = [(place, tuple(schema["enum"])) for place, schema in schemas_of(document) if "enum" in schema]
    inline = [place for place, values in enums if len(values) > 1 and place not in document["components"]["schemas"]]
    assert inline == []
    repeated = [values for values, times in Counter(frozenset(values) for _, values in enums).items() if times > 1]
    assert repeated == []
    assert {"JobState", "ProblemCode", "FieldErrorCode", "WebhookEventType", "Scope", "ExportFormat"} <= set(
        document["components"]["schemas"]
    )


def test_only_keywords_of_json_schema_are_used(document: Document) -> None:
    unknown = {(place, name) for place, schema in schemas_of(document) for name in schema.keys() - KEYWORDS}
    assert unknown == set()


def test_no_component_is_another_one_under_another_name(document: Document) -> None:
    told = Counter(
        json.dumps({"properties": schema["properties"], "required": schema.get("required")}, sort_keys=True)
        for schema in document["components"]["schemas"].values()
        if len(schema.get("properties", ())) > 2
    )
    assert [content for content, times in told.items() if times > 1] == []


def test_no_name_is_one_that_a_generator_makes_of_another(document: Document) -> None:
    """In Go a component `X` gets a constructor `NewX` and a type `NullableX`, and some generators pass over case."""
    names = document["components"]["schemas"].keys()
    assert {f"{prefix}{name}" for name in names for prefix in ("New", "Nullable")}.isdisjoint(names)
    for alike in (names, [operation["operationId"] for _, operation in operations_of(document)]):
        assert [
            name for name, times in Counter(name.lower().replace("_", "") for name in alike).items() if times > 1
        ] == []


def test_fields_have_no_defaults_that_generators_would_demand_or_send(document: Document) -> None:
    fields = document["components"]["schemas"]
    places = [place for place, schema in schemas_of(document) if "default" in schema and place.split(".")[0] in fields]
    assert places == []


def test_parameters_cannot_be_null(document: Document) -> None:
    nullable = [
        f"{call} {parameter['name']}"
        for call, operation in operations_of(document)
        for parameter in operation.get("parameters", ())
        if '"null"' in json.dumps(parameter.get("schema"))
    ]
    assert nullable == []


def test_headers_are_those_of_the_components(document: Document) -> None:
    inline = [
        f"{call} {parameter['name']}"
        for call, operation in operations_of(document)
        for parameter in operation.get("parameters", ())
        if parameter.get("in") == "header"
    ]
    assert inline == []


def test_every_call_says_whether_it_needs_a_token(document: Document) -> None:
    silent = [call for call, operation in operations_of(document) if "security" not in operation]
    assert silent == []
    public = {call for call, operation in operations_of(document) if operation["security"] == []}
    assert {"GET /livez", "POST /v1/auth/register", "POST /v1/auth/login", "GET /problems"} <= public
    assert "GET /v1/overview" not in public


def test_an_answer_without_content_promises_no_tag(document: Document) -> None:
    empty = {
        call: set(operation["responses"]["204"]["headers"])
        for call, operation in operations_of(document)
        if "204" in operation["responses"]
    }
    assert len(empty) >= 10
    assert [
        call for call, headers in empty.items() if headers != {"X-Request-ID", "RateLimit", "RateLimit-Policy"}
    ] == []


def test_streams_are_text(document: Document) -> None:
    contents = [
        response["content"]["text/event-stream"]
        for _, operation in operations_of(document)
        for response in operation["responses"].values()
        if "text/event-stream" in response.get("content", {})
    ]
    assert contents
    assert all(content == {"schema": {"type": "string"}} for content in contents)


def test_examples_are_valid(document: Document) -> None:
    examples = 0
    for name, schema in document["components"]["schemas"].items():
        validator = Draft202012Validator(
            schema | {"components": document["components"]}, format_checker=Draft202012Validator.FORMAT_CHECKER
        )
        for example in schema.get("examples", ()):
            examples += 1
            assert [error.message for error in validator.iter_errors(example)] == [], name
    assert examples > 50


def test_answers_of_the_main_calls_have_examples(document: Document) -> None:
    schemas = document["components"]["schemas"]
    missing = []
    for _, operation in operations_of(document):
        status = MAIN_CALLS.get(operation["operationId"])
        if status is None:
            continue
        schema = operation["responses"][status]["content"]["application/json"]["schema"]
        names = [form["$ref"].rpartition("/")[2] for form in schema.get("anyOf", [schema])]
        names += [form["$ref"].rpartition("/")[2] for name in names for form in schemas[name].get("oneOf", ())]
        if not any("examples" in schemas[name] for name in names):
            missing.append(operation["operationId"])
    assert missing == []
    assert {operation["operationId"] for _, operation in operations_of(document)} >= MAIN_CALLS.keys()


def _declared_codes() -> set[str]:
    """The codes of all classes of the program that descend from AppError and are not for operators alone."""
    bodies = {
        node.name: node
        for file in source_files()
        for node in ast.walk(file.tree)
        if isinstance(node, ast.ClassDef) and file.name.startswith("app/")
    }

    def assigned(node: ast.ClassDef, name: str) -> Any:
        for statement in node.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                value = getattr(statement, "value", None)
                return value.value if isinstance(value, ast.Constant) else None
        return None

    def is_error(name: str) -> bool:
        if name == AppError.__name__:
            return True
        node = bodies.get(name)
        return node is not None and any(isinstance(base, ast.Name) and is_error(base.id) for base in node.bases)

    return {
        code
        for name, node in bodies.items()
        if is_error(name) and assigned(node, "in_api") is not False and (code := assigned(node, "code")) is not None
    }


def test_the_enum_of_codes_is_that_of_the_code(document: Document) -> None:
    codes = document["components"]["schemas"]["ProblemCode"]["enum"]
    assert codes == sorted(_declared_codes())
    assert len(codes) > 60


def test_every_problem_says_what_it_means() -> None:
    silent = [error_class.__name__ for error_class in problem_classes() if not (error_class.__doc__ or "").strip()]
    assert silent == []


def test_codes_of_fields_are_ours(document: Document) -> None:
    assert tuple(document["components"]["schemas"]["FieldErrorCode"]["enum"]) == get_args(FieldErrorCode.__value__)
    assert tuple(FIELD_CODES) == get_args(FieldErrorCode.__value__)
    assert list(FIELD_CODES) == sorted(FIELD_CODES)
    unmapped = {error for error in get_args(ErrorType) if field_code(error) == "invalid_value"}
    assert unmapped == OF_PYTHON | {"assertion_error", "json_invalid", "multiple_of", "value_error"}
    assert field_code("an_error_type_of_a_later_pydantic") == "invalid_value"
    raised = {
        argument.value
        for file in source_files()
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "PydanticCustomError"
        and isinstance(argument := node.args[0], ast.Constant)
    }
    assert raised <= FIELD_CODES.keys()


def test_webhooks_have_a_schema_for_each_type(document: Document) -> None:
    assert document["webhooks"].keys() == WEBHOOK_EVENTS.keys() == EVENT_TYPES.keys() | {"webhook.test"}
    assert set(get_args(EventTypeFilter.__value__)) == EVENT_TYPES.keys() | {ALL_EVENTS}
    for name, operations in document["webhooks"].items():
        schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
        event = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        assert event["properties"]["type"]["const"] == name
        assert set(event["required"]) == {"type", "timestamp", "data"}


def test_jobs_are_discriminated_by_their_kind(document: Document) -> None:
    schemas = document["components"]["schemas"]
    public = {name: kind for name, kind in JOB_KINDS.items() if kind.public}
    submitted = schemas["SubmitJob"]["discriminator"]["mapping"]
    assert submitted.keys() == public.keys()
    for name, kind in public.items():
        model: type[BaseModel] = getattr(job_schemas, submitted[name].rpartition("/")[2])
        assert model.model_fields["args"].annotation is kind.args
    of_users = (JOB_KINDS.keys() | IDENTITY_KINDS.keys()) - OF_THE_SERVICE
    answered = schemas["JobResponse"]["discriminator"]["mapping"]
    assert answered.keys() == of_users
    for name in public:
        view = schemas[answered[name].rpartition("/")[2]]
        assert view["properties"]["kind"]["const"] == name
        assert "$ref" in view["properties"]["result"]["anyOf"][0]
