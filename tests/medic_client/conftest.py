"""What the client's tests share."""

from __future__ import annotations

import pytest

from medic_client import client


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """How long the client would have slept; it does not."""
    slept: list[float] = []
    monkeypatch.setattr(client.time, "sleep", slept.append)
    return slept
