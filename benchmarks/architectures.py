"""Writes ``medic_core/architectures.json``: every architecture, its size, and the torch that cloning worked with.

``python -m benchmarks.architectures`` describes all of them and keeps what is known of their steps; names given as
arguments are stepped, ``all`` steps every one. A step holds the weights six times (suspect, teacher, clone, gradient
and its two moments): 24 bytes a parameter. To stay under 10 GB the two largest models are stepped in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from medic_core.architectures import Architecture, find_architecture
from medic_core.architectures.fitting import without_memory
from medic_core.architectures.recipes import recipe_for, torchvision_family, usual_names
from medic_core.config import AUTHORS_LAYERS, MedicConfig, Preprocessing
from medic_core.data import Batches
from medic_core.errors import UnsupportedArchitectureError
from medic_core.removal import Progress, Suspect, remove_backdoor
from medic_core.removal.training import seeded

INDEX = Path(__file__).parents[1] / "medic_core" / "architectures.json"
NUM_CLASSES = 10
"""Classes that the index counts parameters for."""
MOST_IN_FLOAT32 = 400_000_000
"""Parameters above which a step is made in bfloat16."""

TORCH = torch.__version__.partition("+")[0]
"""Which torch this is, whatever it computes on."""

Entry = dict[str, Any]
log = logging.getLogger(__name__)


def describe(name: str) -> Entry:
    """Return what the index says of an architecture, all but what a step of cloning worked with."""
    refused = None
    try:
        family = recipe_for(name).family
    except UnsupportedArchitectureError as error:
        refused, family = str(error), torchvision_family(name.partition("/")[2])
    with without_memory():
        model = _build_refused(name) if refused else find_architecture(name, num_classes=NUM_CLASSES).build()
    side = _input_side(name)
    return {
        "name": name,
        "family": family,
        "tensors": len(model.state_dict()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "input_size": [side, side],
        "refused": refused,
    }


def _build_refused(name: str) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(
        name.partition("/")[2], weights=None, num_classes=NUM_CLASSES, init_weights=False
    )
    return model


def _input_side(name: str) -> int:
    """Pixels a side that the architecture is made for; for torchvision's, the least among its published weights."""
    origin, _, short = name.partition("/")
    if origin == "medic":
        return 32
    return min(int(weights.transforms().crop_size[0]) for weights in torchvision.models.get_model_weights(short))


def smallest(name: str) -> tuple[Architecture, int]:
    """Return an architecture with the options for small images, and the pixels a side that it then takes."""
    family = recipe_for(name).family
    side = {"alexnet": 64, "maxvit": 224}.get(family, 28 if name.endswith("_14") else 32)
    options = {"image_size": side} if family == "vision_transformer" else {}
    return find_architecture(name, num_classes=NUM_CLASSES, options=options), side


def problems_with_one_step(architecture: Architecture, side: int) -> list[str]:
    """Clone an untrained suspect for one step on two random images of ``side`` pixels; return what went wrong."""
    layers = (AUTHORS_LAYERS, "convolution")  # every model has convolutions, but not normalisations or linear layers
    config = MedicConfig(epochs=1, batch_size=2, learning_rate=1e-3, layers=layers)
    with seeded(config.seed + 1):  # under the same seed the clone would start as the suspect
        suspect = Suspect(architecture.build().eval(), architecture)
        images = torch.randint(256, (2, 3, side, side), dtype=torch.uint8)
    before = _checksums(suspect.model)
    clean = Batches(images, torch.tensor([0, 1]), Preprocessing(input_size=(side, side)))
    seen: list[Progress] = []
    clone = remove_backdoor(suspect, clean, config, progress=seen.append)
    problems = []
    if seen[-1].step != 1 or not seen[-1].history[-1]["cloning_loss"] > 0:
        problems.append("there was no step, or nothing to clone in it")
    if not all(bool(tensor.isfinite().all()) for tensor in clone.state_dict().values()):
        problems.append("the clone is not finite")
    if _checksums(suspect.model) != before:
        problems.append("the suspect changed")
    return problems


def _checksums(model: nn.Module) -> Mapping[str, int]:
    return {
        name: zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy()) for name, tensor in model.state_dict().items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the index, after the steps that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures to step, or 'all'")
    chosen = parser.parse_args(arguments).names
    known = {entry["name"]: entry["stepped_with"] for entry in json.loads(INDEX.read_text())} if INDEX.exists() else {}
    entries = [{**describe(name), "stepped_with": known.get(name)} for name in usual_names()]
    for entry in entries:
        if (entry["name"] in chosen or "all" in chosen) and entry["refused"] is None:
            entry["stepped_with"] = TORCH if _works(entry) else None
            _write(entries)
    _write(entries)


def _works(entry: Entry) -> bool:
    started = time.monotonic()
    with _bfloat16() if entry["parameters"] > MOST_IN_FLOAT32 else nullcontext():
        problems = problems_with_one_step(*smallest(entry["name"]))
    log.info("%s: %s in %.1f s", entry["name"], "; ".join(problems) or "works", time.monotonic() - started)
    return not problems


@contextmanager
def _bfloat16() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def _write(entries: Sequence[Entry]) -> None:
    INDEX.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
