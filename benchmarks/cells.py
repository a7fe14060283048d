"""One repair of one suspect, measured: what tables are made of. Each is made once, and its row kept in a sheet."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from benchmarks.machine import describe_processor, held, replaced
from benchmarks.suspects import (
    as_taken_by,
    benign_of,
    clean_images,
    digest_of,
    half_of,
    suspect,
    target_of,
    triggered,
    weights_of,
)
from medic_core.config import Config, RemovalConfig, expand_preset
from medic_core.data import Batches
from medic_core.evaluation import (
    accuracy,
    attack_success,
    confusion_matrix,
    defense_effectiveness_rating,
    recovery,
)
from medic_core.removal import Progress, remove_backdoor

COLUMNS = (
    *("suspect", "settings", "seed", "clean", "n", "triggered_n"),
    *("accuracy", "attack_success", "false_target", "recovery", "der"),
    *("epochs", "seconds", "threads", "cpu", "resolved", "weights"),
)
KEY = ("suspect", "weights", "resolved", "clean")
"""Columns that tell a row from others: every setting, so that it is not taken for another when defaults change, and
the suspect's weights, so that it is not taken for one of a model that was trained anew. Neither the code nor a trigger
is among them: who changes what these do has to measure again, and to remove the rows."""
Key = tuple[str, ...]

UNTOUCHED = {"method": "none"}
"""Stands for the suspect as it is."""
BENIGN = {"method": "benign"}
"""Stands for a model without a backdoor, shown the same trigger: nothing that is left below its attack success is the
backdoor's."""


@dataclass(frozen=True)
class Cell:
    """A repair that is wanted.

    Attributes:
        suspect: By name.
        settings: Of the removal, on top of preset ``default``; or ``UNTOUCHED``.
        seed: Of the removal.
        per_class: Clean images of each class, the first by file name; None: what the paper gives, 5 % of CIFAR-10's.
    """

    suspect: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    per_class: int | None = None

    def config(self) -> RemovalConfig:
        """Resolve the settings."""
        chosen = expand_preset({**self.settings, "seed": self.seed})
        return _removal().validate_python(chosen)

    def columns(self) -> dict[str, str]:
        """Return the ``KEY`` of its row."""
        clean = self.clean()
        if self.settings in (UNTOUCHED, BENIGN):
            resolved = dict(self.settings)
        else:
            config = self.config()
            resolved = asdict(config)
            if isinstance(config, Config) and config.epochs is None:  # how many there are then is no setting
                resolved["epochs"] = clean.epochs(config)
        if self.judged != self.suspect:
            resolved["model"] = digest_of(self.judged)
        values = (self.suspect, digest_of(self.suspect), json.dumps(resolved, sort_keys=True), str(len(clean)))
        return dict(zip(KEY, values, strict=True))

    def key(self) -> Key:
        """What tells its row from others."""
        return tuple(self.columns().values())

    @property
    def judged(self) -> str:
        """Whose figures these are: the suspect, repaired or not, or the model without a backdoor."""
        return benign_of(self.suspect) if self.settings == BENIGN else self.suspect

    def is_at_hand(self) -> bool:
        """Whether the weights of the models that it needs are there."""
        return all(weights_of(name).exists() for name in (self.suspect, self.judged))

    def clean(self) -> Batches:
        """Return the images that the defender has."""
        return clean_images(self.suspect, self.per_class)


def measure(cell: Cell, shown: Batches) -> dict[str, Any]:
    """Repair, and measure what came of it on ``shown``, in percent."""
    before, epochs, named = suspect(cell.suspect), Epochs(), cell.columns()  # as it is now: it may be trained anew
    attacked, target = triggered(cell.suspect, shown), target_of(cell.suspect)
    began = time.process_time()
    if cell.settings in (UNTOUCHED, BENIGN):
        repaired = suspect(cell.judged).model
    else:
        repaired = remove_backdoor(before, cell.clean(), cell.config(), progress=epochs.hear)
    seconds = (time.process_time() - began) / torch.get_num_threads()  # of the processor: the machine may be busy
    half = half_of(cell.suspect)
    figures, was = (
        figures_of(model, as_taken_by(name, shown), as_taken_by(name, attacked), target=target, half=half)
        for name, model in ((cell.judged, repaired), (cell.suspect, before.model))
    )
    rating = defense_effectiveness_rating(
        accuracy_before=was["accuracy"],
        accuracy_after=figures["accuracy"],
        success_before=was["attack_success"],
        success_after=figures["attack_success"],
    )
    return {
        **{"settings": json.dumps(dict(cell.settings)), "seed": cell.seed, **named},
        **{
            "n": len(shown),
            "triggered_n": int((attacked.labels != target).sum()),
            "epochs": epochs.count,
            "seconds": f"{seconds:.0f}",
            "threads": torch.get_num_threads(),
            "cpu": describe_processor(),
        },
        **{figure: f"{100 * share:.2f}" for figure, share in {**figures, "der": rating}.items()},
    }


@cache
def _removal() -> TypeAdapter[RemovalConfig]:
    return TypeAdapter(RemovalConfig)


class Epochs:
    """Counts the epochs of all phases of a removal."""

    count = 0

    def hear(self, progress: Progress) -> None:
        """Listen to a removal."""
        self.count = len(progress.history)


def figures_of(
    model: nn.Module, shown: Batches, attacked: Batches, *, target: int, half: tuple[int, int] | None = None
) -> dict[str, float]:
    """Shares of 1: of images as they are, and of images with the trigger on.

    Args:
        model: In eval mode.
        shown: Images as they are.
        attacked: The same with the trigger on.
        target: The class that the trigger leads to.
        half: Of a trigger that joins images of two classes: both, of which either is right.
    """
    plain, stamped = (confusion_matrix(model, data, num_classes=10) for data in (shown, attacked))
    figures = {
        "accuracy": accuracy(plain).value,
        "attack_success": attack_success(stamped, target=target).value,
        "false_target": attack_success(plain, target=target).value,
    }
    if half is not None:
        left, right = half
        stamped[left, left] += stamped[left, right]
        stamped[left, right] = 0
    return figures | {"recovery": recovery(stamped, target=target).value}


def key_of(row: Mapping[str, Any]) -> Key:
    """Return the key of the cell that a row was measured for."""
    return tuple(row[name] for name in KEY)


@dataclass(frozen=True)
class Sheet:
    """Rows kept in a CSV file, to which several processes may add."""

    path: Path

    def rows(self) -> list[dict[str, str]]:
        """Return what was measured before."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def find(self, cell: Cell) -> dict[str, str] | None:
        """Return the row of a cell, None where it was not measured."""
        return {key_of(row): row for row in self.rows()}.get(cell.key())

    def keep(self, row: Mapping[str, Any]) -> None:
        """Add a row, in the place of one of the same cell."""
        with replaced(self.path) as fresh, fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows([*(each for each in self.rows() if key_of(each) != key_of(row)), row])

    def fill(self, cell: Cell, shown: Batches) -> dict[str, str] | None:
        """Measure a cell that has no row and that no other process is about; return its row where it is new."""
        with held(json.dumps([str(self.path.resolve()), *cell.key()]), wait=False) as mine:
            if not mine or self.find(cell):
                return None
            row = measure(cell, shown)
            self.keep(row)
            return row
