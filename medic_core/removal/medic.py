"""Importance-driven cloning, Algorithm 1 of the MEDIC paper (CVPR 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.activations import Layers, Recorded, Statistics, is_map, layer_statistics, record_outputs, select_layers
from medic_core.architectures import authors_layers
from medic_core.config import CloningConfig, MedicConfig, Preprocessing
from medic_core.corruption import Waves, corrupt, exchange, exchanged, foreign_parts, leading_waves
from medic_core.data import STATISTICS_EPOCH, Batches, cut_evenly, cut_in_pairs
from medic_core.folding import fold_normalizations
from medic_core.importance import cloning_loss, layer_importance
from medic_core.removal.training import Checkpoint, Part, ProgressCallback, seeded, silent, train, without_dropout
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
    return leading_waves(teacher, images, clean.preprocessing)


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
        seen, foreign = self.shown_to_clone(images)
        cut = cut_in_pairs if len(foreign) else cut_evenly
        begin = 0
        for size in cut(len(labels), self.config.micro_batch_size or len(labels)):
            here = slice(begin, begin + size)
            yield self._part(images[here], seen[here], labels[here], foreign[here], batch=len(labels))
            begin += size

    def shown_to_clone(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images as the clone sees them, and where the first of them show their neighbour."""
        config = self.config
        if self.waves is not None:
            images = corrupt(images, config.corruption, self.waves, self.preprocessing)
        foreign = foreign_parts(images, config.mixing)
        return exchange(images, foreign) if len(foreign) else images, foreign

    def _part(self, images: Tensor, seen: Tensor, labels: Tensor, foreign: Tensor, *, batch: int) -> Part:
        """Losses of a micro-batch, divided by ``batch``; the suspect answers to ``images``, the clone to ``seen``."""
        config, names = self.config, self.layers.names
        lessons = self._ask_teacher(images, labels, batch=batch)
        if config.normalize_importance:
            mass = images.new_full((), len(images) / batch)
        else:
            mass = torch.stack([lesson.importance.sum() for lesson in lessons]).mean() / batch
        forget = config.compare == "after_relu"
        if len(foreign):
            lessons = [mixed_lesson(lesson, foreign) for lesson in lessons]
        with record_outputs(self.clone, self.layers, forget_rectified=forget) as records:
            classification = mixed_cross_entropy(self.clone(seen), labels, foreign) / batch
        cloned = [_compared(records.pop(name), config) for name in names]
        losses = [
            cloning_loss(
                lesson.importance,
                lesson.taught,
                answer.detach(),
                self.statistics[name].std,
                weight=config.cloning_weight,
                batch=batch,
            )
            for name, lesson, answer in zip(names, lessons, cloned, strict=True)
        ]
        cloning = torch.stack([loss.value for loss in losses]).sum()
        values = {
            "loss": classification.detach() + config.cloning_weight * cloning,
            "classification_loss": classification.detach(),
            "cloning_loss": cloning,
            "importance_mass": mass,  # without normalisation it falls as τ grows: so does λ
        }
        return Part(values, [classification, *cloned], [None, *(loss.gradient for loss in losses)])

    def _ask_teacher(self, images: Tensor, labels: Tensor, *, batch: int) -> list[Lesson]:
        """Let the suspect answer, and keep of every layer only what the clone is compared with, and how weighed."""
        config, names = self.config, self.layers.names
        gradient = config.criteria != "activation"  # which needs no graph
        inputs = images.detach().requires_grad_(gradient)  # where the graph starts: the parameters are frozen
        with torch.set_grad_enabled(gradient), record_outputs(self.teacher, self.layers) as records:
            logits = self.teacher(inputs)
        compared = [_compared(records[name], config) for name in names]
        gradients = self._gradients(logits, labels, compared, batch=batch) if gradient else [None] * len(names)
        lessons = []
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
            lessons.append(Lesson(taught.detach(), importance))
        return lessons

    def _gradients(self, logits: Tensor, labels: Tensor, at: Sequence[Tensor], *, batch: int) -> list[Tensor | None]:
        """Of the suspect's loss, at what it put out."""
        loss = F.cross_entropy(logits, labels, reduction="sum")
        if self.config.gradient == "batch_mean":
            loss = loss / batch
        return list(torch.autograd.grad(loss, at, materialize_grads=True))


@dataclass(frozen=True)
class Lesson:
    """What the suspect teaches at one layer: its output where the two are compared, and how much each neuron counts."""

    taught: Tensor
    importance: Tensor


def mixed_lesson(lesson: Lesson, foreign: Tensor) -> Lesson:
    """Return what the suspect says of images that show their neighbour in part: there it is what it says of that one.

    A position of a map belongs to the image of which most of it is. A layer that is no map of the image, or of one
    position only, teaches nothing of a mixed image.

    Args:
        lesson: Of the images as they are.
        foreign: ``(k, 1, height, width)``, true where the neighbour is shown by the first ``k`` images; one at least.
    """
    taught, importance = lesson.taught, lesson.importance
    if not is_map(taught.shape, foreign.shape):
        unmixed = (torch.arange(len(taught), device=taught.device) >= len(foreign)).to(importance.dtype)
        return Lesson(taught, importance * unmixed.view(-1, *[1] * (importance.dim() - 1)))
    rows, columns = taught.shape[2:]
    inside = F.adaptive_avg_pool2d(foreign.to(taught.dtype), (rows, columns)) > 0.5
    return Lesson(exchange(taught, inside), exchange(importance, inside))


def mixed_cross_entropy(logits: Tensor, labels: Tensor, foreign: Tensor) -> Tensor:
    """Sum the cross-entropy over images, of both labels by area where a part shows the neighbour."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    own, rest = losses.tensor_split([len(foreign)])
    other = F.cross_entropy(logits[: len(foreign)], exchanged(labels[: len(foreign)]), reduction="none")
    area = foreign.to(logits.dtype).mean(dim=(1, 2, 3))
    return torch.lerp(own, other, area).sum() + rest.sum()


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
