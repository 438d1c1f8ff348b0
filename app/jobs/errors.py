"""What callers of the jobs module may be told."""

from app.kernel.errors import BadRequest, Conflict, Gone, NotFound, TooManyRequests, Unavailable, Unprocessable


class JobNotFound(NotFound):
    """The caller has no job with this id."""

    code = "job_not_found"
    title = "There is no such job"


class ArtifactNotFound(NotFound):
    """The job has no artifact of this name. `artifacts` of the job lists them."""

    code = "artifact_not_found"
    title = "The job has no such file"


class ArtifactExpired(Gone):
    """The file has passed its `expires_at` and was deleted. Run the job again."""

    code = "artifact_expired"
    title = "The file was deleted after its time"


class UnsubscribeLinkInvalid(BadRequest):
    """The token of the link was changed or cut off. Turn the e-mail off in your preferences."""

    code = "unsubscribe_link_invalid"
    title = "This link is not valid"


class UnsubscribeLinkExpired(Gone):
    """The link is older than it may be. Turn the e-mail off in your preferences."""

    code = "unsubscribe_link_expired"
    title = "This link has expired"


class StoreUnavailable(Unavailable):
    """The disk or the object store of files refuses, is full, or does not answer. Try again after `Retry-After`."""

    code = "store_unavailable"
    title = "The files cannot be reached at the moment"


class UnknownKind(Unprocessable):
    """Jobs of this kind cannot be submitted."""

    code = "unknown_kind"
    title = "There is no job of this kind"


class InvalidArgs(Unprocessable):
    """The arguments do not fit the kind of job. `errors` names each of them by its pointer."""

    code = "invalid_args"
    title = "The arguments do not fit this kind of job"


class JobFinished(Conflict):
    """The job has succeeded, failed or was cancelled, and cannot be cancelled any more."""

    code = "job_finished"
    title = "The job is over already"


class JobNotRetryable(Conflict):
    """Only a job in the state `failed` or `cancelled` can be retried."""

    code = "job_not_retryable"
    title = "Only a failed or cancelled job can be retried"


class UniqueKeyInUse(Conflict):
    """Another job with the same `unique_key` is unfinished, so this one cannot run again."""

    code = "unique_key_in_use"
    title = "Another unfinished job has the same unique key"


class LaneNotFound(NotFound):
    """No queue has this name."""

    code = "lane_not_found"
    title = "There is no such queue"


class InvoiceNotFound(NotFound):
    """The caller has no invoice with this id."""

    code = "invoice_not_found"
    title = "There is no such invoice"


class InvoiceNumberTaken(Conflict):
    """The caller has another invoice with this `number`."""

    code = "invoice_number_taken"
    title = "Another invoice has this number"


class InvoiceNotReady(Conflict):
    """The job that makes the file has not finished. Wait for it and try again."""

    code = "not_ready"
    title = "The file has not been made yet"


class EndpointNotFound(NotFound):
    """The caller has no webhook endpoint with this id."""

    code = "endpoint_not_found"
    title = "There is no such webhook endpoint"


class DeliveryNotFound(NotFound):
    """The caller has no delivery with this id."""

    code = "delivery_not_found"
    title = "There is no such delivery"


class UrlBlocked(Unprocessable):
    """The address is private, local, without TLS where that is required, or does not resolve."""

    code = "url_blocked"
    title = "Webhooks cannot be sent to this address"


class RenderingOverloaded(Unavailable):
    """More files that are no longer stored are being made again than the server makes at a time. Try again after
    `Retry-After`.
    """


class TooManyEndpoints(Conflict):
    """Delete a webhook endpoint before another one is created."""

    code = "too_many_endpoints"
    title = "There are as many webhook endpoints as one account may have"


class TooManyStreams(TooManyRequests):
    """The caller has as many open job streams as are allowed. Close one, or wait for `Retry-After`."""

    code = "too_many_streams"
    title = "Too many open job streams"


class BacklogFull(TooManyRequests):
    """You have as many unfinished jobs of this queue, or pending deliveries, as one account may have, or the oldest has
    waited for too long. Try again after `Retry-After`, or cancel some.
    """

    code = "backlog_full"
    title = "Too much of your work is waiting"
