"""Adversarial neuron pruning (Wu and Wang, NeurIPS 2021): what an adversary can use against clean images is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from medic_core.config import AdversarialPruningConfig
from medic_core.data import Batches
from medic_core.errors import UnsupportedArchitectureError
from medic_core.removal.training import (
    Checkpoint,
    Part,
    Parts,
    ProgressCallback,
    micro_batches,
    seeded,
    silent,
    summed,
    train,
)
from medic_core.suspect import Suspect

Noise = Sequence[tuple[Tensor, Tensor]]
"""Of each normalisation: by how much an adversary scales each channel's weight and bias."""


def prune_adversarially(
    suspect: Suspect,
    clean: Batches,
    config: AdversarialPruningConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Learn masks against an adversary, then cut the channels whose mask has fallen to ``config.threshold``.

    What is cut puts out its normalisation's bias, whatever the image; nothing else differs from the suspect.

    Raises:
        UnsupportedArchitectureError: There is no batch normalisation.
    """
    device = clean.images.device
    with seeded(config.seed):
        masked = MaskedChannels(suspect.frozen(device))
        train(
            masked,
            clean,
            config,
            _withstanding(masked, config),
            after_step=masked.clamp,
            progress=progress,
            checkpoint=checkpoint,
        )
        model = suspect.trainable(device).eval()
        with torch.no_grad():
            for name, mask in zip(masked.names, masked.masks, strict=True):
                model.get_parameter(f"{name}.weight").mul_(mask > config.threshold)
        return model


class MaskedChannels(nn.Module):
    """A frozen network with a mask in [0, 1] on every channel of its batch normalisations."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        kinds = nn.modules.batchnorm._BatchNorm
        self.names = [name for name, norm in network.named_modules() if isinstance(norm, kinds) and norm.affine]
        if not self.names:
            raise UnsupportedArchitectureError(
                "adversarial_pruning masks the channels of batch normalisations, and this architecture has none: use"
                " fine_tune or medic instead"
            )
        self.network = network
        self.masks = nn.ParameterList(torch.ones_like(network.get_parameter(f"{name}.weight")) for name in self.names)

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Return logits with each weight times its mask plus noise, and each bias times 1 plus noise."""
        weights = {}
        for number, (name, mask) in enumerate(zip(self.names, self.masks, strict=True)):
            on_weight, on_bias = noise[number] if noise else (0.0, 0.0)
            weights[f"{name}.weight"] = self.network.get_parameter(f"{name}.weight") * (mask + on_weight)
            weights[f"{name}.bias"] = self.network.get_parameter(f"{name}.bias") * (1 + on_bias)
        logits: Tensor = functional_call(self.network, weights, (images,))
        return logits

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring the masks back to [0, 1]."""
        for mask in self.masks:
            mask.clamp_(0, 1)


def _withstanding(masked: MaskedChannels, config: AdversarialPruningConfig) -> Parts:
    """Cross-entropy without the adversary and with it, weighed by α."""

    def parts(images: Tensor, labels: Tensor) -> Iterator[Part]:
        noise = worst_noise(masked, images, labels, config)
        for some, theirs in micro_batches(images, labels, config):
            clean = F.cross_entropy(masked(some), theirs, reduction="sum") / len(labels)
            disturbed = F.cross_entropy(masked(some, noise), theirs, reduction="sum") / len(labels)
            loss = config.clean_weight * clean + (1 - config.clean_weight) * disturbed
            yield summed({"loss": loss, "clean_loss": clean, "disturbed_loss": disturbed})

    return parts


def worst_noise(
    masked: MaskedChannels, images: Tensor, labels: Tensor, config: AdversarialPruningConfig
) -> list[tuple[Tensor, Tensor]]:
    """Take one step up the loss, from a random start, and stay within ± ε.

    Note:
        The paper bounds the noise by ε; its authors' code does not bring it back after the step.
    """
    limit = config.perturbation
    starts = [limit * (2 * torch.rand(2, len(mask), device=mask.device) - 1) for mask in masked.masks]
    leaves = [start.requires_grad_() for start in starts]
    total = [torch.zeros_like(leaf) for leaf in leaves]
    for some, theirs in micro_batches(images, labels, config):
        loss = F.cross_entropy(masked(some, [(leaf[0], leaf[1]) for leaf in leaves]), theirs, reduction="sum")
        total = [gathered + more for gathered, more in zip(total, torch.autograd.grad(loss, leaves), strict=True)]
    ends = [(start.detach() + limit * up.sign()).clamp(-limit, limit) for start, up in zip(starts, total, strict=True)]
    return [(end[0], end[1]) for end in ends]
