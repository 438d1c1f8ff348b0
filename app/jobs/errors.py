"""What callers of the jobs module may be told."""

from app.kernel.errors import BadRequest, Conflict, Gone, NotFound, TooManyRequests, Unavailable, Unprocessable


class JobNotFound(NotFound):
    code = "job_not_found"
    title = "There is no such job"


class ArtifactNotFound(NotFound):
    code = "artifact_not_found"
    title = "The job has no such file"


class ArtifactExpired(Gone):
    code = "artifact_expired"
    title = "The file was deleted after its time"


class UnsubscribeLinkInvalid(BadRequest):
    code = "unsubscribe_link_invalid"
    title = "This link is not valid"


class UnsubscribeLinkExpired(Gone):
    code = "unsubscribe_link_expired"
    title = "This link has expired"


class StoreUnavailable(Unavailable):
    """The disk or the object store of files refuses, is full, or does not answer."""

    code = "store_unavailable"
    title = "The files cannot be reached at the moment"


class UnknownKind(Unprocessable):
    code = "unknown_kind"
    title = "There is no job of this kind"


class InvalidArgs(Unprocessable):
    code = "invalid_args"
    title = "The arguments do not fit this kind of job"


class JobFinished(Conflict):
    code = "job_finished"
    title = "The job is over already"


class JobNotRetryable(Conflict):
    code = "job_not_retryable"
    title = "Only a failed or cancelled job can be retried"


class UniqueKeyInUse(Conflict):
    code = "unique_key_in_use"
    title = "Another unfinished job has the same unique key"


class LaneNotFound(NotFound):
    code = "lane_not_found"
    title = "There is no such lane"


class InvoiceNotFound(NotFound):
    code = "invoice_not_found"
    title = "There is no such invoice"


class InvoiceNumberTaken(Conflict):
    code = "invoice_number_taken"
    title = "Another invoice has this number"


class InvoiceNotReady(Conflict):
    code = "not_ready"
    title = "The file has not been made yet"


class EndpointNotFound(NotFound):
    code = "endpoint_not_found"
    title = "There is no such webhook endpoint"


class DeliveryNotFound(NotFound):
    code = "delivery_not_found"
    title = "There is no such delivery"


class UrlBlocked(Unprocessable):
    code = "url_blocked"
    title = "Webhooks cannot be sent to this address"


class TooManyEndpoints(Conflict):
    code = "too_many_endpoints"
    title = "There are as many webhook endpoints as one account may have"


class TooManyStreams(TooManyRequests):
    code = "too_many_streams"
    title = "The caller waits for as many jobs as one may at a time"


class BacklogFull(TooManyRequests):
    code = "backlog_full"
    title = "Too much work of this kind is waiting"
