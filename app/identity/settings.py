"""Settings of the identity module."""

from typing import Literal

from pydantic import Field

from app.kernel.settings import Section


class IdentitySettings(Section):
    """Log-in and tokens. Times are in seconds."""

    registration: Literal["open", "verify", "closed"] = "open"
    access_token_ttl: int = Field(600, ge=30, le=3600)
    refresh_idle_ttl: int = Field(14 * 86_400, ge=600, description="A session unused for so long ends.")
    refresh_absolute_ttl: int = Field(90 * 86_400, ge=600, description="A session ends after this time at the latest.")
    refresh_quiet: float = Field(
        0.03,
        ge=0,
        le=1,
        description="A refresh is answered once no parallel one came for so long; ten times that at most.",
    )
    refresh_retry_ttl: int = Field(60, ge=0, le=600, description="How long an Idempotency-Key repeats a rotation.")
    max_sessions: int = Field(50, ge=1, le=1000, description="Of one account; the longest unused one gives way.")
    hash_threads: int | None = Field(
        None, ge=1, le=64, description="Password hashes at one time. None: one for each core of this process."
    )
    hash_queue: int = Field(32, ge=0, le=10_000, description="Password hashes that may wait for a thread.")
    hash_memory_kib: int = Field(19 * 1024, ge=1024, description="argon2id m, the OWASP floor by default.")
    hash_iterations: int = Field(2, ge=1, le=20, description="argon2id t.")
    network_failures: int | None = Field(
        None, ge=1, description="Failed log-ins of a network an hour. None: 100, in development 100,000."
    )
    network_registrations: int | None = Field(
        None, ge=1, description="New accounts and requests for e-mails of a network an hour. None: 100 or 100,000."
    )
    max_api_keys: int = Field(50, ge=1, le=1000, description="Of one account.")
    token_cache_size: int = Field(20_000, ge=0, le=1_000_000, description="Verified tokens kept by one process.")
    revocation_poll: float = Field(0.5, gt=0, le=5)
    verify_email_ttl: int = Field(86_400, ge=60)
    reset_password_ttl: int = Field(1800, ge=60)
    deletion_grace: int = Field(14 * 86_400, ge=0, description="From the wish to be deleted until it is done.")
