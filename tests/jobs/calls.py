"""Calls of `/v1/jobs` that several files of tests make."""

from typing import Any

from tests.fixtures.people import Person
from tests.fixtures.waiting import eventually


async def submit(person: Person, kind: str, number: int = 0, **fields: Any) -> dict[str, Any]:
    answer = await person.post("/v1/jobs", json={"kind": kind, "args": {"number": number}, **fields})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def finished(person: Person, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = {}

    async def is_over() -> bool:
        answer = await person.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=25"})
        assert answer.status_code == 200, answer.text
        job.update(answer.json())
        return job["state"] in {"succeeded", "failed", "cancelled"}

    await eventually(is_over)
    return job
