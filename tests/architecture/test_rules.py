"""Rules that the source code keeps and no linter knows."""

import ast
from collections import Counter
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


# What opens a transaction without being retried as a whole, and why.
RETRIED_OTHERWISE = {
    "app/jobs/service/completion.py: _finish": "tries again until the ends are written",
    "app/jobs/service/run_context.py: transaction": "is the caller's block; the job is what runs again",
    "app/kernel/webhook_subscribers.py: unit": "is the caller's block; the function with the block is held to the rule",
}


def test_transactions_are_retried() -> None:
    """A function that opens a transaction runs again when it collides with another one."""
    careless = {
        f"{file.name}: {node.name}"
        for file in source_files()
        for node in ast.walk(file.tree)
        if isinstance(node, ast.AsyncFunctionDef)
        and (
            any(owner.split(".")[-1] in {"db", "_db"} for owner, _, _ in calls(node, "transaction"))
            or any(owner.split(".")[-1] == "webhook_subscribers" for owner, _, _ in calls(node, "unit"))
            or any(
                ast.unparse(part).endswith("db.transaction") for part in ast.walk(node) if isinstance(part, ast.expr)
            )
        )
        and "retries_conflicts" not in {ast.unparse(decorator) for decorator in node.decorator_list}
    }
    assert careless == RETRIED_OTHERWISE.keys()


def test_a_problem_code_is_declared_once() -> None:
    """A client tells problems apart by their code, so two classes must not have one by accident.

    Two codes stand for another problem with another status, as the contract has it: a bearer token (401) and that of an
    e-mail link (400), a service (503) and an invoice (409).
    """
    codes = Counter(
        part.value.value
        for file in source_files()
        for node in ast.walk(file.tree)
        if isinstance(node, ast.ClassDef)
        for part in node.body
        if isinstance(part, ast.Assign)
        and ast.unparse(part.targets[0]) == "code"
        and isinstance(part.value, ast.Constant)
    )
    assert len(codes) > 50
    assert {code for code, count in codes.items() if count > 1} == {"invalid_token", "not_ready"}


def test_middleware_is_pure_asgi() -> None:
    stacked = [
        file.name
        for file in source_files()
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Name) and node.id == "BaseHTTPMiddleware"
    ]
    assert stacked == []
