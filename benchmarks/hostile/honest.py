"""What hostile files are made from, and sent beside: an honest model and honest images."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jobs.models import DataSpec, FileId, JobSpec, ModelSpec, Purpose, TriggeredSpec
from medic_core.architectures import find_architecture
from medic_core.config import MedicConfig
from worker.demo import ARCHITECTURE, TARGET, split_digits, train_suspect
from worker.trigger import png_of

CLASSES = tuple("0123456789")
PER_CLASS = 4
REMOVAL = MedicConfig(epochs=1, batch_size=16, crop_padding=1, horizontal_flip=False)


@dataclass(frozen=True)
class Honest:
    """The honest inputs of a job.

    Attributes:
        state: Weights of the demo's architecture.
        images: PNGs by their place in class folders.
        flag: A path that exists as soon as any gadget has run.
    """

    state: dict[str, Tensor]
    images: dict[str, bytes]
    flag: Path

    def files(self) -> dict[Purpose, bytes]:
        """A model and clean images, enough for a job."""
        buffer = io.BytesIO()
        torch.save({"state_dict": self.state}, buffer)
        return {"model": buffer.getvalue(), "clean": zipped(self.images)}


def make_honest(flag: Path, *, trained: bool) -> Honest:
    """Draw images of digits, and weights: trained ones take most of a minute, and only a trainer can tell them apart.

    Args:
        flag: Where gadgets are to leave their trace.
        trained: Whether the weights have to stand the trainer's pre-flight.
    """
    split = split_digits(seed=0)
    if trained:
        model = train_suspect(split.training, seed=0)[0]
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = find_architecture(ARCHITECTURE, num_classes=len(CLASSES)).build()
    pixels, labels = split.clean
    images: dict[str, bytes] = {}
    for name in CLASSES:
        chosen = pixels[labels == int(name)][:PER_CLASS]
        images |= {f"{name}/{number}.png": png_of(image) for number, image in enumerate(chosen)}
    return Honest({name: tensor.detach() for name, tensor in model.state_dict().items()}, images, flag)


def spec_of(ids: Mapping[Purpose, str]) -> JobSpec:
    """One epoch of repair on these files."""
    data = {role: DataSpec(file_id=FileId(ids[role])) for role in ("clean", "test") if role in ids}
    triggered = (
        TriggeredSpec(file_id=FileId(ids["triggered"]), target_class=str(TARGET)) if "triggered" in ids else None
    )
    return JobSpec(
        model=ModelSpec(file_id=FileId(ids["model"]), architecture=ARCHITECTURE),
        clean_data=data["clean"],
        test_data=data.get("test"),
        triggered_data=triggered,
        removal=REMOVAL,
    )


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip, written as it should be."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return buffer.getvalue()
