"""What is overridden of arq must stay what arq calls."""

import inspect
from importlib.metadata import version

from arq.worker import Worker

from app.kernel.queue.consumer import Consumer


def test_the_overridden_methods_have_arqs_signatures() -> None:
    assert version("arq").startswith("0.28.")
    for name in ("main", "_poll_iteration", "start_jobs", "run_job"):
        ours, theirs = getattr(Consumer, name), getattr(Worker, name)
        assert ours is not theirs
        assert inspect.signature(ours) == inspect.signature(theirs), name
