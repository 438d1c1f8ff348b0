"""Templates of the pages, and how they say times, states and numbers."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from app.jobs.api import STATE_FILTERS, format_minor
from app.kernel.auth import SCOPES, SCOPES_OF_ROLE

_NOTHING = "\N{EN DASH}"
_KILO = 1000
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


@cache
def _load() -> Mapping[str, Template]:
    """All templates by name, read and compiled: a tenth of a second, for which no start of a process waits."""
    environment = Environment(
        loader=PackageLoader("app.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Otherwise each rendering asks the file system whether a template has changed.
        auto_reload=False,
    )
    environment.filters |= {"time": _time, "age": _age, "json": _json, "money": _money, "size": _size}
    environment.globals |= {
        "job_states": tuple(STATE_FILTERS),
        "scopes": {scope: SCOPES[scope] for scope in SCOPES if scope in SCOPES_OF_ROLE["user"]},
        # For the blocks too, which are rendered without the rest of their page.
        "parts": environment.get_template("parts.html").module,
    }
    return {name: environment.get_template(name) for name in environment.list_templates(extensions=["html"])}


async def render(template: str, context: Mapping[str, Any], *, is_fragment: bool = False) -> str:
    """The whole page; as a fragment, only what an open page replaces to bring itself up to date."""
    found = (await asyncio.to_thread(_load))[template]
    if is_fragment:
        return "".join(found.blocks["content"](found.new_context(dict(context))))
    return found.render(context)


class _Html(str):
    """Made here of nothing that needs escaping."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def _time(value: str | None) -> str:
    """A moment in UTC, as `2026-11-30 13:41:08`, in an element that scripts and screen readers understand."""
    if value is None:
        return _NOTHING
    moment = datetime.fromisoformat(value).astimezone(UTC)
    return _Html(f'<time datetime="{moment.isoformat()}">{moment:%Y-%m-%d %H:%M:%S}</time>')


def _age(seconds: float | None) -> str:
    """As `4 min`; an en dash for None."""
    if seconds is None:
        return _NOTHING
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _money(minor: int, currency: str) -> str:
    """As `1,234.50 EUR`."""
    return f"{format_minor(minor, currency)} {currency}"


def _size(size: int) -> str:
    """A number of bytes, as `3.6 kB`."""
    if size < _KILO:
        return f"{size} bytes"
    amount = size / _KILO
    for unit in ("kB", "MB"):
        if amount < _KILO:
            return f"{amount:.1f} {unit}"
        amount /= _KILO
    return f"{amount:.1f} GB"
