"""An invoice whose e-mail cannot be sent is `failed`, for whatever reason its job has failed, and `issued` again once
that job is started over.

Until now the handler said so, which it can only where it ends the job itself: not where the attempts were used up, the
worker was lost too often, or what the job needs had been away for days. A cancelled e-mail changes nothing.
"""

from alembic import op

revision = "0023_invoices_follow_their_email"
down_revision = "0022_files_by_user"
branch_labels = None
depends_on = None

_OF_EMAIL = """
            ELSIF NEW.kind = 'invoice.email' THEN
                UPDATE jobs.invoices SET status = CASE WHEN is_over THEN 'failed' ELSE 'issued' END
                WHERE user_id = NEW.user_id AND id = CAST(NEW.args ->> 'invoice_id' AS uuid)
                  AND CASE WHEN is_over THEN NEW.state = 3 AND status IN ('issued', 'sent') ELSE status = 'failed'
                      END;"""

_FUNCTION = """
    CREATE OR REPLACE FUNCTION jobs.record_follows_job() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            is_over CONSTANT boolean NOT NULL DEFAULT NEW.state <> 0;
        BEGIN
            IF NEW.kind = 'invoice.pdf' THEN
                UPDATE jobs.invoices SET status = CASE WHEN is_over THEN 'failed' ELSE 'pending' END
                WHERE user_id = NEW.user_id AND id = CAST(NEW.args ->> 'invoice_id' AS uuid)
                  AND status = CASE WHEN is_over THEN 'pending' ELSE 'failed' END;{of_email}
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
"""
_TRIGGER = """
    CREATE TRIGGER jobs_record_follows AFTER UPDATE OF state ON jobs.jobs FOR EACH ROW
    WHEN (NEW.kind IN {kinds}
          AND ((OLD.state < 2 AND NEW.state > 2) OR (OLD.state > 2 AND NEW.state = 0)))
    EXECUTE FUNCTION jobs.record_follows_job()
"""


def upgrade() -> None:
    _follow("('invoice.email', 'invoice.pdf', 'webhook.deliver')", _OF_EMAIL)


def downgrade() -> None:
    _follow("('invoice.pdf', 'webhook.deliver')", "")


def _follow(kinds: str, of_email: str) -> None:
    op.execute(_FUNCTION.replace("{of_email}", of_email))
    op.execute("DROP TRIGGER IF EXISTS jobs_record_follows ON jobs.jobs")
    op.execute(_TRIGGER.replace("{kinds}", kinds))
