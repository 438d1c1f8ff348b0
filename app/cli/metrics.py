"""The table of all metrics in `docs/metrics.md`, made of the code that counts them."""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

import app

_INTRODUCTION = """\
# Metrics

`GET /metrics` of the API and, with `APP_JOBS_METRICS_PORT`, of each worker. A counter's name ends in `_total`, times
are in seconds, sizes in bytes. With several API processes behind one port the answer sums them up. prometheus_client
adds those of Python and of the process (`python_…`, `process_…`) where one process answers for itself.

Written by `make metrics-table`.

| Metric | Kind | Labels | Meaning |
|---|---|---|---|
"""


def metrics_page() -> str:
    """The whole text of `docs/metrics.md`."""
    # They are defined where they are counted, so all of the program has to be there.
    for module in walk_packages(app.__path__, "app."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    return _INTRODUCTION + "".join(
        f"| `{name}` | {kind} | {labels} | {meaning} |\n" for name, kind, labels, meaning in sorted(_metrics())
    )


def _metrics() -> Iterator[tuple[str, str, str, str]]:
    # The public `collect` has no labels before there are values, and lists no collectors.
    for collector in set(REGISTRY._collector_to_names):  # noqa: SLF001 - see above
        if not isinstance(collector, MetricWrapperBase):
            continue
        (metric,) = collector.describe()
        suffix = "_total" if metric.type == "counter" else ""
        labels = ", ".join(f"`{name}`" for name in collector._labelnames)  # noqa: SLF001 - see above
        yield f"{metric.name}{suffix}", metric.type, labels, metric.documentation
