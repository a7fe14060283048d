"""Fine-Pruning (Liu et al., RAID 2018): what clean images leave dormant is cut, the rest fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medic_core.activations import KINDS, calls_of
from medic_core.config import FinePruneConfig
from medic_core.data import Batches
from medic_core.errors import UnsupportedArchitectureError
from medic_core.evaluation import Share, accuracy, confusion_matrix
from medic_core.removal.bisection import accuracy_drop
from medic_core.removal.training import (
    Checkpoint,
    NoCheckpoint,
    ProgressCallback,
    classification,
    seeded,
    silent,
    train,
)
from medic_core.suspect import Suspect

ROUNDS = 100
"""Pruning goes channel by channel, or in so many rounds where there are more channels."""


def prune_and_tune(
    suspect: Suspect,
    clean: Batches,
    config: FinePruneConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Cut dormant channels of the last feature map while accuracy on ``clean`` allows, then train what is left.

    A channel is cut where the first linear layer takes it: nothing else does, and its weights there stay 0.

    Raises:
        UnsupportedArchitectureError: No linear layer takes the channels of a last feature map.
    """
    store = checkpoint or NoCheckpoint()
    with seeded(config.seed):
        model = suspect.trainable(clean.images.device)
        outlet = find_outlet(model.eval(), next(clean.in_order(batch_size=2))[0])
        had_weight = (outlet.layer.weight != 0).any(dim=0)
        if state := store.load():
            model.load_state_dict(state["model"])
        else:
            cut_dormant(model, outlet, clean, config, num_classes=suspect.architecture.num_classes)
        cut = (outlet.layer.weight == 0).all(dim=0) & had_weight  # the same whether it was cut now or before a kill

        @torch.no_grad()
        def keep_cut() -> None:
            outlet.layer.weight.mul_(~cut)

        parts = classification(model, config)
        return train(model, clean, config, parts, after_step=keep_cut, progress=progress, checkpoint=store)


@dataclass(frozen=True)
class Outlet:
    """The linear layer that takes the last feature map, whose channels are ``positions`` neighbouring inputs each."""

    layer: nn.Linear
    positions: int


def find_outlet(model: nn.Module, images: Tensor) -> Outlet:
    """Find where the channels of the last feature map go.

    Args:
        model: In eval mode.
        images: A small batch, as the model takes it.

    Raises:
        UnsupportedArchitectureError: There is no convolution, or no linear layer takes what comes of the last one.
    """
    calls = calls_of(model, images)
    convolutions = [number for number, call in enumerate(calls) if isinstance(call.module, KINDS["convolution"])]
    after = calls[convolutions[-1] :] if convolutions else []
    linear = [(number, call) for number, call in enumerate(after) if isinstance(call.module, nn.Linear)]
    if linear and all(call.given is not None and call.given.dim() == 2 for _, call in linear):
        number, layer = linear[0][0], linear[0][1].module
        maps = [call.output for call in after[:number] if call.output is not None and call.output.dim() == 4]
        if isinstance(layer, nn.Linear) and layer.in_features % maps[-1].shape[1] == 0:
            return Outlet(layer, positions=layer.in_features // maps[-1].shape[1])
    raise UnsupportedArchitectureError(
        "fine_prune needs a last convolution whose channels go, pooled or flattened, into a linear layer, and this"
        " architecture has none: use fine_tune or medic instead"
    )


@torch.no_grad()
def cut_dormant(model: nn.Module, outlet: Outlet, clean: Batches, config: FinePruneConfig, *, num_classes: int) -> None:
    """Cut channels, the most dormant first, and stop before accuracy on ``clean`` falls by more than is tolerated."""
    weight = outlet.layer.weight
    before = _right(model, clean, num_classes)
    rounds = dormant_first(model, outlet, clean).tensor_split(ROUNDS)
    for channels in rounds:
        columns = (
            channels[:, None] * outlet.positions + torch.arange(outlet.positions, device=weight.device)
        ).flatten()
        uncut = weight[:, columns].clone()
        weight[:, columns] = 0
        if accuracy_drop(before, _right(model, clean, num_classes)) > config.accuracy_tolerance:
            weight[:, columns] = uncut
            return


def _right(model: nn.Module, clean: Batches, num_classes: int) -> Share:
    return accuracy(confusion_matrix(model, clean, num_classes=num_classes))


@torch.no_grad()
def dormant_first(model: nn.Module, outlet: Outlet, clean: Batches) -> Tensor:
    """Order the channels by their mean activation over positions and clean images, as the outlet takes them."""
    sums = torch.zeros(outlet.layer.in_features // outlet.positions, device=clean.images.device)

    def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        sums.add_(given[0].view(len(given[0]), -1, outlet.positions).sum(dim=(0, 2)))

    with outlet.layer.register_forward_pre_hook(add):
        for images, _ in clean.in_order():
            model(images)
    return sums.argsort(stable=True)
