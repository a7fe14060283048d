"""``python -m worker.demo OUT_DIR``: a small backdoored classifier and the data to repair and judge it.

The data are scikit-learn's 1,797 handwritten digits as 32×32 RGB images, split into training, clean and test images
without overlap. The classifier is trained on the training images, a share of which carries the BadNet patch and the
target's label. Written are ``suspect.pth``, ``clean.zip``, ``test.zip``, ``triggered.zip`` (the test images with the
patch, in folders of their true class) and ``info.json`` (how a job on them is to be configured).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from medic_core.architectures import Architecture, find_architecture
from medic_core.attacks.poisoning import poison
from medic_core.attacks.triggers import badnet
from medic_core.config import Preprocessing, ScratchConfig
from medic_core.data import Batches
from medic_core.removal import Suspect, remove_backdoor
from worker.trigger import write_images

ARCHITECTURE = "medic/wide_resnet10_1"
TARGET = 7
POISONED_SHARE = 0.1
TRAINING_IMAGES, CLEAN_IMAGES = 1120, 280  # clean: a quarter of training
TRAINING = ScratchConfig(
    epochs=20, batch_size=64, optimizer="adam", learning_rate=3e-3, crop_padding=1, horizontal_flip=False
)
AUGMENTATION = {"epochs": 60, "crop_padding": 2, "horizontal_flip": False}  # a mirrored digit is another sign
MEDIC = {"method": "medic", **AUGMENTATION}
SCRATCH = {"method": "scratch", **AUGMENTATION}


@dataclass(frozen=True)
class Split:
    """Images, ``uint8`` ``(n, 3, 32, 32)``, and labels 0 to 9; no image is in two of the three."""

    training: tuple[Tensor, Tensor]
    clean: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def split_digits(seed: int) -> Split:
    """Split the digits by class under ``seed``."""
    digits = load_digits()
    order = np.arange(len(digits.target))
    training, rest = train_test_split(order, train_size=TRAINING_IMAGES, stratify=digits.target, random_state=seed)
    clean, test = train_test_split(rest, train_size=CLEAN_IMAGES, stratify=digits.target[rest], random_state=seed)
    images = _enlarged(torch.from_numpy(digits.images).float() / 16)
    labels = torch.from_numpy(digits.target).long()
    return Split(*((images[chosen], labels[chosen]) for chosen in map(torch.from_numpy, (training, clean, test))))


def _enlarged(gray: Tensor) -> Tensor:
    """Turn ``(n, 8, 8)`` in [0, 1] into 8-bit RGB images of 32×32 pixels."""
    large = F.interpolate(gray[:, None], size=(32, 32), mode="bilinear", align_corners=False)
    return (large * 255).round().to(torch.uint8).repeat(1, 3, 1, 1)


def train_suspect(training: tuple[Tensor, Tensor], *, seed: int) -> tuple[nn.Module, Architecture]:
    """Train a classifier that sees the digit ``TARGET`` wherever the patch is."""
    architecture = find_architecture(ARCHITECTURE, num_classes=10)
    images, labels = poison(*training, trigger=badnet, target=TARGET, share=POISONED_SHARE, seed=seed)
    untrained = Suspect(architecture.build(), architecture)
    settings = replace(TRAINING, seed=seed + 1)  # not the clone's own seed: they would begin with the same weights
    suspect = remove_backdoor(untrained, Batches(images, labels, Preprocessing()), settings)
    return suspect, architecture


def write_demo(folder: Path, *, seed: int) -> None:
    """Make the demo's inputs in ``folder``."""
    split = split_digits(seed)
    suspect, architecture = train_suspect(split.training, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": suspect.state_dict()}, folder / "suspect.pth")
    write_images(folder / "clean.zip", _foldered(*split.clean))
    write_images(folder / "test.zip", _foldered(*split.test))
    images, labels = split.test
    write_images(folder / "triggered.zip", _foldered(badnet(images), labels))
    (folder / "info.json").write_text(json.dumps(_info(architecture), indent=2) + "\n")


def _foldered(images: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        yield f"{label}/{number:04}.png", image


def _info(architecture: Architecture) -> dict[str, object]:
    return {
        "architecture": architecture.name,
        "target_class": str(TARGET),
        "medic": MEDIC,
        "scratch": SCRATCH,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m worker.demo", description="Make the demo's inputs.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the split, the poisoning and the training")
    chosen = parser.parse_args(arguments)
    write_demo(chosen.out_dir, seed=chosen.seed)


if __name__ == "__main__":
    main()
