"""Rules that the source code keeps and no linter knows."""

import ast
from collections.abc import Iterator

from tests.architecture.source import source_files


def calls(tree: ast.AST, *names: str) -> Iterator[tuple[str, str, int]]:
    """Each call of an attribute with one of these names: what it belongs to, its name, its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=owner, attr=name)) if name in names:
                yield ast.unparse(owner), name, node.lineno


def test_only_the_clock_asks_for_the_time() -> None:
    asked = [
        f"{file.name}:{line}: {owner}.{name}()"
        for file in source_files()
        for owner, name, line in calls(file.tree, "now", "utcnow", "today", "time")
        if file.module_name != "app.kernel.clock"
        and (owner.split(".")[-1], name)
        in {
            ("datetime", "now"),
            ("datetime", "utcnow"),
            ("datetime", "today"),
            ("date", "today"),
            ("time", "time"),
        }
    ]
    assert asked == []


def test_only_kernel_and_worker_start_tasks() -> None:
    started = [
        f"{file.name}:{line}"
        for file in source_files()
        for _, _, line in calls(file.tree, "create_task", "ensure_future")
        if file.owner not in {"kernel", "worker"}
    ]
    assert started == []


def test_transactions_are_retried() -> None:
    """A function that opens a transaction runs again when it collides with another one."""
    careless = [
        f"{file.name}:{node.lineno}: {node.name}"
        for file in source_files()
        for node in ast.walk(file.tree)
        if isinstance(node, ast.AsyncFunctionDef)
        and any(owner == "db" for owner, _, _ in calls(node, "transaction"))
        and "retries_conflicts" not in {ast.unparse(decorator) for decorator in node.decorator_list}
    ]
    assert careless == []


def test_middleware_is_pure_asgi() -> None:
    stacked = [
        file.name
        for file in source_files()
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Name) and node.id == "BaseHTTPMiddleware"
    ]
    assert stacked == []
