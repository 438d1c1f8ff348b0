"""Settings of the jobs module."""

from typing import Annotated

from pydantic import Field, SecretStr

from app.kernel.settings import BY_COMMAS, RedisUrl, Section, Texts, url_of


class JobsSettings(Section):
    """Background work. Times are in seconds unless the name says otherwise."""

    slots: int = Field(50, ge=1, le=1000, description="Jobs that one worker process runs at a time.")
    shards: int = Field(
        1, ge=1, le=64, description="Queues a lane is split into, at least one a Redis URL; may change at any time."
    )
    redis_urls: Annotated[tuple[RedisUrl, ...], BY_COMMAS] = Field(
        (), description="Redis servers that share the shards, the first one first; may change. Empty: the main one."
    )
    window: int = Field(10_000, ge=1, le=1_000_000, description="Ids of a lane and shard that Redis holds at most.")
    lease: float = Field(30.0, gt=0, le=600, description="Until the job of a silent worker is taken away from it.")
    heartbeat: float = Field(5.0, gt=0, le=200, description="Must be well below the lease.")
    drain: float = Field(
        1.0, ge=0, le=60, description="For running jobs to end after SIGTERM, before they are handed back."
    )
    backlog_limit: int = Field(50_000, ge=1, description="Waiting jobs of a lane beyond which submissions get 429.")
    backlog_age: int = Field(3600, ge=1, description="Age of a lane's oldest runnable job beyond which they get 429.")
    user_running: int = Field(3, ge=1, description="Jobs of one user that run at a time in the lanes of long work.")
    retention_days: int = Field(30, ge=1, le=3650, description="Until a finished job is deleted.")
    artifact_url: Annotated[str, url_of("file", "s3")] | None = Field(
        None,
        description="Where files go: `file:///path` or `s3://bucket/prefix`. None: `artifacts` in the data directory.",
    )
    artifact_s3_endpoint: Annotated[str, url_of("https", "http")] | None = Field(
        None, description="Endpoint of an S3-compatible store."
    )
    artifact_s3_key_id: str | None = None
    artifact_s3_secret: SecretStr | None = None
    artifact_s3_region: str = "us-east-1"
    artifact_days: int = Field(7, ge=1, le=3650, description="Until a file is deleted.")
    webhook_allow: Texts = Field(
        (), description="CIDRs that webhooks may reach although they are not public, such as a test receiver's."
    )
    webhook_http: bool = Field(default=False, description="Take http:// endpoints, on any port; never in production.")

    metrics_port: int | None = Field(
        None, ge=1, le=65_535, description="Where each worker serves its metrics over HTTP; None: nowhere."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of that port; its answers are not protected.")
