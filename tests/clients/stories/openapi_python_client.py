"""The quickstart through the client that openapi-python-client makes, for the server whose address is the argument."""

import sys
from uuid import uuid4

from httpx import Timeout
from onehop_client import AuthenticatedClient, Client
from onehop_client.api.core import get_overview
from onehop_client.api.identity import log_out, register
from onehop_client.api.jobs import download_artifact, get_job, submit_job
from onehop_client.api.users import get_me, list_events, record_events, summarise_events
from onehop_client.models import (
    EventBatchRequest,
    EventPage,
    EventRequest,
    EventRequestProperties,
    EventsAccepted,
    ExportEventsArgs,
    ExportEventsJob,
    ExportFormat,
    JobState,
    OverviewResponse,
    Problem,
    ProblemCode,
    RegisterRequest,
    SignedInResponse,
    SubmitExportEvents,
    SummaryResponse,
)
from onehop_client.types import Unset

base = sys.argv[1]
email = f"{uuid4().hex}@example.com"
body = RegisterRequest(email=email, password="correct horse battery staple", display_name="Ada")
signed_in = register.sync(client=Client(base), body=body)
assert isinstance(signed_in, SignedInResponse)
assert (signed_in.user.email, signed_in.user.display_name) == (email, "Ada")

assert not isinstance(signed_in.tokens, Unset)
client = AuthenticatedClient(base, token=signed_in.tokens.access_token, timeout=Timeout(60))
overview = get_overview.sync(client=client)
assert isinstance(overview, OverviewResponse)
assert (overview.user.id, overview.recent_events) == (signed_in.user.id, [])

properties = EventRequestProperties()
properties["path"] = "/"
key = uuid4().hex
one = EventRequest(kind="page.viewed", properties=properties)
accepted = record_events.sync(client=client, body=one, idempotency_key=key)
again = record_events.sync(client=client, body=one, idempotency_key=key)
assert isinstance(accepted, EventsAccepted)
assert again == accepted
batch = EventBatchRequest(events=[EventRequest(kind="search.made"), EventRequest(kind="document.opened")])
accepted = record_events.sync(client=client, body=batch)
assert isinstance(accepted, EventsAccepted)
assert accepted.accepted == len(accepted.ids) == 2
page = list_events.sync(client=client, limit=2)
assert isinstance(page, EventPage)
assert {event.id for event in page.items} == set(accepted.ids)
assert isinstance(page.next_cursor, str)
viewed = list_events.sync(client=client, kind="page.viewed")
assert isinstance(viewed, EventPage)
assert [event.properties.additional_properties for event in viewed.items] == [{"path": "/"}]
summary = summarise_events.sync(client=client)
assert isinstance(summary, SummaryResponse)
assert sum(item.count for item in summary.items) == 3

job = submit_job.sync(
    client=client, body=SubmitExportEvents(kind="export.events", args=ExportEventsArgs(ExportFormat.CSV))
)
assert isinstance(job, ExportEventsJob)
done = get_job.sync(job.id, client=client, prefer="wait=30")
assert isinstance(done, ExportEventsJob)
assert done.state is JobState.SUCCEEDED
assert done.result is not None
assert done.result.rows == 3
(artifact,) = done.artifacts
file = download_artifact.sync_detailed(done.id, artifact.name, client=client)
assert len(file.content) == artifact.size
assert file.content.decode().count("\n") == 4

missing = get_job.sync(uuid4(), client=client)
assert isinstance(missing, Problem)
assert (missing.status, missing.code) == (404, ProblemCode.JOB_NOT_FOUND)
assert log_out.sync_detailed(client=client).status_code == 204
refused = get_me.sync(client=client)
assert isinstance(refused, Problem)
assert refused.code is ProblemCode.TOKEN_REVOKED
print("The story has passed.")
