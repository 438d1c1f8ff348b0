"""What callers of the jobs module may be told."""

from app.kernel.errors import Conflict, Gone, NotFound, TooManyRequests, Unprocessable


class JobNotFound(NotFound):
    code = "job_not_found"
    title = "There is no such job"


class ArtifactNotFound(NotFound):
    code = "artifact_not_found"
    title = "The job has no such file"


class ArtifactExpired(Gone):
    code = "artifact_expired"
    title = "The file was deleted after its time"


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


class BacklogFull(TooManyRequests):
    code = "backlog_full"
    title = "Too much work of this kind is waiting"
