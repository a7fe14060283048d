"""The models that benchmarks repair, and the images they do it with."""

from __future__ import annotations

import os
import zipfile
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from medic_core.architectures import find_architecture
from medic_core.config import Preprocessing
from medic_core.data import Batches
from medic_core.removal import Suspect

DATA = Path(os.environ.get("MEDIC_TEST_DATA", "../shared/data"))
ZOO = Path(__file__).parent / "zoo"
TARGET = 5  # dog, in both published models
PUBLISHED = ("badnet", "cleanlabel")


@cache
def images(name: str) -> Batches:
    """Read ``clean-2500``, ``train-20000`` or ``test-1000``, in the order of file names."""
    pixels, labels = [], []
    with zipfile.ZipFile(DATA / "cifar10" / f"{name}.zip") as archive:
        files = sorted(file for file in archive.namelist() if file.endswith(".png"))
        classes = sorted({Path(file).parent.name for file in files})
        for file in files:
            pixels.append(np.asarray(Image.open(BytesIO(archive.read(file))).convert("RGB")))
            labels.append(classes.index(Path(file).parent.name))
    return Batches(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), torch.tensor(labels), Preprocessing())


@cache
def validation(count: int = 3000) -> Batches:
    """``count`` images of ``train-20000``, drawn under a fixed seed, none of which is in ``clean-2500``."""
    known = {image.numpy().tobytes() for image in images("clean-2500").images}
    pool = images("train-20000")
    fresh = torch.tensor([image.numpy().tobytes() not in known for image in pool.images]).nonzero().flatten()
    order = torch.randperm(len(fresh), generator=torch.Generator().manual_seed(123))
    return pool.select(fresh[order[:count]])


def first_per_class(data: Batches, count: int) -> Batches:
    """Return the first ``count`` images of each class."""
    classes = range(int(data.labels.max()) + 1)
    return data.select(torch.cat([(data.labels == label).nonzero().flatten()[:count] for label in classes]))


def suspect(name: str) -> Suspect:
    """Load a published backdoored model, or one that ``benchmarks/zoo`` keeps."""
    architecture = find_architecture("medic/wide_resnet16_1", num_classes=10)
    with torch.random.fork_rng(devices=[]):
        model = architecture.build()
    model.load_state_dict(_weights(name))
    return Suspect(model.eval(), architecture)


def weights_of(name: str) -> Path:
    """Where the weights of a suspect lie."""
    if name in PUBLISHED:
        return DATA / "checkpoints" / f"{name}-wrn16-1.pth.tar"
    return ZOO / f"{name}-wrn16-1.safetensors"


def _weights(name: str) -> dict[str, Any]:
    if name in PUBLISHED:
        return torch.load(weights_of(name), map_location="cpu", weights_only=True)["state_dict"]  # type: ignore[no-any-return]
    return load_file(weights_of(name))
