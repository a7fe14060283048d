"""A malformed setting stops the start, by its name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from jobs.settings import Settings

MALFORMED = {
    "MEDIC_DATABASE_URL": "not a url",
    "MEDIC_LEASE_SECONDS": "soon",
    "MEDIC_PORT": "70000",
    "MEDIC_DEVICE": "tpu",
    "MEDIC_SANDBOX": "off",
    "MEDIC_UPLOAD_LIMIT_BYTES": "0",
}
OTHERS = [
    ("MEDIC_DATABASE_URL", "mysql://h/d"),
    ("MEDIC_LEASE_SECONDS", "inf"),
    ("MEDIC_INTAKE_SECONDS", "nan"),
    ("MEDIC_BLOB_GRACE_SECONDS", "60"),
    *(
        ("MEDIC_BROKER_URL", url)
        for url in (
            "redis://localhost:port/0",
            "redis://localhost:6379/medic",
            "http://localhost",
            "memory://",
            "redis://",
        )
    ),
]


@pytest.mark.parametrize(("name", "value"), [*MALFORMED.items(), *OTHERS])
def test_a_malformed_value_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert [error["loc"][0] for error in refused.value.errors()] == [name.removeprefix("MEDIC_").lower()]


def test_one_machine_needs_no_setting() -> None:
    settings = Settings()
    assert (settings.database_url, settings.broker_url, settings.host) == (None, None, "127.0.0.1")
    assert settings.sandbox == "auto"
    assert settings.data_dir.is_absolute()


def test_white_space_around_the_key_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDIC_API_KEY", " mdk_main_secret\n")
    key = Settings().api_key
    assert key is not None
    assert key.get_secret_value() == "mdk_main_secret"
