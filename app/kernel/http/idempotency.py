"""Idempotency-Key (IETF httpapi draft): one effect and one answer for 24 hours per caller, operation and key.

Key and effect are committed in one transaction, so a crash leaves either both or neither. The stored answer is sealed
with the key itself, because it may hold what is shown only once.

What one caller can make us keep is bounded (`APP_HTTP_IDEMPOTENCY_KEYS`). Beyond it a new key is refused and an old one
still answers: dropping the oldest would let a late repetition take effect a second time.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from hashlib import sha256

from fastapi import Request, Response
from prometheus_client import Counter

from app.kernel.database import Database, Tx, retries_conflicts, retries_lost_sessions
from app.kernel.errors import BadRequest, Conflict, Unprocessable
from app.kernel.ids import UserId
from app.kernel.rate_limits import QuotaExceeded
from app.kernel.resources import Resources
from app.kernel.sealing import Keys, SealBroken

KEPT_FOR = timedelta(hours=24)
MAX_KEY_LENGTH = 255
# Keys are hashes, so each of the slices that two hexadecimal digits make has as many; one of them is counted quickly.
# Whatever keys a caller chooses, all slices together hold no more than the limit.
_SLICES = 256
_SLICE_DIGITS = 2
# An answer counts as so many keys as it has times this size.
_COUNTED_BYTES = 1024
_RETRY_SECONDS = 3600
_REPLAYED_HEADERS = ("location", "etag", "content-type")
_SERVER_ERROR = 500

_outcomes_total = Counter("onehop_idempotency_requests", "Requests with an Idempotency-Key.", ["outcome"])


class InvalidIdempotencyKey(BadRequest):
    """The key must have 1 to 255 printable ASCII characters."""

    code = "invalid_idempotency_key"
    title = "Invalid Idempotency-Key"


class IdempotencyKeyReused(Unprocessable):
    """The key belongs to a request with another body. Use a new key for each request."""

    code = "idempotency_key_reused"
    title = "Idempotency-Key reused"


class TooManyIdempotencyKeys(QuotaExceeded):
    """The client may send the request without a key, or once older keys have ended."""


class RequestInProgress(Conflict):
    """Wait for the first request to finish; its answer is then given to this one too."""

    code = "request_in_progress"
    title = "Idempotency-Key in progress"


# The lock is tried first, because an INSERT would wait for the one that has just inserted the same key. ON CONFLICT
# looks at the newest row of the key, also at one that was committed after the statement began.
CLAIM_KEY = """
WITH lock AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(hashtextextended($6, 0)) AS is_held),
     slice AS MATERIALIZED (
       SELECT coalesce(sum(1 + coalesce(octet_length(body), 0) / $9), 0) >= $8 AS is_full
         FROM (SELECT body FROM kernel.idempotency_keys
                WHERE caller = $1 AND operation = $2 AND key >= $7 AND key < $7 || 'g' LIMIT $8) AS kept),
     claim AS (
       INSERT INTO kernel.idempotency_keys (caller, operation, key, request_hash, created_at, expires_at)
       SELECT $1::text, $2::text, $3::text, $4::bytea, now(), now() + $5::interval FROM lock, slice
        WHERE lock.is_held
          AND (NOT slice.is_full
               OR EXISTS (SELECT FROM kernel.idempotency_keys WHERE caller = $1 AND operation = $2 AND key = $3))
       ON CONFLICT (caller, operation, key) DO UPDATE
          SET request_hash = excluded.request_hash, status = NULL, body = NULL,
              created_at = excluded.created_at, expires_at = excluded.expires_at
        WHERE idempotency_keys.expires_at <= excluded.created_at
       RETURNING key)
SELECT lock.is_held, slice.is_full, EXISTS (SELECT FROM claim) AS is_fresh FROM lock, slice
"""

GET_ANSWER = """
SELECT request_hash, status, body FROM kernel.idempotency_keys WHERE caller = $1 AND operation = $2 AND key = $3
"""

STORE_ANSWER = """
UPDATE kernel.idempotency_keys SET status = $4, body = $5 WHERE caller = $1 AND operation = $2 AND key = $3
"""

# One that is being claimed anew at this moment is left alone.
DELETE_EXPIRED_KEYS = """
DELETE FROM kernel.idempotency_keys
 WHERE (caller, operation, key) IN (
       SELECT caller, operation, key FROM kernel.idempotency_keys
        WHERE expires_at <= now()
        LIMIT $1
        FOR UPDATE SKIP LOCKED)
"""

DELETE_KEYS_OF = """
DELETE FROM kernel.idempotency_keys WHERE caller = $1 AND (operation, key) IN (
    SELECT k.operation, k.key FROM kernel.idempotency_keys AS k WHERE k.caller = $1 LIMIT $2
)
"""

Effect = Callable[[Tx], Awaitable[Response]]


async def idempotent(
    request: Request,
    resources: Resources,
    user_id: UserId,
    *,
    operation: str,
    effect: Effect,
    single_statement: bool = False,
) -> Response:
    """Runs `effect` in a transaction and answers what it answers; with an `Idempotency-Key`, at most once.

    `operation` is one name for a route, whatever object the path names, because the limit of keys is for each.
    `single_statement` says that the effect runs one statement, which needs no transaction when there is no key.

    Raises:
        InvalidIdempotencyKey: it is empty, longer than 255 characters, or not printable ASCII.
        IdempotencyKeyReused: it came with another body before.
        RequestInProgress: the first request with it has not finished.
        TooManyIdempotencyKeys: it is new, and too many of this caller and operation are kept.
    """
    key = _key_of(request)
    if key is None:
        return await _without_key(resources.db, operation, effect, single_statement=single_statement)
    # What the path names belongs to the request; in the operation it would give each object keys of its own.
    named = "".join(f"{value}\0" for value in request.path_params.values())
    request_hash = sha256((named + request.url.query).encode() + b"\0" + await request.body()).digest()
    return await _with_key(resources, str(user_id), operation, key, request_hash, effect)


def check_key(request: Request) -> None:
    """For an answer that has no effect. Raises InvalidIdempotencyKey as `idempotent` does."""
    _key_of(request)


async def delete_expired_keys(tx: Tx, limit: int) -> int:
    """Removes up to `limit` keys past their time; the answer is how many."""
    return int((await tx.execute(DELETE_EXPIRED_KEYS, limit)).removeprefix("DELETE "))


async def delete_keys_of(tx: Tx, user_id: UserId, limit: int) -> int:
    """Removes up to `limit` keys of a caller, with the answers that are kept for them; the answer is how many."""
    return int((await tx.execute(DELETE_KEYS_OF, str(user_id), limit)).removeprefix("DELETE "))


def _key_of(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    # The draft makes it a structured-field string, in quotes; bare ones are common.
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise InvalidIdempotencyKey(f"It must have 1 to {MAX_KEY_LENGTH} printable ASCII characters.")
    return key


@retries_conflicts
async def _without_key(db: Database, operation: str, effect: Effect, *, single_statement: bool) -> Response:
    async with db.statement(operation) if single_statement else db.transaction(operation) as tx:
        return await effect(tx)


@retries_lost_sessions
@retries_conflicts
async def _with_key(
    resources: Resources, caller: str, operation: str, key: str, request_hash: bytes, effect: Effect
) -> Response:
    # The key itself never reaches the database, so that the stored answer cannot be opened there.
    key_hash = sha256(key.encode()).hexdigest()
    seal_context = f"{caller}\0{operation}\0{key}".encode()
    async with resources.db.transaction(operation) as tx:
        lock = f"{caller}|{operation}|{key_hash}"
        claim = await tx.fetchrow(
            CLAIM_KEY,
            caller,
            operation,
            key_hash,
            request_hash,
            KEPT_FOR,
            lock,
            key_hash[:_SLICE_DIGITS],
            max(1, resources.http.idempotency_keys // _SLICES),
            _COUNTED_BYTES,
        )
        if claim is None or not claim["is_held"]:
            _outcomes_total.labels("in_progress").inc()
            raise RequestInProgress
        if not claim["is_fresh"]:
            stored = await tx.fetchrow(GET_ANSWER, caller, operation, key_hash)
            if stored is None and claim["is_full"]:
                _outcomes_total.labels("refused").inc()
                raise TooManyIdempotencyKeys(
                    f"So many keys of this operation are kept for {KEPT_FOR.total_seconds() / 3600:g} hours. Send the "
                    "request later, or without a key.",
                    retry_after=_RETRY_SECONDS,
                )
            if stored is None or stored["status"] is None:
                raise RequestInProgress
            if stored["request_hash"] != request_hash:
                _outcomes_total.labels("reused").inc()
                raise IdempotencyKeyReused
            _outcomes_total.labels("replayed").inc()
            try:
                return _unpack(resources.keys, stored["status"], stored["body"], seal_context)
            except SealBroken as error:
                # Sealed before APP_SECRET_KEY changed: it was done, but the answer cannot be given again.
                raise IdempotencyKeyReused("The answer of then can no longer be read. Use a new key.") from error
        response = await effect(tx)
        if response.status_code < _SERVER_ERROR:
            sealed = _pack(resources.keys, response, seal_context)
            await tx.execute(STORE_ANSWER, caller, operation, key_hash, response.status_code, sealed)
    _outcomes_total.labels("first").inc()
    return response


def _pack(keys: Keys, response: Response, context: bytes) -> bytes:
    lines = [f"{name}: {response.headers[name]}" for name in _REPLAYED_HEADERS if name in response.headers]
    plain = "\n".join(lines).encode() + b"\n\n" + bytes(response.body)
    return keys.encrypt("idempotency", plain, context=context)


def _unpack(keys: Keys, status: int, sealed: bytes, context: bytes) -> Response:
    head, _, body = keys.decrypt("idempotency", sealed, context=context).partition(b"\n\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\n") if line)
    return Response(body, status, headers | {"Idempotent-Replayed": "true"})
