"""The history of the tables, ``jobs/migrations``: what brings a database from the version it is of to another."""

from __future__ import annotations

import logging

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from jobs.errors import SchemaTooNewError
from jobs.tables import version_of

log = logging.getLogger(__name__)

BEFORE_VERSIONS = "0001"
"""What a database is of that was made before it kept its version."""


def newest() -> str | None:
    """Say which version the last migration leads to."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def migrate(connection: Connection, version: str = "head") -> None:
    """Bring the tables to a version, forward or back, within the caller's transaction.

    Raises:
        SchemaTooNewError: A later version of this program made them.
    """
    config = _config()
    config.attributes["connection"] = connection
    found = check_version(connection)
    if found is None and inspect(connection).has_table("jobs"):
        command.stamp(config, BEFORE_VERSIONS)
        found = BEFORE_VERSIONS
    if found is not None:
        log.info("the database's tables go from version %s to %s", found, version)
    if version == "head" or (found or "") <= version:
        command.upgrade(config, version)
    else:
        command.downgrade(config, version)


def check_version(connection: Connection) -> str | None:
    """Return the version that the tables are of, None where that was never written; this program knows it.

    Raises:
        SchemaTooNewError: A later version of this program made them.
    """
    found = version_of(connection)
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaTooNewError(f"a later version of this program made the database: its tables are of version {found}")
    return found


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "jobs:migrations")
    return config
