"""Nothing that a request may hold is without bound: what is not refused by its form would be paid for later."""

from collections.abc import Iterator
from typing import Any

# Free objects are bound by the size of the body, by 64 levels, and by limits in bytes of their own.
_FIXED = {"enum", "const", "pattern", "format", "maxLength"}


def inputs_of(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each schema of a query parameter, a path parameter or a body, with its place."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            place = f"{method.upper()} {path}"
            for parameter in operation.get("parameters", ()):
                # The size of headers is bound by the protocol, and that of an address too.
                if parameter.get("in") == "query":
                    yield from parts_of(f"{place} ?{parameter['name']}", parameter["schema"], document)
            for content in operation.get("requestBody", {}).get("content", {}).values():
                yield from parts_of(place, content["schema"], document)


def parts_of(place: str, schema: Any, document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(schema, dict):
        return
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    yield place, schema
    for name, part in schema.get("properties", {}).items():
        yield from parts_of(f"{place} {name}", part, document)
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from parts_of(place, part, document)
    yield from parts_of(f"{place}[]", schema.get("items"), document)


def test_strings_arrays_and_numbers_are_bounded(document: dict[str, Any]) -> None:
    unbounded = []
    seen = set()
    for place, schema in inputs_of(document):
        kind = schema.get("type")
        seen.add(kind)
        if (
            (kind == "string" and not _FIXED & schema.keys())
            or (kind == "array" and "maxItems" not in schema)
            or (kind in {"integer", "number"} and not {"minimum", "maximum"} <= schema.keys())
        ):
            unbounded.append(place)
    assert unbounded == []
    assert {"string", "array", "integer"} <= seen


def test_objects_take_no_unknown_fields(document: dict[str, Any]) -> None:
    """But for forms, by RFC 6749, and for objects that are the caller's own, or its browser's."""
    open_ended = {
        place
        for place, schema in inputs_of(document)
        if schema.get("type") == "object" and schema.get("additionalProperties") is not False
    }
    assert open_ended == {
        "POST /v1/auth/token",
        "POST /v1/auth/introspect",
        "POST /v1/auth/revoke",
        "POST /v1/auth/passkeys credential",
        "POST /v1/auth/passkeys/login credential",
        "POST /v1/auth/mfa/verify credential",
        "POST /v1/events properties",
        "POST /v1/events events[] properties",
        "PUT /v1/users/me/preferences extra",
        "PATCH /v1/users/me/preferences extra",
    }
