"""The kinds `report.weekly` and `report.email`: a report of the past week for each user who wants one.

`report.weekly` works page by page. Each page is one transaction with the reports of its users and the job of the next
page, so that a page is done once, whatever happens in between.
"""

from datetime import date, datetime, timedelta
from uuid import UUID

from pydantic import AwareDatetime, Field

from app.jobs.errors import ArtifactExpired, ArtifactNotFound
from app.jobs.handlers.email_send import MAIL_TEMPLATES
from app.jobs.handlers.report_activity import KIND_MAIL, KIND_REPORT, REPORT_NAME, REPORT_QUEUE
from app.jobs.queries.scheduling import is_job_of_schedule
from app.jobs.service.artifacts import get_artifact
from app.jobs.service.storage import ArtifactStore
from app.jobs.service.unsubscribing import make_unsubscribe_link
from app.kernel.ids import UserId
from app.kernel.mail import Attachment, Mail, MailWithheld
from app.kernel.queue import JobArgs, JobContext, job
from app.kernel.validation.addresses import canonical_email
from app.users.api import export_user, list_weekly_reporters

KIND_WEEKLY = "report.weekly"
PAGE = 500
# That of the schedule's reports. The API offers no priority, so with the key it tells them from reports that
# their owner has asked for.
_PRIORITY = 4


class WeeklyArgs(JobArgs):
    """The time this run stands for, and the last user of the page before."""

    scheduled_at: AwareDatetime = Field(strict=False)
    after: UUID | None = Field(None, strict=False)


class ReportMailArgs(JobArgs):
    """Which report of the job's owner."""

    job_id: UUID = Field(strict=False)
    since: date = Field(strict=False)
    until: date = Field(strict=False)


@job(KIND_WEEKLY, args=WeeklyArgs, queue="bulk", timeout=60)
async def report_weekly(ctx: JobContext, args: WeeklyArgs) -> None:
    """Makes the reports of the ISO week before `scheduled_at`, in UTC."""
    since, until = past_week(args.scheduled_at)
    key = _weekly_key(since)
    async with ctx.transaction("jobs.weekly_reports") as tx:
        users = await list_weekly_reporters(tx, UserId(args.after) if args.after else None, PAGE)
        reports = [
            ctx.queue.new_job(
                KIND_REPORT,
                {"since": since.isoformat(), "until": until.isoformat(), "mail": True},
                user_id=user_id,
                queue=REPORT_QUEUE,
                unique_key=key,
                priority=_PRIORITY,
                max_attempts=5,
                timeout_s=120,
            )
            for user_id in users
        ]
        if reports:
            await ctx.queue.enqueue_rows(tx, reports)
        if len(users) == PAGE:
            following = {"scheduled_at": args.scheduled_at.isoformat(), "after": str(users[-1])}
            await ctx.queue.enqueue(
                tx, KIND_WEEKLY, following, user_id=None, queue="bulk", unique_key=f"{key}:{users[-1]}", timeout_s=60
            )
        await ctx.complete(tx, {"reports": len(reports)})


def past_week(now: datetime) -> tuple[datetime, datetime]:
    """From Monday to Monday, 00:00 in the zone of `now`; the end is the last one that has come."""
    until = (now - timedelta(days=now.weekday())).replace(hour=0, minute=0, second=0, microsecond=0)
    return until - timedelta(days=7), until


def _weekly_key(since: date) -> str:
    year, week, _ = since.isocalendar()
    return f"weekly:{year}-W{week:02}"


@job(KIND_MAIL, args=ReportMailArgs)
async def report_email(ctx: JobContext, args: ReportMailArgs) -> dict[str, bool]:
    """Sends nothing to a user without a verified address, nor to one that wants no such e-mail by now.

    The report of the schedule, which was not asked for, has a link that ends it.
    """
    async with ctx.db.read("jobs.report_reader") as conn:
        reader = await export_user(conn, ctx.owner)
        is_weekly = await is_job_of_schedule(conn, ctx.owner, args.job_id, _weekly_key(args.since), _PRIORITY)
    if reader is None or not (reader.user.email_verified and reader.preferences.email_notifications):
        return {"sent": False}
    if is_weekly and not reader.preferences.weekly_report:
        return {"sent": False}
    try:
        artifact = await get_artifact(ctx.db, args.job_id, ctx.owner, REPORT_NAME)
    except (ArtifactNotFound, ArtifactExpired):
        return {"sent": False}
    link = None
    if is_weekly:
        address = canonical_email(reader.user.email)
        link = make_unsubscribe_link(ctx.keys, ctx.base_url, ctx.owner, address, ctx.clock.now())
    data = {
        "product": ctx.product,
        "name": reader.user.display_name,
        "unsubscribe": link,
        "since": args.since.isoformat(),
        "until": (args.until - timedelta(days=1)).isoformat(),
    }
    subject, text, html = MAIL_TEMPLATES.render("report_mail", data)
    content = await ctx.service(ArtifactStore).read_all(artifact.storage_key)
    pdf = Attachment(REPORT_NAME, artifact.content_type, content)
    mail = Mail(
        *(reader.user.email, subject, text, html, str(ctx.job_id)),
        attachments=(pdf,),
        unsubscribe_url=link,
        purpose="report",
        account=ctx.owner,
    )
    try:
        await ctx.send_mail(mail)
    except MailWithheld:
        return {"sent": False}
    return {"sent": True}
