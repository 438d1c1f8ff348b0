"""What callers of the jobs module may be told."""

from app.kernel.errors import (
    BadRequest,
    Conflict,
    Gone,
    NotFound,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    Unprocessable,
)


class JobNotFound(NotFound):
    """The caller has no job with this id."""

    code = "job_not_found"
    title = "Job not found"


class ArtifactNotFound(NotFound):
    """The job has no artifact of this name. `artifacts` of the job lists them."""

    code = "artifact_not_found"
    title = "File not found"


class ArtifactExpired(Gone):
    """The file has passed its `expires_at` and was deleted. Run the job again."""

    code = "artifact_expired"
    title = "File expired"


class UnsubscribeLinkInvalid(BadRequest):
    """The token of the link was changed or cut off. Turn the e-mail off in your preferences."""

    code = "unsubscribe_link_invalid"
    title = "Invalid link"


class UnsubscribeLinkExpired(Gone):
    """The link is older than it may be. Turn the e-mail off in your preferences."""

    code = "unsubscribe_link_expired"
    title = "Link expired"


class StoreUnavailable(Unavailable):
    """The disk or the object store of files refuses, is full, or does not answer. Try again after `Retry-After`."""

    code = "store_unavailable"
    title = "File storage unavailable"


class UnknownKind(Unprocessable):
    """Jobs of this kind cannot be submitted."""

    code = "unknown_kind"
    title = "Unknown job kind"


class InvalidArgs(Unprocessable):
    """The arguments do not fit the kind of job. `errors` names each of them by its pointer."""

    code = "invalid_args"
    title = "Invalid job arguments"


class JobFinished(Conflict):
    """The job has succeeded, failed or was cancelled, and cannot be cancelled any more."""

    code = "job_finished"
    title = "Job already finished"


class JobNotRetryable(Conflict):
    """Only a job in the state `failed` or `cancelled` can be retried."""

    code = "job_not_retryable"
    title = "Job not retryable"


class UniqueKeyInUse(Conflict):
    """Another job with the same `unique_key` is unfinished, so this one cannot run again."""

    code = "unique_key_in_use"
    title = "Unique key in use"


class QueueNotFound(NotFound):
    """No queue has this name."""

    code = "queue_not_found"
    title = "Queue not found"


class ScheduleNotFound(NotFound):
    """No schedule has this name."""

    code = "schedule_not_found"
    title = "Schedule not found"


class InvoiceNotFound(NotFound):
    """The caller has no invoice with this id."""

    code = "invoice_not_found"
    title = "Invoice not found"


class InvoiceNumberTaken(Conflict):
    """The caller has another invoice with this `number`."""

    code = "invoice_number_taken"
    title = "Invoice number already in use"


class InvoiceNotReady(Conflict):
    """The job that makes the file has not finished. Wait for it and try again."""

    code = "not_ready"
    title = "File not ready"


class EndpointNotFound(NotFound):
    """The caller has no webhook endpoint with this id."""

    code = "endpoint_not_found"
    title = "Webhook endpoint not found"


class EndpointDisabled(Conflict):
    """Nothing is sent to this webhook endpoint. Enable it first."""

    code = "endpoint_disabled"
    title = "Webhook endpoint disabled"


class DeliveryNotFound(NotFound):
    """The caller has no delivery with this id."""

    code = "delivery_not_found"
    title = "Delivery not found"


class ReplayInProgress(Conflict):
    """The job of an earlier replay of this endpoint is unfinished. Wait for it, or cancel it."""

    code = "replay_in_progress"
    title = "Replay in progress"


class UrlBlocked(Unprocessable):
    """The address is private, local, without TLS where that is required, or does not resolve."""

    code = "url_blocked"
    title = "Webhook address not allowed"


class RenderingOverloaded(Unavailable):
    """More files that are no longer stored are being made again than the server makes at a time. Try again after
    `Retry-After`.
    """


class TooManyEndpoints(Conflict):
    """Delete a webhook endpoint before another one is created."""

    code = "too_many_endpoints"
    title = "Webhook endpoint limit reached"


class TooManyStreams(TooManyRequests):
    """The caller has as many open job streams or downloads as are allowed. Close one, or wait for `Retry-After`."""

    code = "too_many_streams"
    title = "Too many open job streams or downloads"


class InvalidTicket(Unauthenticated):
    """The ticket is that of another job, older than a minute, or has opened a stream already. Get another one."""

    code = "invalid_ticket"
    title = "Invalid ticket"


class BacklogFull(TooManyRequests):
    """You have as many unfinished jobs of this queue, or pending deliveries, as one account may have, or the oldest has
    waited for too long. Try again after `Retry-After`, or cancel some.
    """

    code = "backlog_full"
    title = "Job backlog limit reached"
