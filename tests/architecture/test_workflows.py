"""What runs elsewhere calls the targets of the Makefile, so that it can be run here; linters check the rest of it."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# None of the targets is a file.
TARGETS = set(re.findall(r"[a-z-]+", re.findall(r"^\.PHONY:((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)[0]))
# `make target NAME="${VALUE}"`, and the one line that hands a value on to the steps behind it.
COMMAND = re.compile(r"make ([a-z-]+)(?: [A-Z_]+=(?:\w+|\"[^\"]*\"))*(?: >> \"\$GITHUB_OUTPUT\")?")


def commands_of(workflow: Path) -> list[str]:
    return re.findall(r"^\s*(?:- )?run: (.*)$", workflow.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_target_has_a_rule() -> None:
    rules = {name for line in re.findall(r"^([a-z][a-z -]*):", MAKEFILE, re.MULTILINE) for name in line.split()}
    assert rules == TARGETS


def test_there_is_a_workflow_for_each_occasion() -> None:
    assert [path.stem for path in WORKFLOWS] == ["check", "dependencies", "nightly", "release"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_only_calls_make(workflow: Path) -> None:
    commands = commands_of(workflow)
    assert commands
    for command in commands:
        found = COMMAND.fullmatch(command)
        assert found is not None, command
        assert found[1] in TARGETS, command


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_do_nothing_that_a_job_does_not_ask_for(workflow: Path) -> None:
    text = workflow.read_text(encoding="utf-8")
    assert "\npermissions: {}\n" in text
    used = re.findall(r"uses: (\S+)(.*)", text)
    pinned = [action for action, version in used if re.fullmatch(r"\S+@[0-9a-f]{40}", action) and " # v" in version]
    assert [action for action, _ in used if action not in pinned] == (
        ["$/.github/workflows/check.yml"] if workflow.stem == "release" else []
    )


def test_one_action_has_one_version() -> None:
    used = {found for path in WORKFLOWS for found in re.findall(r"uses: (\S+)@(\S+)", path.read_text(encoding="utf-8"))}
    assert len(used) == len({name for name, _ in used})


def test_the_matrix_is_what_the_documents_promise() -> None:
    text = (ROOT / ".github" / "workflows" / "check.yml").read_text(encoding="utf-8")
    matrix = {
        name: re.findall(r"[\d.]+", values)
        for name, values in re.findall(r"^ +(python|postgres): \[(.*)\]", text, re.MULTILINE)
    }
    assert matrix == {"python": ["3.11", "3.12", "3.13"], "postgres": ["15", "16", "17", "18"]}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-python = ">={matrix["python"][0]}"' in project
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert f"PostgreSQL ({matrix['postgres'][0]} to {matrix['postgres'][-1]})" in operations


def test_hooks_and_container_call_the_same_targets() -> None:
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    for command in [*hooks, container["postCreateCommand"]]:
        found = COMMAND.fullmatch(command)
        assert found is not None, command
        assert found[1] in TARGETS, command


@pytest.mark.parametrize(
    ("tag", "changelog", "code", "printed"),
    [
        ("v1.2.0", "# Changelog\n\n## 1.2.0 - 2026-11-30\n\n- New.\n\n## 1.1.0\n\n- Old.\n", 0, "\n- New.\n"),
        ("v1.2.0", "## Unreleased\n\n- New.\n", 1, 'CHANGELOG.md has no section "## 1.2.0".\n'),
        ("v1.2.0", "## 1.2.01\n\n- New.\n", 1, 'CHANGELOG.md has no section "## 1.2.0".\n'),
        ("v1.3.0", "## 1.3.0\n\n- New.\n", 1, "The tag is v1.3.0, but app/__init__.py has version 1.2.0.\n"),
    ],
)
def test_a_release_is_of_the_version_that_its_tag_names(
    tmp_path: Path, tag: str, changelog: str, code: int, printed: str
) -> None:
    script = ROOT / ".ci" / "release-notes"
    (tmp_path / ".ci").mkdir()
    (tmp_path / "app").mkdir()
    copy = tmp_path / ".ci" / "release-notes"
    copy.write_bytes(script.read_bytes())
    copy.chmod(0o755)
    (tmp_path / "app" / "__init__.py").write_text('"""Onehop."""\n\n__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    done = subprocess.run([copy, tag], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (code, printed)
