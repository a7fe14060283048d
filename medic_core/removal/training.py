"""What all methods that train share: seeded epochs that can be taken up where they were left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from medic_core.config import Config
from medic_core.data import Batches
from medic_core.errors import NonFiniteLossError

State = dict[str, Any]
"""What a checkpoint holds: tensors, numbers, strings, and lists and dictionaries of them."""


@dataclass(frozen=True)
class Progress:
    """How far a removal has come.

    Attributes:
        step: Optimiser steps done.
        total_steps: Of the whole removal.
        history: One dictionary of mean losses per finished epoch, those before a resume included.
    """

    step: int
    total_steps: int
    history: tuple[Mapping[str, float], ...]


ProgressCallback = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Report nothing."""


class Checkpoint(Protocol):
    """Where a removal leaves its state after each epoch and finds it again."""

    def load(self) -> State | None:
        """Return the state last saved, None when there is none."""

    def save(self, state: State, *, epoch: int) -> None:
        """Keep ``state`` after ``epoch`` epochs are done; once this returns, they are not run again."""


class NoCheckpoint:
    """Keeps nothing."""

    def load(self) -> State | None:
        """Return None."""
        return None

    def save(self, state: State, *, epoch: int) -> None:
        """Do nothing."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the body under ``seed`` and give the caller's random state back afterwards, on every device."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


_DROPOUT = (nn.modules.dropout._DropoutNd, StochasticDepth)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Switch dropout and stochastic depth off, and back afterwards (Appendix E.7: cloning converges badly with it)."""
    layers = [module for module in model.modules() if isinstance(module, _DROPOUT)]
    before = [layer.p for layer in layers]
    for layer in layers:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, p in zip(layers, before, strict=True):
            layer.p = p


@dataclass(frozen=True)
class Losses:
    """What one batch gives.

    Attributes:
        values: Scalars, reported as means over an epoch.
        roots: Tensors in the model's graph from which gradients flow back.
        gradients: Of what is minimised by each root; None for a scalar that is itself a summand of it.
    """

    values: Mapping[str, Tensor]
    roots: Sequence[Tensor]
    gradients: Sequence[Tensor | None]


def train(
    model: nn.Module,
    data: Batches,
    config: Config,
    losses: Callable[[Tensor, Tensor], Losses],
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Minimise a loss over ``config.epochs`` epochs of ``data`` by Adam with a cosine schedule per epoch to 0.

    Each epoch's randomness depends on seed and epoch alone, so that a run taken up at a checkpoint ends with the same
    weights, to the bit on a CPU. The last epoch's model is what is returned, never the best.

    Args:
        model: Trained in place.
        data: Images to train on, on the device of the model.
        config: Optimiser, schedule, augmentation, seed.
        losses: Of one batch of inputs and labels, with the graph to ``model``.
        progress: Called at the start and after every step.
        checkpoint: Where the state goes after every epoch.

    Returns:
        ``model`` in eval mode.

    Raises:
        NonFiniteLossError: The loss was NaN or infinite in an epoch.
    """
    store = checkpoint or NoCheckpoint()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    state = store.load()
    done, history = _restore(state, model, optimizer) if state else (0, [])
    steps = data.steps(config)
    progress(Progress(done * steps, config.epochs * steps, tuple(history)))
    for epoch in range(done, config.epochs):
        torch.manual_seed(config.seed * 1_000_003 + epoch)  # for layers that draw while training
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(config.learning_rate, epoch, config.epochs)
        history.append(_train_epoch(model, data, config, losses, optimizer, epoch, steps, tuple(history), progress))
        store.save(
            {
                "epoch": epoch + 1,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "history": history,
            },
            epoch=epoch + 1,
        )
        progress(Progress((epoch + 1) * steps, config.epochs * steps, tuple(history)))
    return model.eval()


def _train_epoch(
    model: nn.Module,
    data: Batches,
    config: Config,
    losses: Callable[[Tensor, Tensor], Losses],
    optimizer: torch.optim.Optimizer,
    epoch: int,
    steps: int,
    history: tuple[Mapping[str, float], ...],
    progress: ProgressCallback,
) -> dict[str, float]:
    model.train()
    sums: dict[str, Tensor] = {}
    for number, (images, labels) in enumerate(data.shuffled(config, epoch=epoch)):
        parts = losses(images, labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(parts.roots, parts.gradients)
        optimizer.step()
        for name, value in parts.values.items():
            kept = value.detach() * len(labels)
            sums[name] = sums[name] + kept if name in sums else kept
        progress(Progress(epoch * steps + number + 1, config.epochs * steps, history))
    means = {name: float(total) / len(data) for name, total in sums.items()}
    if not all(math.isfinite(mean) for mean in means.values()):
        raise NonFiniteLossError(
            f"The loss became NaN or infinite in epoch {epoch + 1} of {config.epochs}: lower learning_rate."
        )
    return {"epoch": epoch + 1, **means}


def _restore(state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[Mapping[str, float]]]:
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"]), list(state["history"])


def cosine_rate(start: float, epoch: int, epochs: int) -> float:
    """Learning rate of ``epoch`` (from 0) on half a cosine from ``start`` towards 0 at ``epochs``."""
    return 0.5 * start * (1 + math.cos(math.pi * epoch / epochs))
