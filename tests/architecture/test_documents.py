"""The documents lead to what exists and speak of what is there."""

import re
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_that_is_named_exists(document: Path) -> None:
    """Paths in backticks below app, tests, docs and kernel are those of files and folders."""
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:app|tests|docs|kernel|requirements)/[\w./-]*\w)`", text)
    paths = [ROOT / ("app" if name.startswith("kernel/") else "") / name for name in named]
    # The guide to a new module names files that are to be made.
    paths = [path for path in paths if "notes" not in path.parts]
    assert [str(path.relative_to(ROOT)) for path in paths if not path.exists()] == []


def test_decisions_are_numbered_and_told_in_one_form() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    for path in DECISIONS:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"# {path.name[:4]} ")
        sections = [line for line in lines if line.startswith("## ")]
        if sections != ["## Decision", "## What follows"]:
            # The form since 0030.
            assert sections == ["## Context", "## Decision", "## Alternatives considered", "## Consequences"]
            assert re.fullmatch(r"Status: \w+ · Date: \d{4}-\d\d-\d\d", lines[2])


def test_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 70
