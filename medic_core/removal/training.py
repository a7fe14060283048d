"""What all methods that train share: seeded epochs that can be taken up where they were left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from medic_core.config import Config
from medic_core.data import Batches, cut_evenly
from medic_core.errors import NonFiniteLossError
from medic_core.removal.bisection import Trial
from medic_core.removal.optimizers import build_optimizers, rate_share, set_rates

State = dict[str, Any]
"""What a checkpoint holds: tensors, numbers, strings, and lists and dictionaries of them."""


@dataclass(frozen=True)
class Progress:
    """How far a removal has come.

    Attributes:
        step: Optimiser steps done.
        total_steps: Of the whole removal.
        history: One dictionary of mean losses per finished epoch, those before a resume included.
        trials: Finished runs of a search, in order; empty where the method does not search.
    """

    step: int
    total_steps: int
    history: tuple[Mapping[str, float], ...]
    trials: tuple[Trial, ...] = ()


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
    """Run the body under ``seed`` and give the caller's random state back afterwards, on every device in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):  # to ask a GPU would start it, also for what runs on the CPU
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
class Part:
    """What one micro-batch gives; the parts of a batch add up to its losses and gradients.

    Attributes:
        values: Scalars, reported as means over an epoch.
        roots: Tensors in the model's graph from which gradients flow back.
        gradients: Of what is minimised by each root; None for a scalar that is itself a summand of it.
    """

    values: Mapping[str, Tensor]
    roots: Sequence[Tensor]
    gradients: Sequence[Tensor | None]


Parts = Callable[[Tensor, Tensor], Iterator[Part]]
"""From a batch of inputs and labels to its parts, each with the graph to the model; one part at a time is kept."""


def micro_batches(images: Tensor, labels: Tensor, config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a batch into what goes through the model at once."""
    sizes = cut_evenly(len(labels), config.micro_batch_size or len(labels))
    yield from zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)


def classification(model: nn.Module, config: Config) -> Parts:
    """Return what is minimised where ``model`` learns the labels and nothing else: cross-entropy."""

    def parts(images: Tensor, labels: Tensor) -> Iterator[Part]:
        for some, theirs in micro_batches(images, labels, config):
            loss = F.cross_entropy(model(some), theirs, reduction="sum") / len(labels)
            yield summed({"loss": loss})

    return parts


def summed(values: Mapping[str, Tensor]) -> Part:
    """Return the part that minimises ``values["loss"]``, a scalar of which the others are components."""
    return Part({name: value.detach() for name, value in values.items()}, [values["loss"]], [None])


def train(
    model: nn.Module,
    data: Batches,
    config: Config,
    parts: Parts,
    *,
    after_step: Callable[[], None] = lambda: None,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Minimise a loss over the epochs of ``data`` that ``config`` asks for.

    Each epoch's randomness depends on seed and epoch alone, so that a run taken up at a checkpoint ends with the same
    weights, to the bit on a CPU. The last epoch's model is what is returned, never the best.

    Args:
        model: Trained in place.
        data: Images to train on, on the device of the model.
        config: Optimiser, schedule, augmentation, seed.
        parts: Of one batch: what is minimised.
        after_step: Called after every optimiser step: brings weights back to where they have to stay.
        progress: Called at the start and after every step.
        checkpoint: Where the state goes after every epoch.

    Returns:
        ``model`` in eval mode.

    Raises:
        NonFiniteLossError: The loss was NaN or infinite in an epoch.
    """
    store = checkpoint or NoCheckpoint()
    optimizers = build_optimizers(model, config)
    state = store.load()
    done, history = _restore(state, model, optimizers) if state else (0, [])
    epochs, steps = data.epochs(config), data.steps(config)
    progress(Progress(done * steps, epochs * steps, tuple(history)))
    for epoch in range(done, epochs):
        torch.manual_seed(config.seed * 1_000_003 + epoch)  # for what draws while training
        history.append(
            _train_epoch(model, data, config, parts, optimizers, after_step, epoch, tuple(history), progress)
        )
        store.save(
            {
                "epoch": epoch + 1,
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "history": history,
            },
            epoch=epoch + 1,
        )
        progress(Progress((epoch + 1) * steps, epochs * steps, tuple(history)))
    return model.eval()


def _train_epoch(
    model: nn.Module,
    data: Batches,
    config: Config,
    parts: Parts,
    optimizers: Sequence[torch.optim.Optimizer],
    after_step: Callable[[], None],
    epoch: int,
    history: tuple[Mapping[str, float], ...],
    progress: ProgressCallback,
) -> dict[str, float]:
    model.train()
    epochs, steps = data.epochs(config), data.steps(config)
    sums: dict[str, Tensor] = {}
    for number, (images, labels) in enumerate(data.shuffled(config, epoch=epoch)):
        set_rates(optimizers, rate_share(config.schedule, epoch * steps + number, steps=steps, epochs=epochs))
        for name, value in take_step(optimizers, parts(images, labels)).items():
            kept = value * len(labels)
            sums[name] = sums[name] + kept if name in sums else kept
        after_step()
        progress(Progress(epoch * steps + number + 1, epochs * steps, history))
    means = {name: float(total) / len(data) for name, total in sums.items()}
    if not all(math.isfinite(mean) for mean in means.values()):
        raise NonFiniteLossError(
            f"The loss became NaN or infinite in epoch {epoch + 1} of {epochs}: lower learning_rate."
        )
    return {"epoch": epoch + 1, **means}


def take_step(optimizers: Sequence[torch.optim.Optimizer], parts: Iterator[Part]) -> dict[str, Tensor]:
    """Take one optimiser step on the parts of a batch, and return the sum of their values."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    values: dict[str, Tensor] = {}
    for part in parts:
        torch.autograd.backward(part.roots, part.gradients)
        for name, value in part.values.items():
            values[name] = values[name] + value.detach() if name in values else value.detach()
        del part  # before the next is made: together they would need the memory of both
    for optimizer in optimizers:
        optimizer.step()
    return values


def _restore(
    state: State, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[int, list[Mapping[str, float]]]:
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return int(state["epoch"]), list(state["history"])
