"""What Alembic runs around the migrations: they take part in the transaction of whoever opens the database."""

from __future__ import annotations

from alembic import context

from jobs.tables import metadata

# No batches: SQLite would copy a table and drop the first, and with it all rows that refer to its rows.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
