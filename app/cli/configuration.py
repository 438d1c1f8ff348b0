"""What `config` prints: every setting with its meaning, unit, default and origin, and the text of `.env.example`."""

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.kernel.settings import Section, Unit
from app.settings import DOTENV_NAME, Settings, long_name, variable_name

_MASK = "********"
_WIDTH = 100
_LARGER_UNITS = {
    "seconds": ((86_400, "days"), (3600, "hours"), (60, "minutes")),
    "bytes": ((1024**2, "MiB"), (1024, "KiB")),
}
# What follows the scheme of a URL: user and password, host and path, query or fragment.
_LOCATION = re.compile(r"([^/?#@]*@)?([^?#@]*)([?#].*)?", re.DOTALL)
_INTRODUCTION = """\
The settings of Onehop with their defaults, written by `make env-example`. Copy this file to `.env` in the working
directory and uncomment what you change; a variable of the environment wins over the file. An empty value counts as
unset. Each may be read from a file instead, as by `APP_SECRET_KEY_FILE=/run/secrets/key`."""


@dataclass(frozen=True, slots=True)
class SettingField:
    """One setting as it is declared. `path` leads to its value: `("database", "pool_size")` or `("port",)`."""

    path: tuple[str, ...]
    section: str
    description: str
    unit: str | None
    default: Any

    @property
    def variable(self) -> str:
        return variable_name(*self.path)


@dataclass(frozen=True, slots=True)
class SettingValue:
    """A setting in force. `origin` says what it was read from; None if its default is in force."""

    field: SettingField
    value: Any
    origin: str | None

    @property
    def is_changed(self) -> bool:
        return self.origin is not None and self.value != self.field.default


def setting_fields() -> Iterator[SettingField]:
    """Every setting in the order of declaration, those of the process before the sections."""
    sections: list[tuple[str, type[Section]]] = []
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            sections.append((name, field.annotation))
        else:
            yield _setting_field((name,), "The process.", field)
    for name, section in sections:
        heading = " ".join((section.__doc__ or "").split("\n\n")[0].split())
        for key, field in section.model_fields.items():
            yield _setting_field((name, key), heading, field)


def _setting_field(path: tuple[str, ...], section: str, field: FieldInfo) -> SettingField:
    unit = next((item.name for item in field.metadata if isinstance(item, Unit)), None)
    default = None if field.is_required() else field.default
    return SettingField(path, section, field.description or "", unit, default)


def setting_values(settings: Settings, environ: Mapping[str, str]) -> Iterator[SettingValue]:
    """Every setting of `settings`, which were loaded from `environ`."""
    for field in setting_fields():
        value: Any = settings
        for name in field.path:
            value = getattr(value, name)
        yield SettingValue(field, value, _origin(field.variable, environ))


def _origin(variable: str, environ: Mapping[str, str]) -> str | None:
    # As in `load_settings`: an empty variable counts as an absent one, and a long name wins over a short one.
    names = [name for name, value in environ.items() if value and long_name(name) == variable]
    if not names:
        return None
    name = max(names, key=lambda name: name.startswith(variable))
    source = "the environment" if name in os.environ else DOTENV_NAME
    if name.endswith("_FILE"):
        return f"the file {environ[name]}, named by {name} in {source}"
    return source if name == variable else f"{name} in {source}"


def as_text(values: list[SettingValue]) -> str:
    """For people: by section, each with what it means."""
    lines: list[str] = []
    section = None
    for item in values:
        field = item.field
        if field.section != section:
            section = field.section
            lines += ["", section, ""] if lines else [section, ""]
        lines.append(f"  {field.variable}={_assigned(item.value)}")
        facts = f"{_facts(field)} From: {item.origin or 'default'}."
        lines += textwrap.wrap(field.description, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines += textwrap.wrap(facts, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def as_json(values: list[SettingValue]) -> str:
    """For programs: a list of objects; secrets are masked here too."""
    return json.dumps(
        [
            {
                "name": item.field.variable,
                "value": _shown(item.value),
                "default": _shown(item.field.default),
                "unit": item.field.unit,
                "origin": item.origin or "default",
                "description": item.field.description,
            }
            for item in values
        ],
        indent=2,
        ensure_ascii=False,
    )


def env_example() -> str:
    """The text of `.env.example`: every setting as a comment that, uncommented, assigns its default."""
    lines = _comment(_INTRODUCTION)
    section = None
    for field in setting_fields():
        if field.section != section:
            section = field.section
            lines += ["", *_comment(f"# {section}")]
        lines += ["", *_comment(field.description), *_comment(_facts(field))]
        lines.append(f"# {field.variable}={_assigned(field.default)}")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _facts(field: SettingField) -> str:
    default = _assigned(field.default) or "unset"
    if field.default is not None:
        default = _with_larger_unit(default, field.default, field.unit)
    return f"Unit: {field.unit}. Default: {default}." if field.unit else f"Default: {default}."


def _with_larger_unit(text: str, value: Any, unit: str | None) -> str:
    """`1209600` → `1209600 (14 days)`, where the larger unit leaves no rest."""
    for factor, larger in _LARGER_UNITS.get(unit or "", ()):
        if value and value % factor == 0:
            return f"{text} ({value / factor:g} {larger})"
    return text


def _assigned(value: Any) -> str:
    """The value as a `.env` file would assign it, with secrets masked."""
    shown = _shown(value)
    text = ",".join(shown) if isinstance(shown, list) else "" if shown is None else str(shown)
    if isinstance(shown, bool):
        text = text.lower()
    return text if re.fullmatch(r"[^\s\"'<>$`\\#;&|()]*", text) else json.dumps(text, ensure_ascii=False)


def _shown(value: Any) -> Any:
    """A JSON value that tells no secret: of a URL neither user and password nor what follows its path."""
    match value:
        case tuple():
            return [_shown(item) for item in value]
        case SecretStr() if "://" not in value.get_secret_value():
            return _MASK
        case SecretStr():
            return _without_credentials(value.get_secret_value())
        case str() if "://" in value:
            return _without_credentials(value)
        case None | bool() | int() | float():
            return value
    return str(value)


def _without_credentials(url: str) -> str:
    scheme, _, rest = url.partition("://")
    parts = _LOCATION.fullmatch(rest)
    if parts is None:
        # A password whose characters are not escaped: where it ends cannot be told.
        return f"{scheme}://{_MASK}"
    user, location, query = parts.groups()
    return f"{scheme}://{_MASK + '@' if user else ''}{location}{query[0] + _MASK if query else ''}"
