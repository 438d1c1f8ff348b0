"""What the core routes answer."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from app.core.stats import StatsWindow
from app.jobs.api import COUNTED_AT_MOST, JobState
from app.kernel.http import EXAMPLE_ID, EXAMPLE_TIME, CreatedAt, Id, ProblemCode, Schema, Timestamp, example
from app.kernel.validation.field_codes import FieldErrorCode
from app.users.api import (
    EXAMPLE_EVENT,
    EXAMPLE_PREFERENCES,
    EXAMPLE_USER,
    EventResponse,
    PreferencesResponse,
    UserResponse,
)

HealthState = TypeAliasType("HealthState", Literal["ok", "degraded", "failing"])


class RecentJob(Schema):
    """A job in short; `GET /v1/jobs/{job_id}` has all of it."""

    id: Id = Field(description="Id of the job.")
    kind: str = Field(description="The kind of job.")
    state: JobState = Field(description="Where the job is: `succeeded`, `failed` and `cancelled` are final.")
    created_at: CreatedAt
    finished_at: Timestamp | None = Field(description="When the job reached a final state; null: not yet.")


JobCount = Annotated[int, Field(ge=0, le=COUNTED_AT_MOST)]


class JobCounts(Schema):
    """Your jobs by state, and the newest of them. A count ends at 1000, which means 1000 or more."""

    queued: JobCount = Field(description="Jobs that wait: queued, scheduled or retrying.")
    running: JobCount = Field(description="Jobs that run.")
    succeeded: JobCount = Field(description="Jobs that have succeeded.")
    failed: JobCount = Field(description="Jobs that have failed.")
    recent: list[RecentJob] = Field(description="The newest jobs, at most five.")


class OverviewResponse(
    Schema,
    json_schema_extra=example(
        {
            "user": EXAMPLE_USER,
            "preferences": EXAMPLE_PREFERENCES,
            "recent_events": [EXAMPLE_EVENT],
            "jobs": {
                "queued": 0,
                "running": 1,
                "succeeded": 4,
                "failed": 0,
                "recent": [
                    {
                        "id": EXAMPLE_ID,
                        "kind": "export.events",
                        "state": "running",
                        "created_at": EXAMPLE_TIME,
                        "finished_at": None,
                    }
                ],
            },
        }
    ),
):
    """Your account, preferences, newest events and jobs."""

    user: UserResponse
    preferences: PreferencesResponse
    recent_events: list[EventResponse] = Field(description="The newest events, at most ten.")
    jobs: JobCounts


class AliveResponse(Schema):
    """The process answers."""

    status: Literal["alive"] = Field(description="Always `alive`.")


class HealthChecks(Schema):
    """What the process depends on."""

    database: HealthState = Field(description="PostgreSQL; without it nearly nothing works.")
    redis: HealthState = Field(description="Every Redis server; without one the service is slower.")
    signing_key: HealthState = Field(description="The key that signs access tokens.")


class ReadyResponse(Schema):
    """The process can serve requests."""

    status: Literal["ready"] = Field(description="Always `ready`.")
    checks: HealthChecks = Field(description="State of each system that the process depends on.")


class ProblemCodeResponse(Schema):
    """A code of problems."""

    code: ProblemCode = Field(description="The code; one of two statuses is listed twice.")
    status: int = Field(description="The HTTP status.")
    title: str = Field(description="What the code means, in short.")
    meaning: str = Field(description="What the code means, and what to do.")


class FieldErrorCodeResponse(Schema):
    """A code of refused fields and parameters."""

    code: FieldErrorCode = Field(description="The code.")
    meaning: str = Field(description="What the code means.")


class ProblemCatalogue(Schema):
    """Every code that problems and their fields have."""

    items: list[ProblemCodeResponse] = Field(description="Codes of problems, by name.")
    fields: list[FieldErrorCodeResponse] = Field(description="Codes of refused fields and parameters, by name.")


class StatsQuery(Schema):
    """How far back."""

    window: StatsWindow = Field("15m", description="Until now, from so long ago.")


class StatsPoint(Schema):
    """What all processes have counted within one step of time."""

    at: Timestamp = Field(description="When the step began.")
    requests: int = Field(description="Requests that were answered.")
    client_errors: int = Field(description="Those among them with a 4xx.")
    server_errors: int = Field(description="Those among them with a 5xx.")
    p50_ms: float | None = Field(description="Time within which half of them were answered; null: there were none.")
    p95_ms: float | None = Field(description="Time within which 95 % were answered; null: there were none.")
    p99_ms: float | None = Field(description="Time within which 99 % were answered; null: there were none.")
    rejected: int = Field(description="Requests that admission refused.")
    queued: int = Field(description="Requests that waited for admission.")
    cache_hits: int = Field(description="Answers from the cache.")
    cache_misses: int = Field(description="Answers that the cache did not have.")
    statements: int = Field(description="SQL statements.")
    pool_used: float = Field(description="Connections in use of the pool of a process, on average.")
    pool_size: float = Field(description="Connections of the pool of a process, on average.")


class JobStatsPoint(Schema):
    """The runs of a kind of job within one step of time."""

    at: Timestamp = Field(description="When the step began.")
    runs: int = Field(description="Runs that ended.")
    failures: int = Field(description="Jobs that failed for good.")
    p95_ms: float | None = Field(description="Time within which 95 % of the runs ended; null: there were none.")


class JobStats(Schema):
    """The runs of a kind of job."""

    kind: str = Field(description="The kind of job.")
    runs: int = Field(description="Runs that ended within the window.")
    failures: int = Field(description="Jobs that failed for good within the window.")
    p95_ms: float | None = Field(description="Time within which 95 % of the runs ended; null: there were none.")
    points: list[JobStatsPoint] = Field(description="The same by steps, oldest first.")


class Deployment(Schema):
    """Processes that have started."""

    at: Timestamp = Field(description="When the step began in which they did.")
    role: str = Field(description="`api` or `worker`.")
    version: str = Field(description="Version of the program.")
    processes: int = Field(description="How many of them.")


class StatsResponse(Schema):
    """The numbers of the installation, as curves; the last step is not over."""

    window: StatsWindow = Field(description="From how long ago the curves begin.")
    step_seconds: int = Field(description="How long a step is.")
    points: list[StatsPoint] = Field(description="Requests by steps, oldest first.")
    jobs: list[JobStats] = Field(description="Jobs that ran within the window, by kind.")
    deployments: list[Deployment] = Field(description="Starts of processes, oldest first.")
