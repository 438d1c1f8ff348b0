CREATE SCHEMA identity;

CREATE SCHEMA jobs;

CREATE SCHEMA kernel;

CREATE SCHEMA users;

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

CREATE TABLE jobs.epoch (
    singleton boolean DEFAULT true NOT NULL,
    epoch uuid NOT NULL,
    CONSTRAINT epoch_singleton_check CHECK (singleton)
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
    parent_id uuid,
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
    CONSTRAINT jobs_finished_at_check CHECK (((state >= 2) = (finished_at IS NOT NULL))),
    CONSTRAINT jobs_run_token_check CHECK (((state = 1) = (run_token IS NOT NULL))),
    CONSTRAINT jobs_state_check CHECK (((state >= 0) AND (state <= 4)))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.02');

CREATE TABLE jobs.lanes (
    lane text NOT NULL,
    paused_at timestamp with time zone
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

CREATE TABLE public.alembic_version (
    version_num text NOT NULL
);

CREATE TABLE users.events (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    kind text NOT NULL,
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

ALTER TABLE ONLY jobs.artifacts
    ADD CONSTRAINT artifacts_pkey PRIMARY KEY (job_id, name);

ALTER TABLE ONLY jobs.epoch
    ADD CONSTRAINT epoch_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY jobs.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY jobs.lanes
    ADD CONSTRAINT lanes_pkey PRIMARY KEY (lane);

ALTER TABLE ONLY kernel.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (caller, operation, key);

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY users.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (user_id, id);

ALTER TABLE ONLY users.preferences
    ADD CONSTRAINT preferences_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY users.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

CREATE INDEX artifacts_expires_idx ON jobs.artifacts USING btree (expires_at) WHERE (deleted_at IS NULL);

CREATE INDEX jobs_dispatched_idx ON jobs.jobs USING btree (lane, dispatched_at) WHERE ((state = 0) AND (dispatched_at IS NOT NULL));

CREATE INDEX jobs_finished_idx ON jobs.jobs USING btree (finished_at) WHERE (state >= 2);

CREATE INDEX jobs_lease_idx ON jobs.jobs USING btree (lease_until) WHERE (state = 1);

CREATE INDEX jobs_list_idx ON jobs.jobs USING btree (user_id, id DESC) INCLUDE (state);

CREATE UNIQUE INDEX jobs_unique_key_key ON jobs.jobs USING btree (user_id, kind, unique_key) NULLS NOT DISTINCT WHERE ((unique_key IS NOT NULL) AND (state < 2));

CREATE INDEX jobs_waiting_idx ON jobs.jobs USING btree (lane, user_id, priority, run_at) WHERE ((state = 0) AND (dispatched_at IS NULL));

CREATE INDEX jobs_waiting_run_at_idx ON jobs.jobs USING btree (run_at) WHERE ((state = 0) AND (dispatched_at IS NULL));

CREATE INDEX idempotency_keys_expires_at_idx ON kernel.idempotency_keys USING btree (expires_at);

CREATE INDEX idx_events_user_created ON users.events USING btree (user_id, created_at DESC, id DESC, kind);

ALTER TABLE ONLY jobs.artifacts
    ADD CONSTRAINT artifacts_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs.jobs(id) ON DELETE CASCADE;

ALTER TABLE ONLY users.preferences
    ADD CONSTRAINT preferences_user_id_fkey FOREIGN KEY (user_id) REFERENCES users.users(id) ON DELETE CASCADE;
