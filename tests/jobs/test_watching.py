"""Waiting for jobs, and for how many at a time."""

import asyncio

import pytest
from fastapi import FastAPI

from app.jobs.service import watching
from app.kernel.ids import UserId
from tests.fixtures.answers import problem_of
from tests.fixtures.people import MakePerson
from tests.fixtures.times import in_days
from tests.fixtures.waiting import eventually

LATER = {"kind": "export.account", "args": {}, "run_at": in_days(30)}
WAIT = {"Prefer": "wait=20"}


async def test_nobody_takes_all_the_places_to_wait_in(
    app: FastAPI, make_person: MakePerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MOST_OF_A_USER", 1)
    watch = app.state.jobs.watch
    greedy, other = [await make_person() for _ in range(2)]
    urls = [(await person.post("/v1/jobs", json=LATER)).headers["location"] for person in (greedy, other)]
    waiting = []
    for person, url in ((greedy, urls[0]), (other, urls[1])):
        waiting.append(asyncio.create_task(person.get(url, headers=WAIT)))
        await eventually(lambda: watch.is_full(UserId(person.id)))  # noqa: B023 - at once
    # A client that asks to wait for more is told at once how it is.
    assert "preference-applied" not in (await greedy.get(urls[0], headers=WAIT)).headers
    problem_of(await greedy.get(f"{urls[0]}/events"), 429, "too_many_streams")
    assert not any(task.done() for task in waiting)
    for person, url in ((greedy, urls[0]), (other, urls[1])):
        assert (await person.post(f"{url}/cancel")).status_code == 200
    assert [(await task).headers["preference-applied"] for task in waiting] == ["wait=20"] * 2
    assert "event: done" in (await greedy.get(f"{urls[0]}/events")).text
