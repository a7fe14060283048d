"""One request, one effect: what was made under an Idempotency-Key is remembered for a day.

A request reserves its key, makes its record, and settles the reservation in the transaction that commits the record.
While it is reserved, others are told to wait. One that died on the way holds its key up for ``RESERVED_SECONDS``; then
another may take it over, and what the first should still commit is refused.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from jobs.database import Now
from jobs.errors import IdempotencyKeyReusedError, RequestInFlightError
from jobs.tables import idempotency_keys as table

REMEMBERED_SECONDS = 24 * 3600
RESERVED_SECONDS = 60


@dataclass(frozen=True)
class Reservation:
    """The right to make something under a key, until it is settled."""

    tenant: str
    key: str
    token: str


def reserve(connection: Connection, tenant: str, key: str, fingerprint: str) -> Reservation | str:
    """Reserve a key for a request, or return what was made when the same request came before.

    Args:
        connection: In a transaction that writes.
        tenant: Whose key it is.
        key: As the client chose it.
        fingerprint: Of all that the request asks for.

    Raises:
        IdempotencyKeyReusedError: The key came with another request before.
        RequestInFlightError: The same request is not answered yet.
    """
    ours = and_(table.c.tenant == tenant, table.c.key == key)
    connection.execute(delete(table).where(ours, _is_over()))
    row = connection.execute(select(table).where(ours)).one_or_none()
    if row is None:
        made = Reservation(tenant, key, secrets.token_hex(8))
        values = {"tenant": tenant, "key": key, "fingerprint": fingerprint, "token": made.token}
        try:
            connection.execute(insert(table).values(**values, created=Now()))
        except IntegrityError as error:  # on PostgreSQL: another was first since we looked
            raise _in_flight(key) from error
        return made
    if row.fingerprint != fingerprint:
        raise IdempotencyKeyReusedError(f"Idempotency-Key {key} came with another request before: choose a new one")
    if row.made is None:
        raise _in_flight(key)
    return str(row.made)


def settle(connection: Connection, reservation: Reservation, made: str) -> None:
    """Remember what was made, in the transaction that makes it.

    Raises:
        RequestInFlightError: It took so long that another request has the key by now.
    """
    statement = update(table).where(_is_ours(reservation)).values(made=made)
    if connection.execute(statement).rowcount != 1:
        raise _in_flight(reservation.key)


def release(connection: Connection, reservation: Reservation) -> None:
    """Give a key back under which nothing was made."""
    connection.execute(delete(table).where(_is_ours(reservation)))


def forget(connection: Connection) -> None:
    """Forget what is over."""
    connection.execute(delete(table).where(_is_over()))


def _is_ours(reservation: Reservation) -> ColumnElement[bool]:
    same = and_(table.c.tenant == reservation.tenant, table.c.key == reservation.key)
    return and_(same, table.c.token == reservation.token, table.c.made.is_(None))


def _is_over() -> ColumnElement[bool]:
    abandoned = and_(table.c.made.is_(None), table.c.created < Now() - RESERVED_SECONDS * 1000)
    return or_(abandoned, table.c.created < Now() - REMEMBERED_SECONDS * 1000)


def _in_flight(key: str) -> RequestInFlightError:
    return RequestInFlightError(f"a request under Idempotency-Key {key} is not answered yet: send it again in a moment")
