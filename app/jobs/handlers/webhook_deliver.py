"""The kinds `webhook.deliver` and `webhook.publish`: one attempt to bring a message to an endpoint, and its fan-out."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from prometheus_client import Counter as Metric
from pydantic import Field

from app.jobs.queries import webhook_deliveries, webhook_endpoints
from app.jobs.records.webhooks import (
    BREAKER_SHORTEST,
    DISABLED_AFTER,
    MAX_ATTEMPTS,
    Delivery,
    Endpoint,
    Message,
    breaker_pause,
    retry_after,
)
from app.jobs.service.endpoints import SEAL_PURPOSE
from app.jobs.service.publishing import DELIVERY_TIMEOUT, KIND_DELIVER, QUEUE, publish_admin_event, publish_event
from app.jobs.service.reachability import NamesUnavailable, NetworkUnavailable
from app.jobs.service.resolving import LookupsBusy
from app.jobs.service.sending import WebhookResponse, WebhookSender
from app.kernel.ids import UserId
from app.kernel.queue import DataAccess, JobArgs, JobContext, PermanentJobError, RetryJob, SnoozeJob, job
from app.kernel.sealing import Keys, SealBroken
from app.kernel.webhook_subscribers import KIND_PUBLISH

_attempts_total = Metric("onehop_jobs_webhook_attempts", "Webhook requests.", ["outcome"])
_MAX_IN_FLIGHT = 4
# Of the 30 slots of the queue.
MOST_DELIVERIES_OF_A_USER = 10
_BUSY_SECONDS = 0.5
# What cannot be sent yet comes back spread over so many seconds for each pending delivery of its user. Otherwise
# thousands of jobs come back together, each for two writes and none for a request.
_SPREAD_BUSY = 0.02
_SPREAD_OPEN = 0.1
# Longer than this it is told to the owner of the endpoint, and costs attempts, as if the receiver were away.
_LONGEST_OUTAGE = timedelta(days=1)
_GONE = 410
# To retry a job is to redeliver, and to cancel it is to keep an event from its receiver.
_ACCESS = DataAccess(frozenset({"webhooks:manage"}))


class DeliverArgs(JobArgs):
    """Which delivery of the job's owner."""

    delivery_id: UUID = Field(strict=False)


class PublishArgs(JobArgs):
    """An event of the job's owner, or of the installation, as `kernel.webhook_subscribers` publishes it."""

    event_id: UUID = Field(strict=False)
    event_type: str
    data: dict[str, Any]


@job(KIND_PUBLISH, args=PublishArgs, queue=QUEUE, access=_ACCESS)
async def webhook_publish(ctx: JobContext, args: PublishArgs) -> None:
    """Brings an event to the endpoints that want it."""
    now = ctx.clock.now()
    async with ctx.transaction("jobs.publish") as tx:
        if ctx.user_id is None:
            await publish_admin_event(tx, ctx.queue, args.event_type, args.data, event_id=args.event_id, now=now)
        else:
            await publish_event(tx, ctx.queue, ctx.user_id, args.event_type, args.data, event_id=args.event_id, now=now)
        await ctx.complete(tx)


class WebhookDeliverer:
    """Makes deliveries of one worker. Slow receivers of one user hold at most a third of the queue's slots."""

    def __init__(self, sender: WebhookSender, keys: Keys) -> None:
        self._sender = sender
        self._keys = keys
        self._in_flight: Counter[UUID] = Counter()

    async def deliver(self, ctx: JobContext, args: DeliverArgs) -> dict[str, Any] | None:
        user_id = ctx.owner
        async with ctx.db.read("jobs.delivery") as conn:
            delivery = await webhook_deliveries.get_delivery(conn, user_id, args.delivery_id)
            if delivery is None:
                return None
            endpoint = await webhook_endpoints.get_endpoint(conn, user_id, delivery.endpoint_id)
            message = await webhook_deliveries.get_message(conn, user_id, delivery.message_id)
        if delivery.state == "delivered":
            # It was sent again on demand meanwhile, and that got there.
            return None
        if endpoint is None or message is None or endpoint.disabled_at is not None:
            await self._give_up(ctx, user_id, delivery.id, "endpoint_disabled")
            return None
        await self._wait_for_breaker(ctx, endpoint)
        if self._is_busy(endpoint):
            raise await _snooze(ctx, endpoint, _BUSY_SECONDS, _SPREAD_BUSY)
        try:
            with self._in_flight_to(endpoint):
                answer = await self._send(endpoint, message)
        except LookupsBusy as error:
            raise await _snooze(ctx, endpoint, _BUSY_SECONDS, _SPREAD_BUSY) from error
        except (NamesUnavailable, NetworkUnavailable) as error:
            if endpoint.read_at - delivery.created_at < _LONGEST_OUTAGE:
                raise
            answer = WebhookResponse(None, error.code, None, 0, None)
        except SealBroken:
            # Sealed before APP_SECRET_KEY changed; another attempt could not sign the message either.
            await self._give_up(ctx, user_id, delivery.id, "secret_unreadable")
            return None
        _attempts_total.labels(answer.error or f"{answer.status}"[:1] + "xx").inc()
        return await self._record_outcome(ctx, endpoint, delivery, answer)

    def _is_busy(self, endpoint: Endpoint) -> bool:
        """Whether there are as many requests to an endpoint, or to all of its user, as may be under way."""
        return (
            self._in_flight[endpoint.id] >= _MAX_IN_FLIGHT
            or self._in_flight[endpoint.user_id] >= MOST_DELIVERIES_OF_A_USER
        )

    @contextmanager
    def _in_flight_to(self, endpoint: Endpoint) -> Iterator[None]:
        """Counts a request to an endpoint while it is under way."""
        holders = (endpoint.id, endpoint.user_id)
        self._in_flight.update(holders)
        try:
            yield
        finally:
            self._in_flight.subtract(holders)
            for holder in holders:
                if not self._in_flight[holder]:
                    del self._in_flight[holder]

    async def _wait_for_breaker(self, ctx: JobContext, endpoint: Endpoint) -> None:
        """Lets one delivery through when the pause is over, as a probe; the others wait without using an attempt."""
        if endpoint.open_until is None:
            return
        if endpoint.open_until > endpoint.read_at:
            pause = (endpoint.open_until - endpoint.read_at).total_seconds()
            raise await _snooze(ctx, endpoint, pause + _BUSY_SECONDS, _SPREAD_OPEN)
        async with ctx.db.statement("jobs.webhook_probe") as tx:
            is_probe = await webhook_endpoints.take_probe(tx, endpoint.user_id, endpoint.id, BREAKER_SHORTEST)
        if not is_probe:
            raise await _snooze(ctx, endpoint, BREAKER_SHORTEST.total_seconds(), _SPREAD_OPEN)

    async def _send(self, endpoint: Endpoint, message: Message) -> WebhookResponse:
        # Receivers refuse what is minutes old, or from the future; the clocks of workers differ.
        now = endpoint.read_at
        secrets = [self._keys.decrypt(SEAL_PURPOSE, endpoint.secret, context=endpoint.id.bytes)]
        old, until = endpoint.old_secret, endpoint.old_secret_until
        if old is not None and until is not None and until > now:
            # One that was rotated because APP_SECRET_KEY had changed cannot be read any more, and need not be.
            with suppress(SealBroken):
                secrets.append(self._keys.decrypt(SEAL_PURPOSE, old, context=endpoint.id.bytes))
        return await self._sender.send(
            endpoint.url,
            str(message.id),
            int(now.timestamp()),
            message.payload.encode(),
            secrets,
            owner=endpoint.user_id,
        )

    async def _record_outcome(
        self, ctx: JobContext, endpoint: Endpoint, delivery: Delivery, answer: WebhookResponse
    ) -> dict[str, Any] | None:
        user_id = endpoint.user_id
        if answer.is_success:
            async with ctx.transaction("jobs.webhook_delivered") as tx:
                await self._record(tx, user_id, delivery.id, answer, "delivered", None)
                await webhook_endpoints.record_success(tx, user_id, endpoint.id)
                await ctx.complete(tx, {"status": answer.status})
            return None
        is_last = ctx.attempt >= MAX_ATTEMPTS or answer.status == _GONE
        delay = retry_after(ctx.attempt, answer.retry_after)
        reason = None
        if answer.status == _GONE:
            reason = "gone"
        elif endpoint.failing_since is not None and endpoint.read_at - endpoint.failing_since > DISABLED_AFTER:
            reason = "failing"
        pause = breaker_pause(endpoint.failures + 1)
        async with ctx.transaction("jobs.webhook_failed") as tx:
            again_in = None if is_last else timedelta(seconds=delay)
            await self._record(tx, user_id, delivery.id, answer, "failed" if is_last else "pending", again_in)
            await webhook_endpoints.record_failure(
                tx,
                user_id,
                endpoint.id,
                open_for=pause,
                disabled_reason=reason,
            )
        what = answer.error or f"http_{answer.status}"
        if is_last:
            raise PermanentJobError(what, "The message could not be delivered.")
        raise RetryJob(delay, what, "The message was not taken.")

    async def _give_up(self, ctx: JobContext, user_id: UserId, delivery_id: UUID, error: str) -> None:
        async with ctx.transaction("jobs.webhook_dropped") as tx:
            await webhook_deliveries.fail_delivery(tx, user_id, delivery_id, error)
            await ctx.complete(tx)

    async def _record(
        self,
        tx: Any,
        user_id: UserId,
        delivery_id: UUID,
        answer: WebhookResponse,
        state: str,
        again_in: timedelta | None,
    ) -> None:
        await webhook_deliveries.record_attempt(
            tx,
            user_id,
            delivery_id,
            state=state,
            status=answer.status,
            error=answer.error,
            response=answer.response,
            milliseconds=answer.milliseconds,
            again_in=again_in,
        )


async def _snooze(ctx: JobContext, endpoint: Endpoint, seconds: float, spread: float) -> SnoozeJob:
    """To be raised: not before `seconds`, and spread by the number of the user's pending deliveries."""
    async with ctx.db.read("jobs.pending_deliveries") as conn:
        pending = await webhook_deliveries.count_pending(conn, endpoint.user_id)
    return SnoozeJob(seconds + random.uniform(0, pending * spread))  # noqa: S311 - jitter, not a secret


@job(
    KIND_DELIVER,
    args=DeliverArgs,
    queue=QUEUE,
    access=_ACCESS,
    max_attempts=MAX_ATTEMPTS,
    timeout=DELIVERY_TIMEOUT,
)
async def webhook_deliver(ctx: JobContext, args: DeliverArgs) -> dict[str, Any] | None:
    """Makes one attempt."""
    return await ctx.service(WebhookDeliverer).deliver(ctx, args)
