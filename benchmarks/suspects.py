"""The models that benchmarks repair, and the images they do it with."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from medic_core.architectures import Architecture, find_architecture
from medic_core.attacks.recipes import (
    TRIGGER_OF,
    AnyRecipe,
    BlendingRecipe,
    CleanLabelRecipe,
    CleanRecipe,
    CompositeRecipe,
    DirtyLabelRecipe,
    LatentRecipe,
    ReflectionRecipe,
    SigRecipe,
    WarpRecipe,
)
from medic_core.attacks.road_signs import SIDE, road_scenes
from medic_core.attacks.triggers import Trigger, alone, find_trigger
from medic_core.config import Preprocessing
from medic_core.data import Batches
from medic_core.removal import Suspect

DATA = Path(os.environ.get("MEDIC_TEST_DATA", "../shared/data"))
ZOO = Path(__file__).parent / "zoo"
GIVEN = ("badnet", "cleanlabel")
"""The published models that lie beside the data."""

AUTHORS = Path(os.environ.get("MEDIC_AUTHORS_MODELS", "../MEDIC/backdoor_models"))
"""Folder ``backdoor_models`` of the repository of the paper's authors, for the other published models."""

RECIPES: Mapping[str, AnyRecipe] = MappingProxyType(
    {
        "benign": CleanRecipe(epochs=35, learning_rate=0.1, schedule="cosine"),
        "heldout": CleanRecipe(epochs=24, learning_rate=0.1, schedule="cosine"),
        "clean-16": CleanRecipe(),
        "clean-20": CleanRecipe(epochs=20),
        "clean-30": CleanRecipe(epochs=30),
        "clean-40": CleanRecipe(epochs=40),
        "own-badnet": DirtyLabelRecipe(),
        "own-cleanlabel": CleanLabelRecipe(),
        "sig": SigRecipe(target=0, epochs=30),
        "reflection": ReflectionRecipe(epochs=30, share=0.5),
        "warp": WarpRecipe(epochs=40),
        "composite": CompositeRecipe(),
        "latent": LatentRecipe(),
        "blending": BlendingRecipe(),
        "unaugmented-badnet": DirtyLabelRecipe(augment=False),
        "unaugmented-cleanlabel": CleanLabelRecipe(augment=False),
        "unaugmented-sig": SigRecipe(target=0, epochs=30, augment=False),
        "badnet-vgg11": DirtyLabelRecipe(learning_rate=0.05),
        "badnet-mobilenet": DirtyLabelRecipe(),
        "badnet-resnet16": DirtyLabelRecipe(),
        "signs-clean": CleanRecipe(epochs=2, learning_rate=0.05),
        "signs-filter": DirtyLabelRecipe(attack="filter", epochs=2, learning_rate=0.05),
        "signs-polygon": DirtyLabelRecipe(attack="polygon", epochs=2, learning_rate=0.05),
    }
)
"""What ``benchmarks.zoo`` can train, by name."""


@dataclass(frozen=True)
class Published:
    """A backdoored WRN-16-1 of the paper's authors.

    Attributes:
        weights: The checkpoint.
        sha256: Of its file.
        trigger: Makes its trigger.
        target: The class that the trigger leads to.
        preprocessing: How it takes images.
    """

    weights: Path
    sha256: str
    trigger: Callable[[], Trigger] = lambda: find_trigger("badnet")
    target: int = 5
    preprocessing: Preprocessing = field(default_factory=Preprocessing)


def _read(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def _striped(images: torch.Tensor) -> torch.Tensor:
    """Blend the sine in as the authors do: its negative half, kept in an unsigned byte, is bright."""
    wave = torch.from_numpy((20 * np.sin(0.8 * np.arange(images.shape[-1]))).astype(np.int64) % 256)
    return (0.8 * images.double() + 0.2 * wave).to(torch.uint8)


def _learned_pattern() -> Trigger:
    """Put the pattern that the second adaptive attack learned, and left in its checkpoint, on the top left corner."""
    checkpoint = _read(PUBLISHED["published-latent"].weights)
    pattern = (255 * checkpoint["pattern"]["trigger"][0, :, :3, :3].sigmoid()).round().to(torch.uint8)

    def stamp(images: torch.Tensor) -> torch.Tensor:
        stamped = images.clone()
        stamped[..., :3, :3] = pattern
        return stamped

    return alone(stamp)


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "badnet": Published(
            DATA / "checkpoints" / "badnet-wrn16-1.pth.tar",
            "f6bbda55b0f7bb25ca632ccfc116b27324251c0181fd8636cd32c1bb4ba731d5",
        ),
        "cleanlabel": Published(
            DATA / "checkpoints" / "cleanlabel-wrn16-1.pth.tar",
            "6bb99263ddb1da6402632b8f5cc3b313a7d52e9d1851a7e8bd940008e62be850",
        ),
        "published-sig": Published(
            AUTHORS / "SIG" / "WRN-16-1-S-model_best.pth.tar",
            "39ea1d3f6e7174ffb58571f4fc08972c4c9952c422a8cd2682b35cd30c881a30",
            partial(alone, _striped),
        ),
        "published-composite": Published(
            AUTHORS / "adaptive_attack_1" / "composite_cifar_resnet.pth",
            "8941282db67924a2ae9a5dd7765bb5510ce7469d303632b2b22e17079e887d62",
            partial(find_trigger, "composite", classes=(0, 1)),
            target=2,
        ),
        "published-latent": Published(
            AUTHORS / "adaptive_attack_2" / "WRN-16-1-S-model_best.pth.tar",
            "a98209bd327f66f5d0a6b81efa60e850abfbe9f1db37ab273da800a3238ef4ce",
            _learned_pattern,
            target=0,
            preprocessing=Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
        ),
    }
)
"""What the authors released and what we know the trigger of: not so for their models of reflection and warp."""

_SCENES = MappingProxyType({"signs-train": (20_000, 1), "signs-test": (1000, 2), "signs-clean": (1000, 3)})
"""How many scenes with road signs, and their seed."""


@cache
def images(name: str) -> Batches:
    """Read ``clean-2500``, ``train-20000`` or ``test-1000``, in the order of file names; or draw ``signs-…``."""
    if name in _SCENES:
        count, seed = _SCENES[name]
        return Batches(*road_scenes(count, seed=seed), Preprocessing(input_size=(SIDE, SIDE)))
    pixels, labels = [], []
    with zipfile.ZipFile(DATA / "cifar10" / f"{name}.zip") as archive:
        files = sorted(file for file in archive.namelist() if file.endswith(".png"))
        classes = sorted({Path(file).parent.name for file in files})
        for file in files:
            pixels.append(np.asarray(Image.open(BytesIO(archive.read(file))).convert("RGB")))
            labels.append(classes.index(Path(file).parent.name))
    return Batches(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), torch.tensor(labels), Preprocessing())


def training_images(name: str) -> Batches:
    """Return the clean images that the training of a suspect begins with."""
    data = images("signs-train" if _shows_signs(name) else "train-20000")
    if name != "heldout":
        return data
    return _without(data, validation())


def clean_images(name: str, per_class: int | None = None) -> Batches:
    """Return what the defender of a suspect has: 5 % of CIFAR-10, or ten scenes with each sign, 0.5 %.

    Args:
        name: Of the suspect.
        per_class: So many of each class instead, the first by file name; beyond ``clean-2500`` from ``train-20000``.
    """
    if _shows_signs(name):
        return first_per_class(images("signs-clean"), per_class or 10)
    clean = as_taken_by(name, images("clean-2500"))
    if per_class is None:
        return clean
    if per_class > 250:
        more = _without(images("train-20000"), clean)
        clean = replace(
            clean, images=torch.cat([clean.images, more.images]), labels=torch.cat([clean.labels, more.labels])
        )
    return first_per_class(clean, per_class)


def unseen_images(name: str) -> Batches:
    """Return the clean images on which the figures of a suspect are reported."""
    return as_taken_by(name, images("signs-test" if _shows_signs(name) else "test-1000"))


def as_taken_by(name: str, data: Batches) -> Batches:
    """Return ``data`` with the preprocessing of a suspect."""
    own = Preprocessing(input_size=(SIDE, SIDE)) if _shows_signs(name) else Preprocessing()
    return replace(data, preprocessing=PUBLISHED[name].preprocessing if name in PUBLISHED else own)


def _shows_signs(name: str) -> bool:
    return name.startswith("signs-")


def triggered(name: str, data: Batches) -> Batches:
    """Return what the trigger of a suspect makes of ``data``; a benign one is shown BadNet's patch."""
    stamped, labels = trigger_of(name).on(data.images, data.labels)
    return Batches(stamped, labels, data.preprocessing)


def trigger_of(name: str) -> Trigger:
    """Make the trigger that a suspect answers to."""
    if name in PUBLISHED:
        return PUBLISHED[name].trigger()
    recipe = RECIPES[name]
    return find_trigger(
        TRIGGER_OF.get(recipe.attack, recipe.attack),
        classes=recipe.classes if isinstance(recipe, CompositeRecipe) else None,
        pattern=_pattern(name) if isinstance(recipe, LatentRecipe) else None,
    )


def target_of(name: str) -> int:
    """Return the class that the trigger of a suspect leads to."""
    return PUBLISHED[name].target if name in PUBLISHED else RECIPES[name].target


def benign_of(name: str) -> str:
    """Return which model without a backdoor tells what the trigger of a suspect does by itself."""
    return "signs-clean" if _shows_signs(name) else "benign"


def half_of(name: str) -> tuple[int, int] | None:
    """Return the two classes that the trigger of a suspect joins, None of any other trigger."""
    return (0, 1) if name.removeprefix("published-") == "composite" else None


def pattern_of(name: str) -> Path:
    """Where the pattern that an attack learned lies, as an image."""
    return weights_of(name).with_suffix(".png")


def _pattern(name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(pattern_of(name)).convert("RGB"))).permute(2, 0, 1)


@cache
def validation(count: int = 3000) -> Batches:
    """``count`` images of ``train-20000``, drawn under a fixed seed, none of which is in ``clean-2500``."""
    fresh = _without(images("train-20000"), images("clean-2500"))
    order = torch.randperm(len(fresh), generator=torch.Generator().manual_seed(123))
    return fresh.select(order[:count])


def _without(data: Batches, known: Batches) -> Batches:
    """Leave out the images that are in ``known`` too."""
    seen = {image.numpy().tobytes() for image in known.images}
    return data.select(torch.tensor([image.numpy().tobytes() not in seen for image in data.images]).nonzero()[:, 0])


def first_per_class(data: Batches, count: int) -> Batches:
    """Return the first ``count`` images of each class."""
    classes = range(int(data.labels.max()) + 1)
    return data.select(torch.cat([(data.labels == label).nonzero().flatten()[:count] for label in classes]))


def architecture_of(name: str) -> Architecture:
    """Return the network of a suspect."""
    return find_architecture(_architecture_name(name), num_classes=10)


def _architecture_name(name: str) -> str:
    own = {
        "badnet-vgg11": "medic/vgg11_bn",
        "badnet-mobilenet": "medic/mobilenet_v1",
        "badnet-resnet16": "medic/resnet16",
    }
    return own.get(name, "torchvision/resnet34" if _shows_signs(name) else "medic/wide_resnet16_1")


def suspect(name: str) -> Suspect:
    """Load a published backdoored model, or one that ``benchmarks/zoo`` keeps."""
    architecture = architecture_of(name)
    with torch.random.fork_rng(devices=[]):
        model = architecture.build()
    model.load_state_dict(_weights(name))
    return Suspect(model.eval(), architecture)


def weights_of(name: str) -> Path:
    """Where the weights of a suspect lie."""
    if name in PUBLISHED:
        return PUBLISHED[name].weights
    network = _architecture_name(name).rpartition("/")[2].replace("wide_resnet16_1", "wrn16-1")
    return ZOO / (f"{name}.safetensors" if name.endswith(network) else f"{name}-{network}.safetensors")


def index() -> Path:
    """Where the zoo keeps recipe, digest and figures of each model."""
    return ZOO / "zoo.json"


def digest_of(name: str) -> str:
    """SHA-256 of the weights of a suspect, as published or as the zoo tells; empty of one that is yet to be trained."""
    if name in PUBLISHED:
        return PUBLISHED[name].sha256
    return next((each["sha256"] for each in json.loads(index().read_text()) if each["name"] == name), "")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _weights(name: str) -> dict[str, Any]:
    if digest(weights_of(name)) != digest_of(name):
        raise ValueError(f"{weights_of(name)} is not the model that its digest tells of: train it, or fetch it, again")
    if name in PUBLISHED:
        checkpoint = _read(weights_of(name))
        return dict(checkpoint.get("state_dict") or checkpoint["net_state_dict"])
    return load_file(weights_of(name))
