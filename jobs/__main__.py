"""``python -m jobs``: what the operator does to the records directly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click
from pydantic import ValidationError

from jobs.backup import back_up
from jobs.errors import JobsError
from jobs.keys import SCOPES, Scope, new_key, record_of
from jobs.settings import MOST_DAYS, Settings, faults
from jobs.store import JobStore, open_store
from jobs.tables import DEFAULT_TENANT

DAY_SECONDS = 24 * 3600


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        raise click.ClickException(faults(error)) from error


@contextmanager
def _opened() -> Iterator[JobStore]:
    store = open_store(_settings())
    try:
        yield store
    finally:
        store.close()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Manage what the service has stored."""


@main.group()
def keys() -> None:
    """Say who is let in. MEDIC_API_KEY, where it is set, is the only key that counts."""


@keys.command()
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Whose files and jobs the holder sees.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    default=("admin",),
    show_default=True,
    help="What the holder may do; may be repeated. admin: everything.",
)
@click.option("--days", type=click.IntRange(1, MOST_DAYS), help="Valid for so long; by default until it is revoked.")
def create(tenant: str, scopes: tuple[Scope, ...], days: int | None) -> None:
    """Make an API key and print it, once: only its hash is kept."""
    made = new_key()
    record = record_of(made, tenant=tenant, scopes=scopes)
    with _opened() as store:
        store.add_key(record, valid_seconds=None if days is None else days * DAY_SECONDS)
    click.echo(made)


@keys.command(name="list")
def list_() -> None:
    """Print every key as a line of JSON, without its secret, of which nothing is known."""
    with _opened() as store:
        for record in store.list_keys():
            shown = {name: value for name, value in asdict(record).items() if name != "sha256"}
            click.echo(json.dumps(shown, default=str))


@keys.command()
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Let the holder of a key in no more. KEY_ID is what stands between mdk_ and the secret."""
    with _opened() as store:
        if not store.revoke_key(key_id):
            raise click.ClickException(f"no key {key_id}; `medic keys list` shows all")
    click.echo(f"{key_id} is revoked", err=True)


@main.command()
@click.argument("destination", type=click.Path(path_type=Path))
def backup(destination: Path) -> None:
    """Copy records and bytes of the embedded service into the new folder DESTINATION, while it runs or not.

    The copy is a data folder: to restore it, end the service, put a copy of it in the place of MEDIC_DATA_DIR, start.
    """
    try:
        count = back_up(_settings(), destination)
    except JobsError as error:
        raise click.ClickException(f"no backup was made: {error}") from error
    click.echo(f"{destination} holds the records and {count} blobs", err=True)


if __name__ == "__main__":
    main()
