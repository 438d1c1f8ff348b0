"""How large and how intricate a JSON body may be, judged before it is parsed or validated.

What a body costs goes by its objects, members and arrays, not by its bytes: a megabyte of text takes two milliseconds
to parse, a megabyte of `{}` a third of a second, in which the process does nothing else.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel

from app.kernel.errors import MAX_ERRORS, FieldError, PayloadTooLarge, Unprocessable, escape_pointer
from app.kernel.http.json_input import MAX_JSON_DEPTH, InvalidJson

# Elements of arrays are cheap beside objects and members.
_ELEMENTS_PER_VALUE = 2
_TOO_DEEP = b"[" * (MAX_JSON_DEPTH + 1)


class BodyLimits(NamedTuple):
    """Bounds of a request body: its bytes, and its objects, arrays and members together."""

    max_bytes: int = 128 * 1024
    max_values: int = 2_000


def check_values(body: bytes, limits: BodyLimits) -> None:
    """Lets a JSON text pass that does not take too long to parse. Signs inside strings count too, because finding the
    strings would cost as much as parsing.

    Raises:
        PayloadTooLarge
        InvalidJson: it is nested too deeply, which says more than that it is too large.
    """
    most = limits.max_values
    if len(body) > most and (
        body.count(b"{") + body.count(b"[") + body.count(b":") > most or body.count(b",") > most * _ELEMENTS_PER_VALUE
    ):
        if _TOO_DEEP in body:
            raise InvalidJson("The JSON is nested too deeply.")
        raise PayloadTooLarge(f"The JSON holds more than about {most} values.")


class KnownFields:
    """The names that the objects of a request may have, read from its model once.

    Each unknown name costs an error of pydantic, all of which are made although 20 are told.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._names = frozenset(field.alias or name for name, field in model.model_fields.items())
        self._inner = {
            field.alias or name: KnownFields(inner)
            for name, field in model.model_fields.items()
            if (inner := model_in(field.annotation)) is not None
        }

    def check(self, value: Any) -> None:
        """Lets a body pass that has so few unknown names that the model may tell them.

        Raises:
            Unprocessable
        """
        errors = list(islice(self._unknown(value, "#"), MAX_ERRORS + 1))
        if len(errors) > MAX_ERRORS:
            raise Unprocessable(errors=errors[:MAX_ERRORS])

    def _unknown(self, value: Any, pointer: str) -> Iterator[FieldError]:
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from self._unknown(item, f"{pointer}/{index}")
        elif isinstance(value, dict):
            for name in value:
                if name not in self._names:
                    place = f"{pointer}/{escape_pointer(name)}"
                    yield FieldError(place, "Extra inputs are not permitted", "unknown_field")
            for name, inner in self._inner.items():
                if name in value:
                    yield from inner._unknown(value[name], f"{pointer}/{name}")  # noqa: SLF001 - of the same class


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model that an annotation names, also one of many or an optional one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := model_in(part)) is not None), None)
