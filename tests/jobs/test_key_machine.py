"""Any sequence of what an operator may do to API keys, and of time that passes, against a model of a few lines.

``MEDIC_TEST_FULL=1`` tries ten times as many sequences, and longer ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import hypothesis.strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import Engine, delete, update

from jobs.database import writing
from jobs.keys import KeyRecord, Scope, new_key, record_of, verify
from jobs.store import JobStore
from jobs.tables import api_keys
from tests.jobs.machines import patient, run_machine

MOST_KEYS = 4
HOUR_SECONDS = 3600


@dataclass
class ModelKey:
    """What should be kept of a key. ``seconds_left``: None for good."""

    key: str
    record: KeyRecord
    seconds_left: int | None
    is_revoked: bool = False
    revoked: datetime | None = None

    @property
    def is_valid(self) -> bool:
        return not self.is_revoked and (self.seconds_left is None or self.seconds_left > 0)


class KeyMachine(RuleBasedStateMachine):
    """One database and the keys of two tenants."""

    ids: Bundle[str] = Bundle("ids")

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine, self.store = engine, JobStore(engine)
        with writing(engine) as connection:
            connection.execute(delete(api_keys))
        self.keys: dict[str, ModelKey] = {}

    @precondition(lambda self: len(self.keys) < MOST_KEYS)
    @rule(
        target=ids,
        tenant=st.sampled_from(["cats", "dogs"]),
        scope=st.sampled_from(["jobs:read", "admin"]),
        valid_seconds=st.sampled_from([None, HOUR_SECONDS // 2, 3 * HOUR_SECONDS // 2]),
    )
    def create(self, tenant: str, scope: Scope, valid_seconds: int | None) -> str:
        key = new_key()
        record = record_of(key, tenant=tenant, scopes=(scope,))
        self.store.add_key(record, valid_seconds=valid_seconds)
        self.keys[record.id] = ModelKey(key, record, valid_seconds)
        return record.id

    @rule(key_id=ids)
    def revoke(self, key_id: str) -> None:
        assert self.store.revoke_key(key_id)
        self.keys[key_id].is_revoked = True

    @rule()
    def revoke_one_that_is_none(self) -> None:
        assert not self.store.revoke_key("nobody")

    @rule()
    def let_an_hour_pass(self) -> None:
        with writing(self.engine) as connection:
            connection.execute(update(api_keys).values(expires=api_keys.c.expires - 1000 * HOUR_SECONDS))
        for known in self.keys.values():
            known.seconds_left = None if known.seconds_left is None else known.seconds_left - HOUR_SECONDS

    @invariant()
    def only_what_is_valid_lets_in_and_only_to_its_tenant(self) -> None:
        for key_id, known in self.keys.items():
            found = self.store.find_key(key_id)
            assert (found is not None) == known.is_valid
            if found is not None:
                assert (found.tenant, found.scopes) == (known.record.tenant, known.record.scopes)
                assert [other.key for other in self.keys.values() if verify(other.key, found)] == [known.key]

    @invariant()
    def all_are_listed_and_what_is_revoked_stays_so_since_then(self) -> None:
        listed = {record.id: record for record in self.store.list_keys()}
        assert listed.keys() == self.keys.keys()
        for key_id, known in self.keys.items():
            revoked = listed[key_id].revoked
            assert (revoked is not None) == known.is_revoked
            known.revoked = known.revoked or revoked
            assert revoked == known.revoked


@patient
def test_every_sequence_of_what_happens_to_keys_agrees_with_the_model(hasty_engine: Engine) -> None:
    run_machine(lambda: KeyMachine(hasty_engine))
