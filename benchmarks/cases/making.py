"""How the requests of a case are made."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from benchmarks.cases.scene import ATTACKER, UNKNOWN, Scene
from benchmarks.load import request

OK = frozenset({200})
VARIANTS = 200

HASH = 10.0

EVENT = 0.05

WRONG_PASSWORD = {"current_password": "not the right password"}


Make = Callable[[Scene], Sequence[bytes]]


@dataclass(frozen=True)
class Case:
    """Requests of one route in turns, each of so many units, and the statuses that they are answered with. A brake that
    answers most of the requests is part of the route.
    """

    requests: Make
    units: float = 1.0
    answers: Collection[int] = OK


def one(method: str, path: str, body: Any = None, units: float = 1.0, answers: Collection[int] = OK) -> Case:
    return Case(lambda s: [s.call(method, path.format_map(ids(s)), body)], units, answers)


def many(path: str, units: float = 1.0, answers: Collection[int] = OK) -> Case:
    """A read with another query each time, so that no cache answers it."""
    return Case(
        lambda s: [s.call("GET", path.format_map(ids(s) | {"n": str(n)})) for n in range(VARIANTS)], units, answers
    )


def by_admin(method: str, path: str, body: Any = None, answers: Collection[int] = OK) -> Case:
    return Case(lambda s: [s.as_admin(method, path.format_map(ids(s)), body)], answers=answers)


def by_stranger(method: str, path: str, body: Any = None, units: float = 1.0, answers: Collection[int] = OK) -> Case:
    """Each time another body where it has `{n}` in a text."""

    def requests(scene: Scene) -> list[bytes]:
        if body is None or isinstance(body, bytes):
            return [scene.as_stranger(method, path, body)]
        text = orjson.dumps(body).decode()
        return [scene.as_stranger(method, path, text.replace("{n}", str(n)).encode()) for n in range(VARIANTS)]

    return Case(requests, units, answers)


def by_form(path: str, text: str, units: float = 1.0, answers: Collection[int] = OK) -> Case:
    def requests(_: Scene) -> list[bytes]:
        bodies = [text.replace("{n}", str(n)).encode() for n in range(VARIANTS)]
        return [
            request(
                "POST",
                path,
                body=body,
                x_forwarded_for=ATTACKER,
            ).replace(b"application/json", b"application/x-www-form-urlencoded")
            for body in bodies
        ]

    return Case(requests, units, answers)


def ids(scene: Scene) -> dict[str, str]:
    return {
        "job": scene.job,
        "endpoint": scene.endpoint,
        "invoice": scene.invoice,
        "user": scene.user.id,
        "unknown": UNKNOWN,
        "n": "0",
        # The events begin a month ago.
        "day": f"{datetime.now(UTC) - timedelta(days=40):%Y-%m-%d}",
    }


def numbered(
    method: str, path: str, body: Callable[[int], Any], units: float = 1.0, answers: Collection[int] = OK
) -> Case:
    def requests(scene: Scene) -> list[bytes]:
        return [scene.call(method, path.format_map(ids(scene)), body(n)) for n in range(VARIANTS)]

    return Case(requests, units, answers)
