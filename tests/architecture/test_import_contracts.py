"""The import contracts of pyproject.toml hold, and each of them notices a wrong import."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.waiting import scaled

ROOT = Path(__file__).resolve().parents[2]


def _lint(directory: Path) -> "subprocess.CompletedProcess[str]":
    program = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=scaled(50),
    )


def _broken(output: str) -> set[str]:
    lines = (line.strip() for line in output.splitlines())
    return {line.removesuffix(" BROKEN") for line in lines if line.endswith(" BROKEN")}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code, to plant something wrong in."""
    shutil.copytree(ROOT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold() -> None:
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken." in done.stdout


MODULES = "Modules import downward only"
FILES = "A module has these files and no others, and they import downward only"
KERNEL = "The kernel imports downward only"
BUSINESS = "Business files know neither HTTP nor drivers"


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("app/users/service.py", "import app.identity.api", MODULES),
        ("app/kernel/cache.py", "import app.users.api", MODULES),
        ("app/identity/records.py", "import app.jobs.api", MODULES),
        ("app/jobs/settings.py", "import app.settings", MODULES),
        ("app/misplaced.py", "", MODULES),
        ("app/users/records.py", "import app.users.queries", FILES),
        ("app/users/queries/events.py", "import app.users.service", FILES),
        ("app/users/helpers.py", "", FILES),
        ("app/core/misplaced.py", "", "The front composes, and is composed downward only"),
        ("app/kernel/ids.py", "import app.kernel.database", KERNEL),
        ("app/kernel/misplaced.py", "", KERNEL),
        ("app/core/service.py", "import app.jobs.queries", "Jobs is used through its api"),
        ("app/core/service.py", "import app.identity.records", "Identity is used through its api"),
        ("app/identity/records.py", "import app.users.records", "Users is used through its api"),
        ("app/composition.py", "import app.users.router", "Only main mounts routers"),
        ("app/users/service.py", "import fastapi", BUSINESS),
        ("app/users/queries/events.py", "import asyncpg", BUSINESS),
        ("app/users/service.py", "from redis.asyncio import Redis", BUSINESS),
        ("app/users/router.py", "import asyncpg", "Only the kernel talks to PostgreSQL and Redis"),
        ("app/kernel/cache.py", "import arq", "Only the queue and the worker know arq"),
        ("app/composition.py", "import starlette", "Only the edge knows the web framework"),
    ],
)
def test_a_wrong_import_breaks_the_contract(tree: Path, file: str, line: str, contract: str) -> None:
    with (tree / file).open("a", encoding="utf-8") as planted:
        planted.write(f"\n{line}\n")
    done = _lint(tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert contract in _broken(done.stdout), done.stdout


def test_an_import_inside_a_function_counts_too(tree: Path) -> None:
    with (tree / "app/users/service.py").open("a", encoding="utf-8") as planted:
        planted.write("\n\ndef late() -> None:\n    import app.identity.api\n")
    assert _broken(_lint(tree).stdout) >= {MODULES}
