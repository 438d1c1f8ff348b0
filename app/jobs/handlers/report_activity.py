"""The kind `report.activity`: what a user did in a period, as a PDF with a chart."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

import orjson

from app.jobs.schemas.job_kinds import ReportArgs
from app.jobs.service.documents import typeset
from app.kernel.queue import DataAccess, JobContext, job
from app.users.api import EventSummary, summarise_events

KIND_REPORT = "report.activity"
KIND_MAIL = "report.email"
REPORT_QUEUE = "pdf"
# Rows of the table, whose memory and time grow with them; the rest is one row, named as no kind can be.
MAX_REPORT_KINDS = 100
OTHER_KINDS = "Other kinds"
REPORT_NAME = "activity.pdf"


@job(
    KIND_REPORT,
    args=ReportArgs,
    queue=REPORT_QUEUE,
    public=True,
    access=DataAccess(frozenset({"events:read"})),
    max_attempts=5,
    timeout=120,
)
async def report_activity(ctx: JobContext, args: ReportArgs) -> Mapping[str, Any]:
    """Answers with the number of events; the file is the artifact `activity.pdf`."""
    summary = await summarise_events(ctx.db, ctx.clock, ctx.owner, bucket="day", since=args.since, until=args.until)
    data = _data_of(summary)
    async with ctx.artifact(REPORT_NAME, "application/pdf") as file:
        document = await asyncio.to_thread(typeset, "activity", data, args.until)
        await file.write(document.pdf)
    result = {"events": data["total"], **document.remarks}
    if args.mail:
        period = {"since": args.since.date().isoformat(), "until": args.until.date().isoformat()}
        async with ctx.transaction("jobs.report_made") as tx:
            await ctx.queue.enqueue(
                tx,
                KIND_MAIL,
                {"job_id": str(ctx.job_id), **period},
                user_id=ctx.owner,
                unique_key=str(ctx.job_id),
            )
            await ctx.complete(tx, result)
    return result


def _data_of(summary: EventSummary) -> dict[str, Any]:
    by_day: Counter[date] = Counter()
    by_kind: Counter[str] = Counter()
    others = orjson.loads(summary.others)
    for item in orjson.loads(summary.items):
        by_day[_day_of(item)] += item["count"]
        by_kind[item["kind"]] += item["count"]
    for item in others:
        by_day[_day_of(item)] += item["count"]
    listed = sorted(by_kind.items(), key=lambda pair: (-pair[1], pair[0]))
    if others or len(listed) > MAX_REPORT_KINDS:
        listed = listed[:MAX_REPORT_KINDS]
        listed.append((OTHER_KINDS, by_day.total() - sum(count for _, count in listed)))
    first = summary.since.date()
    last = (summary.until - timedelta(microseconds=1)).date()
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    return {
        "made": [last.year, last.month, last.day],
        "since": first.isoformat(),
        "until": last.isoformat(),
        "total": by_day.total(),
        "days": [{"day": day.isoformat(), "count": by_day[day]} for day in days],
        "kinds": [{"kind": kind, "count": count} for kind, count in listed],
    }


def _day_of(item: Mapping[str, Any]) -> date:
    return datetime.fromisoformat(item["starts_at"]).date()
