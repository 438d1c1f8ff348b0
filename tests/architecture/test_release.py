"""The version stands in one place, and everything that names it reads it there."""

import json
import tomllib

from app import __version__
from app.main import create_app
from app.settings import load_settings
from tests.architecture.source import ROOT

SECRET = {"APP_SECRET_KEY": "V7m2x9Qp4LrT6wZs8KdN1hJb5YcG3fUe"}


def test_the_version_stands_in_one_file() -> None:
    """The document of the API is generated, and a lock or the changelog may name the same number for another reason."""
    written = [ROOT / "Dockerfile", ROOT / "Makefile", ROOT / "compose.yaml", ROOT / "pyproject.toml"]
    written += (ROOT / "app").rglob("*.py")
    naming = [str(path.relative_to(ROOT)) for path in written if __version__ in path.read_text(encoding="utf-8")]
    assert naming == ["app/__init__.py"]


def test_the_package_and_the_api_have_that_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "app.__version__"}
    assert create_app(load_settings(SECRET)).version == __version__
    recorded = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert recorded["info"]["version"] == __version__
