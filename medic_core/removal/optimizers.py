"""What steps a model's parameters, and at which rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from medic_core.activations import KINDS
from medic_core.config import Config, Schedule

ADAM_SHARE = 0.2
"""Adam's learning rate beside Muon, as a share of Muon's."""

LARGEST_SIDE = 2048
"""Of a matrix that Muon steps, the smaller one: its products grow with the cube, and would take minutes a step in the
fully-connected layers of VGG and AlexNet on a CPU."""

TOGETHER = 2**20
"""Elements of the weights that Muon steps at once: of small ones a product takes less time than its call."""


def build_optimizers(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """Return the optimizers that ``config`` asks for; together they step every parameter of ``model`` once."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        return [torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)]
    if config.optimizer == "sgd":
        return [torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)]
    matrices = _matrices(model)
    taken = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=rate, momentum=0.9, weight_decay=decay))
    if others:
        optimizers.append(torch.optim.Adam(others, lr=ADAM_SHARE * rate, weight_decay=decay))
    return optimizers


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weights that mix channels: those of linear layers and of convolutions, unless depthwise or very large."""
    kinds = KINDS["convolution"] + KINDS["linear"]
    weights = [module.weight for module in model.modules() if isinstance(module, kinds)]
    return list(dict.fromkeys(weight for weight in weights if _is_matrix(weight)))


def _is_matrix(weight: object) -> TypeGuard[nn.Parameter]:
    if not isinstance(weight, nn.Parameter) or weight.shape[1] == 1:
        return False
    rows = weight.shape[0]
    return min(rows, weight.numel() // rows) <= LARGEST_SIDE


class Muon(torch.optim.Optimizer):
    """Momentum whose steps have all their singular values near 1 (Jordan et al., 2024).

    A weight of more than two axes is a matrix of its first axis by all others.

    Note:
        ``torch.optim.Muon`` takes matrices only and iterates in bfloat16, which CPUs without that type compute far
        slower than the precision of the weights that is used here.
    """

    def __init__(self, weights: Sequence[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - nobody passes one
        """Step every weight that has a gradient, small ones of one shape together."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(weight.shape, []).append((weight, weight.grad))
            for shape, pairs in alike.items():
                together = max(1, TOGETHER // shape.numel())
                for start in range(0, len(pairs), together):
                    self._step_alike(pairs[start : start + together], group)

    def _step_alike(self, pairs: Sequence[tuple[nn.Parameter, Tensor]], group: Mapping[str, float]) -> None:
        """Step weights of one shape, each with its gradient."""
        directions = torch.stack([self._direction(*pair, group["momentum"]) for pair in pairs])
        updates = orthogonalized(directions.flatten(2)).view_as(directions)
        rows, columns = directions.shape[1], directions[0, 0].numel()
        rate = group["lr"] * math.sqrt(max(1, rows / columns))
        for (weight, _), update in zip(pairs, updates, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)

    def _direction(self, weight: nn.Parameter, gradient: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum."""
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        average: Tensor = state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum).contiguous()  # its axes in order, to be a matrix


def orthogonalized(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix near 1 by five steps of a quintic iteration (Jordan et al., 2024).

    Each step multiplies the matrix by a polynomial of its Gram matrix. These commute, so that only their product is
    carried along, and the smaller side's Gram matrix: a third of the time for convolutions of 3×3, to the same
    precision.

    Args:
        matrices: ``(count, rows, columns)``.

    Returns:
        The same shape, singular values between about 0.5 and 1.5 unless they were tiny.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalized(matrices.mT).mT
    start: Tensor = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-7)
    gram = start @ start.mT
    product = factor = _quintic_factor(gram)
    for _ in range(4):
        gram = factor @ gram @ factor
        factor = _quintic_factor(gram)
        product = factor @ product
    return product @ start


def _quintic_factor(gram: Tensor) -> Tensor:
    """What a step multiplies a matrix by, from its Gram matrix."""
    factor = torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
    factor.diagonal(dim1=1, dim2=2).add_(3.4445)
    return factor


def set_rates(optimizers: Sequence[torch.optim.Optimizer], share: float) -> None:
    """Let every optimiser step at ``share`` of the rate that it was built with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * optimizer.defaults["lr"]


def rate_share(schedule: Schedule, step: int, *, steps: int, epochs: int) -> float:
    """Return the share of the learning rate at optimiser step ``step`` (from 0), with ``steps`` in an epoch.

    ``cosine``: half a cosine per epoch from the full rate towards 0, as the paper trains. ``linear``: per step, up
    over the first tenth and then down to 0. ``steps``: as the authors of MEDIC fine-tune, however many epochs.
    """
    match schedule:
        case "constant":
            return 1.0
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step // steps) / epochs))
        case "steps":
            epoch = step // steps
            return 1.0 if epoch < 2 else 0.1 if epoch < 20 else 0.01 if epoch < 30 else 0.001
        case "linear":
            done = (step + 0.5) / (epochs * steps)
            return min(done / 0.1, (1 - done) / 0.9)
