"""What steps a model's parameters, and at which rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn

from medic_core.activations import KINDS
from medic_core.config import Config

ADAM_SHARE = 0.2
"""Adam's learning rate beside Muon, as a share of Muon's."""


def build_optimizers(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """Return the optimizers that ``config`` asks for; together they step every parameter of ``model`` once."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        return [torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)]
    matrices = _matrices(model)
    taken = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(_MatrixMuon(matrices, lr=rate, momentum=0.9, weight_decay=decay))
    if others:
        optimizers.append(torch.optim.Adam(others, lr=ADAM_SHARE * rate, weight_decay=decay))
    return optimizers


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weights that mix channels: those of linear layers and of convolutions, unless depthwise or oddly laid out."""
    kinds = KINDS["convolution"] + KINDS["linear"]
    weights = [module.weight for module in model.modules() if isinstance(module, kinds)]
    return list(dict.fromkeys(weight for weight in weights if _is_matrix(weight)))


def _is_matrix(weight: object) -> TypeGuard[nn.Parameter]:
    if not isinstance(weight, nn.Parameter) or weight.shape[1] == 1:
        return False
    in_line = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return in_line or weight.is_contiguous()


class _MatrixMuon(torch.optim.Muon):
    """Muon for weights of any number of axes; torch's own takes matrices only, so it gets views that share memory."""

    def __init__(self, weights: Sequence[nn.Parameter], **settings: float) -> None:
        self._weights = weights
        views = [nn.Parameter(_in_line(weight.detach(), weight).view(len(weight), -1)) for weight in weights]
        super().__init__(views, **settings)  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for view, weight in zip(self.param_groups[0]["params"], self._weights, strict=True):
            view.grad = None if weight.grad is None else _in_line(weight.grad, weight).reshape(len(weight), -1)
        return super().step(closure)  # type: ignore[no-any-return, no-untyped-call]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for weight in self._weights:
            if set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()


def _in_line(tensor: Tensor, weight: Tensor) -> Tensor:
    """Order the axes of ``tensor`` as those of ``weight`` lie in memory."""
    return tensor if weight.is_contiguous() else tensor.permute(0, 2, 3, 1)  # else channels-last


def set_rates(optimizers: Sequence[torch.optim.Optimizer], share: float) -> None:
    """Let every optimiser step at ``share`` of the rate that it was built with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * optimizer.defaults["lr"]


def rate_share(schedule: Literal["cosine", "linear"], step: int, *, steps: int, epochs: int) -> float:
    """Return the share of the learning rate at optimiser step ``step`` (from 0), with ``steps`` in an epoch.

    ``cosine``: half a cosine per epoch from the full rate towards 0, as the paper trains. ``linear``: per step, up
    over the first tenth and then down to 0.
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step // steps) / epochs))
    done = (step + 0.5) / (epochs * steps)
    return min(done / 0.1, (1 - done) / 0.9)
