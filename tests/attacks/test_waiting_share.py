"""Clients that wait for the end of a job take nothing from others, and are answered at once where there is no room."""

import asyncio
from collections import Counter

import pytest
from fastapi import FastAPI

from app.jobs.service import watching
from app.jobs.service.watching import JobWatch
from app.kernel.ids import UserId, new_id
from tests.fixtures.answers import problem_of
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.times import in_days
from tests.fixtures.waiting import eventually

LATER = {"kind": "export.account", "args": {}, "run_at": in_days(30)}
WAIT = {"Prefer": "wait=30"}


async def test_accounts_that_wait_leave_room_and_others_are_answered(
    app: FastAPI, make_person: MakePerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MOST_WAITING", 16)
    watch: JobWatch = app.state.jobs.watch
    greedy = [await make_person() for _ in range(4)]
    urls = [(await person.post("/v1/jobs", json=LATER)).headers["location"] for person in greedy]
    waiting: list[asyncio.Task[object]] = []
    for person, url in zip(greedy, urls, strict=True):
        while watch.may_wait(UserId(person.id)):
            waiting.append(asyncio.create_task(person.get(url, headers=WAIT)))
            await eventually(lambda: watch._waiting.total() == len(waiting))
        at_once = await person.get(url, headers=WAIT)
        assert (at_once.status_code, "preference-applied" in at_once.headers) == (200, False)
    assert len(waiting) < 16
    other = await make_person()
    url = (await other.post("/v1/jobs", json=LATER)).headers["location"]
    last = asyncio.create_task(other.get(url, headers=WAIT))
    await eventually(lambda: watch._waiting[UserId(other.id)] == 1)
    for person, held in zip([*greedy, other], [*urls, url], strict=True):
        await person.post(f"{held}/cancel")
    assert (await last).headers["preference-applied"] == "wait=30"
    await asyncio.gather(*waiting)
    assert watch._waiting == Counter()


@pytest.mark.settings(APP_HTTP_MAX_IN_FLIGHT="1", APP_HTTP_MAX_WAITING="0")
async def test_who_waits_has_no_place(app: FastAPI, person: Person) -> None:
    url = (await person.post("/v1/jobs", json=LATER)).headers["location"]
    waiting = asyncio.create_task(person.get(url, headers=WAIT))
    await eventually(lambda: app.state.jobs.watch._waiting.total() == 1)
    for _ in range(3):
        assert (await person.get(url)).status_code == 200
        assert (await person.get("/v1/jobs")).status_code == 200
    await person.post(f"{url}/cancel")
    assert (await waiting).json()["state"] == "cancelled"


def test_any_number_of_users_leaves_some_for_the_next_one(app: FastAPI) -> None:
    watch: JobWatch = app.state.jobs.watch
    for taken in range(watching.MOST_WAITING):
        user = UserId(new_id())
        assert watch.may_wait(user), taken
        while watch.may_wait(user) and watch._waiting.total() < watching.MOST_WAITING - 64:
            watch._waiting[user] += 1
            assert watch._waiting[user] <= watching.MOST_WAITING // 4
        if watch._waiting.total() >= watching.MOST_WAITING - 64:
            break
    assert watch.may_wait(UserId(new_id()))
    watch._waiting.clear()


async def test_a_job_of_somebody_else_is_not_waited_for(app: FastAPI, make_person: MakePerson) -> None:
    owner, stranger = [await make_person() for _ in range(2)]
    url = (await owner.post("/v1/jobs", json=LATER)).headers["location"]
    problem_of(await stranger.get(url, headers=WAIT), 404, "job_not_found")
    problem_of(await stranger.client.get(url, headers=WAIT), 401, "unauthenticated")
    assert app.state.jobs.watch._waiting.total() == 0
