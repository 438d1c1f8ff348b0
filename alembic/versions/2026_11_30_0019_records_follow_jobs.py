"""An invoice or a delivery whose job ends without it is `failed`, and `pending` again once the job is started over.

A job is ended by its owner, by an administrator, by a ban, by its last attempt or by its rescue. One rule in the
database holds for all of them; its condition is looked at in the row, so that other jobs cost next to nothing.
What has waited for a job that was over before is mended by starting that job over, or by a new delivery.
"""

from alembic import op

revision = "0019_records_follow_jobs"
down_revision = "0018_no_parents"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE OR REPLACE FUNCTION jobs.record_follows_job() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            is_over CONSTANT boolean NOT NULL DEFAULT NEW.state <> 0;
        BEGIN
            IF NEW.kind = 'invoice.pdf' THEN
                UPDATE jobs.invoices SET status = CASE WHEN is_over THEN 'failed' ELSE 'pending' END
                WHERE user_id = NEW.user_id AND id = CAST(NEW.args ->> 'invoice_id' AS uuid)
                  AND status = CASE WHEN is_over THEN 'pending' ELSE 'failed' END;
            ELSE
                UPDATE jobs.webhook_deliveries
                SET state = CASE WHEN is_over THEN 'failed' ELSE 'pending' END, next_at = NULL,
                    last_error = CASE WHEN is_over THEN coalesce(NEW.error ->> 'code', 'cancelled') END
                WHERE user_id = NEW.user_id AND id = CAST(NEW.args ->> 'delivery_id' AS uuid)
                  AND state = CASE WHEN is_over THEN 'pending' ELSE 'failed' END;
            END IF;
            RETURN NULL;
        END
        $$
    """)
    op.execute("DROP TRIGGER IF EXISTS jobs_record_follows ON jobs.jobs")
    op.execute("""
        CREATE TRIGGER jobs_record_follows AFTER UPDATE OF state ON jobs.jobs FOR EACH ROW
        WHEN (NEW.kind IN ('invoice.pdf', 'webhook.deliver')
              AND ((OLD.state < 2 AND NEW.state > 2) OR (OLD.state > 2 AND NEW.state = 0)))
        EXECUTE FUNCTION jobs.record_follows_job()
    """)


def downgrade() -> None:
    op.execute("DROP TRIGGER jobs_record_follows ON jobs.jobs")
    op.execute("DROP FUNCTION jobs.record_follows_job()")
