"""What these tests share with those of the jobs module: workers in this process, and what their jobs did."""

from tests.jobs.conftest import person, producer, receiver, start_worker, steps, worker

__all__ = ["person", "producer", "receiver", "start_worker", "steps", "worker"]
