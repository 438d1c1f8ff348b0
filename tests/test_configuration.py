"""What is said of each setting: in `config`, as text and JSON, and in `.env.example`."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from app.cli import configuration
from app.cli.metrics import metrics_page
from app.settings import Settings, load_settings
from tests.fixtures.application import ROOT

SECRET = "V7m2x9Qp4LrT6wZs8KdN1hJb5YcG3fUe"
FIELDS = list(configuration.setting_fields())
WITHOUT_UNIT = {"APP_PORT", "APP_JOBS_METRICS_PORT"}


def values_of(environ: Mapping[str, str]) -> dict[str, configuration.SettingValue]:
    environ = {"APP_SECRET_KEY": SECRET, **environ}
    return {item.field.variable: item for item in configuration.setting_values(load_settings(environ), environ)}


def document_of(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    rows = json.loads(configuration.as_json(list(values_of(environ).values())))
    return {row["name"]: row for row in rows}


def is_number(field: configuration.SettingField) -> bool:
    annotation: Any = Settings
    for name in field.path:
        annotation = annotation.model_fields[name].annotation
    return {annotation, *getattr(annotation, "__args__", ())} & {int, float} != set()


def test_every_setting_is_there_once() -> None:
    variables = [field.variable for field in FIELDS]
    assert len(variables) == len(set(variables))
    sections = {field.path[0] for field in FIELDS}
    assert sections == Settings.model_fields.keys()


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.variable)
def test_every_setting_has_a_meaning(field: configuration.SettingField) -> None:
    assert len(field.description) > 10
    assert field.description.endswith(".")
    assert field.section.endswith(".")


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.variable)
def test_every_number_has_a_unit(field: configuration.SettingField) -> None:
    """A time-out in seconds looks like one in milliseconds; a port is a number that measures nothing."""
    assert (field.unit is not None) == (is_number(field) and field.variable not in WITHOUT_UNIT)


def test_the_example_on_file_is_what_the_settings_make() -> None:
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == configuration.env_example(), "run `make env-example`"


def test_the_table_of_metrics_is_what_the_code_counts() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == metrics_page(), "run `make metrics-table`"


def test_the_example_uncommented_is_the_default_of_everything(tmp_path: Path) -> None:
    assignments = re.findall(r"^# (APP_\w+=.*)$", configuration.env_example(), re.MULTILINE)
    path = tmp_path / ".env"
    path.write_text("\n".join(assignments), encoding="utf-8")
    given = {name: value or "" for name, value in dotenv_values(path).items()}
    assert list(given) == [field.variable for field in FIELDS]
    secret = {"APP_SECRET_KEY": SECRET}
    assert load_settings(given | secret) == load_settings(secret)


def test_a_large_default_is_told_in_a_larger_unit_too() -> None:
    text = configuration.env_example()
    assert "\n# Unit: seconds. Default: 1209600 (14 days).\n# APP_IDENTITY_REFRESH_IDLE_TTL=1209600\n" in text
    assert "\n# Unit: bytes. Default: 33554432 (32 MiB).\n# APP_CACHE_LOCAL_BYTES=33554432\n" in text


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("APP_SECRET_KEY", SECRET[::-1], "********"),
        ("APP_JOBS_ARTIFACT_S3_SECRET", "zqx", "********"),
        ("APP_JOBS_ARTIFACT_S3_ENDPOINT", "https://user:zqx@s3.example/x", "https://********@s3.example/x"),
        ("APP_JOBS_ARTIFACT_S3_ENDPOINT", "https://s3.example:9000", "https://s3.example:9000"),
        ("APP_DATABASE_URL", "postgresql://app:zqx@a:1,b:2/x", "postgresql://********@a:1,b:2/x"),
        ("APP_DATABASE_URL", "postgresql:///x?password=zqx", "postgresql:///x?********"),
        ("APP_DATABASE_URL", "postgresql://app:1/zqx@db/x", "postgresql://********"),
        ("APP_DATABASE_URL", "postgresql://db/x?password=zqx@zqx", "postgresql://db/x?********"),
        ("APP_REDIS_URL", "rediss://:zqx@cache:6380/1#f", "rediss://********@cache:6380/1#********"),
        ("APP_DATABASE_REPLICA_URLS", "postgresql://a:zqx@r/x,postgresql://b@s/x", None),
    ],
)
def test_no_secret_is_shown(variable: str, value: str, shown: str | None) -> None:
    environ = {"DATABASE_URL": "postgresql://db/x", variable: value}
    rows = list(values_of(environ).values())
    for text in (configuration.as_json(rows), configuration.as_text(rows)):
        assert "zqx" not in text
        assert SECRET not in text
        assert SECRET[::-1] not in text
    expected = shown or ["postgresql://********@r/x", "postgresql://********@s/x"]
    assert document_of(environ)[variable]["value"] == expected


def test_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9001")
    monkeypatch.setenv("APP_WORKERS", "3")
    key = tmp_path / "key"
    key.write_text(SECRET)
    # The first two are those of the process; the others can only have come from the file.
    environ = {
        "PORT": "9001",
        "APP_WORKERS": "3",
        "APP_HOST": "::1",
        "HOST": "::2",
        "APP_SECRET_KEY": "",
        "DATABASE_URL_FILE": str(key),
        "APP_LOG_LEVEL": "",
    }
    key.write_text("postgresql://db/x")
    rows = values_of({**environ, "APP_SECRET_KEY": SECRET})
    origins = {name: row.origin for name, row in rows.items() if row.origin is not None}
    assert origins == {
        "APP_SECRET_KEY": ".env",
        "APP_PORT": "PORT in the environment",
        "APP_WORKERS": "the environment",
        "APP_HOST": ".env",
        "APP_DATABASE_URL": f"the file {key}, named by DATABASE_URL_FILE in .env",
    }


def test_what_is_given_as_the_default_is_not_changed() -> None:
    rows = values_of({"APP_PORT": "8000", "APP_WORKERS": "2"})
    assert [name for name, row in rows.items() if row.is_changed] == ["APP_SECRET_KEY", "APP_WORKERS"]
    assert rows["APP_PORT"].origin == ".env"


def test_the_document_for_programs_has_values_of_their_types() -> None:
    document = document_of({"APP_HTTP_CORS_ORIGINS": "https://a.example,https://b.example", "APP_DEBUG": "true"})
    assert document["APP_HTTP_CORS_ORIGINS"]["value"] == ["https://a.example", "https://b.example"]
    assert document["APP_DEBUG"] == {
        "name": "APP_DEBUG",
        "value": True,
        "default": False,
        "unit": None,
        "origin": ".env",
        "description": "Answer unexpected errors with a traceback; never in production.",
    }
    assert document["APP_DATABASE_ACQUIRE_TIMEOUT"]["value"] == 0.25
    assert document["APP_DATABASE_URL"]["value"] is None
