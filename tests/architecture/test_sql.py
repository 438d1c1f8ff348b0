"""Every SQL constant runs against the migrated schema, fits its record, and stays inside its module."""

import ast
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence

import asyncpg
import pytest

from app.kernel.database import ReadConn
from tests.architecture.source import SQL, Query, queries, source_files
from tests.fixtures.servers import Connection

SCHEMAS = {"kernel", "users", "identity", "jobs"}

# The embedded server is set up through psql; the other two only ask a server whether and which it is.
OUTSIDE = {"app.dev.embedded.postgres", "app.cli.doctor", "app.core.health"}
LITERAL = re.compile(r"'(?:[^']|'')*'|--[^\n]*")


def record_of(query: Query) -> type | None:
    """The record that the function below a constant makes of its rows, judged by its return annotation."""
    if query.function is None:
        return None
    function = getattr(query.file.load(), query.function)
    wanted = typing.get_type_hints(function)["return"]
    candidates = [wanted]
    if isinstance(wanted, types.UnionType) or typing.get_origin(wanted) in {list, dict, Sequence, Mapping}:
        candidates = list(typing.get_args(wanted))
    records = [candidate for candidate in candidates if dataclasses.is_dataclass(candidate)]
    return typing.cast("type", records[0]) if records else None


def test_there_are_queries() -> None:
    assert {"users", "kernel"} <= {query.file.owner for query in queries()}


async def test_each_query_can_be_prepared_and_fits_its_record(
    connection: Connection,
) -> None:
    problems = []
    for query in queries():
        try:
            statement = await connection.prepare(query.sql)
        except asyncpg.PostgresError as error:
            problems.append(f"{query}: {error}")
            continue
        record = record_of(query)
        columns = [attribute.name for attribute in statement.get_attributes()]
        if record is not None and not makes(record, columns, is_positional=unpacks_rows(query)):
            problems.append(f"{query}: columns {columns} do not make a {record.__name__}")
    assert problems == []


def makes(record: type, columns: list[str], *, is_positional: bool) -> bool:
    """Whether rows with these columns make the record; a first column of another name is the key of a dictionary."""
    fields = [field.name for field in dataclasses.fields(record)]
    values = columns[1:] if columns[0] not in fields else columns
    return values == fields if is_positional else sorted(values) == sorted(fields)


def unpacks_rows(query: Query) -> bool:
    """Whether the function below a constant makes its record of a row's values by their order."""
    function = getattr(query.file.load(), query.function or "", None)
    return function is not None and re.search(r"\(\*row\b", inspect.getsource(function)) is not None


@dataclasses.dataclass
class Pair:
    left: int
    right: int


@pytest.mark.parametrize(
    ("columns", "by_name", "by_position"),
    [
        (["left", "right"], True, True),
        (["right", "left"], True, False),
        (["key", "left", "right"], True, True),
        (["left"], False, False),
        (["left", "right", "more"], False, False),
    ],
)
def test_a_record_needs_its_columns_and_by_position_their_order(
    columns: list[str], *, by_name: bool, by_position: bool
) -> None:
    assert makes(Pair, columns, is_positional=False) is by_name
    assert makes(Pair, columns, is_positional=True) is by_position


def test_queries_keep_to_their_schema_and_list_their_columns() -> None:
    problems = []
    for query in queries():
        text = LITERAL.sub("", query.sql)
        foreign = (set(re.findall(r"\b(\w+)\.\w", text)) & SCHEMAS) - {query.file.owner}
        problems += [f"{query} names the schema {name}" for name in sorted(foreign)]
        if re.search(r"(\bSELECT\s+|\bRETURNING\s+|,\s*|\.)\*", text, re.IGNORECASE):
            problems.append(f"{query} does not list its columns")
    assert problems == []


def test_sql_is_constant_text_in_its_place() -> None:
    """SQL stands in `queries` or in the kernel, and is never put together while the program runs."""
    problems = []
    for file in source_files():
        if file.module_name in OUTSIDE:
            continue
        for node in ast.walk(file.tree):
            match node:
                case ast.JoinedStr(values=[ast.Constant(value=str() as text), *_]) if SQL.match(text):
                    problems.append(f"{file.name}:{node.lineno}: SQL as an f-string")
                case ast.Constant(value=str() as text) if SQL.match(text):
                    if not file.is_queries and file.owner != "kernel":
                        problems.append(f"{file.name}:{node.lineno}: SQL outside of queries")
    assert problems == []


def test_query_functions_say_what_they_need() -> None:
    """The first parameter of a public function is a connection to read with or a transaction to write in."""
    problems = []
    for file in source_files():
        if not file.is_queries:
            continue
        for function in file.tree.body:
            if isinstance(function, ast.AsyncFunctionDef) and not function.name.startswith("_"):
                first = function.args.args[0].arg
                given = typing.get_type_hints(getattr(file.load(), function.name))[first]
                if first not in {"conn", "tx"} or not issubclass(given, ReadConn):
                    problems.append(f"{file.name}:{function.lineno}: {function.name}")
    assert problems == []
