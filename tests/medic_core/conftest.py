"""A tiny suspect and a few clean images, for tests in which only the mechanics count."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from medic_core.architectures import find_architecture
from medic_core.config import Preprocessing
from medic_core.data import Batches
from medic_core.removal import Suspect
from tests.threads import one_thread


@pytest.fixture(scope="module", name="one_thread")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def suspect() -> Suspect:
    """An untrained WRN-10-1 of three classes whose batch statistics are not the initial ones."""
    architecture = find_architecture("medic/wide_resnet10_1", num_classes=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = architecture.build()
        model.train()
        with torch.no_grad():
            model(torch.rand(32, 3, 16, 16))
    return Suspect(model.eval(), architecture)


@pytest.fixture
def clean() -> Batches:
    """33 images of 16 × 16 pixels: with batches of 8 one is left over, and joins the last."""
    generator = torch.Generator().manual_seed(11)
    images = torch.randint(0, 256, (33, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Batches(images, torch.arange(33) % 3, Preprocessing(input_size=(16, 16)))
