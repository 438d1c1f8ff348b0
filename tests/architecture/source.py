"""The program's source code, parsed, for tests that hold it to its rules."""

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("users", "identity", "jobs", "core")
SQL = re.compile(
    r"\s*(SELECT\s|INSERT\s+INTO\s|UPDATE\s+\w|DELETE\s+FROM\s|WITH\s+(?:RECURSIVE\s+)?\w+\s+AS\b|MERGE\s+INTO\s|TRUNCATE\s"
    r"|CREATE\s+\w|ALTER\s+\w|DROP\s+\w)"
)


@dataclass(frozen=True)
class SourceFile:
    """One file of `app`."""

    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def module_name(self) -> str:
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def owner(self) -> str:
        """The first folder below `app`, or the file itself, such as users, kernel or main."""
        return self.path.relative_to(ROOT / "app").with_suffix("").parts[0]

    @property
    def is_queries(self) -> bool:
        return "queries" in self.path.relative_to(ROOT).with_suffix("").parts

    def load(self) -> ModuleType:
        return importlib.import_module(self.module_name)


@dataclass(frozen=True)
class Query:
    """An SQL constant and the function that stands directly below it, if there is one."""

    file: SourceFile
    name: str
    sql: str
    function: str | None

    def __str__(self) -> str:
        return f"{self.file.module_name}.{self.name}"


@cache
def source_files() -> tuple[SourceFile, ...]:
    paths = sorted((ROOT / "app").rglob("*.py"))
    return tuple(SourceFile(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths)


@cache
def queries() -> tuple[Query, ...]:
    return tuple(query for file in source_files() for query in _queries_of(file))


def _queries_of(file: SourceFile) -> Iterator[Query]:
    body = file.tree.body
    parts = _parts(file.tree)
    for index, node in enumerate(body):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str()) | ast.BinOp()) if (
                name.isupper()
                and name not in parts
                and isinstance(text := getattr(file.load(), name), str)
                and SQL.match(text)
            ):
                below = body[index + 1] if index + 1 < len(body) else None
                function = below.name if isinstance(below, ast.AsyncFunctionDef) else None
                yield Query(file, name, text, function)


def _parts(tree: ast.Module) -> set[str]:
    """Names of texts that several statements share; they are checked in each of those."""
    return {
        part.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp)
        for part in ast.walk(node.value)
        if isinstance(part, ast.Name)
    }
