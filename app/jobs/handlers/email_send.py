"""The kind `email.send`: one message to one address, given as it is or as a template and its data."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from app.jobs.service.mail_outbox import MailOutbox
from app.kernel.mail import Mail, MailRefused, MailWithheld, Templates
from app.kernel.queue import JobArgs, JobContext, JobKind, PermanentJobError, job

KIND_SEND = "email.send"

MAIL_TEMPLATES = Templates(Path(__file__).parents[1] / "templates")


class SendEmailArgs(JobArgs):
    """Either `subject`, `text` and `html`, or the name of a `template` of this module and its `data`."""

    to: Annotated[str, Field(min_length=3, max_length=320)]
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    template: Annotated[str, Field(pattern=r"^[a-z_]+$")] | None = None
    data: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "SendEmailArgs":
        words = [part is not None for part in (self.subject, self.text, self.html)]
        if any(words) == (self.template is not None) or any(words) != all(words):
            raise ValueError("give subject, text and html, or a template")
        return self


def email_send_kind(outbox: MailOutbox, product: str) -> JobKind[Any]:
    """The kind, bound to where mail goes and to the product's name. Callers choose the queue: `critical` for a
    message that the user waits for.
    """

    @job(KIND_SEND, args=SendEmailArgs)
    async def email_send(ctx: JobContext, args: SendEmailArgs) -> dict[str, Any]:
        if args.template is not None:
            subject, text, html = MAIL_TEMPLATES.render(args.template, {"product": product} | (args.data or {}))
        else:
            subject, text, html = args.subject or "", args.text or "", args.html or ""
        try:
            await outbox.send(ctx, Mail(args.to, subject, text, html, str(ctx.job_id)))
        except MailWithheld as withheld:
            return {"sent": False, "reason": withheld.reason}
        except MailRefused as error:
            raise PermanentJobError(error.code, error.explanation) from error
        return {"sent": True}

    return email_send
