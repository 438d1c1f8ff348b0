"""The use cases of the module."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from pydantic_core import PydanticCustomError

from app.kernel.batching.group_commit import GroupCommit
from app.kernel.batching.point_reads import PointReads
from app.kernel.cache import FORGET_TOPIC
from app.kernel.clock import Clock
from app.kernel.database import Database, ReadConn, Tx, retries_conflicts
from app.kernel.database.versions import ANY_VERSION, Versions
from app.kernel.ids import UserId, new_id
from app.kernel.pagination import MAX_SCANNED, Cursors, Page
from app.kernel.validation.field_codes import field_code
from app.kernel.webhook_subscribers import WebhookSubscribers
from app.users.errors import InvalidEvent, InvalidExtra, InvalidPeriod, TooManyEvents, UserNotFound, VersionMismatch
from app.users.queries import events as event_queries
from app.users.queries import preferences as preference_queries
from app.users.queries import profiles as profile_queries
from app.users.records import (
    BUCKET_WIDTHS,
    CLOCK_SKEW,
    DEFAULT_PERIODS,
    LONGEST_PERIODS,
    MAX_EXTRA_BYTES,
    MAX_EXTRA_DEPTH,
    MAX_SUMMARY_ITEMS,
    MIN_SUMMARY_KINDS,
    Bucket,
    Event,
    EventBatch,
    EventFilter,
    EventSummary,
    NewEvent,
    Preferences,
    PublicUser,
    RawJson,
    User,
    UserExport,
    json_object,
    merge_patch,
)

EVENTS_LIST = "users.events"


def profile_tag(user_id: UserId) -> str:
    """The cache tag of the profile and the preferences."""
    return f"user:{user_id}"


def events_tag(user_id: UserId) -> str:
    """The cache tag of whatever shows events."""
    return f"events:{user_id}"


async def create_user(
    tx: Tx,
    *,
    user_id: UserId,
    email: str,
    display_name: str | None,
    locale: str,
    timezone: str,
    email_verified: bool,
) -> User:
    """Make a user with default preferences, in one statement."""
    return await profile_queries.insert_user(
        tx,
        user_id=user_id,
        email=email,
        email_verified=email_verified,
        display_name=display_name,
        locale=locale,
        timezone=timezone,
    )


async def set_email(tx: Tx, user_id: UserId, email: str, *, verified: bool) -> None:
    """Copy the address that now logs in.

    Raises:
        UserNotFound
    """
    if not await profile_queries.update_email(tx, user_id, email, verified=verified):
        raise UserNotFound
    tx.emit(FORGET_TOPIC, profile_tag(user_id))


async def hide_user(tx: Tx, user_id: UserId, versions: Versions) -> None:
    """From now on the user is hidden from all others, though nothing of it is forgotten yet.

    Raises:
        VersionMismatch: the profile is in none of `versions`.
    """
    if not await profile_queries.hide_user(tx, user_id, versions) and not versions.are_all:
        raise VersionMismatch
    tx.emit(FORGET_TOPIC, profile_tag(user_id))


async def anonymise_user(tx: Tx, user_id: UserId) -> None:
    """Keep the id and forget the person. Their events go by `delete_events`; nothing happens the second time.

    Raises:
        UserNotFound
    """
    if not await profile_queries.anonymise_user(tx, user_id):
        raise UserNotFound
    tx.emit(FORGET_TOPIC, profile_tag(user_id))


async def end_weekly_report(tx: Tx, user_id: UserId) -> bool:
    """Turn the weekly report off; whether it was on."""
    tx.emit(FORGET_TOPIC, profile_tag(user_id))
    return await preference_queries.end_weekly_report(tx, user_id)


async def delete_events(tx: Tx, user_id: UserId, limit: int) -> int:
    """Delete up to `limit` of a user's events; the answer is how many."""
    deleted = await event_queries.delete_events(tx, user_id, limit)
    tx.emit(FORGET_TOPIC, events_tag(user_id))
    return deleted


async def export_user(conn: ReadConn, user_id: UserId) -> UserExport | None:
    return await profile_queries.get_user_export(conn, user_id)


async def read_profile(reads: PointReads, user_id: UserId) -> User:
    """The account as its owner sees it.

    Raises:
        UserNotFound
    """
    user = await reads.get("users.read_profile", profile_queries.list_users, user_id)
    if user is None:
        raise UserNotFound
    return user


@retries_conflicts
async def change_profile(
    db: Database,
    webhook_subscribers: WebhookSubscribers,
    user_id: UserId,
    changes: Mapping[str, str | None],
    versions: Versions,
) -> User:
    """Apply `changes`, in which None clears a field, to the profile in one of `versions`.

    Raises:
        UserNotFound
        VersionMismatch
    """
    async with webhook_subscribers.unit(db, user_id, "users.change_profile") as tx:
        tx.emit(FORGET_TOPIC, profile_tag(user_id))
        user = await profile_queries.update_user(tx, user_id, changes, versions)
        if user is not None:
            await webhook_subscribers.publish(
                tx, user_id, "user.updated", [{"user_id": str(user_id), "fields": sorted(changes)}]
            )
    if user is None:
        raise UserNotFound if versions.are_all else VersionMismatch
    return user


async def look_up_users(db: Database, user_ids: Sequence[UUID]) -> tuple[str, str]:
    """JSON arrays of the users among `user_ids` and of the ids of which there is none, in that order, each once."""
    async with db.read("users.look_up_users") as conn:
        return await profile_queries.look_up_users(conn, user_ids)


async def read_public_user(db: Database, user_id: UUID) -> PublicUser:
    """The public view of a user.

    Raises:
        UserNotFound
    """
    async with db.read("users.read_public_user") as conn:
        user = await profile_queries.get_public_user(conn, user_id)
    if user is None:
        raise UserNotFound
    return user


async def read_preferences(reads: PointReads, user_id: UserId) -> Preferences:
    """Raises UserNotFound."""
    preferences = await reads.get("users.read_preferences", preference_queries.list_preferences, user_id)
    if preferences is None:
        raise UserNotFound
    return preferences


async def change_preferences(
    db: Database, user_id: UserId, changes: Mapping[str, Any], versions: Versions
) -> Preferences:
    """Apply `changes` to the preferences in one of `versions`; their `extra` is a merge patch of the present one.

    Raises:
        InvalidExtra: the merged `extra` would break its limits.
        UserNotFound
        VersionMismatch
    """
    if "extra" in changes:
        return await _merge_preferences(db, user_id, changes, versions)
    return await replace_preferences(db, user_id, changes, versions)


async def replace_preferences(
    db: Database, user_id: UserId, values: Mapping[str, Any], versions: Versions
) -> Preferences:
    """Set the preferences in one of `versions` to `values`; what they do not name stays.

    Raises:
        UserNotFound
        VersionMismatch
    """
    async with db.statement("users.replace_preferences") as tx:
        tx.emit(FORGET_TOPIC, profile_tag(user_id))
        preferences = await preference_queries.update_preferences(tx, user_id, values, versions)
    if preferences is None:
        raise UserNotFound if versions.are_all else VersionMismatch
    return preferences


@retries_conflicts
async def _merge_preferences(
    db: Database, user_id: UserId, changes: Mapping[str, Any], versions: Versions
) -> Preferences:
    async with db.transaction("users.merge_preferences") as tx:
        present = await preference_queries.lock_preferences(tx, user_id)
        if present is None:
            raise UserNotFound
        if present.version not in versions:
            raise VersionMismatch
        extra = merge_patch(orjson.loads(present.extra), changes["extra"])
        try:
            text = json_object(extra, max_bytes=MAX_EXTRA_BYTES, max_depth=MAX_EXTRA_DEPTH)
        except PydanticCustomError as error:
            raise InvalidExtra(error.message(), field_code(error.type)) from error
        changed = await preference_queries.update_preferences(
            tx, user_id, {**changes, "extra": RawJson(text)}, ANY_VERSION
        )
        if changed is None:
            raise UserNotFound
        tx.emit(FORGET_TOPIC, profile_tag(user_id))
    return changed


async def record_events(tx: Tx, clock: Clock, user_id: UserId, events: Sequence[NewEvent]) -> list[UUID]:
    """Store events with one statement; the answer is their ids in the same order.

    Raises:
        InvalidEvent: one of them lies in the future.
    """
    batch = _new_batch(clock, user_id, events)
    await _insert_batches(tx, [batch])
    return batch.ids


async def ingest_events(
    group: GroupCommit[EventBatch, list[UUID]], clock: Clock, user_id: UserId, events: Sequence[NewEvent]
) -> list[UUID]:
    """Store events in one commit with those of other requests; the answer is their ids in the same order.

    Raises:
        InvalidEvent: one of them lies in the future.
    """
    return await group.submit(_new_batch(clock, user_id, events))


def event_group_commit(db: Database) -> GroupCommit[EventBatch, list[UUID]]:
    """What `ingest_events` needs; one per process."""

    @retries_conflicts
    async def write(batches: Sequence[EventBatch]) -> list[list[UUID]]:
        async with db.statement("users.ingest_events") as tx:
            await _insert_batches(tx, batches)
        return [batch.ids for batch in batches]

    return GroupCommit(write, weight=lambda batch: len(batch.ids), owner=lambda batch: batch.user_id)


async def _insert_batches(tx: Tx, batches: Sequence[EventBatch]) -> None:
    for batch in batches:
        tx.emit(FORGET_TOPIC, events_tag(batch.user_id))
    await event_queries.insert_events(tx, batches)


def _new_batch(clock: Clock, user_id: UserId, events: Sequence[NewEvent]) -> EventBatch:
    latest = clock.now() + CLOCK_SKEW
    for event in events:
        if event.occurred_at is not None and event.occurred_at > latest:
            raise InvalidEvent(event.place)
    return EventBatch(user_id, [new_id() for _ in events], events)


async def list_events(
    db: Database, cursors: Cursors, user_id: UserId, wanted: EventFilter, *, limit: int, cursor: str | None
) -> Page[Event]:
    """One page of a user's events, newest first; it may be short (`kernel.pagination`).

    Raises:
        InvalidPeriod: it ends before it begins.
        InvalidCursor: it belongs to another user or other filters.
    """
    if wanted.since is not None and wanted.until is not None and wanted.since > wanted.until:
        raise InvalidPeriod("`until` must not lie before `since`.")
    owner = (user_id, wanted)
    after = cursors.decode(EVENTS_LIST, owner, cursor, tuple[datetime, UUID]) if cursor else None
    async with db.read("users.list_events", sees=[events_tag(user_id)]) as conn:
        scan_end = None
        if wanted != EventFilter():
            scan_end = await event_queries.get_scan_end(conn, user_id, after, MAX_SCANNED)
        # One more than wanted tells whether there is another page.
        events = await event_queries.list_events(conn, user_id, wanted, after, limit + 1, scan_end)
    return cursors.paginate(
        EVENTS_LIST, owner, events, lambda event: (event.created_at, event.id), limit=limit, scan_end=scan_end
    )


async def summarise_events(
    db: Database,
    clock: Clock,
    user_id: UserId,
    *,
    bucket: Bucket,
    since: datetime | None,
    until: datetime | None,
    max_events: int | None = None,
) -> EventSummary:
    """Counts per bucket and kind of the events with `since <= occurred_at < until`, by default up to the latest.

    Raises:
        InvalidPeriod: it is empty or too long for the width of the buckets.
        TooManyEvents: more than `max_events` have been stored since it began.
    """
    until = until or clock.now() + CLOCK_SKEW
    since = since or until - DEFAULT_PERIODS[bucket]
    if since >= until:
        raise InvalidPeriod("`since` must lie before `until`.")
    if until - since > LONGEST_PERIODS[bucket]:
        raise InvalidPeriod(f"By {bucket}, a period has at most {LONGEST_PERIODS[bucket].days} days.")
    buckets = (until - since) // BUCKET_WIDTHS[bucket] + 2
    max_kinds = max(MIN_SUMMARY_KINDS, MAX_SUMMARY_ITEMS // buckets)
    async with db.read("users.summarise_events", sees=[events_tag(user_id)]) as conn:
        items, others, events = await event_queries.get_event_counts(
            conn, user_id, bucket, since, until, max_kinds=max_kinds, max_events=max_events
        )
    if max_events is not None and events > max_events:
        raise TooManyEvents(max_events)
    return EventSummary(bucket, since, until, items, others, events)
