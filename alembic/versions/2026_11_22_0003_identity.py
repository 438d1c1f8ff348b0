"""Identity: accounts, sessions, revocations, one-time tokens, second factors, API keys, signing keys, audit."""

from alembic import op

revision = "0003_identity"
down_revision = "0002_users"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    op.execute("CREATE SCHEMA identity")
    # `email_canonical` is what must be unique and what log-in looks up; `email` is what the person typed.
    op.execute("""
        CREATE TABLE identity.accounts (
            user_id             uuid PRIMARY KEY,
            email               text NOT NULL,
            email_canonical     text NOT NULL,
            email_verified_at   timestamptz,
            password_hash       text,
            password_changed_at timestamptz NOT NULL DEFAULT now(),
            status              text NOT NULL DEFAULT 'active',
            role                text NOT NULL DEFAULT 'user',
            version             bigint NOT NULL DEFAULT 1,
            totp_enabled        boolean NOT NULL DEFAULT false,
            banned_at           timestamptz,
            ban_reason          text,
            last_login_at       timestamptz,
            deleted_at          timestamptz,
            purge_at            timestamptz,
            created_at          timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT accounts_status_check CHECK (status IN ('active', 'banned', 'deleted')),
            CONSTRAINT accounts_role_check CHECK (role IN ('user', 'admin'))
        )
    """)
    op.execute("""
        CREATE UNIQUE INDEX accounts_email_canonical_key ON identity.accounts (email_canonical)
         WHERE status <> 'deleted'
    """)
    op.execute("CREATE INDEX accounts_email_trgm_idx ON identity.accounts USING gin (email_canonical gin_trgm_ops)")
    op.execute("CREATE INDEX accounts_role_idx ON identity.accounts (role, user_id) WHERE role <> 'user'")
    op.execute("CREATE INDEX accounts_purge_at_idx ON identity.accounts (purge_at) WHERE purge_at IS NOT NULL")
    # The refresh token of a session is derived from its id and generation; nothing here can be replayed.
    op.execute("""
        CREATE TABLE identity.sessions (
            user_id          uuid NOT NULL,
            id               uuid NOT NULL,
            generation       bigint NOT NULL DEFAULT 0,
            rotated_at       timestamptz NOT NULL DEFAULT now(),
            rotation_key     bytea,
            created_at       timestamptz NOT NULL DEFAULT now(),
            authenticated_at timestamptz NOT NULL DEFAULT now(),
            last_used_at     timestamptz NOT NULL DEFAULT now(),
            idle_expires_at  timestamptz NOT NULL,
            expires_at       timestamptz NOT NULL,
            methods          text[] NOT NULL,
            ip               text,
            user_agent       text,
            device_name      text,
            revoked_at       timestamptz,
            revoke_reason    text,
            PRIMARY KEY (user_id, id)
        )
    """)
    op.execute("""
        CREATE INDEX sessions_live_idx ON identity.sessions (user_id, last_used_at DESC) WHERE revoked_at IS NULL
    """)
    op.execute("CREATE INDEX sessions_expires_at_idx ON identity.sessions (expires_at)")
    # What every process must refuse although its signature is good; rows matter as long as tokens live.
    op.execute("""
        CREATE TABLE identity.revocations (
            id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            kind       text NOT NULL,
            subject    uuid NOT NULL,
            version    bigint NOT NULL DEFAULT 0,
            created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            expires_at timestamptz NOT NULL,
            CONSTRAINT revocations_kind_check CHECK (kind IN ('session', 'account', 'api_key'))
        )
    """)
    op.execute("CREATE INDEX revocations_created_at_idx ON identity.revocations (created_at)")
    op.execute("CREATE INDEX revocations_expires_at_idx ON identity.revocations (expires_at)")
    op.execute("""
        CREATE TABLE identity.one_time_tokens (
            user_id    uuid NOT NULL,
            purpose    text NOT NULL,
            token_hash bytea NOT NULL,
            payload    jsonb NOT NULL DEFAULT '{}',
            created_at timestamptz NOT NULL DEFAULT now(),
            expires_at timestamptz NOT NULL,
            PRIMARY KEY (user_id, purpose),
            CONSTRAINT one_time_tokens_purpose_check
                CHECK (purpose IN ('verify_email', 'reset_password', 'change_email'))
        )
    """)
    op.execute("CREATE UNIQUE INDEX one_time_tokens_token_hash_key ON identity.one_time_tokens (token_hash)")
    op.execute("CREATE INDEX one_time_tokens_expires_at_idx ON identity.one_time_tokens (expires_at)")
    op.execute("""
        CREATE TABLE identity.totp_factors (
            user_id       uuid PRIMARY KEY,
            secret_sealed bytea NOT NULL,
            key_id        text NOT NULL,
            last_step     bigint NOT NULL DEFAULT 0,
            confirmed_at  timestamptz,
            created_at    timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.execute("""
        CREATE TABLE identity.recovery_codes (
            user_id   uuid NOT NULL,
            code_hash bytea NOT NULL,
            used_at   timestamptz,
            PRIMARY KEY (user_id, code_hash)
        )
    """)
    op.execute("""
        CREATE TABLE identity.api_keys (
            user_id      uuid NOT NULL,
            id           uuid NOT NULL,
            name         text NOT NULL,
            secret_hash  bytea NOT NULL,
            scopes       text[] NOT NULL,
            expires_at   timestamptz,
            last_used_at timestamptz,
            revoked_at   timestamptz,
            created_at   timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (user_id, id)
        )
    """)
    op.execute("""
        CREATE TABLE identity.signing_keys (
            kid            text PRIMARY KEY,
            algorithm      text NOT NULL,
            private_sealed bytea NOT NULL,
            key_id         text NOT NULL,
            public_key     bytea NOT NULL,
            state          text NOT NULL,
            created_at     timestamptz NOT NULL DEFAULT now(),
            retired_at     timestamptz,
            CONSTRAINT signing_keys_state_check CHECK (state IN ('next', 'active', 'retired'))
        )
    """)
    op.execute("CREATE UNIQUE INDEX signing_keys_active_key ON identity.signing_keys (state) WHERE state = 'active'")
    # Append-only: nothing in the program updates or deletes a row, but the anonymising of a purged account.
    op.execute("""
        CREATE TABLE identity.security_events (
            user_id    uuid NOT NULL,
            id         uuid NOT NULL,
            action     text NOT NULL,
            actor_id   uuid,
            session_id uuid,
            ip         text,
            user_agent text,
            data       jsonb NOT NULL DEFAULT '{}',
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (user_id, id)
        )
    """)


def downgrade() -> None:
    for table in (
        "security_events",
        "signing_keys",
        "api_keys",
        "recovery_codes",
        "totp_factors",
        "one_time_tokens",
        "revocations",
        "sessions",
        "accounts",
    ):
        op.execute(f"DROP TABLE identity.{table}")
    op.execute("DROP SCHEMA identity")
