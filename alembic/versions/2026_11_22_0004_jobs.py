"""Jobs: the only truth about background work. Redis holds nothing but ids of rows that live here.

`state` is 0 queued, 1 running, 2 succeeded, 3 failed, 4 cancelled. `dispatched_at` says since when an id is believed
to be in Redis; null means that the relay has to bring it there. It is set by the insert itself, so that the usual job
costs no second write. Queued rows carry two partial indexes, of which an ordinary insert touches one.
"""

from alembic import op

revision = "0004_jobs"
down_revision = "0003_identity"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE SCHEMA jobs")
    op.execute("""
        CREATE TABLE jobs.jobs (
            id                  uuid PRIMARY KEY,
            user_id             uuid,
            kind                text NOT NULL,
            lane                text NOT NULL,
            priority            smallint NOT NULL DEFAULT 2,
            state               smallint NOT NULL DEFAULT 0,
            version             bigint NOT NULL DEFAULT 1,
            args                jsonb NOT NULL,
            unique_key          text,
            parent_id           uuid,
            attempt             smallint NOT NULL DEFAULT 0,
            max_attempts        smallint NOT NULL DEFAULT 8,
            rescues             smallint NOT NULL DEFAULT 0,
            timeout_seconds     integer NOT NULL DEFAULT 300,
            run_at              timestamptz NOT NULL DEFAULT now(),
            dispatched_at       timestamptz,
            run_token           uuid,
            worker_id           text,
            lease_until         timestamptz,
            cancel_requested_at timestamptz,
            progress            jsonb,
            result              jsonb,
            error               jsonb,
            trace_parent        text,
            created_at          timestamptz NOT NULL DEFAULT now(),
            started_at          timestamptz,
            finished_at         timestamptz,
            CONSTRAINT jobs_state_check CHECK (state BETWEEN 0 AND 4),
            CONSTRAINT jobs_finished_at_check CHECK ((state >= 2) = (finished_at IS NOT NULL)),
            CONSTRAINT jobs_run_token_check CHECK ((state = 1) = (run_token IS NOT NULL))
        ) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02)
    """)
    op.execute("CREATE INDEX jobs_list_idx ON jobs.jobs (user_id, id DESC) INCLUDE (state)")
    op.execute("""
        CREATE INDEX jobs_waiting_idx ON jobs.jobs (lane, user_id, priority, run_at)
        WHERE state = 0 AND dispatched_at IS NULL
    """)
    op.execute("""
        CREATE INDEX jobs_waiting_run_at_idx ON jobs.jobs (run_at)
        WHERE state = 0 AND dispatched_at IS NULL
    """)
    op.execute("""
        CREATE INDEX jobs_dispatched_idx ON jobs.jobs (lane, dispatched_at)
        WHERE state = 0 AND dispatched_at IS NOT NULL
    """)
    op.execute("CREATE INDEX jobs_running_idx ON jobs.jobs (user_id, lane) WHERE state = 1")
    op.execute("CREATE INDEX jobs_lease_idx ON jobs.jobs (lease_until) WHERE state = 1")
    op.execute("CREATE INDEX jobs_finished_idx ON jobs.jobs (finished_at) WHERE state >= 2")
    op.execute("""
        CREATE UNIQUE INDEX jobs_unique_key_key ON jobs.jobs (user_id, kind, unique_key) NULLS NOT DISTINCT
        WHERE unique_key IS NOT NULL AND state < 2
    """)
    op.execute("""
        CREATE TABLE jobs.artifacts (
            job_id       uuid NOT NULL REFERENCES jobs.jobs (id) ON DELETE CASCADE,
            name         text NOT NULL,
            user_id      uuid,
            content_type text NOT NULL,
            size         bigint NOT NULL,
            sha256       bytea NOT NULL,
            storage_key  text NOT NULL,
            created_at   timestamptz NOT NULL DEFAULT now(),
            expires_at   timestamptz NOT NULL,
            deleted_at   timestamptz,
            PRIMARY KEY (job_id, name)
        )
    """)
    op.execute("CREATE UNIQUE INDEX artifacts_storage_key_key ON jobs.artifacts (storage_key)")
    op.execute("CREATE INDEX artifacts_expires_idx ON jobs.artifacts (expires_at) WHERE deleted_at IS NULL")
    op.execute("""
        CREATE TABLE jobs.lanes (
            lane      text PRIMARY KEY,
            paused_at timestamptz
        )
    """)
    op.execute("""
        CREATE TABLE jobs.schedules (
            name        text PRIMARY KEY,
            kind        text NOT NULL,
            args        jsonb NOT NULL,
            cron        text NOT NULL,
            timezone    text NOT NULL,
            catch_up    text NOT NULL,
            next_run_at timestamptz NOT NULL,
            last_run_at timestamptz,
            CONSTRAINT schedules_catch_up_check CHECK (catch_up IN ('none', 'one', 'all'))
        )
    """)
    op.execute("""
        CREATE TABLE jobs.invoices (
            user_id          uuid NOT NULL,
            id               uuid NOT NULL,
            number           text NOT NULL,
            order_id         text NOT NULL,
            customer         jsonb NOT NULL,
            currency         text NOT NULL,
            lines            jsonb NOT NULL,
            tax_rate_percent text NOT NULL,
            notes            text,
            subtotal_minor   bigint NOT NULL,
            tax_minor        bigint NOT NULL,
            total_minor      bigint NOT NULL,
            status           text NOT NULL,
            job_id           uuid NOT NULL,
            created_at       timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (user_id, id),
            CONSTRAINT invoices_number_key UNIQUE (user_id, number),
            CONSTRAINT invoices_status_check CHECK (status IN ('pending', 'issued', 'sent', 'failed')),
            CONSTRAINT invoices_total_minor_check CHECK (total_minor = subtotal_minor + tax_minor)
        )
    """)
    # A message is stored once, as the bytes that are signed; each endpoint that wants it has a delivery.
    op.execute("""
        CREATE TABLE jobs.webhook_endpoints (
            user_id          uuid NOT NULL,
            id               uuid NOT NULL,
            url              text NOT NULL,
            event_types      text[] NOT NULL,
            description      text,
            secret           bytea NOT NULL,
            old_secret       bytea,
            old_secret_until timestamptz,
            disabled_at      timestamptz,
            disabled_reason  text,
            failing_since    timestamptz,
            failures         integer NOT NULL DEFAULT 0,
            open_until       timestamptz,
            created_at       timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (user_id, id)
        )
    """)
    op.execute("""
        CREATE TABLE jobs.webhook_messages (
            user_id    uuid NOT NULL,
            id         uuid NOT NULL,
            event_type text NOT NULL,
            payload    text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (user_id, id)
        )
    """)
    op.execute("""
        CREATE TABLE jobs.webhook_deliveries (
            user_id       uuid NOT NULL,
            id            uuid NOT NULL,
            endpoint_id   uuid NOT NULL,
            message_id    uuid NOT NULL,
            state         text NOT NULL DEFAULT 'pending',
            attempts      integer NOT NULL DEFAULT 0,
            last_status   integer,
            last_error    text,
            last_response text,
            last_ms       integer,
            next_at       timestamptz,
            created_at    timestamptz NOT NULL DEFAULT now(),
            delivered_at  timestamptz,
            PRIMARY KEY (user_id, id),
            CONSTRAINT webhook_deliveries_message_key UNIQUE (user_id, message_id, endpoint_id),
            CONSTRAINT webhook_deliveries_state_check CHECK (state IN ('pending', 'delivered', 'failed'))
        )
    """)
    op.execute(
        "CREATE INDEX webhook_deliveries_endpoint_idx ON jobs.webhook_deliveries (user_id, endpoint_id, id DESC)"
    )
    # The one row is compared with a copy in Redis: when they differ, Redis was emptied or replaced.
    op.execute("""
        CREATE TABLE jobs.epoch (
            singleton boolean PRIMARY KEY DEFAULT true,
            epoch     uuid NOT NULL,
            CONSTRAINT epoch_singleton_check CHECK (singleton)
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE jobs.epoch")
    op.execute("DROP TABLE jobs.schedules")
    op.execute("DROP TABLE jobs.webhook_deliveries")
    op.execute("DROP TABLE jobs.webhook_messages")
    op.execute("DROP TABLE jobs.webhook_endpoints")
    op.execute("DROP TABLE jobs.invoices")
    op.execute("DROP TABLE jobs.lanes")
    op.execute("DROP TABLE jobs.artifacts")
    op.execute("DROP TABLE jobs.jobs")
    op.execute("DROP SCHEMA jobs")
