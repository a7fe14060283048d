"""Normalisations are folded where nobody can tell, and nowhere else."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from torch import Tensor, nn

from medic_core.architectures import find_architecture
from medic_core.folding import fold_normalizations
from medic_core.removal.training import seeded


class Network(nn.Module):
    """Convolutions whose outputs are normalised: once, beside another use, twice; by weights that run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.shared, self.forked, self.again = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.after_alone, self.after_shared, self.fork, self.other_fork, self.after_again = (
            nn.BatchNorm2d(3) for _ in range(5)
        )

    def forward(self, images: Tensor) -> Tensor:
        features = self.after_alone(self.alone(images))
        shared = self.shared(features)
        features = self.after_shared(shared).relu() + shared
        forked = self.forked(features)
        features = self.fork(forked) * self.other_fork(forked)
        features = self.after_again(self.again(self.again(features)))
        return features.mean(dim=(2, 3))


def trained(model: nn.Module, images: Tensor) -> nn.Module:
    """With statistics and scales that are nowhere near the identity."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 2, generator=generator)
            module.bias.data.normal_(generator=generator)
    model.train()(images)
    return model.eval().requires_grad_(requires_grad=False)


def folded(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Identity)}


def folded_by(model: nn.Module, *, keep: Collection[str] = ()) -> set[str]:
    """Which normalisations are folded, once it is certain that nobody can tell."""
    with seeded(0):
        images = torch.rand(4, 3, 8, 8)
        model = trained(model, images)
    before = model(images)
    found = fold_normalizations(model, images[:2], keep=keep)
    torch.testing.assert_close(found(images), before, rtol=1e-4, atol=1e-4)
    return folded(found) - folded(model)


def test_only_what_alone_takes_an_output_is_folded() -> None:
    with seeded(0):
        model = Network()
    assert folded_by(model) == {"after_alone"}


def test_a_convolution_that_is_asked_for_keeps_its_output() -> None:
    with seeded(0):
        model = Network()
    assert not folded_by(model, keep=["alone"])


def test_a_normalization_that_is_asked_for_is_folded_all_the_same() -> None:
    with seeded(0):
        model = Network()
    assert folded_by(model, keep=["after_alone"]) == {"after_alone"}


@pytest.mark.parametrize("between", [nn.ReLU(inplace=True), nn.ReLU(), nn.Dropout()], ids=str)
@pytest.mark.parametrize("keep", [(), ("1",)])
def test_what_lies_between_keeps_two_modules_apart(between: nn.Module, keep: Collection[str]) -> None:
    with seeded(0):
        model = nn.Sequential(nn.Conv2d(3, 3, 3), between, nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    passed_on = isinstance(between, nn.Dropout) and not keep  # in eval mode the same tensor
    assert folded_by(model, keep=keep) == ({"2"} if passed_on else set())


class Detached(nn.Module):
    """Uses what a convolution made in a way that leaves no trace in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.normalization = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolution(images)
        return (self.normalization(features) * (features > 0)).mean(dim=(2, 3))


def test_a_use_outside_of_the_graph_is_found_by_the_answer() -> None:
    with seeded(0):
        model = Detached()
    assert not folded_by(model)


@pytest.mark.parametrize(
    ("name", "side", "count"),
    [
        ("medic/wide_resnet16_1", 32, 6),  # the second of each block; the first is shared with the shortcut
        ("torchvision/resnet18", 32, 20),
        ("torchvision/mobilenet_v2", 32, 52),
        ("torchvision/densenet121", 32, 59),  # the stem's, and one in each of 58 layers
        ("torchvision/vit_b_32", 32, 0),
    ],
)
def test_architectures_answer_as_before(name: str, side: int, count: int) -> None:
    options = {"image_size": side} if "vit" in name else {}
    with seeded(0):
        images = torch.rand(8, 3, side, side)
        model = trained(find_architecture(name, num_classes=4, options=options).build(), images)
    before, found = model(images), fold_normalizations(model, images[:2])
    assert len(folded(found)) - len(folded(model)) == count
    torch.testing.assert_close(found(images), before, rtol=0, atol=1e-4 * float(before.abs().max()))
