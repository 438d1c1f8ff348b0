"""Settings of the jobs module."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from app.kernel.settings import BY_COMMAS, Bytes, Days, RedisUrl, Seconds, Section, Texts, Unit, WholeSeconds, url_of
from app.kernel.validation.text import VisibleLine, VisibleText

Jobs = Annotated[int, Unit("jobs")]


class JobsSettings(Section):
    """Background work."""

    slots: Jobs = Field(50, ge=1, le=1000, description="Jobs that one worker process runs at a time.")
    shards: Annotated[int, Unit("shards")] = Field(
        1, ge=1, le=64, description="Parts a queue is split into, at least one a Redis URL; may change at any time."
    )
    redis_urls: Annotated[tuple[RedisUrl, ...], BY_COMMAS] = Field(
        (), description="Redis servers that share the shards, separated by commas; may change. Empty: the main one."
    )
    window: Jobs = Field(
        10_000, ge=1, le=1_000_000, description="Most job ids that Redis holds for each queue and shard."
    )
    lease: Seconds = Field(30.0, gt=0, le=600, description="Until the job of a silent worker is taken away from it.")
    heartbeat: Seconds = Field(
        5.0, gt=0, le=200, description="Interval at which a worker extends its leases; well below the lease."
    )
    drain: Seconds = Field(
        1.0, ge=0, le=60, description="For running jobs to end after SIGTERM, before they are handed back."
    )
    backlog_limit: Jobs = Field(
        50_000,
        ge=1,
        description="Waiting jobs of a queue that users share: each may have as many as are free. At twice the number "
        "all submissions get 429.",
    )
    backlog_age: WholeSeconds = Field(
        3600, ge=1, description="Age of a user's oldest waiting job of a queue beyond which their submissions get 429."
    )
    user_backlog: Jobs = Field(
        10_000, ge=1, description="Unfinished jobs of one user in a queue beyond which their submissions get 429."
    )
    user_running: Jobs = Field(3, ge=1, description="Jobs of one user that run at a time in the queues of long work.")
    user_file_bytes: Bytes = Field(
        10 * 1024**3,
        ge=1024**2,
        description="Files kept of one user; beyond, the oldest are deleted before their time.",
    )
    retention_days: Days = Field(30, ge=1, le=3650, description="Until a finished job is deleted.")
    artifact_url: Annotated[str, url_of("file", "s3")] | None = Field(
        None,
        description="Where files go: `file:///path` or `s3://bucket/prefix`. Unset: `artifacts` in the data directory.",
    )
    artifact_s3_endpoint: Annotated[str, url_of("https", "http")] | None = Field(
        None, description="Endpoint of an S3-compatible store. Unset: that of AWS."
    )
    artifact_s3_key_id: str | None = Field(None, description="Access key id of the store.")
    artifact_s3_secret: SecretStr | None = Field(None, description="Secret access key of the store.")
    artifact_s3_region: str = Field("us-east-1", description="Region of the bucket.")
    artifact_days: Days = Field(7, ge=1, le=3650, description="Until a file is deleted.")
    webhook_allow: Texts = Field(
        (), description="CIDRs that webhooks may reach although they are not public, such as a test receiver's."
    )
    font_paths: Annotated[tuple[Path, ...] | None, BY_COMMAS] = Field(
        None,
        description="Folders with fonts for scripts that ours lack, in invoices and reports, separated by commas. "
        "Unset: /usr/share/fonts and /usr/local/share/fonts.",
    )
    seller_name: Annotated[str, VisibleLine(200)] | None = Field(
        None, description="Seller: the name on invoices. Unset: APP_NAME."
    )
    seller_address: Annotated[str, VisibleText(1000)] | None = Field(
        None, description=r"Address of the seller; \n begins a new line."
    )
    seller_tax_id: Annotated[str, VisibleLine(64)] | None = Field(
        None, description="Tax number of the seller, as it is to be printed, such as VAT DE123456789."
    )
    webhook_http: bool = Field(default=False, description="Take http:// endpoints, on any port; never in production.")

    max_stall: Seconds = Field(
        60.0, gt=0, le=3600, description="For which a loop of the worker may not come round before its /livez fails."
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Where each worker serves /livez, /readyz and /metrics over HTTP. Unset: nowhere.",
    )
    metrics_host: str = Field("127.0.0.1", description="Address of that port; its answers are not protected.")

    @field_validator("font_paths")
    @classmethod
    def _check_folders(cls, value: tuple[Path, ...] | None) -> tuple[Path, ...] | None:
        for folder in value or ():
            if not folder.is_dir():
                raise ValueError(f"{folder} is no folder")
        return value

    @field_validator("seller_address")
    @classmethod
    def _break_lines(cls, value: str | None) -> str | None:
        # A variable of the environment seldom holds a line break.
        return None if value is None else value.replace(r"\n", "\n")
