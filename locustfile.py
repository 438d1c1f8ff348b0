"""Load for QA: people who read a lot, write a little, log in anew now and then, and have files made.

`make load` runs it for a minute; `locust` alone opens the web interface. Of 100 actions about 80 read, 12
write, 4 are about sessions and 4 about jobs; `--tags read` and so on choose among them. The run fails (exit
code 1) when the limits `--slo-p95` or `--slo-errors` are missed.
"""

import random
import string
import sys
import time
from typing import Any

from gevent import GreenletExit, sleep
from locust import FastHttpUser, LoadTestShape, between, events, tag, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

PASSWORD = "correct horse battery staple"  # noqa: S105 - of people that exist for a minute.
# Access tokens live for ten minutes.
TOKEN_SECONDS = 500
JOB_SECONDS = 60
KINDS = ("page.viewed", "button.clicked", "file.opened", "search.done")


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--slo-p95", type=float, default=250.0, help="Milliseconds that 95 of 100 requests must keep")
    parser.add_argument("--slo-errors", type=float, default=0.1, help="Per cent of requests that may fail")
    parser.add_argument(
        "--shape",
        choices=sorted(SHAPES),
        default="steady",
        help="How the number of users goes over time, relative to --users",
    )


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    """The exit code of the run, decided by the limits."""
    options = environment.parsed_options
    total = environment.stats.total
    if options is None or total.num_requests == 0:
        environment.process_exit_code = 1
        return
    p95 = total.get_response_time_percentile(0.95)
    errors = total.fail_ratio * 100
    is_good = p95 <= options.slo_p95 and errors <= options.slo_errors
    environment.process_exit_code = 0 if is_good else 1
    print(  # noqa: T201
        f"{'PASS' if is_good else 'FAIL'}: p95 {p95:.0f} ms (limit {options.slo_p95:.0f}), "
        f"errors {errors:.2f} % (limit {options.slo_errors:g}), {total.total_rps:.0f} requests/s",
        # On standard output `--json` has what a program reads.
        file=sys.stderr,
    )


# Each step: until which share of the run time, and with which share of the users.
SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "steady": ((1.0, 1.0),),
    "spike": ((0.3, 0.2), (0.5, 1.0), (1.0, 0.2)),
    "overload": ((0.2, 0.1), (0.8, 1.0), (1.0, 0.1)),
    "soak": ((0.05, 0.5), (1.0, 1.0)),
}


class Shape(LoadTestShape):
    """`steady` is what --users and --run-time say; the others go up and down inside of it."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        seconds = options.run_time or 3600
        elapsed = self.get_run_time() / seconds
        for until, share in SHAPES[options.shape]:
            if elapsed < until:
                return max(1, round((options.num_users or 1) * share)), options.spawn_rate or 10
        return None


class Person(FastHttpUser):
    """A user who signed up at the start of the run."""

    wait_time = between(0.05, 0.3)

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        # An address copied from a browser ends in a slash, and each path begins with one.
        self.client.base_url = self.client.base_url.rstrip("/")

    def on_start(self) -> None:
        unique = "".join(random.choices(string.ascii_lowercase + string.digits, k=16))
        self.email = f"load-{unique}@example.com"
        self.etags: dict[str, str] = {}
        answer = self.call("POST", "/v1/auth/register", expect=201, json={"email": self.email, "password": PASSWORD})
        if answer.status_code != 201:
            # Without an account there is nothing to do; the failure is counted.
            raise GreenletExit
        self.take_tokens(answer.json()["tokens"])

    def take_tokens(self, tokens: dict[str, Any]) -> None:
        self.refresh_token = tokens["refresh_token"]
        self.headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        self.tokens_since = time.monotonic()

    def call(self, method: str, path: str, *, expect: int = 200, name: str | None = None, **options: Any) -> Any:
        """One request as this person; any other status than `expect` is a failure."""
        headers = {**getattr(self, "headers", {}), **options.pop("headers", {})}
        with self.client.request(
            method, path, name=name or f"{method} {path}", headers=headers, catch_response=True, **options
        ) as answer:
            if answer.status_code == expect:
                answer.success()
            else:
                answer.failure(f"{answer.status_code} instead of {expect}")
            return answer

    def read(self, path: str, name: str) -> None:
        """A read as a browser does it: the second time with the tag of the answer it has."""
        if time.monotonic() - self.tokens_since > TOKEN_SECONDS:
            self.refresh()
        headers = {"If-None-Match": self.etags[path]} if path in self.etags and random.random() < 0.5 else {}
        with self.client.request(
            "GET", path, name=name, headers={**self.headers, **headers}, catch_response=True
        ) as answer:
            if answer.status_code in {200, 304}:
                answer.success()
                if etag := answer.headers.get("etag"):
                    self.etags[path] = etag
            else:
                answer.failure(f"{answer.status_code} instead of 200")

    def refresh(self) -> None:
        answer = self.call("POST", "/v1/auth/refresh", json={"refresh_token": self.refresh_token})
        if answer.status_code == 200:
            self.take_tokens(answer.json())

    @tag("read")
    @task(50)
    def see_overview(self) -> None:
        self.read("/v1/overview", "GET /v1/overview")

    @tag("read")
    @task(15)
    def see_profile(self) -> None:
        self.read("/v1/users/me", "GET /v1/users/me")

    @tag("read")
    @task(15)
    def see_events(self) -> None:
        self.read("/v1/users/me/events?limit=20", "GET /v1/users/me/events")

    @tag("write")
    @task(8)
    def post_events(self) -> None:
        batch = [{"kind": random.choice(KINDS), "properties": {"n": n}} for n in range(random.choice((1, 1, 1, 20)))]
        body = batch[0] if len(batch) == 1 else {"events": batch}
        self.call("POST", "/v1/events", expect=201, json=body)

    @tag("write")
    @task(4)
    def change_preferences(self) -> None:
        body = {"theme": random.choice(("system", "light", "dark"))}
        self.call("PATCH", "/v1/users/me/preferences", json=body)

    @tag("auth")
    @task(4)
    def come_and_go(self) -> None:
        """A session of its own from log-in to log-out."""
        answer = self.call("POST", "/v1/auth/login", json={"email": self.email, "password": PASSWORD})
        if answer.status_code != 200:
            return
        tokens = answer.json()["tokens"]
        again = self.call("POST", "/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        if again.status_code == 200:
            tokens = again.json()
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        self.call(
            "POST",
            "/v1/auth/logout",
            expect=204,
            headers=headers,
            json={"refresh_token": tokens["refresh_token"]},
        )

    @tag("jobs")
    @task(2)
    def export_events(self) -> None:
        """Ask for a file, wait until it is made, fetch it."""
        body = {"kind": "export.events", "args": {"format": "csv"}}
        answer = self.call("POST", "/v1/jobs", expect=202, json=body)
        if answer.status_code == 202:
            self.fetch_artifacts(answer.json()["id"])

    @tag("jobs")
    @task(2)
    def issue_invoice(self) -> None:
        """An invoice until its PDF."""
        unique = "".join(random.choices(string.digits, k=12))
        body = {
            "number": f"L-{unique}",
            "order_id": f"order-{unique}",
            "customer": {"name": "Load Test", "email": self.email, "address": "1 Main Street"},
            "currency": "EUR",
            "lines": [{"description": "Something", "quantity": 2, "unit_price_minor": 1250}],
            "tax_rate_percent": "19",
        }
        answer = self.call("POST", "/v1/invoices", expect=202, json=body)
        if answer.status_code == 202:
            invoice = answer.json()["invoice"]["id"]
            if self.wait_for_job(answer.json()["job"]["id"]):
                self.call("GET", f"/v1/invoices/{invoice}/pdf", name="GET /v1/invoices/{id}/pdf")

    def wait_for_job(self, job_id: str) -> dict[str, Any] | None:
        """The finished job, or None after a failure was noted."""
        deadline = time.monotonic() + JOB_SECONDS
        pause = 0.05
        while time.monotonic() < deadline:
            answer = self.call("GET", f"/v1/jobs/{job_id}", name="GET /v1/jobs/{id}")
            if answer.status_code != 200:
                return None
            job: dict[str, Any] = answer.json()
            if job["state"] == "succeeded":
                return job
            if job["state"] in {"failed", "cancelled"}:
                break
            sleep(pause)
            pause = min(pause * 1.5, 1.0)
        self.environment.events.request.fire(
            request_type="JOB",
            name="a job until its end",
            response_time=JOB_SECONDS * 1000,
            response_length=0,
            exception=RuntimeError("the job did not succeed in time"),
            context={},
        )
        return None

    def fetch_artifacts(self, job_id: str) -> None:
        job = self.wait_for_job(job_id)
        for artifact in job["artifacts"] if job else ():
            path = f"/v1/jobs/{job_id}/artifacts/{artifact['name']}"
            self.call("GET", path, name="GET /v1/jobs/{id}/artifacts/{name}")
