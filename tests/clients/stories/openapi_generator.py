"""The quickstart through the client that openapi-generator makes in Python, for the server whose address is the argument."""

import json
import sys
from uuid import uuid4

from openapi_client import (
    ApiClient,
    ApiException,
    Configuration,
    CoreApi,
    EventBatchRequest,
    EventRequest,
    EventsRequest,
    ExportEventsArgs,
    ExportEventsJob,
    ExportFormat,
    IdentityApi,
    JobsApi,
    JobState,
    Problem,
    ProblemCode,
    RegisterRequest,
    SubmitExportEvents,
    SubmitJob,
    UsersApi,
)

configuration = Configuration(host=sys.argv[1])
with ApiClient(configuration) as client:
    identity, users, jobs = IdentityApi(client), UsersApi(client), JobsApi(client)
    email = f"{uuid4().hex}@example.com"
    signed_in = identity.register(
        RegisterRequest(email=email, password="correct horse battery staple", display_name="Ada")
    )
    assert (signed_in.user.email, signed_in.user.display_name) == (email, "Ada")
    assert signed_in.tokens is not None
    configuration.access_token = signed_in.tokens.access_token
    overview = CoreApi(client).get_overview()
    assert (overview.user.id, overview.recent_events) == (signed_in.user.id, [])

    key = uuid4().hex
    one = EventsRequest(EventRequest(kind="page.viewed", properties={"path": "/"}))
    accepted = users.record_events(one, idempotency_key=key)
    assert users.record_events(one, idempotency_key=key) == accepted
    events = [EventRequest(kind="search.made"), EventRequest(kind="document.opened")]
    accepted = users.record_events(EventsRequest(EventBatchRequest(events=events)))
    assert accepted.accepted == len(accepted.ids) == 2
    page = users.list_events(limit=2)
    assert {event.id for event in page.items} == set(accepted.ids)
    assert page.next_cursor is not None
    assert [event.properties for event in users.list_events(kind="page.viewed").items] == [{"path": "/"}]
    assert sum(item.count for item in users.summarise_events().items) == 3

    export = SubmitExportEvents(kind="export.events", args=ExportEventsArgs(format=ExportFormat.CSV))
    job = jobs.submit_job(SubmitJob(export)).actual_instance
    assert isinstance(job, ExportEventsJob)
    done = jobs.get_job(job.id, prefer="wait=30").actual_instance
    assert isinstance(done, ExportEventsJob)
    assert done.state is JobState.SUCCEEDED
    assert done.result is not None
    assert done.result.rows == 3
    (artifact,) = done.artifacts
    file = jobs.download_artifact(done.id, artifact.name)
    assert len(file) == artifact.size
    assert bytes(file).decode().count("\n") == 4

    try:
        jobs.get_job(uuid4())
    except ApiException as error:
        problem = Problem.from_dict(json.loads(error.body or ""))
        assert problem is not None
        assert (problem.status, problem.code) == (404, ProblemCode.JOB_NOT_FOUND)
    else:
        raise AssertionError("There is such a job.")
    identity.log_out()
    try:
        users.get_me()
    except ApiException as error:
        assert json.loads(error.body or "")["code"] == ProblemCode.TOKEN_REVOKED.value
    else:
        raise AssertionError("The token is good.")
print("The story has passed.")
