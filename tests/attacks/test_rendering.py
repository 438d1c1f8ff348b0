"""Files that are made again: in few threads, in turns, and only while the client is there."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest
from fastapi import FastAPI

from app.jobs.errors import RenderingOverloaded
from app.kernel.fairness.callers import Caller, caller_var
from app.kernel.fairness.disconnects import ClientGone, watched_var
from app.kernel.fairness.threads import FairThreads
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.jobs.test_invoices import INVOICE


class Work:
    """Computations that a test lets end."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._gate = threading.Event()

    def end(self) -> None:
        self._gate.set()

    async def run(self, threads: FairThreads, caller: str, name: str) -> str:
        caller_var.set(Caller(caller))

        def compute() -> str:
            self.begun.append(name)
            self._gate.wait(20)
            return name

        return await threads.run(compute)


@pytest.fixture
async def threads() -> AsyncIterator[FairThreads]:
    made = FairThreads("test", 1, queue=3, per_caller=2, overloaded=RenderingOverloaded)
    yield made
    await made.close()


async def test_one_caller_has_few_turns_and_all_have_a_bound(threads: FairThreads) -> None:
    work = Work()
    first = [asyncio.create_task(work.run(threads, "greedy", name)) for name in ("g1", "g2")]
    await eventually(lambda: work.begun == ["g1"])
    with pytest.raises(RenderingOverloaded):
        await asyncio.create_task(work.run(threads, "greedy", "g3"))
    others = [asyncio.create_task(work.run(threads, f"other {number}", f"o{number}")) for number in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(RenderingOverloaded):
        await asyncio.create_task(work.run(threads, "late", "l1"))
    work.end()
    assert await asyncio.gather(*first, *others) == ["g1", "g2", "o1", "o2"]
    # What has ended counts no more.
    assert await asyncio.create_task(work.run(threads, "greedy", "g4")) == "g4"


class Client:
    """Stands for the connection of a request."""

    def __init__(self) -> None:
        self._act: Callable[[], object] | None = None

    def tell_when_gone(self, act: Callable[[], object] | None) -> None:
        self._act = act

    def extend(self, seconds: float) -> None:
        raise NotImplementedError

    def leave(self) -> None:
        assert self._act is not None
        self._act()


async def test_work_of_a_client_that_has_gone_is_not_begun(threads: FairThreads) -> None:
    work, client = Work(), Client()
    running = asyncio.create_task(work.run(threads, "one", "running"))
    await eventually(lambda: work.begun == ["running"])

    async def wait() -> str:
        watched_var.set(client)
        return await work.run(threads, "two", "waiting")

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    client.leave()
    with pytest.raises(ClientGone):
        await waiting
    work.end()
    assert await running == "running"
    assert await asyncio.create_task(work.run(threads, "two", "again")) == "again"
    assert work.begun == ["running", "again"]


async def test_the_process_answers_while_all_turns_are_taken(
    app: FastAPI, person: Person, connection: Connection
) -> None:
    invoice = (await person.post("/v1/invoices", json=INVOICE)).json()["invoice"]
    await connection.execute("UPDATE jobs.invoices SET status = 'sent'")
    await connection.execute("DELETE FROM jobs.jobs")
    threads: FairThreads = app.state.jobs.rendering
    work = Work()
    taken = [asyncio.create_task(work.run(threads, f"caller {n}", str(n))) for n in range(threads.size)]
    await eventually(lambda: len(work.begun) == 1)
    refused = await person.get(f"/v1/invoices/{invoice['id']}/pdf")
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await person.get("/metrics")).status_code == 200
    work.end()
    await asyncio.gather(*taken)
    assert (await person.get(f"/v1/invoices/{invoice['id']}/pdf")).status_code == 200
