CREATE SCHEMA identity;

CREATE SCHEMA jobs;

CREATE SCHEMA kernel;

CREATE SCHEMA users;

CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public;

COMMENT ON EXTENSION pg_trgm IS 'text similarity measurement and index searching based on trigrams';

CREATE FUNCTION jobs.record_follows_job() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
        DECLARE
            is_over CONSTANT boolean NOT NULL DEFAULT NEW.state <> 0;
        BEGIN
            IF NEW.kind = 'invoice.pdf' THEN
                UPDATE jobs.invoices SET status = CASE WHEN is_over THEN 'failed' ELSE 'pending' END
                WHERE user_id = NEW.user_id AND id = CAST(NEW.args ->> 'invoice_id' AS uuid)
                  AND status = CASE WHEN is_over THEN 'pending' ELSE 'failed' END;
            ELSIF NEW.kind = 'invoice.email' THEN
                UPDATE jobs.invoices SET status = CASE WHEN is_over THEN 'failed' ELSE 'issued' END
                WHERE user_id = NEW.user_id AND id = CAST(NEW.args ->> 'invoice_id' AS uuid)
                  AND CASE WHEN is_over THEN NEW.state = 3 AND status IN ('issued', 'sent') ELSE status = 'failed'
                      END;
            ELSE
                UPDATE jobs.webhook_deliveries
                SET state = CASE WHEN is_over THEN 'failed' ELSE 'pending' END, next_at = NULL,
                    last_error = CASE WHEN is_over THEN coalesce(NEW.error ->> 'code', 'cancelled') END
                WHERE user_id = NEW.user_id AND id = CAST(NEW.args ->> 'delivery_id' AS uuid)
                  AND state = CASE WHEN is_over THEN 'pending' ELSE 'failed' END;
            END IF;
            RETURN NULL;
        END
        $$;

CREATE TABLE identity.accounts (
    user_id uuid NOT NULL,
    email text NOT NULL,
    email_canonical text NOT NULL,
    email_verified_at timestamp with time zone,
    password_hash text,
    password_changed_at timestamp with time zone DEFAULT now() NOT NULL,
    status text DEFAULT 'active'::text NOT NULL,
    role text DEFAULT 'user'::text NOT NULL,
    version bigint DEFAULT 1 NOT NULL,
    totp_enabled boolean DEFAULT false NOT NULL,
    banned_at timestamp with time zone,
    ban_reason text,
    last_login_at timestamp with time zone,
    deleted_at timestamp with time zone,
    purge_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    log_ins bigint DEFAULT 0 NOT NULL,
    factor_epoch bigint DEFAULT 1 NOT NULL,
    CONSTRAINT accounts_role_check CHECK ((role = ANY (ARRAY['user'::text, 'admin'::text]))),
    CONSTRAINT accounts_status_check CHECK ((status = ANY (ARRAY['active'::text, 'banned'::text, 'deleted'::text])))
);

CREATE TABLE identity.api_keys (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    name text NOT NULL,
    secret_hash bytea NOT NULL,
    scopes text[] NOT NULL,
    expires_at timestamp with time zone,
    last_used_at timestamp with time zone,
    revoked_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE identity.one_time_tokens (
    user_id uuid NOT NULL,
    purpose text NOT NULL,
    token_hash bytea NOT NULL,
    payload jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    version bigint DEFAULT 0 NOT NULL,
    failures smallint DEFAULT 0 NOT NULL,
    known_failures smallint DEFAULT 0 NOT NULL,
    CONSTRAINT one_time_tokens_purpose_check CHECK ((purpose = ANY (ARRAY['verify_email'::text, 'reset_password'::text, 'change_email'::text, 'log_in'::text])))
);

CREATE TABLE identity.passkeys (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    credential_id bytea NOT NULL,
    public_key bytea NOT NULL,
    sign_count bigint NOT NULL,
    name text NOT NULL,
    transports text[] NOT NULL,
    backed_up boolean NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    last_used_at timestamp with time zone
);

CREATE TABLE identity.recovery_codes (
    user_id uuid NOT NULL,
    code_hash bytea NOT NULL,
    used_at timestamp with time zone
);

CREATE TABLE identity.revocations (
    id bigint NOT NULL,
    kind text NOT NULL,
    subject uuid NOT NULL,
    version bigint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT revocations_kind_check CHECK ((kind = ANY (ARRAY['session'::text, 'account'::text, 'api_key'::text])))
);

ALTER TABLE identity.revocations ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME identity.revocations_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE identity.security_events (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    action text NOT NULL,
    actor_id uuid,
    session_id uuid,
    ip text,
    user_agent text,
    data jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE identity.service_accounts (
    user_id uuid NOT NULL,
    name text NOT NULL,
    scopes text[] NOT NULL,
    secret_hash bytea NOT NULL,
    old_secret_hash bytea,
    old_secret_expires_at timestamp with time zone,
    created_by uuid NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE identity.sessions (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    generation bigint DEFAULT 0 NOT NULL,
    rotated_at timestamp with time zone DEFAULT now() NOT NULL,
    rotation_key bytea,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    authenticated_at timestamp with time zone DEFAULT now() NOT NULL,
    last_used_at timestamp with time zone DEFAULT now() NOT NULL,
    idle_expires_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    methods text[] NOT NULL,
    ip text,
    user_agent text,
    device_name text,
    revoked_at timestamp with time zone,
    revoke_reason text,
    has_unpublished_end boolean DEFAULT false NOT NULL
);

CREATE TABLE identity.signing_keys (
    kid text NOT NULL,
    algorithm text NOT NULL,
    private_sealed bytea NOT NULL,
    key_id text NOT NULL,
    public_key bytea NOT NULL,
    state text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    retired_at timestamp with time zone,
    CONSTRAINT signing_keys_state_check CHECK ((state = ANY (ARRAY['next'::text, 'active'::text, 'retired'::text])))
);

CREATE TABLE identity.totp_factors (
    user_id uuid NOT NULL,
    secret_sealed bytea NOT NULL,
    key_id text NOT NULL,
    last_step bigint DEFAULT 0 NOT NULL,
    confirmed_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE jobs.artifacts (
    job_id uuid NOT NULL,
    name text NOT NULL,
    user_id uuid,
    content_type text NOT NULL,
    size bigint NOT NULL,
    sha256 bytea NOT NULL,
    storage_key text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    deleted_at timestamp with time zone
);

CREATE TABLE jobs.attempts (
    job_id uuid NOT NULL,
    n integer NOT NULL,
    started_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone NOT NULL,
    outcome text NOT NULL,
    error jsonb NOT NULL,
    worker_id text NOT NULL,
    CONSTRAINT attempts_outcome_check CHECK ((outcome = ANY (ARRAY['retried'::text, 'failed'::text, 'cancelled'::text, 'lost'::text])))
);

CREATE TABLE jobs.email_suppressions (
    address_hash bytea NOT NULL,
    reason text NOT NULL,
    created_at timestamp with time zone NOT NULL
);

CREATE TABLE jobs.epoch (
    singleton boolean DEFAULT true NOT NULL,
    epoch uuid NOT NULL,
    CONSTRAINT epoch_singleton_check CHECK (singleton)
);

CREATE TABLE jobs.invoices (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    number text NOT NULL,
    order_id text NOT NULL,
    customer jsonb NOT NULL,
    currency text NOT NULL,
    lines jsonb NOT NULL,
    tax_rate_percent text NOT NULL,
    notes text,
    subtotal_minor bigint NOT NULL,
    tax_minor bigint NOT NULL,
    total_minor bigint NOT NULL,
    status text NOT NULL,
    job_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    seller jsonb,
    CONSTRAINT invoices_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'issued'::text, 'sent'::text, 'failed'::text]))),
    CONSTRAINT invoices_total_minor_check CHECK ((total_minor = (subtotal_minor + tax_minor)))
);

CREATE TABLE jobs.jobs (
    id uuid NOT NULL,
    user_id uuid,
    kind text NOT NULL,
    lane text NOT NULL,
    priority smallint DEFAULT 2 NOT NULL,
    state smallint DEFAULT 0 NOT NULL,
    version bigint DEFAULT 1 NOT NULL,
    args jsonb NOT NULL,
    unique_key text,
    attempt smallint DEFAULT 0 NOT NULL,
    max_attempts smallint DEFAULT 8 NOT NULL,
    rescues smallint DEFAULT 0 NOT NULL,
    timeout_seconds integer DEFAULT 300 NOT NULL,
    run_at timestamp with time zone DEFAULT now() NOT NULL,
    dispatched_at timestamp with time zone,
    run_token uuid,
    worker_id text,
    lease_until timestamp with time zone,
    cancel_requested_at timestamp with time zone,
    progress jsonb,
    result jsonb,
    error jsonb,
    trace_parent text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    is_due boolean DEFAULT false NOT NULL,
    postponed_since timestamp with time zone,
    CONSTRAINT jobs_finished_at_check CHECK (((state >= 2) = (finished_at IS NOT NULL))),
    CONSTRAINT jobs_run_token_check CHECK (((state = 1) = (run_token IS NOT NULL))),
    CONSTRAINT jobs_state_check CHECK (((state >= 0) AND (state <= 4)))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.02');

CREATE TABLE jobs.lanes (
    lane text NOT NULL,
    paused_at timestamp with time zone
);

CREATE TABLE jobs.mail_sends (
    job_id uuid NOT NULL,
    recipient_hash bytea NOT NULL,
    purpose text NOT NULL,
    sender_id uuid,
    send_at timestamp with time zone NOT NULL,
    is_open boolean DEFAULT false NOT NULL
);

CREATE TABLE jobs.positions (
    job_id uuid NOT NULL,
    last_id uuid,
    done bigint NOT NULL,
    skipped bigint NOT NULL,
    total bigint NOT NULL
);

CREATE TABLE jobs.schedules (
    name text NOT NULL,
    kind text NOT NULL,
    args jsonb NOT NULL,
    cron text NOT NULL,
    timezone text NOT NULL,
    catch_up text NOT NULL,
    next_run_at timestamp with time zone NOT NULL,
    last_run_at timestamp with time zone,
    paused_at timestamp with time zone,
    last_job_id uuid,
    CONSTRAINT schedules_catch_up_check CHECK ((catch_up = ANY (ARRAY['none'::text, 'one'::text, 'all'::text])))
);

CREATE TABLE jobs.spent_tickets (
    id uuid NOT NULL,
    expires_at timestamp with time zone NOT NULL
);

CREATE TABLE jobs.suspended_users (
    user_id uuid NOT NULL,
    reason text NOT NULL,
    since timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE jobs.webhook_attempts (
    user_id uuid NOT NULL,
    delivery_id uuid NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    status bigint,
    ms bigint NOT NULL,
    error text
);

CREATE TABLE jobs.webhook_deliveries (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    message_id uuid NOT NULL,
    state text DEFAULT 'pending'::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    last_status integer,
    last_error text,
    last_response text,
    last_ms integer,
    next_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    delivered_at timestamp with time zone,
    CONSTRAINT webhook_deliveries_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'delivered'::text, 'failed'::text])))
);

CREATE TABLE jobs.webhook_endpoints (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    url text NOT NULL,
    event_types text[] NOT NULL,
    description text,
    secret bytea NOT NULL,
    old_secret bytea,
    old_secret_until timestamp with time zone,
    disabled_at timestamp with time zone,
    disabled_reason text,
    failing_since timestamp with time zone,
    failures integer DEFAULT 0 NOT NULL,
    open_until timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    calls_until timestamp with time zone
);

CREATE TABLE jobs.webhook_messages (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    event_type text NOT NULL,
    payload text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE jobs.workers (
    worker_id text NOT NULL,
    version text NOT NULL,
    queues text[] NOT NULL,
    slots bigint NOT NULL,
    running bigint NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    heartbeat_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE kernel.idempotency_keys (
    caller text NOT NULL,
    operation text NOT NULL,
    key text NOT NULL,
    request_hash bytea NOT NULL,
    status bigint,
    body bytea,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL
);

CREATE TABLE kernel.incarnation (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    place text,
    restored_at timestamp with time zone,
    is_only boolean DEFAULT true NOT NULL,
    CONSTRAINT incarnation_is_only_check CHECK (is_only)
);

CREATE TABLE kernel.metric_samples (
    step integer NOT NULL,
    at timestamp with time zone NOT NULL,
    subject text NOT NULL,
    counts bigint[] NOT NULL
)
WITH (fillfactor='70');

CREATE TABLE public.alembic_version (
    version_num text NOT NULL
);

CREATE TABLE users.events (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    kind text NOT NULL COLLATE pg_catalog."C",
    occurred_at timestamp with time zone NOT NULL,
    properties jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE users.preferences (
    user_id uuid NOT NULL,
    theme text DEFAULT 'system'::text NOT NULL,
    language text DEFAULT 'en'::text NOT NULL,
    email_notifications boolean DEFAULT true NOT NULL,
    weekly_report boolean DEFAULT false NOT NULL,
    extra jsonb DEFAULT '{}'::jsonb NOT NULL,
    version bigint DEFAULT 1 NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT preferences_theme_check CHECK ((theme = ANY (ARRAY['system'::text, 'light'::text, 'dark'::text])))
);

CREATE TABLE users.users (
    id uuid NOT NULL,
    email text NOT NULL,
    email_verified boolean DEFAULT false NOT NULL,
    display_name text,
    bio text,
    avatar_url text,
    locale text NOT NULL,
    timezone text NOT NULL,
    version bigint DEFAULT 1 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    deleted_at timestamp with time zone
);

ALTER TABLE ONLY identity.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY identity.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (user_id, id);

ALTER TABLE ONLY identity.one_time_tokens
    ADD CONSTRAINT one_time_tokens_pkey PRIMARY KEY (user_id, purpose);

ALTER TABLE ONLY identity.passkeys
    ADD CONSTRAINT passkeys_credential_id_key UNIQUE (credential_id);

ALTER TABLE ONLY identity.passkeys
    ADD CONSTRAINT passkeys_pkey PRIMARY KEY (user_id, id);

ALTER TABLE ONLY identity.recovery_codes
    ADD CONSTRAINT recovery_codes_pkey PRIMARY KEY (user_id, code_hash);

ALTER TABLE ONLY identity.revocations
    ADD CONSTRAINT revocations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY identity.security_events
    ADD CONSTRAINT security_events_pkey PRIMARY KEY (user_id, id);

ALTER TABLE ONLY identity.service_accounts
    ADD CONSTRAINT service_accounts_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY identity.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (user_id, id);

ALTER TABLE ONLY identity.signing_keys
    ADD CONSTRAINT signing_keys_pkey PRIMARY KEY (kid);

ALTER TABLE ONLY identity.totp_factors
    ADD CONSTRAINT totp_factors_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY jobs.artifacts
    ADD CONSTRAINT artifacts_pkey PRIMARY KEY (job_id, name);

ALTER TABLE ONLY jobs.attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (job_id, n);

ALTER TABLE ONLY jobs.email_suppressions
    ADD CONSTRAINT email_suppressions_pkey PRIMARY KEY (address_hash);

ALTER TABLE ONLY jobs.epoch
    ADD CONSTRAINT epoch_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY jobs.invoices
    ADD CONSTRAINT invoices_number_key UNIQUE (user_id, number);

ALTER TABLE ONLY jobs.invoices
    ADD CONSTRAINT invoices_pkey PRIMARY KEY (user_id, id);

ALTER TABLE ONLY jobs.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY jobs.lanes
    ADD CONSTRAINT lanes_pkey PRIMARY KEY (lane);

ALTER TABLE ONLY jobs.mail_sends
    ADD CONSTRAINT mail_sends_pkey PRIMARY KEY (job_id, send_at);

ALTER TABLE ONLY jobs.positions
    ADD CONSTRAINT positions_pkey PRIMARY KEY (job_id);

ALTER TABLE ONLY jobs.schedules
    ADD CONSTRAINT schedules_pkey PRIMARY KEY (name);

ALTER TABLE ONLY jobs.spent_tickets
    ADD CONSTRAINT spent_tickets_pkey PRIMARY KEY (id);

ALTER TABLE ONLY jobs.suspended_users
    ADD CONSTRAINT suspended_users_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY jobs.webhook_attempts
    ADD CONSTRAINT webhook_attempts_pkey PRIMARY KEY (user_id, delivery_id, at);

ALTER TABLE ONLY jobs.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_message_key UNIQUE (user_id, message_id, endpoint_id);

ALTER TABLE ONLY jobs.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (user_id, id);

ALTER TABLE ONLY jobs.webhook_endpoints
    ADD CONSTRAINT webhook_endpoints_pkey PRIMARY KEY (user_id, id);

ALTER TABLE ONLY jobs.webhook_messages
    ADD CONSTRAINT webhook_messages_pkey PRIMARY KEY (user_id, id);

ALTER TABLE ONLY jobs.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (worker_id);

ALTER TABLE ONLY kernel.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (caller, operation, key);

ALTER TABLE ONLY kernel.incarnation
    ADD CONSTRAINT incarnation_pkey PRIMARY KEY (is_only);

ALTER TABLE ONLY kernel.metric_samples
    ADD CONSTRAINT metric_samples_pkey PRIMARY KEY (step, at, subject);

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY users.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (user_id, id);

ALTER TABLE ONLY users.preferences
    ADD CONSTRAINT preferences_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY users.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

CREATE UNIQUE INDEX accounts_email_canonical_key ON identity.accounts USING btree (email_canonical) WHERE (status <> 'deleted'::text);

CREATE INDEX accounts_email_trgm_idx ON identity.accounts USING gin (email_canonical public.gin_trgm_ops);

CREATE INDEX accounts_purge_at_idx ON identity.accounts USING btree (purge_at) WHERE (purge_at IS NOT NULL);

CREATE INDEX accounts_role_idx ON identity.accounts USING btree (role, user_id) WHERE (role <> 'user'::text);

CREATE INDEX one_time_tokens_expires_at_idx ON identity.one_time_tokens USING btree (expires_at);

CREATE UNIQUE INDEX one_time_tokens_token_hash_key ON identity.one_time_tokens USING btree (token_hash);

CREATE INDEX revocations_created_at_idx ON identity.revocations USING btree (created_at);

CREATE INDEX revocations_expires_at_idx ON identity.revocations USING btree (expires_at);

CREATE INDEX security_events_actor_idx ON identity.security_events USING btree (actor_id) WHERE (actor_id <> user_id);

CREATE INDEX security_events_created_at_idx ON identity.security_events USING btree (created_at);

CREATE INDEX sessions_expires_at_idx ON identity.sessions USING btree (expires_at);

CREATE INDEX sessions_live_idx ON identity.sessions USING btree (user_id, last_used_at DESC) WHERE (revoked_at IS NULL);

CREATE INDEX sessions_unpublished_end_idx ON identity.sessions USING btree (user_id, id) WHERE has_unpublished_end;

CREATE UNIQUE INDEX signing_keys_active_key ON identity.signing_keys USING btree (state) WHERE (state = 'active'::text);

CREATE INDEX artifacts_expires_idx ON jobs.artifacts USING btree (expires_at) WHERE (deleted_at IS NULL);

CREATE UNIQUE INDEX artifacts_storage_key_key ON jobs.artifacts USING btree (storage_key);

CREATE INDEX artifacts_user_idx ON jobs.artifacts USING btree (user_id, created_at DESC) WHERE (deleted_at IS NULL);

CREATE INDEX jobs_dispatched_idx ON jobs.jobs USING btree (lane, dispatched_at) WHERE ((state = 0) AND (dispatched_at IS NOT NULL));

CREATE INDEX jobs_error_idx ON jobs.jobs USING btree (((error ->> 'code'::text)), id) WHERE (error IS NOT NULL);

CREATE INDEX jobs_finished_idx ON jobs.jobs USING btree (finished_at) WHERE (state >= 2);

CREATE INDEX jobs_lease_idx ON jobs.jobs USING btree (lease_until) WHERE (state = 1);

CREATE INDEX jobs_living_idx ON jobs.jobs USING btree (user_id, lane, state, run_at) WHERE (state < 2);

CREATE INDEX jobs_scheduled_idx ON jobs.jobs USING btree (lane, run_at) WHERE ((state = 0) AND (dispatched_at IS NULL) AND (NOT is_due));

CREATE INDEX jobs_search_idx ON jobs.jobs USING btree (lane, kind, state, id);

CREATE INDEX jobs_state_idx ON jobs.jobs USING btree (user_id, state, id);

CREATE INDEX jobs_turns_idx ON jobs.jobs USING btree (lane, user_id, priority, run_at) WHERE ((state = 0) AND (dispatched_at IS NULL) AND is_due);

CREATE UNIQUE INDEX jobs_unique_key_key ON jobs.jobs USING btree (user_id, kind, unique_key) NULLS NOT DISTINCT WHERE ((unique_key IS NOT NULL) AND (state < 2));

CREATE INDEX jobs_user_idx ON jobs.jobs USING btree (user_id, id);

CREATE INDEX mail_sends_recipient_idx ON jobs.mail_sends USING btree (recipient_hash, purpose, send_at DESC);

CREATE INDEX mail_sends_send_at_idx ON jobs.mail_sends USING btree (send_at);

CREATE INDEX mail_sends_sender_idx ON jobs.mail_sends USING btree (sender_id, send_at DESC);

CREATE INDEX webhook_deliveries_endpoint_idx ON jobs.webhook_deliveries USING btree (user_id, endpoint_id, id DESC);

CREATE INDEX webhook_deliveries_pending_idx ON jobs.webhook_deliveries USING btree (user_id, endpoint_id) WHERE (state = 'pending'::text);

CREATE INDEX webhook_deliveries_state_idx ON jobs.webhook_deliveries USING btree (state, id);

CREATE INDEX webhook_messages_created_at_idx ON jobs.webhook_messages USING btree (created_at);

CREATE INDEX idempotency_keys_expires_at_idx ON kernel.idempotency_keys USING btree (expires_at);

CREATE INDEX idx_events_user_created ON users.events USING btree (user_id, created_at DESC, id DESC, kind);

CREATE TRIGGER jobs_record_follows AFTER UPDATE OF state ON jobs.jobs FOR EACH ROW WHEN (((new.kind = ANY (ARRAY['invoice.email'::text, 'invoice.pdf'::text, 'webhook.deliver'::text])) AND (((old.state < 2) AND (new.state > 2)) OR ((old.state > 2) AND (new.state = 0))))) EXECUTE FUNCTION jobs.record_follows_job();

ALTER TABLE ONLY jobs.artifacts
    ADD CONSTRAINT artifacts_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs.jobs(id) ON DELETE CASCADE;

ALTER TABLE ONLY jobs.attempts
    ADD CONSTRAINT attempts_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs.jobs(id) ON DELETE CASCADE;

ALTER TABLE ONLY jobs.positions
    ADD CONSTRAINT positions_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs.jobs(id) ON DELETE CASCADE;

ALTER TABLE ONLY jobs.webhook_attempts
    ADD CONSTRAINT webhook_attempts_delivery_fkey FOREIGN KEY (user_id, delivery_id) REFERENCES jobs.webhook_deliveries(user_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY users.preferences
    ADD CONSTRAINT preferences_user_id_fkey FOREIGN KEY (user_id) REFERENCES users.users(id) ON DELETE CASCADE;
