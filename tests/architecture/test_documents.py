"""The documents lead to what exists and speak of what is there."""

import ast
import re
from pathlib import Path

import pytest

from tests.architecture.source import ROOT, source_files

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
METRIC = re.compile(r"\b(?:app|http_server|event_loop)_[a-z_]+\b")
LOG_EVENT = re.compile(r"`((?:jobs|database|redis|server|mail|identity|cache)\.[a-z_]+)`")
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


@pytest.mark.parametrize("runbook", RUNBOOKS, ids=lambda path: path.stem)
def test_metrics_and_log_events_of_runbooks_exist(runbook: Path) -> None:
    """An operator looks for them at night, and a renamed one would be found nowhere."""
    text = runbook.read_text(encoding="utf-8")
    written = {
        node.value
        for file in source_files()
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    metrics = {metric.removesuffix("_total") for metric in METRIC.findall(text)}
    assert metrics - written == set()
    assert set(LOG_EVENT.findall(text)) - written == set()


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
