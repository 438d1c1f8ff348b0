"""What the import contracts do not see of the files: their names, their words, their size."""

import ast

from tests.architecture.source import MODULES, source_files

VAGUE = {"base", "common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}
LARGEST = 600


def test_no_name_is_vague() -> None:
    names = [(file.name, part) for file in source_files() for part in file.module_name.split(".")]
    assert [name for name, part in names if part in VAGUE] == []


def test_modules_say_what_they_are_and_hold_nothing_else() -> None:
    wordless = []
    for file in source_files():
        if file.module_name in {f"app.{module}" for module in MODULES}:
            body = file.tree.body
            if len(body) != 1 or not ast.get_docstring(file.tree):
                wordless.append(file.name)
    assert wordless == []


def test_files_stay_readable() -> None:
    long_ones = [
        (file.name, lines)
        for file in source_files()
        if (lines := len(file.path.read_text(encoding="utf-8").splitlines())) > LARGEST
    ]
    assert long_ones == []


def test_nothing_is_left_to_do() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    found = [
        f"{file.name}:{number}"
        for file in source_files()
        for number, line in enumerate(file.path.read_text(encoding="utf-8").splitlines(), 1)
        if any(mark in line for mark in marks)
    ]
    assert found == []


def test_no_two_classes_share_a_name() -> None:
    """A reader who looks for one would find the other; a protocol has the name of its role."""
    homes: dict[str, list[str]] = {}
    for file in source_files():
        for node in ast.walk(file.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(file.name)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
