"""The kind `email.send`: one message to one address, given as it is or as a template and its data."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from app.kernel.mail import Mail, MailWithheld, Templates
from app.kernel.queue import SECRET, JobArgs, JobContext, job

KIND_SEND = "email.send"

MAIL_TEMPLATES = Templates(Path(__file__).parents[1] / "templates")


class SendEmailArgs(JobArgs):
    """Either `subject`, `text` and `html`, or the name of a `template` of this module and its `data`."""

    to: Annotated[str, Field(min_length=3, max_length=320)]
    # What is sent may hold a link that only its reader is to follow.
    subject: str | None = None
    text: Annotated[str | None, SECRET] = None
    html: Annotated[str | None, SECRET] = None
    template: Annotated[str, Field(pattern=r"^[a-z_]+$")] | None = None
    data: Annotated[dict[str, Any] | None, SECRET] = None

    @model_validator(mode="after")
    def _one_form(self) -> "SendEmailArgs":
        words = [part is not None for part in (self.subject, self.text, self.html)]
        if any(words) == (self.template is not None) or any(words) != all(words):
            raise ValueError("give subject, text and html, or a template")
        return self


@job(KIND_SEND, args=SendEmailArgs)
async def email_send(ctx: JobContext, args: SendEmailArgs) -> dict[str, Any]:
    """Callers choose the queue: `critical` for a message that the user waits for."""
    if args.template is not None:
        subject, text, html = MAIL_TEMPLATES.render(args.template, {"product": ctx.product} | (args.data or {}))
    else:
        subject, text, html = args.subject or "", args.text or "", args.html or ""
    try:
        await ctx.send_mail(Mail(args.to, subject, text, html, str(ctx.job_id)))
    except MailWithheld as withheld:
        return {"sent": False, "reason": withheld.reason}
    return {"sent": True}
