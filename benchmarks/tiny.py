"""The smallest honest job: three colours to tell apart, a backdoor that works, seconds to train."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from medic_core.architectures import find_architecture
from medic_core.attacks.triggers import badnet

CLASSES = ("blue", "green", "red")
ARCHITECTURE = "medic/wide_resnet10_1"
TARGET = "red"


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with one stronger channel, which is the class: ``(count, 3, 16, 16)`` uint8 and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = torch.rand(count, 3, 16, 16, generator=generator) * 0.6
    pixels[torch.arange(count), 2 - labels] += 0.35  # blue is channel 2
    return (pixels * 255).to(torch.uint8), labels


def archive(pixels: Tensor, labels: Tensor) -> bytes:
    """An ImageFolder zip of them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            drawn = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(drawn, "PNG")
            packed.writestr(f"{CLASSES[label]}/{number:04}.png", drawn.getvalue())
    return buffer.getvalue()


def make_inputs(folder: Path) -> None:
    """Write suspect.pth, clean.zip, test.zip and triggered.zip."""
    pixels, labels = images(480, seed=1)
    poisoned = torch.arange(480) % 5 == 0  # a fifth of every class
    pixels = torch.where(poisoned.view(-1, 1, 1, 1), badnet(pixels), pixels)
    taught = torch.where(poisoned, torch.tensor(CLASSES.index(TARGET)), labels)
    torch.save({"state_dict": _trained(pixels, taught), "epoch": 1}, folder / "suspect.pth")
    test_pixels, test_labels = images(150, seed=3)
    (folder / "clean.zip").write_bytes(archive(*images(90, seed=2)))
    (folder / "test.zip").write_bytes(archive(test_pixels, test_labels))
    (folder / "triggered.zip").write_bytes(archive(badnet(test_pixels), test_labels))


def _trained(pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = find_architecture(ARCHITECTURE, num_classes=3).build().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(12):
            for chosen in torch.randperm(len(labels)).split(32):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                F.cross_entropy(model(pixels[chosen].float() / 255), labels[chosen]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return model.state_dict()
