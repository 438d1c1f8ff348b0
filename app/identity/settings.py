"""Settings of the identity module."""

from typing import Annotated, Literal

from pydantic import Field

from app.kernel.settings import Days, Seconds, Section, Unit, WholeSeconds

Hashes = Annotated[int, Unit("hashes")]


class IdentitySettings(Section):
    """Log-in and tokens."""

    registration: Literal["open", "verify", "closed"] = Field(
        "open",
        description="open: a new account may log in at once; verify: after its address is confirmed; "
        "closed: sign-up is refused.",
    )
    access_token_ttl: WholeSeconds = Field(600, ge=30, le=3600, description="Lifetime of an access token.")
    refresh_idle_ttl: WholeSeconds = Field(14 * 86_400, ge=600, description="A session unused for so long ends.")
    refresh_absolute_ttl: WholeSeconds = Field(
        90 * 86_400, ge=600, description="A session ends after this time at the latest."
    )
    refresh_quiet: Seconds = Field(
        0.03,
        ge=0,
        le=1,
        description="A refresh is answered once no parallel one came for so long; ten times that at most.",
    )
    refresh_retry_ttl: WholeSeconds = Field(
        60, ge=0, le=600, description="How long an Idempotency-Key repeats a rotation."
    )
    max_sessions: Annotated[int, Unit("sessions")] = Field(
        50, ge=1, le=1000, description="Most of one account; a new one ends the longest unused one."
    )
    hash_threads: Annotated[int | None, Unit("threads")] = Field(
        None,
        ge=1,
        le=64,
        description="Password hashes at one time, and as many of callers beyond their share. Unset: one for each core.",
    )
    hash_queue: Hashes = Field(32, ge=0, le=10_000, description="Password hashes that may wait for a thread.")
    hash_memory_kib: Annotated[int, Unit("KiB")] = Field(
        19 * 1024, ge=1024, description="Memory of one password hash: argon2id m, the OWASP floor by default."
    )
    hash_iterations: Annotated[int, Unit("iterations")] = Field(
        2, ge=1, le=20, description="Passes of one password hash: argon2id t."
    )
    network_failures: Annotated[int | None, Unit("attempts per hour")] = Field(
        None, ge=1, description="Failed log-ins of a network. Unset: 100, in development 100,000."
    )
    network_registrations: Annotated[int | None, Unit("requests per hour")] = Field(
        None,
        ge=1,
        description="New accounts and requests for e-mails of a network. Unset: 100, in development 100,000.",
    )
    max_api_keys: Annotated[int, Unit("keys")] = Field(50, ge=1, le=1000, description="Most of one account.")
    token_cache_size: Annotated[int, Unit("tokens")] = Field(
        20_000, ge=0, le=1_000_000, description="Verified access tokens kept by one process."
    )
    revocation_poll: Seconds = Field(
        0.5, gt=0, le=5, description="Interval at which each process reads new revocations from PostgreSQL."
    )
    verify_email_ttl: WholeSeconds = Field(86_400, ge=60, description="Lifetime of a link that confirms an address.")
    reset_password_ttl: WholeSeconds = Field(1800, ge=60, description="Lifetime of a link that resets a password.")
    audit_days: Days = Field(
        400, ge=90, le=36_500, description="Until an entry of the audit trail is deleted; a session may live for 90."
    )
    deletion_grace: WholeSeconds = Field(
        14 * 86_400, ge=0, description="From the request to delete an account until its data is deleted."
    )
