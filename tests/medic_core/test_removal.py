"""The contract that every removal method keeps, and Algorithm 1 held against a transcription of its definition."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.architectures import find_architecture
from medic_core.config import MedicConfig, RemovalConfig, ScratchConfig, expand_preset
from medic_core.data import STATISTICS_EPOCH, Batches
from medic_core.errors import DataTooSmallError, LayerNotFoundError, NonFiniteLossError
from medic_core.removal import Progress, Suspect, remove_backdoor
from medic_core.removal.training import State, cosine_rate, seeded, without_dropout

ONE_EPOCH: tuple[RemovalConfig, ...] = (MedicConfig(epochs=1, batch_size=8), ScratchConfig(epochs=1, batch_size=8))
each_method = pytest.mark.parametrize("config", ONE_EPOCH, ids=lambda config: config.method)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_every_method_is_held_to_the_contract() -> None:
    assert {type(config) for config in ONE_EPOCH} == set(get_args(RemovalConfig))


@each_method
def test_repeats_itself_and_leaves_suspect_and_random_state_alone(
    config: RemovalConfig, suspect: Suspect, clean: Batches
) -> None:
    suspect.model.train()  # also the mode is the caller's
    before, flags = weights(suspect.model), [p.requires_grad for p in suspect.model.parameters()]
    images, state = clean.images.clone(), torch.get_rng_state()
    first = remove_backdoor(suspect, clean, config)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    second = remove_backdoor(suspect, clean, config)
    assert same(weights(first), weights(second))
    assert same(before, weights(suspect.model))
    assert suspect.model.training
    assert flags == [p.requires_grad for p in suspect.model.parameters()]
    assert torch.equal(images, clean.images)
    assert not first.training
    assert {p.data_ptr() for p in first.parameters()}.isdisjoint({p.data_ptr() for p in suspect.model.parameters()})


@each_method
def test_another_seed_gives_other_weights(config: RemovalConfig, suspect: Suspect, clean: Batches) -> None:
    other = dataclasses.replace(config, seed=1)
    assert not same(weights(remove_backdoor(suspect, clean, config)), weights(remove_backdoor(suspect, clean, other)))


class Killed(Exception):  # noqa: N818 - it stands for a kill, not an error
    """The process ends here."""


class Kept:
    """A checkpoint in memory that may end the process after an epoch."""

    def __init__(self, *, killed_after: int | None = None) -> None:
        self.state: State | None = None
        self.saved: list[int] = []
        self._killed_after = killed_after

    def load(self) -> State | None:
        return self.state

    def save(self, state: State, *, epoch: int) -> None:
        self.state = copy.deepcopy(state)
        self.saved.append(epoch)
        if epoch == self._killed_after:
            self._killed_after = None
            raise Killed


@pytest.mark.parametrize("killed_after", [1, 2, 3])
@each_method
def test_a_run_taken_up_ends_with_the_same_weights_and_metrics(
    config: RemovalConfig, killed_after: int, suspect: Suspect, clean: Batches
) -> None:
    config = dataclasses.replace(config, epochs=3)
    seen: list[Progress] = []
    undisturbed = remove_backdoor(suspect, clean, config, progress=seen.append)
    history = seen[-1].history
    kept = Kept(killed_after=killed_after)
    with pytest.raises(Killed):
        remove_backdoor(suspect, clean, config, checkpoint=kept)
    seen.clear()
    resumed = remove_backdoor(suspect, clean, config, progress=seen.append, checkpoint=kept)
    assert same(weights(undisturbed), weights(resumed))
    assert seen[-1].history == history
    assert len(history) == 3
    assert kept.saved == [1, 2, 3]  # no epoch ran twice
    assert seen[0].step == killed_after * clean.steps(config)


@each_method
def test_progress_counts_every_step(config: RemovalConfig, suspect: Suspect, clean: Batches) -> None:
    seen: list[Progress] = []
    remove_backdoor(suspect, clean, config, progress=seen.append)
    total = config.epochs * clean.steps(config)
    assert [each.step for each in seen] == [0, *range(1, total + 1), total]
    assert {each.total_steps for each in seen} == {total}


@each_method
def test_a_loss_that_is_not_finite_is_an_error(config: RemovalConfig, suspect: Suspect, clean: Batches) -> None:
    broken = dataclasses.replace(clean, preprocessing=dataclasses.replace(clean.preprocessing, mean=(math.nan,) * 3))
    with pytest.raises(NonFiniteLossError):
        remove_backdoor(suspect, broken, config)


def test_too_few_images_are_refused(suspect: Suspect, clean: Batches) -> None:
    with pytest.raises(DataTooSmallError):
        remove_backdoor(suspect, clean.select(torch.tensor([0])), ONE_EPOCH[0])


def test_a_layer_chosen_by_name_must_exist(suspect: Suspect, clean: Batches) -> None:
    with pytest.raises(LayerNotFoundError, match="nowhere"):
        remove_backdoor(suspect, clean, MedicConfig(layers=("nowhere",)))


def test_dropout_is_off_while_cloning_and_back_afterwards(clean: Batches) -> None:
    architecture = find_architecture("medic/wide_resnet10_1", num_classes=3, options={"dropout": 0.5})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        suspect = Suspect(architecture.build().eval(), architecture)
    plain = Suspect(suspect.model, find_architecture("medic/wide_resnet10_1", num_classes=3))
    with_dropout = remove_backdoor(suspect, clean, ONE_EPOCH[0])
    assert same(weights(with_dropout), weights(remove_backdoor(plain, clean, ONE_EPOCH[0])))
    assert {module.p for module in with_dropout.modules() if isinstance(module, nn.Dropout)} == {0.5}


def test_dropout_comes_back_also_after_an_error() -> None:
    layer = nn.Dropout(0.3)

    def fail() -> None:
        assert layer.p == 0.0
        raise Killed

    with pytest.raises(Killed), without_dropout(nn.Sequential(layer)):
        fail()
    assert layer.p == 0.3


def test_the_learning_rate_falls_by_half_a_cosine_per_epoch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for epoch in range(7):
        assert math.isclose(cosine_rate(0.01, epoch, 7), optimizer.param_groups[0]["lr"], rel_tol=1e-9)
        optimizer.step()
        scheduler.step()


# --- Algorithm 1, written out for a WRN-10-1 with its ReLUs by hand ---------------------------------------------------


def outputs_by_hand(model: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Every layer's output, what a ReLU made of it, and the logits."""
    output: dict[str, Tensor] = {}
    rectified: dict[str, Tensor] = {}

    def layer(name: str, features: Tensor, *, relu: bool = False) -> Tensor:
        output[name] = model.get_submodule(name)(features)
        if relu:
            rectified[name] = output[name].clamp(min=0)
            return rectified[name]
        return output[name]

    features = layer("conv1", images)
    for group in ("block1", "block2", "block3"):
        block = f"{group}.layer.0"
        active = layer(f"{block}.bn1", features, relu=True)
        wider = model.get_submodule(block).convShortcut is not None
        shortcut = layer(f"{block}.convShortcut", active) if wider else features
        inner = layer(f"{block}.bn2", layer(f"{block}.conv1", active), relu=True)
        features = shortcut + layer(f"{block}.conv2", inner)
    features = layer("bn1", features, relu=True)
    return output, rectified, layer("fc", features.mean(dim=(2, 3)))


def loss_by_hand(suspect: Suspect, clean: Batches, config: MedicConfig, layers: set[str]) -> tuple[float, float]:
    """Classification and cloning loss of the first batch, by ALGORITHM's rows for the two presets."""
    authors = config.preset == "authors"
    with torch.no_grad():
        passes = [
            (len(images), outputs_by_hand(suspect.model, images)[0])
            for images, _ in clean.shuffled(config, epoch=STATISTICS_EPOCH)
        ]
    images, labels = next(clean.shuffled(config, epoch=0))
    taught, taught_relu, logits = outputs_by_hand(suspect.model, images.requires_grad_())
    with seeded(config.seed):
        clone = suspect.architecture.build().train()
    cloned, cloned_relu, cloned_logits = outputs_by_hand(clone, images.detach())
    total = 0.0
    for name in layers:
        mean, sigma, eps = spread(name, passes, authors=authors)
        after_relu = authors and name in taught_relu
        at = taught_relu[name] if after_relu else taught[name]
        own = F.cross_entropy(logits, labels, reduction="mean" if authors else "sum")
        gradient = torch.autograd.grad(own, at, retain_graph=True, materialize_grads=True)[0]
        impact = sigma * (gradient if authors else gradient.abs())
        for sample in range(len(labels)):
            fires = (config.temperature * (taught[name][sample] - mean) / (sigma + eps)).flatten().softmax(0)
            matters = (config.temperature * impact[sample]).flatten().softmax(0)
            shown = (taught_relu[name], cloned_relu[name]) if after_relu else (taught[name], cloned[name])
            distance = ((shown[0][sample] - shown[1][sample]) / sigma).square().flatten()
            total += float(((fires * matters).sqrt() * distance).sum().detach()) / len(labels)
    return float(F.cross_entropy(cloned_logits, labels).detach()), total


def spread(name: str, passes: list[tuple[int, dict[str, Tensor]]], *, authors: bool) -> tuple[Tensor, Tensor, float]:
    if not authors:
        everything = torch.cat([output[name] for _, output in passes])
        return everything.mean(0), (everything.var(0, correction=0) + 1e-5).sqrt(), 1e-5
    count = 1e-5 + sum(size for size, _ in passes)
    over = [dim for dim in range(passes[0][1][name].dim()) if dim != 1]
    mean = sum(size * output[name].mean(over) for size, output in passes) / count
    variance = (1 + sum(size * output[name].var(over) for size, output in passes)) / count
    shape = [-1] + [1] * (passes[0][1][name].dim() - 2)
    return mean.view(shape), variance.sqrt().view(shape), 1e-5


AUTHORS_LAYERS = {"conv1"} | {
    f"block{group}.layer.0.{layer}" for group in (1, 2, 3) for layer in ("bn1", "conv1", "bn2", "conv2")
}
PAPER_LAYERS = AUTHORS_LAYERS | {"block2.layer.0.convShortcut", "block3.layer.0.convShortcut", "bn1", "fc"}


@pytest.mark.parametrize(("preset", "layers"), [("authors", AUTHORS_LAYERS), ("paper", PAPER_LAYERS)])
def test_each_preset_is_algorithm_1_as_written(preset: str, layers: set[str], suspect: Suspect, clean: Batches) -> None:
    chosen = {"preset": preset, "epochs": 1, "batch_size": 64, "temperature": 2.0}
    config = MedicConfig(**expand_preset(chosen))
    seen: list[Progress] = []
    remove_backdoor(suspect, clean, config, progress=seen.append)
    found = seen[-1].history[0]  # one batch: the loss of the untrained clone
    classification, cloning = loss_by_hand(suspect, clean, config, layers)
    assert found["classification_loss"] == pytest.approx(classification, rel=1e-4)
    assert found["cloning_loss"] == pytest.approx(cloning, rel=1e-3)
    assert found["loss"] == pytest.approx(classification + 10 * cloning, rel=1e-3)
