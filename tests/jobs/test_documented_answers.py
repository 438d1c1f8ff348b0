"""What is answered and sent, held against the committed document: answers are not validated while the program runs."""

import json
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from app.jobs.api import JOB_KINDS
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.application import ROOT
from tests.fixtures.people import Person
from tests.fixtures.waiting import eventually
from tests.jobs.receiver import LOCAL, Receiver, register
from tests.jobs.test_invoices import INVOICE

KINDS: list[dict[str, Any]] = [
    {"kind": "export.events", "args": {"format": "csv"}},
    {"kind": "export.account", "args": {}},
    {"kind": "report.activity", "args": {"since": "2026-01-01T00:00:00Z", "until": "2026-02-01T00:00:00Z"}},
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    made: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    return made


def hold_against(document: dict[str, Any], schema: dict[str, Any], body: bytes) -> None:
    validator = Draft202012Validator(
        schema | {"components": document["components"]}, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    assert [error.message for error in validator.iter_errors(json.loads(body))] == [], body


def hold_answer(document: dict[str, Any], path: str, answer: httpx.Response) -> dict[str, Any]:
    operation = document["paths"][path][answer.request.method.lower()]
    content = operation["responses"][str(answer.status_code)]["content"]["application/json"]
    hold_against(document, content["schema"], answer.content)
    body: dict[str, Any] = answer.json()
    return body


@LOCAL
async def test_jobs_and_webhooks_are_what_the_document_says(
    document: dict[str, Any], proven: Person, receiver: Receiver, settings: Settings
) -> None:
    endpoint = await register(proven, receiver.url, "*")
    async with open_worker(settings, JOB_KINDS):
        waiting = [hold_answer(document, "/v1/jobs", await proven.post("/v1/jobs", json=body)) for body in KINDS]
        issued = hold_answer(document, "/v1/invoices", await proven.post("/v1/invoices", json=INVOICE))
        test = await proven.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")
        hold_answer(document, "/v1/webhooks/endpoints/{endpoint_id}/test", test)
        await proven.patch("/v1/users/me", json={"bio": "Counts."})

        async def is_done() -> bool:
            return len(receiver.requests) == len(KINDS) + 3

        await eventually(is_done)
    listed = hold_answer(document, "/v1/jobs", await proven.get("/v1/jobs?limit=100"))
    states = {job["id"]: (job["kind"], job["state"]) for job in listed["items"]}
    for job in [*waiting, issued["job"]]:
        assert states[job["id"]] == (job["kind"], "succeeded")
        hold_answer(document, "/v1/jobs/{job_id}", await proven.get(f"/v1/jobs/{job['id']}"))
    # Those of the service itself too.
    assert {"invoice.email", "webhook.deliver", "webhook.publish"} <= {kind for kind, _ in states.values()}
    for path in ("/v1/invoices", "/v1/webhooks/deliveries", "/v1/webhooks/endpoints", "/v1/webhooks/event-types"):
        assert hold_answer(document, path, await proven.get(path))["items"]
    overview = hold_answer(document, "/v1/overview", await proven.get("/v1/overview"))
    assert overview["jobs"]["recent"]
    sent: dict[str, int] = {}
    for _, body in receiver.requests:
        event_type = json.loads(body)["type"]
        operation = document["webhooks"][event_type]["post"]
        hold_against(document, operation["requestBody"]["content"]["application/json"]["schema"], body)
        sent[event_type] = sent.get(event_type, 0) + 1
    assert sent == {"job.succeeded": 3, "invoice.issued": 1, "user.updated": 1, "webhook.test": 1}
