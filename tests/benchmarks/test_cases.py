"""Every route has a case of its dearest request, so that what one caller costs others is measured for all of them."""

import re
from pathlib import Path

from fastapi.routing import APIRoute

from app.main import create_app
from app.settings import Settings
from benchmarks.bounds import TABLES
from benchmarks.cases import CASES, routes_of
from benchmarks.cases.scene import UNKNOWN, Account, Scene


def test_every_route_has_a_case(settings: Settings) -> None:
    assert routes_of(create_app(settings)) == CASES.keys()


def test_a_case_asks_its_own_route(settings: Settings) -> None:
    account = Account(UNKNOWN, "a@example.com", "token", "rt_token")
    scene = Scene(1, account, account, account, UNKNOWN, UNKNOWN, UNKNOWN)
    routes = {route.path_format: route for route in create_app(settings).routes if isinstance(route, APIRoute)}
    for name, case in CASES.items():
        method, template = name.split(" ")
        for raw in case.requests(scene):
            sent, target, _ = raw.split(b"\r\n", 1)[0].decode().split(" ")
            path = target.partition("?")[0]
            assert sent == method, name
            assert routes[template].path_regex.fullmatch(path), (name, path)


def test_every_table_has_a_named_bound() -> None:
    schema = (Path(__file__).parents[1] / "architecture" / "schema.sql").read_text(encoding="utf-8")
    assert set(re.findall(r"^CREATE TABLE ([\w.]+)", schema, re.MULTILINE)) == TABLES.keys()
