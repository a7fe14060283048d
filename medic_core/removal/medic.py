"""Importance-driven cloning, Algorithm 1 of the MEDIC paper (CVPR 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.activations import (
    Layers,
    Recorded,
    Statistics,
    channel_axis,
    is_map,
    layer_statistics,
    record_outputs,
    select_layers,
)
from medic_core.architectures import authors_layers
from medic_core.config import CloningConfig, MedicConfig, Preprocessing
from medic_core.corruption import Waves, add_noise, distort, exchanged, foreign_parts, leading_waves
from medic_core.data import STATISTICS_EPOCH, Batches
from medic_core.folding import fold_normalizations
from medic_core.importance import cloning_loss, layer_importance
from medic_core.removal.training import (
    Checkpoint,
    Part,
    ProgressCallback,
    micro_batches,
    seeded,
    silent,
    train,
    without_dropout,
)
from medic_core.suspect import Suspect


def clone_by_importance(
    suspect: Suspect,
    clean: Batches,
    config: MedicConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Train a fresh copy of ``suspect`` to repeat only what clean data makes important."""
    with seeded(config.seed):
        cloning = prepare_cloning(suspect, clean, config)
        with without_dropout(cloning.clone):
            return train(cloning.clone, clean, config, cloning.parts, progress=progress, checkpoint=checkpoint)


def prepare_cloning(suspect: Suspect, clean: Batches, config: MedicConfig) -> Cloning:
    """Build the untrained clone and measure the suspect (Algorithm 1, lines 1 and 2)."""
    device, memory_format = clean.images.device, torch.channels_last  # the faster one on CPU and GPU
    clone = suspect.architecture.build()  # never a reset copy: it could carry weights over
    clone = clone.to(device).to(memory_format=memory_format)
    teacher = suspect.frozen(device)
    layers = layers_to_clone(suspect, clean, config)
    batches = clean.shuffled(config, epoch=STATISTICS_EPOCH)
    statistics = layer_statistics(teacher, layers, batches, kind=config.statistics)
    teacher = fold_normalizations(teacher, next(clean.in_order(batch_size=2))[0], keep=layers.names)
    waves = waves_for(teacher, clean) if config.corruption else None
    return Cloning(teacher, clone, layers, statistics, waves, clean.preprocessing, config)


def waves_for(teacher: nn.Module, clean: Batches) -> Waves:
    """Ask the suspect, with 16 of the images, which waves its clone has to be shown most."""
    some = clean.select(torch.randperm(len(clean))[:16])
    images, _ = next(some.in_order())
    return leading_waves(teacher, images, clean.preprocessing, alive=clean.alive)


@dataclass(frozen=True)
class Cloning:
    """A frozen suspect that teaches, a clone that learns, and what decides how."""

    teacher: nn.Module
    clone: nn.Module
    layers: Layers
    statistics: Mapping[str, Statistics]
    waves: Waves | None
    preprocessing: Preprocessing
    config: MedicConfig

    def parts(self, images: Tensor, labels: Tensor) -> Iterator[Part]:
        """Yield the losses of a batch, one micro-batch at a time (Algorithm 1, lines 5 to 7)."""
        for some, known in micro_batches(images, labels, self.config):
            yield self._part(some, known, self.shown_to_clone(some), batch=len(labels))

    def shown_to_clone(self, images: Tensor) -> Shown:
        """Corrupt and mix images, as the clone will see them."""
        share, preprocessing = self.config.corruption, self.preprocessing
        whole = len(images) - drawn(len(images), share)
        before, behind = (2 * drawn(count // 2, self.config.mixing) for count in (whole, len(images) - whole))
        mixed = slice(whole - before, whole + behind)
        images = images.clone()  # the suspect goes on seeing them as they are
        if self.waves is not None:
            images[:whole] = add_noise(images[:whole], share, preprocessing)
            images[whole:] = add_noise(distort(images[whole:], self.waves, preprocessing), 1.0, preprocessing)
        foreign = foreign_parts(images[mixed])
        exchange(images[mixed], foreign.to(images.dtype))
        return Shown(images, whole, mixed, foreign)

    def _part(self, images: Tensor, labels: Tensor, shown: Shown, *, batch: int) -> Part:
        """Losses of a micro-batch, divided by ``batch``; the suspect answers to ``images``."""
        config, names = self.config, self.layers.names
        lessons = self._lessons(images, labels, shown.whole, batch=batch)
        mass = self._mass(lessons) * len(images) / batch
        for name, lesson in zip(names, lessons, strict=True):
            shown.mix(lesson, axis=channel_axis(self.teacher.get_submodule(name)))
        forget = config.compare == "after_relu"
        with record_outputs(self.clone, self.layers, forget_rectified=forget) as records:
            classification = shown.cross_entropy(self.clone(shown.images), labels) / batch
        cloned = [_compared(records.pop(name), config) for name in names]
        losses = []
        for name, answer in zip(names, cloned, strict=True):
            lesson = lessons.pop(0)  # popped, so that memory goes as soon as it can
            losses.append(
                cloning_loss(
                    lesson.importance,
                    lesson.taught,
                    answer.detach(),
                    self.statistics[name].std,
                    weight=config.cloning_weight,
                    batch=batch,
                )
            )
        cloning = torch.stack([loss.value for loss in losses]).sum()
        values = {
            "loss": classification.detach() + config.cloning_weight * cloning,
            "classification_loss": classification.detach(),
            "cloning_loss": cloning,
            "importance_mass": mass,  # without normalisation it falls as τ grows: so does λ
        }
        return Part(values, [classification, *cloned], [None, *(loss.gradient for loss in losses)])

    def _mass(self, lessons: Sequence[Lesson]) -> Tensor:
        """Mean over samples and layers of what a sample's importance sums to."""
        weights = [lesson.importance for lesson in lessons]
        if self.config.normalize_importance:
            return weights[0].new_ones(())
        return torch.stack([each.sum() for each in weights]).sum() / sum(map(len, weights))

    def _lessons(self, images: Tensor, labels: Tensor, whole: int, *, batch: int) -> list[Lesson]:
        """Let the suspect teach the last layer to run what it says of all images, the others what of the first."""
        lessons = self._ask_teacher(images[:whole], labels[:whole], self.layers, batch=batch)
        if whole < len(images):
            (more,) = self._ask_teacher(images[whole:], labels[whole:], self.layers.last_alone(), batch=batch)
            last = self.layers.names.index(self.layers.last)
            lessons[last] = lessons[last].joined(more)
        return lessons

    def _ask_teacher(self, images: Tensor, labels: Tensor, layers: Layers, *, batch: int) -> list[Lesson]:
        """Let the suspect answer, and keep of every layer only what the clone is compared with, and how weighed."""
        config, names = self.config, layers.names
        gradient = config.criteria != "activation"  # which needs no graph
        inputs = images.detach().requires_grad_(gradient)  # where the graph starts: the parameters are frozen
        with torch.set_grad_enabled(gradient), record_outputs(self.teacher, layers) as records:
            logits = self.teacher(inputs)
        compared = [_compared(records[name], config) for name in names]
        gradients = self._gradients(logits, labels, compared, batch=batch) if gradient else [None] * len(names)
        lessons: list[Lesson] = []
        for name, taught in zip(names, compared, strict=True):
            importance = layer_importance(
                records.pop(name).output.detach(),  # popped, so that memory goes as soon as it can
                gradients.pop(0),
                self.statistics[name],
                temperature=config.temperature,
                impact=config.impact,
                normalize=config.normalize_importance,
                impact_alone=config.criteria == "impact",
            )
            shared = any(taught.data_ptr() == lesson.taught.data_ptr() for lesson in lessons)  # by nested modules
            lessons.append(Lesson(taught.detach().clone() if shared else taught.detach(), importance))
        return lessons

    def _gradients(self, logits: Tensor, labels: Tensor, at: Sequence[Tensor], *, batch: int) -> list[Tensor | None]:
        """Of the suspect's loss, at what it put out."""
        loss = F.cross_entropy(logits, labels, reduction="sum")
        if self.config.gradient == "batch_mean":
            loss = loss / batch
        return list(torch.autograd.grad(loss, at, materialize_grads=True))


@dataclass(frozen=True)
class Lesson:
    """What the suspect teaches at one layer: its output where the two are compared, and how much each neuron counts.

    Both are tensors of their own, to be overwritten.
    """

    taught: Tensor
    importance: Tensor

    def joined(self, other: Lesson) -> Lesson:
        """Return what is taught of these images and of others behind them."""
        return Lesson(torch.cat([self.taught, other.taught]), torch.cat([self.importance, other.importance]))


@dataclass(frozen=True)
class Shown:
    """Images as the clone sees them: first those that are noisy in places at most, then those that are distorted.

    The last of the former and the first of the latter are mixed: each shows a part of its neighbour, with which it
    makes a pair. How many they are is known without looking at the device.

    Attributes:
        images: ``(b, 3, height, width)``.
        whole: How many are not distorted; they are compared at all layers.
        mixed: Which are mixed; an even number.
        foreign: ``(m, 1, height, width)``, true where the mixed ones show their neighbour.
    """

    images: Tensor
    whole: int
    mixed: slice
    foreign: Tensor

    def mix(self, lesson: Lesson, *, axis: int) -> None:
        """Teach of mixed images, where they show their neighbour, what the suspect says of that one.

        A position of a map belongs to the image of which most of it is. A layer that is no map of the image, or of one
        position only, teaches nothing of a mixed image.

        Args:
            lesson: Overwritten.
            axis: Of the layer's channels: where they come last, there is no map.
        """
        taught, importance, foreign = lesson.taught, lesson.importance, self.foreign
        if axis != 1 or not is_map(taught.shape, foreign.shape):
            importance[self.mixed] = 0
        elif len(foreign):
            inside, (rows, columns) = foreign.to(taught.dtype), taught.shape[2:]
            if foreign.shape[2:] != (rows, columns):
                inside = (F.adaptive_avg_pool2d(inside, (rows, columns)) > 0.5).to(taught.dtype)
            exchange(taught[self.mixed], inside)
            exchange(importance[self.mixed], inside)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum the cross-entropy over images, of both labels by area where a part shows the neighbour."""
        own = F.cross_entropy(logits, labels, reduction="sum")
        if not len(self.foreign):
            return own
        some, known = logits[self.mixed], labels[self.mixed]
        areas = self.foreign.to(logits.dtype).mean(dim=(1, 2, 3))
        mine, other = (F.cross_entropy(some, each, reduction="none") for each in (known, exchanged(known)))
        return own + (areas * (other - mine)).sum()


def drawn(count: int, share: float) -> int:
    """Return a number, ``share`` of ``count`` on average and next to it; from the random state of the CPU."""
    return math.floor(share * count + float(torch.rand(1).numpy()[0]))  # on the CPU: no device is asked


def exchange(values: Tensor, inside: Tensor) -> None:
    """Put in what neighbours have.

    Args:
        values: Of mixed images, or of the first of them, in pairs, ``(m, …)``; overwritten.
        inside: 1 where they get it, else 0, ``(m, …)``, of the same type: a step between two numbers is faster than a
            choice, and exact at its ends.
    """
    inside = inside[: len(values)]
    first, second = values[::2], values[1::2]
    mixed = first.lerp(second, inside[::2])
    second.lerp_(first, inside[1::2])
    first.copy_(mixed)


def layers_to_clone(suspect: Suspect, clean: Batches, config: CloningConfig) -> Layers:
    """Resolve ``config.layers`` to layers of the suspect.

    Raises:
        LayerNotFoundError: Listing everything that was chosen and cannot be recorded.
    """
    images, _ = next(clean.in_order(batch_size=2))
    model = suspect.frozen().to(images.device)
    authors = authors_layers(suspect.architecture, model)
    return select_layers(model, config.layers, authors=authors, images=images)


def _compared(record: Recorded, config: MedicConfig) -> Tensor:
    """The tensor of a layer that is compared, and at which the teacher's gradient is read.

    Note:
        In the authors' network a ReLU rewrites the recorded output in place, so that their code compares after it.
    """
    if config.compare == "after_relu" and record.rectified is not None:
        return record.rectified
    return record.output
