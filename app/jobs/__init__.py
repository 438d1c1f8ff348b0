"""Background jobs: heavy work leaves the request, and nothing is ever lost.

Tables: `jobs.jobs` (the only truth), `jobs.artifacts`, `jobs.lanes`, `jobs.epoch`. Public calls: `app.jobs.api`. Redis
holds ids of queued rows and may lose them at any time.

Invariants: a job is run by the holder of its run token, and only that run can end it. A final row changes by nothing
but the retry call. A file is visible exactly when its job has succeeded.
"""
