import asyncio, sys, traceback
from app.worker import open_worker
from tests.jobs.worker_process import KINDS, TRACES
async def test_x(settings, connection):
    await connection.execute(TRACES)
    async def watch():
        await asyncio.sleep(6)
        for t in asyncio.all_tasks():
            t.print_stack(limit=8, file=sys.stdout)
    w = asyncio.create_task(watch())
    async with open_worker(settings, KINDS) as worker:
        async with worker.db.statement("x") as tx:
            await worker.queue.enqueue(tx, "test.sleep", {"seconds": 3.0}, user_id=None)
        await asyncio.sleep(1)
        print(worker.runner.tasks)
        await worker.drain()
    w.cancel()
