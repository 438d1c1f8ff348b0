"""Logs, metrics, and the trace identity of a request.

Metrics are prometheus_client objects, defined at module level beside what they count and named
`onehop_<module>_<noun>_<unit>`; with several API processes they are summed through `PROMETHEUS_MULTIPROC_DIR`. Logs are
structlog events on standard output, which is written by `log_writer`.
"""

import logging
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import orjson
import structlog
from prometheus_client import REGISTRY, CollectorRegistry, disable_created_metrics, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from app.kernel.headers.codings import compress
from app.kernel.observability.log_writer import output
from app.kernel.settings import LogSettings

CONTENT_TYPE_METRICS = "text/plain; version=0.0.4; charset=utf-8"

# Buckets of the OpenTelemetry HTTP conventions, in seconds, and below them those that an answer from memory needs.
DURATION_BUCKETS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)
# A W3C traceparent as received, continued in the jobs that a request starts.
trace_parent_var: ContextVar[str | None] = ContextVar("trace_parent", default=None)

# The second at which each series began, as a series of its own beside it, is what no dashboard asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped

_SECRET_KEYS = frozenset(
    {
        "password",
        "new_password",
        "current_password",
        "token",
        "access_token",
        "refresh_token",
        "authorization",
        "key",
        "secret",
        "code",
        "cookie",
    }
)


class _Handler(logging.Handler):
    """Leaves each record, as text, to `output`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            output.write(self.format(record).encode(errors="backslashreplace"))
        except Exception:  # noqa: BLE001 - as the handlers of the standard library: a line that cannot be made must do no harm
            self.handleError(record)


def get_logger(name: str) -> Any:
    """A structlog logger; `name` is the module, as `app.kernel.database`."""
    return structlog.get_logger(name, logger_name=name)


def configure_logging(settings: LogSettings, *, production: bool) -> None:
    """Sends our events and those of libraries to standard output in one shape."""
    json_lines = (settings.format or ("json" if production else "text")) == "json"
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _add_identity,
        _redact,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
    ]
    renderer: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]
        if json_lines
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    level = getattr(logging, settings.level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = _Handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("uvicorn", "uvicorn.error", "uvicorn.access", "arq.worker"):
        library = logging.getLogger(noisy)
        library.handlers.clear()
        library.propagate = noisy != "uvicorn.access"
    # The first two would write down whole addresses, and with them what is secret in those; alembic lists its plug-ins
    # at each start, and watchfiles counts the bytecode that a reload has written.
    for talkative in ("httpx", "httpcore", "alembic", "watchfiles"):
        logging.getLogger(talkative).setLevel(max(level, logging.WARNING))


def _to_json(event: Any, default: Any = None, **_: Any) -> str:
    return orjson.dumps(event, default=default or repr).decode()


def _add_identity(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    request_id = request_id_var.get()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    trace_parent = trace_parent_var.get()
    if trace_parent is not None:
        event.setdefault("trace", trace_parent)
    return event


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in event.keys() & _SECRET_KEYS:
        event[key] = "[redacted]"
    return event


class RenderedMetrics(NamedTuple):
    """The Prometheus text, and its gzip form where that is worth it."""

    text: bytes
    compressed: bytes | None


def render_metrics() -> RenderedMetrics:
    """Those of all API processes of this machine, or of this one where it is alone."""
    registry: CollectorRegistry = REGISTRY
    if values.ValueClass.__name__ != "MutexValue":
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
    text = generate_latest(registry)
    return RenderedMetrics(text, compress(text))
