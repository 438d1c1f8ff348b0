"""The kinds of jobs that this module runs, one file each."""

from typing import Any

from app.jobs.handlers.export_events import export_events
from app.kernel.queue import JobKind

JOB_KINDS: dict[str, JobKind[Any]] = {kind.name: kind for kind in (export_events,)}
