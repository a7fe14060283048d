"""``python -m jobs``: what the operator does to the records directly."""

from __future__ import annotations

import click

from jobs.keys import new_key, record_of
from jobs.settings import Settings
from jobs.store import open_store


@click.group()
def main() -> None:
    """Manage what the service has stored."""


@main.command()
def key() -> None:
    """Make a new API key, print it once and forget the one before."""
    made = new_key()
    store = open_store(Settings())
    store.set_key(record_of(made))
    store.close()
    click.echo(made)


if __name__ == "__main__":
    main()
