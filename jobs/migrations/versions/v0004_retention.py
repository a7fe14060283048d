"""Since when nothing but its record is kept of a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """All that is there is kept."""
    op.add_column("jobs", sa.Column("expired", sa.BigInteger))
    op.create_index("jobs_by_end", "jobs", ["expired", "finished"])
    op.create_index("files_by_age", "files", ["created"])


def downgrade() -> None:
    """Forget the jobs that have expired: without the mark they would promise results that are gone."""
    op.execute("DELETE FROM jobs WHERE expired IS NOT NULL")
    op.drop_index("files_by_age", "files")
    op.drop_index("jobs_by_end", "jobs")
    op.drop_column("jobs", "expired")
