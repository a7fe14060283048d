"""Algorithm 1 written out with ordinary operations, for wide ResNets: what the fast code is tested and timed against.

Nothing here is fast or shared with ``medic_core.importance`` and ``medic_core.activations``: every quantity is computed
as its definition says, and autograd finds the gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.config import CloningConfig, MedicConfig
from medic_core.removal.medic import Shown


@dataclass(frozen=True)
class Observed:
    """One forward pass: each layer's output, what a ReLU made of it, and the logits."""

    output: Mapping[str, Tensor]
    rectified: Mapping[str, Tensor]
    logits: Tensor


def observe(model: nn.Module, images: Tensor) -> Observed:
    """Run a ``WideResNet`` layer by layer."""
    output: dict[str, Tensor] = {}
    rectified: dict[str, Tensor] = {}

    def layer(name: str, features: Tensor, *, relu: bool = False) -> Tensor:
        output[name] = model.get_submodule(name)(features)
        if relu:
            rectified[name] = output[name].clamp(min=0)
            return rectified[name]
        return output[name]

    features = layer("conv1", images)
    for block in (name.removesuffix(".conv1") for name, _ in model.named_modules() if name.endswith(".conv1")):
        active = layer(f"{block}.bn1", features, relu=True)
        wider = model.get_submodule(block).convShortcut is not None
        shortcut = layer(f"{block}.convShortcut", active) if wider else features
        inner = layer(f"{block}.bn2", layer(f"{block}.conv1", active), relu=True)
        features = shortcut + layer(f"{block}.conv2", inner)
    features = layer("bn1", features, relu=True)
    return Observed(output, rectified, layer("fc", features.mean(dim=(2, 3))))


def layers_of(model: nn.Module, config: CloningConfig) -> list[str]:
    """Name the layers that the kinds in ``config.layers`` stand for in a ``WideResNet``."""
    kinds = {
        "convolution": [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)],
        "normalization": [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)],
        "linear": ["fc"],
    }
    kinds["feature_maps"] = kinds["normalization"]
    everything = kinds["convolution"] + kinds["normalization"]
    kinds["authors"] = [name for name in everything if "convShortcut" not in name and name != "bn1"]
    picked = {name for kind in config.layers for name in kinds[kind]}
    return [name for name, _ in model.named_modules() if name in picked]


@dataclass(frozen=True)
class Spread:
    """μ and σ of one layer, and the ε beside σ where the activation is standardised."""

    mean: Tensor
    sigma: Tensor
    epsilon: float = 1e-5


def spreads(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], config: CloningConfig) -> dict[str, Spread]:
    """Measure every layer of the suspect (Algorithm 1, line 2)."""
    with torch.no_grad():
        passes = [(len(images), observe(model, images).output) for images, _ in batches]
    return {name: _spread([(size, output[name]) for size, output in passes], config) for name in passes[0][1]}


def _spread(passes: Sequence[tuple[int, Tensor]], config: CloningConfig) -> Spread:
    if config.statistics == "per_neuron":
        everything = torch.cat([output for _, output in passes])
        return Spread(everything.mean(0), (everything.var(0, correction=0) + 1e-5).sqrt())
    passes = passes[:101]
    count = 1e-5 + sum(size for size, _ in passes)
    over = [dim for dim in range(passes[0][1].dim()) if dim != 1]
    means = torch.stack([size * output.mean(over) for size, output in passes])
    variances = torch.stack([size * output.var(over) for size, output in passes])
    shape = [-1] + [1] * (passes[0][1].dim() - 2)
    return Spread((means.sum(0) / count).view(shape), ((1 + variances.sum(0)) / count).sqrt().view(shape))


def importance(output: Tensor, gradient: Tensor, spread: Spread, config: MedicConfig) -> Tensor:
    """Weigh the neurons of each sample (Eq. 2 to 4), ``(batch, *neurons)``."""
    fires = (config.temperature * (output - spread.mean) / (spread.sigma + spread.epsilon)).flatten(1)
    impact = (gradient * spread.sigma).flatten(1)
    if config.impact != "signed":
        impact = impact.abs()
    if config.impact == "relative":
        mean = impact.mean(dim=1, keepdim=True)
        impact = torch.where(mean > 0, impact / mean, impact)
    fires, matters = fires.softmax(dim=1), (config.temperature * impact).softmax(dim=1)
    weights = {"both": (fires * matters).sqrt(), "activation": fires, "impact": matters}[config.criteria]
    if config.normalize_importance:
        weights = weights / weights.sum(dim=1, keepdim=True)
    return weights.view_as(output)


def losses(
    suspect: nn.Module,
    clone: nn.Module,
    images: Tensor,
    shown: Shown,
    labels: Tensor,
    spread: Mapping[str, Spread],
    config: MedicConfig,
    *,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """Return classification and cloning loss of one batch, with the graph to the clone.

    Args:
        suspect: In eval mode.
        clone: In training mode.
        images: As the suspect sees them.
        shown: As the clone sees them.
        labels: True classes.
        spread: Of every layer of the suspect.
        config: Of the cloning.
        batch: Images of the whole batch, of which these may be a part: what sums are divided by.
    """
    taught, answer = observe(suspect, images.detach().requires_grad_()), observe(clone, shown.images)
    own = F.cross_entropy(taught.logits, labels, reduction="sum")
    if config.gradient == "batch_mean":
        own = own / batch
    names = layers_of(suspect, config)
    lessons, replies = ([_compared(each, name, config) for name in names] for each in (taught, answer))
    gradients = torch.autograd.grad(own, lessons, materialize_grads=True)
    last = [name for name in taught.output if name in names][-1]  # to run
    cloning = answer.logits.new_zeros(())
    for name, lesson, reply, gradient in zip(names, lessons, replies, gradients, strict=True):
        weights = importance(taught.output[name], gradient, spread[name], config).detach()
        aim, weights = mixed(lesson.detach(), shown), mixed(weights, shown, elsewhere=0.0)
        if name != last:
            weights[shown.whole :] = 0
        distance = ((aim - reply) / spread[name].sigma).square()
        cloning = cloning + (weights * distance).sum() / batch
    return _classification(answer.logits, labels, shown).sum() / batch, cloning


def mixed(values: Tensor, shown: Shown, elsewhere: float | None = None) -> Tensor:
    """Put in what belongs to the neighbour, image by image and position by position.

    Args:
        values: Of one layer, ``(batch, *neurons)``.
        shown: Which images show their neighbour, and where.
        elsewhere: What becomes of a mixed image where the layer has no positions; None: it stays.
    """
    found = values.clone()
    for number, neighbour, part in _pairs(shown):
        if values.dim() == 4 and values[0, 0].numel() > 1:
            rows, columns = values.shape[2:]  # each position lies over as many pixels
            under = part.to(values.dtype).view(rows, len(part) // rows, columns, part.shape[1] // columns)
            found[number] = torch.where(under.mean(dim=(1, 3)) > 0.5, values[neighbour], values[number])
        elif elsewhere is not None:
            found[number] = elsewhere
    return found


def _pairs(shown: Shown) -> Iterator[tuple[int, int, Tensor]]:
    """Each mixed image, its neighbour, and where it shows that one."""
    first = shown.mixed.start
    for place, part in enumerate(shown.foreign[:, 0]):
        yield first + place, first + place + (1 if place % 2 == 0 else -1), part


def _classification(logits: Tensor, labels: Tensor, shown: Shown) -> Tensor:
    """Cross-entropy, of both labels by their share of the area."""
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    plain = targets.clone()
    for number, neighbour, part in _pairs(shown):
        share = part.to(logits.dtype).mean()
        targets[number] = (1 - share) * plain[number] + share * plain[neighbour]
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1)


def _compared(observed: Observed, name: str, config: CloningConfig) -> Tensor:
    after_relu = config.compare == "after_relu" and name in observed.rectified
    return observed.rectified[name] if after_relu else observed.output[name]
